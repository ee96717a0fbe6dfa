"""This site at the providers of OAuth 2 logins."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

from mailpool.models.secret_fields import leave_out_unset_secrets, secret_field
from mailpool.presets import preset
from mailpool.validators import validate_provider_url
from mailpool.vault import EncryptedQuerySet, EncryptedTextField


class OAuthClient(models.Model):
    """This site as a provider's OAuth 2 client: what the provider calls an application."""

    class Provider(models.TextChoices):
        GOOGLE = "google", _("Google")
        MICROSOFT = "microsoft", _("Microsoft 365")
        MICROSOFT_APP = "microsoft_app", _("Microsoft 365, by the application itself (app-only)")
        OTHER = "other", _("Another provider")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        _("name"), max_length=100, unique=True, help_text=_("What operators call it.")
    )
    provider = models.CharField(
        _("provider"),
        max_length=20,
        choices=Provider.choices,
        default=Provider.OTHER,
        help_text=_("Addresses and scopes that are left empty below are filled in for it."),
    )
    authorization_url = models.CharField(
        _("authorization URL"),
        max_length=500,
        blank=True,
        validators=[validate_provider_url],
        help_text=_("Where people allow this site to send. App-only access needs none."),
    )
    token_url = models.CharField(
        _("token URL"),
        max_length=500,
        blank=True,
        validators=[validate_provider_url],
        help_text=_(
            "Where tokens come from. App-only at Microsoft 365: "
            "https://login.microsoftonline.com/…/oauth2/v2.0/token with the directory (tenant) ID."
        ),
    )
    scopes = models.CharField(
        _("scopes"),
        max_length=1000,
        blank=True,
        help_text=_("What permission is asked for; several are separated by blanks."),
    )
    client_id = models.CharField(_("client ID"), max_length=500)
    client_secret = EncryptedTextField(
        _("client secret"),
        blank=True,
        default="",
        changed_at="client_secret_set_at",
        # It is told to that address, and whoever changes it there does not get to know it.
        bound_to=("token_url",),
    )
    client_secret_set_at = models.DateTimeField(
        _("client secret set on"), null=True, blank=True, editable=False
    )

    objects = EncryptedQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("name",)
        verbose_name = _("OAuth client")
        verbose_name_plural = _("OAuth clients")

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row; of an existing one the client secret only if it was set here."""
        leave_out_unset_secrets(self, kwargs)
        super().save(*args, **kwargs)
        # What kept the provider from giving tokens may be put right now.
        paused = self.credentials.filter(token_lease="")
        models.QuerySet.update(paused, token_lease_until=None)

    @property
    def has_client_secret(self) -> bool:
        """Whether a client secret is stored, or set to be; it is not decrypted to find out."""
        return bool(secret_field(self, "client_secret").is_set(self))

    def clean(self) -> None:
        known = preset(self.provider)
        for name in ("authorization_url", "token_url", "scopes"):
            value = getattr(self, name) or getattr(known, name)
            setattr(self, name, " ".join(value.split()))
        if not self.token_url:
            raise ValidationError({"token_url": _("Enter the token URL.")})
