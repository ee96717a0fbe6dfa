"""Pages of mailpool's own, about one row, in the look of the admin."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext

from mailpool.admin.secrecy import SecretiveAdmin


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
        """The row, for somebody who may see it and has *permission*."""
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404(gettext("There is no such entry. Perhaps it was deleted."))
        if not request.user.has_perm(permission):
            raise PermissionDenied
        if not self.has_view_or_change_permission(request, row):
            raise PermissionDenied
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
