"""The “Connections” page: what all processes have open, and this one's sessions in detail."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.options import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from mailpool import conf, delivery, overview

PROCESSES_PER_PAGE = 25


class ConnectionsPage(ModelAdmin):  # type: ignore[type-arg]
    """The page, for the admin of servers."""

    def may_view_connections(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("mailpool.view_connections"))

    def may_close_connections(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("mailpool.close_connections"))

    def connections_view(self, request: HttpRequest) -> HttpResponseBase:
        """Show the connections, and close one or all of this process's on POST."""
        if not self.may_view_connections(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._close(request)
        stats = delivery.stats()
        processes = overview.processes()
        page = Paginator(processes, PROCESSES_PER_PAGE).get_page(request.GET.get("p"))
        servers = overview.servers(processes)
        by_id = overview.owners(page.object_list)
        newest = {str(use.server.pk): use.server.generation for use in servers}
        request.current_app = self.admin_site.name
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": _("Connections"),
            "opts": self.opts,
            "stats": stats,
            "rows": [(info, by_id.get(info.credential_id)) for info in stats.sessions],
            "page": page,
            "processes": [
                (
                    process,
                    [
                        (
                            account,
                            by_id.get(account.credential_id),
                            account.generation < newest.get(account.server_id, 0),
                        )
                        for account in process.accounts
                    ],
                )
                for process in page.object_list
            ],
            "running": [process for process in processes if not process.is_gone],
            "open": sum(process.open for process in processes),
            "waiting": sum(process.waiting for process in processes),
            "servers": servers,
            "reports": conf.get("REPORT_CONNECTIONS"),
            "may_close": self.may_close_connections(request),
            "may_pause": request.user.has_perm("mailpool.change_mailserver"),
            "may_view_credentials": request.user.has_perm("mailpool.view_credential"),
        }
        return TemplateResponse(request, "admin/mailpool/connections.html", context)

    def _close(self, request: HttpRequest) -> HttpResponseRedirect:
        if not self.may_close_connections(request):
            raise PermissionDenied
        session = request.POST.get("session") or None
        closed = delivery.close_connections(session_id=session)
        if session and not closed:
            text = gettext(
                "Another process answered, or the connection is closed already. To have it closed "
                "wherever it is, reset its server's connections."
            )
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(request.path)
        text = ngettext(
            "%(count)d connection was closed, or will be when its message is through.",
            "%(count)d connections were closed, or will be when their messages are through.",
            closed,
        )
        self.message_user(request, text % {"count": closed}, messages.SUCCESS)
        return HttpResponseRedirect(request.path)
