"""“Change host, port or security”: whom stored passwords are presented to, decided by who may."""

from __future__ import annotations

import copy
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest
from django.http.response import HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from mailpool import relocation
from mailpool.admin.acting import as_user
from mailpool.admin.pages import OwnPages, about_a_row
from mailpool.models import MailServer

PERMISSION = "mailpool.move_mailserver"

# Tokens of an application are told to whom passwords are: who decides that has the permission.
FIRST_THERE = _(
    "No account of this OAuth client is at that mail server's address yet. Who may change the "
    "addresses of mail servers can give the first one app-only access there."
)


class AddressForm(forms.ModelForm):  # type: ignore[type-arg]
    """Host, port and security."""

    class Meta:
        model = MailServer
        fields = relocation.ADDRESS

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if cleaned is not None and not self.changed_data:
            raise forms.ValidationError(_("Host, port and security are these already."))
        return cleaned


class MovePage(OwnPages):
    """The page, for the admin of servers; while secrets are stored, the change form shows only."""

    def may_move(self, request: HttpRequest, server: Model | None) -> bool:
        return self.has_change_permission(request, server) and request.user.has_perm(PERMISSION)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = tuple(super().get_readonly_fields(request, obj))
        bound = obj is not None and relocation.at_stake(obj).secrets
        return (*fields, *relocation.ADDRESS) if bound else fields

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_move"
        page = self.admin_site.admin_view(self.move_view)
        return [path("<path:object_id>/move/", page, name=name), *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        server = kwargs.get("obj")
        context["move_url"] = self.url_name("move")
        context["may_move"] = server is not None and self.may_move(request, server)
        return super().render_change_form(request, context, *args, **kwargs)

    @as_user
    @about_a_row
    def move_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Ask for the address, then for a confirmation that names the consequence."""
        server = self.row(request, object_id, PERMISSION)
        if not self.may_move(request, server):
            raise PermissionDenied
        # The form writes what it is given into its instance.
        form = AddressForm(request.POST or None, instance=copy.copy(server))
        valid = form.is_valid()
        if valid and "confirmed" in request.POST:
            return self._move(request, server, form.cleaned_data)
        context = {
            "title": _("Change host, port or security"),
            "form": form,
            "asks_for": form.instance if valid else None,
            "consequence": _consequence(relocation.at_stake(server)),
        }
        return self.page(request, server, "admin/mailpool/move.html", context)

    def _move(
        self, request: HttpRequest, server: MailServer, address: dict[str, Any]
    ) -> HttpResponseRedirect:
        before = f"{server.host}:{server.port}"
        result = relocation.relocate(server, **address)
        after = f"{server.host}:{server.port}"
        self.log_change(
            request,
            server,
            f"Moved from {before} to {after} ({server.security}) with {result.moved} secrets.",
        )
        text = ngettext(
            "%(count)d stored password or key is presented to %(address)s from now on.",
            "%(count)d stored passwords and keys are presented to %(address)s from now on.",
            result.moved,
        )
        self.message_user(
            request, text % {"count": result.moved, "address": after}, messages.SUCCESS
        )
        if result.left:
            text = ngettext(
                "%(count)d did not open and has to be entered again.",
                "%(count)d did not open and have to be entered again.",
                len(result.left),
            )
            self.message_user(request, text % {"count": len(result.left)}, messages.WARNING)
        return HttpResponseRedirect(self.url_to("change", server.pk))


def _consequence(stake: relocation.Stake) -> str:
    """Whose passwords will be presented there."""
    if not stake.secrets:
        return gettext("No password and no key is stored for this server.")
    if not stake.tenants:
        owners = gettext("the site itself")
    elif stake.of_the_site:
        owners = ngettext(
            "%(count)d tenant and the site itself",
            "%(count)d tenants and the site itself",
            stake.tenants,
        )
    else:
        owners = ngettext("%(count)d tenant", "%(count)d tenants", stake.tenants)
    return ngettext(
        "%(count)d stored password or key, of %(owners)s, goes along.",
        "%(count)d stored passwords and keys, of %(owners)s, go along.",
        stake.secrets,
    ) % {"count": stake.secrets, "owners": owners % {"count": stake.tenants}}
