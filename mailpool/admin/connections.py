"""The “Connections” page: this process's pool as it is now."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.options import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from mailpool import delivery
from mailpool.models import Credential


class ConnectionsPage(ModelAdmin):  # type: ignore[type-arg]
    """The page, for the admin of servers."""

    def may_view_connections(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("mailpool.view_connections"))

    def may_close_connections(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("mailpool.close_connections"))

    def connections_view(self, request: HttpRequest) -> HttpResponseBase:
        """Show the connections, and close one or all of the idle ones on POST."""
        if not self.may_view_connections(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._close(request)
        stats = delivery.stats()
        owners = Credential.objects.select_related("tenant", "server").in_bulk(
            [info.credential_id for info in stats.sessions if info.credential_id]
        )
        by_id = {str(pk): credential for pk, credential in owners.items()}
        request.current_app = self.admin_site.name
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": _("Connections"),
            "opts": self.opts,
            "stats": stats,
            "rows": [(info, by_id.get(info.credential_id)) for info in stats.sessions],
            "may_close": self.may_close_connections(request),
            "may_view_credentials": request.user.has_perm("mailpool.view_credential"),
        }
        return TemplateResponse(request, "admin/mailpool/connections.html", context)

    def _close(self, request: HttpRequest) -> HttpResponseRedirect:
        if not self.may_close_connections(request):
            raise PermissionDenied
        closed = delivery.close_connections(session_id=request.POST.get("session") or None)
        text = ngettext(
            "%(count)d connection was closed, or will be when its message is through.",
            "%(count)d connections were closed, or will be when their messages are through.",
            closed,
        )
        self.message_user(request, text % {"count": closed}, messages.SUCCESS)
        return HttpResponseRedirect(request.path)
