"""“Reset connections” and “Pause”: what is done to a server in every process at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import maintenance, overview
from mailpool.admin.acting import as_user
from mailpool.admin.connections import ConnectionsPage
from mailpool.admin.pages import NoPage, OwnPages, about_a_row
from mailpool.models import MailServer
from mailpool.moments import moment

TEMPLATE = "admin/mailpool/maintenance.html"
PAUSE_PERMISSION = "mailpool.change_mailserver"


class PauseForm(forms.Form):
    """For how long. A pause ends by itself, so none is forgotten."""

    minutes = forms.TypedChoiceField(
        label=_("For how long"),
        coerce=int,
        initial=60,
        choices=[
            (15, _("15 minutes")),
            (60, _("1 hour")),
            (240, _("4 hours")),
            (1440, _("1 day")),
        ],
    )


class MaintenancePages(ConnectionsPage, OwnPages):
    """The pages, for the admin of servers; each asks before it does anything."""

    def get_urls(self) -> list[URLPattern]:
        prefix = f"{self.opts.app_label}_{self.opts.model_name}"
        pages: list[tuple[str, Any, str]] = [
            ("connections/", self.connections_view, "mailpool_connections"),
            ("connections/reset/", self.reset_view, f"{prefix}_reset_all"),
            ("<path:object_id>/reset/", self.reset_view, f"{prefix}_reset"),
            ("<path:object_id>/pause/", self.pause_view, f"{prefix}_pause"),
            ("<path:object_id>/resume/", self.resume_view, f"{prefix}_resume"),
        ]
        own = [path(at, self.admin_site.admin_view(view), name=name) for at, view, name in pages]
        return [*own, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if kwargs.get("obj") is not None:
            context["may_reset"] = self.may_reset(request)
            context["may_pause"] = request.user.has_perm(PAUSE_PERMISSION)
        return super().render_change_form(request, context, *args, **kwargs)

    def may_reset(self, request: HttpRequest) -> bool:
        return self.may_view_connections(request) and self.may_close_connections(request)

    @as_user
    @about_a_row
    def reset_view(self, request: HttpRequest, object_id: str | None = None) -> HttpResponseBase:
        """Ask, then leave behind all connections of one server or of all of them."""
        if not self.may_reset(request):
            raise PermissionDenied
        server = None
        if object_id is not None:
            server = self.get_object(request, unquote(object_id))
            if server is None:
                raise NoPage(object_id)
        if request.method == "POST":
            maintenance.reset(server)
            if server is not None:
                self.log_change(request, server, "Reset its connections.")
            text = _(
                "Connections that were open are not used again. Idle ones of other processes are "
                "closed when these send next."
            )
            self.message_user(request, text, messages.SUCCESS)
            return self._back()
        uses = overview.servers(overview.processes())
        context = {
            "title": _("Reset connections"),
            "action": "reset",
            "use": next((use for use in uses if server and use.server.pk == server.pk), None),
        }
        return self.page(request, server, TEMPLATE, context)

    @as_user
    @about_a_row
    def pause_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Ask for how long, say what comes of it, then pause the server."""
        server = self.row(request, object_id, PAUSE_PERMISSION)
        form = PauseForm(request.POST or None)
        if form.is_valid():
            until = timezone.now() + timedelta(minutes=form.cleaned_data["minutes"])
            maintenance.pause(server, until)
            self.log_change(request, server, f"Paused until {until.isoformat(' ', 'minutes')}.")
            self.message_user(request, _paused(server), messages.SUCCESS)
            return self._back()
        context = {"title": _("Pause"), "action": "pause", "form": form}
        return self.page(request, server, TEMPLATE, context)

    @as_user
    @about_a_row
    def resume_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """End the pause, with one click."""
        server = self.row(request, object_id, PAUSE_PERMISSION)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if server.paused_until is not None:
            maintenance.resume(server)
            self.log_change(request, server, "Resumed.")
        text = gettext("Mail is sent over “%(name)s” again.") % {"name": server.name}
        self.message_user(request, text, messages.SUCCESS)
        return self._back()

    def _back(self) -> HttpResponseRedirect:
        return HttpResponseRedirect(
            reverse("admin:mailpool_connections", current_app=self.admin_site.name)
        )


def _paused(server: MailServer) -> str:
    return gettext("Nothing is sent over “%(name)s” until %(until)s. Resume it here before.") % {
        "name": server.name,
        "until": moment(server.paused_until),
    }
