"""OAuth clients: this site as Google, Microsoft and others know it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.admin.connect import redirect_uri
from mailpool.admin.secrecy import SecretiveAdmin
from mailpool.exceptions import SecretError
from mailpool.models import OAuthClient
from mailpool.vault import get_keyring
from mailpool.vault.fields import SecretFormField


class OAuthClientForm(forms.ModelForm):  # type: ignore[type-arg]
    """Takes a client secret and never shows one."""

    client_secret = SecretFormField(label=_("Client secret"), required=False)

    class Meta:
        model = OAuthClient
        fields = (
            "name",
            "provider",
            "client_id",
            "client_secret",
            "authorization_url",
            "token_url",
            "scopes",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "client_secret" in self.fields:
            when = self.instance.client_secret_set_at
            text = gettext("Not set. It is stored encrypted and never shown again.")
            if self.instance.has_client_secret and when:
                text = gettext("Set on %(when)s. Leave empty to keep it.") % {
                    "when": f"{timezone.localtime(when):%Y-%m-%d %H:%M}"
                }
            self.fields["client_secret"].help_text = text

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if cleaned is None:
            return None
        if cleaned.get("client_secret"):
            try:
                get_keyring().newest  # noqa: B018
            except SecretError as error:
                self.add_error("client_secret", str(error))
        elif self.instance.has_client_secret and "token_url" in self.changed_data:
            self.add_error(
                "client_secret",
                _("Enter the client secret again: the stored one is for the former token URL."),
            )
        return cleaned


@admin.register(OAuthClient)
class OAuthClientAdmin(SecretiveAdmin):
    """One application at a provider."""

    form = OAuthClientForm
    list_display = ("name", "provider", "client_id")
    search_fields = ("name", "client_id")
    fieldsets = (
        (None, {"fields": ("name", "provider", "client_id", "client_secret")}),
        (_("Addresses and scopes"), {"fields": ("authorization_url", "token_url", "scopes")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None or self.has_change_permission(request, obj):
            (title, first), *others = super().get_fieldsets(request, obj)
            text = gettext("Redirect URI, to be entered at the provider: {}")
            uri = redirect_uri(request, self.admin_site.name)
            return ((title, {**first, "description": format_html(text, uri)}), *others)
        # Whoever may only look is shown all fields as they are, and a secret is no field to show.
        return (
            (None, {"fields": ("name", "provider", "client_id")}),
            *super().get_fieldsets(request, obj)[1:],
        )
