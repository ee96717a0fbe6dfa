"""Pages of mailpool's own, about one row, in the look of the admin."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse

from mailpool.admin.secrecy import SecretiveAdmin

View = TypeVar("View", bound=Callable[..., Any])


class NoPage(Exception):
    """The row with the key *object_id* is gone, or with a *text* about that: it is no such row."""

    def __init__(self, object_id: str, text: str = "") -> None:
        self.object_id, self.text = object_id, text
        super().__init__(object_id, text)


def about_a_row(view: View) -> View:
    """For a page about one row. Where there is none, somebody has changed or deleted the row: a
    warning on the row's page says so, or on the admin's first, as of Django's own pages, and never
    a bare “Not Found”."""

    @wraps(view)
    def page(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, request, *args, **kwargs)
        except NoPage as error:
            if not error.text:
                return self._get_obj_does_not_exist_redirect(request, self.opts, error.object_id)
            self.message_user(request, error.text, messages.WARNING)
            return HttpResponseRedirect(self.url_to("change", error.object_id))

    return cast("View", page)


def admin_url(site: str | None, page: str, *args: Any, **query: Any) -> str:
    """A page of the admin site called *site*; empty where that does not have it.

    A project may have several, each with some of the models.
    """
    try:
        url = reverse(f"admin:{page}", args=args, current_app=site)
    except NoReverseMatch:
        return ""
    return f"{url}?{urlencode(query)}" if query else url


class OwnPages(SecretiveAdmin):
    """What the pages beside the change form share."""

    change_form_template = "admin/mailpool/change_form.html"

    def row(self, request: HttpRequest, object_id: str, permission: str) -> Any:
        """The row, for somebody who may see it and has *permission*; ``NoPage`` without one.

        Who may not is not told whether it is there.
        """
        if not request.user.has_perm(permission):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if not self.has_view_or_change_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise NoPage(object_id)
        return row

    def page(
        self, request: HttpRequest, row: Any, template: str, context: dict[str, Any]
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "original": row,
                "media": self.media,
                "change_url": self.url_name("change"),
                **context,
            },
        )

    def url_name(self, page: str) -> str:
        return f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"

    def url_to(self, page: str, *args: Any) -> str:
        """Another page of this model, on the same admin site."""
        return reverse(self.url_name(page), args=args, current_app=self.admin_site.name)
