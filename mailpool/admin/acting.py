"""Who uses the admin is put down with what they do there."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from django.http import HttpRequest

from mailpool import audit
from mailpool.admin.plain import PlainAnswers

View = TypeVar("View", bound=Callable[..., Any])


def as_user(view: View) -> View:
    """For a page of the admin: what it does is done by the request's user."""

    @wraps(view)
    def recorded(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        with audit.acting(request.user, "admin"):
            return view(self, request, *args, **kwargs)

    return cast("View", recorded)


class RecordedAdmin(PlainAnswers):
    """For a ``ModelAdmin`` whose pages change credentials; to be named before it."""

    @as_user
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().changeform_view(request, *args, **kwargs)

    @as_user
    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().changelist_view(request, *args, **kwargs)  # type: ignore[misc]

    @as_user
    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().delete_view(request, *args, **kwargs)  # type: ignore[misc]
