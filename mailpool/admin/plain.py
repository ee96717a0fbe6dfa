"""What no page of the admin sends is answered in plain words, and not by an error of Django's."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.utils.text import Truncator
from django.utils.translation import gettext


class PlainAnswers:
    """For a ``ModelAdmin``; to be named before it."""

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        # An empty one, which Django looks up as a field, is none.
        return super().get_object(request, object_id, from_field or None)  # type: ignore[misc]

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        # Django does as it says, also where ``save_as`` is off: half of it, as secrets stay behind.
        if "_saveasnew" in request.POST and not self.save_as:  # type: ignore[attr-defined]
            text = gettext("Nothing was saved: this can't be saved as a new one. Add one instead.")
            self.message_user(request, text, messages.ERROR)  # type: ignore[attr-defined]
            return HttpResponseRedirect(request.path)
        return super().changeform_view(request, *args, **kwargs)  # type: ignore[misc]


class PlainFilter(admin.SimpleListFilter):
    """A filter that says so where its value, from an address that somebody wrote, is none."""

    def nothing(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """No row, as none is like that, and why."""
        text = gettext("The filter by %(name)s does not know “%(value)s”, so nothing is shown.")
        value = Truncator(str(self.value())).chars(40)
        messages.warning(request, text % {"name": self.title, "value": value})
        return queryset.none()
