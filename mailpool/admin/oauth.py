"""OAuth clients: this site as Google, Microsoft and others know it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.admin.audit import TrailLink
from mailpool.admin.connect import redirect_uri
from mailpool.admin.secrecy import SecretiveAdmin
from mailpool.exceptions import SecretError
from mailpool.models import OAuthClient
from mailpool.moments import moment
from mailpool.vault import get_keyring
from mailpool.vault.fields import SecretFormField, SecretTextarea


class OAuthClientForm(forms.ModelForm):  # type: ignore[type-arg]
    """Takes a client secret, or a service account's key, and never shows one."""

    client_secret = SecretFormField(label=_("Client secret"), required=False)

    class Meta:
        model = OAuthClient
        fields = (
            "name",
            "provider",
            "client_id",
            "client_secret",
            "private_key",
            "authorization_url",
            "token_url",
            "scopes",
        )
        widgets = {"private_key": SecretTextarea()}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        not_set = {
            "client_secret": gettext("Not set. It is stored encrypted and never shown again."),
            "private_key": gettext(
                "Not set. Paste the whole JSON key file, or the private key in PEM form and the "
                "service account's address (client_email) as client ID. It is stored encrypted "
                "and never shown again."
            ),
        }
        for name in not_set.keys() & self.fields.keys():
            self.fields[name].help_text = self._set_on(name) or not_set[name]

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if cleaned is None:
            return None
        for name in ("client_secret", "private_key"):
            if cleaned.get(name):
                try:
                    get_keyring().newest  # noqa: B018
                except SecretError as error:
                    self.add_error(name, str(error))
        changed = {"token_url", "client_id"}.intersection(self.changed_data)
        if (
            "token_url" in changed
            and self.instance.has_client_secret
            and not cleaned.get("client_secret")
        ):
            self.add_error(
                "client_secret",
                _("Enter the client secret again: the stored one is for the former token URL."),
            )
        if changed and self.instance.has_private_key and not cleaned.get("private_key"):
            self.add_error(
                "private_key",
                _("Paste the key again: the stored one is for the former token URL and client ID."),
            )
        return cleaned

    def _set_on(self, name: str) -> str:
        when = getattr(self.instance, f"{name}_set_at")
        if not getattr(self.instance, f"has_{name}") or not when:
            return ""
        return gettext("Set on %(when)s. Leave empty to keep it.") % {"when": moment(when)}


@admin.register(OAuthClient)
class OAuthClientAdmin(TrailLink, SecretiveAdmin):
    """One application at a provider."""

    form = OAuthClientForm
    empty_text = _(
        "There is no OAuth client yet, and none is needed for accounts with a password. For others "
        "register this site with the provider, such as Google or Microsoft, and add here what it "
        "gives you."
    )
    list_display = ("name", "provider", "client_id")
    search_fields = ("name", "client_id")

    fieldsets = (
        (None, {"fields": ("name", "provider", "client_id", "client_secret", "private_key")}),
        (_("Addresses and scopes"), {"fields": ("authorization_url", "token_url", "scopes")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None or self.has_change_permission(request, obj):
            (title, first), *others = super().get_fieldsets(request, obj)
            text = gettext("Redirect URI, to be entered at the provider: {}")
            uri = redirect_uri(request, self.admin_site.name)
            shown = format_html('<code class="mailpool-address">{}</code>', uri)
            description = format_html(text, shown) if uri else ""
            return ((title, {**first, "description": description}), *others)
        # Whoever may only look is shown all fields as they are, and a secret is no field to show.
        return (
            (None, {"fields": ("name", "provider", "client_id")}),
            *super().get_fieldsets(request, obj)[1:],
        )
