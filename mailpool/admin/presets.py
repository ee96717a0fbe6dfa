"""“Add mail server” begins with the provider: its values fill the form, without any script."""

from __future__ import annotations

from typing import Any, cast

from django.contrib import admin
from django.db.models import Field
from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.text import Truncator

from mailpool.admin.pages import admin_url
from mailpool.models import MailServer, OAuthClient
from mailpool.server_presets import SERVER_PRESETS, ServerPreset, preset_for_address


def _chosen(request: HttpRequest) -> ServerPreset | None:
    """The preset that was clicked on, or that fits the address that was entered."""
    if key := request.GET.get("preset"):
        return SERVER_PRESETS.get(key)
    return preset_for_address(request.GET.get("address", ""))


def _label(name: str) -> Any:
    return cast("Field[Any, Any]", MailServer._meta.get_field(name)).verbose_name


def _free_name(name: str) -> str:
    """*name*, or with a number where a server has it already."""
    taken = set(MailServer.objects.filter(name__istartswith=name).values_list("name", flat=True))
    taken = {each.lower() for each in taken}
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each.lower() not in taken)


class PresetStart(admin.ModelAdmin):  # type: ignore[type-arg]
    """For the admin of servers: the choice above the form of a new one."""

    add_form_template = "admin/mailpool/server_add.html"

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        initial: dict[str, Any] = super().get_changeform_initial_data(request)
        if preset := _chosen(request):
            return {**initial, "name": _free_name(preset.name), **preset.initial()}
        return initial

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if kwargs.get("add"):
            context.update(self._choice(request))
        return super().render_change_form(request, context, *args, **kwargs)

    def _choice(self, request: HttpRequest) -> dict[str, Any]:
        # What a popup or a link has said besides stays said.
        kept: dict[str, Any] = {
            name: value for name, value in request.GET.items() if name not in ("preset", "address")
        }
        chosen = _chosen(request)
        known = chosen and chosen.host and MailServer.objects.filter(tenant=None, host=chosen.host)
        return {
            "presets": [
                (preset, f"?{urlencode({**kept, 'preset': preset.key})}")
                for preset in SERVER_PRESETS.values()
            ],
            "kept": kept,
            "address": request.GET.get("address", ""),
            "preset": chosen,
            "unknown": "" if chosen else Truncator(request.GET.get("preset", "")).chars(40),
            "figures": [
                (_label(name), figure) for name, figure in (chosen.figures if chosen else ())
            ],
            "same_server": known.first() if known else None,
            "oauth_url": self._oauth_url(request, chosen),
        }

    def _oauth_url(self, request: HttpRequest, chosen: ServerPreset | None) -> str:
        """Where the OAuth client for *chosen* is, or is entered; empty if none is needed."""
        if chosen is None or not chosen.oauth_provider:
            return ""
        clients = OAuthClient.objects.filter(provider__startswith=chosen.oauth_provider)
        if clients.exists():
            if request.user.has_perm("mailpool.view_oauthclient"):
                return admin_url(self.admin_site.name, "mailpool_oauthclient_changelist")
        elif request.user.has_perm("mailpool.add_oauthclient"):
            values = {"provider": chosen.oauth_provider, "name": chosen.name}
            return admin_url(self.admin_site.name, "mailpool_oauthclient_add", **values)
        return ""
