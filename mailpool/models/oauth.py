"""This site at the providers of OAuth 2 logins."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.utils.translation import gettext_lazy as _

from mailpool.changes import Audited, AuditedQuerySet
from mailpool.models.secret_fields import (
    LONGEST_KEY,
    LONGEST_PASSWORD,
    begin_save,
    check_length,
    leave_out_unset_secrets,
    secret_field,
)
from mailpool.models.servers import MailServer
from mailpool.presets import preset
from mailpool.secret import Secret
from mailpool.service_accounts import is_same_host, read_key
from mailpool.validators import validate_name, validate_provider_url
from mailpool.vault import EncryptedQuerySet, EncryptedTextField, note_written


class OAuthClientQuerySet(EncryptedQuerySet, AuditedQuerySet):  # type: ignore[override]
    """Keeps the encrypted secrets out of reach of bulk updates, and records them."""


class OAuthClient(Audited):
    """This site as a provider's OAuth 2 client: what the provider calls an application."""

    class Provider(models.TextChoices):
        GOOGLE = "google", _("Google")
        GOOGLE_SERVICE = "google_service", _("Google Workspace, by a service account")
        MICROSOFT = "microsoft", _("Microsoft 365")
        MICROSOFT_APP = "microsoft_app", _("Microsoft 365, by the application itself (app-only)")
        OTHER = "other", _("Another provider")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        _("name"),
        max_length=100,
        unique=True,
        validators=[validate_name],
        help_text=_("What operators call it."),
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
        help_text=_(
            "Where people allow this site to send. Not for app-only access and service accounts."
        ),
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
    client_id = models.CharField(
        _("client ID"),
        max_length=500,
        blank=True,
        help_text=_("Of a service account its address; its JSON key has it."),
    )
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
    private_key = EncryptedTextField(
        _("service account's key"),
        blank=True,
        default="",
        changed_at="private_key_set_at",
        # What is signed with it is told to that address.
        bound_to=("token_url",),
    )
    private_key_set_at = models.DateTimeField(
        _("service account's key set on"), null=True, blank=True, editable=False
    )

    objects = OAuthClientQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("name",)
        verbose_name = _("OAuth client")
        verbose_name_plural = _("OAuth clients")

    def __str__(self) -> str:
        return self.name

    def audited_as(self) -> dict[str, Any]:
        return {"oauth_client_id": self.pk, "oauth_client": self.name}

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row; of an existing one the client secret only if it was set here."""
        is_new = begin_save(self, kwargs)
        leave_out_unset_secrets(self, kwargs)
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            super().save(*args, **kwargs)
            note_written(self, using, kwargs.get("update_fields"), is_new=is_new)
        # What kept the provider from giving tokens may be put right now.
        paused = self.credentials.filter(token_lease="")
        models.QuerySet.update(paused, token_lease_until=None)
        # Nobody connects these again: a new key, or delegation, is for all of them at once.
        stopped = self.credentials.filter(kind="service_account").exclude(needs_attention="")
        models.QuerySet.update(stopped, needs_attention="", needs_attention_since=None)

    @property
    def has_client_secret(self) -> bool:
        """Whether a client secret is stored, or set to be; it is not decrypted to find out."""
        return bool(secret_field(self, "client_secret").is_set(self))

    @property
    def has_private_key(self) -> bool:
        """The same of a service account's key."""
        return bool(secret_field(self, "private_key").is_set(self))

    def is_used_at(self, server: MailServer) -> bool:
        """Whether the application's own tokens may be presented at *server*'s address already.

        What was redirected there, by SQL say, does not count: its permission does not open.
        """
        rows = self.credentials.filter(
            server__host=server.host, server__port=server.port, server__security=server.security
        ).select_related("server", "oauth_client")
        return any(row.is_by_application and row.is_permitted for row in rows)

    def clean(self) -> None:
        check_length(self, "client_secret", LONGEST_PASSWORD)
        check_length(self, "private_key", LONGEST_KEY)
        known = preset(self.provider)
        for name in ("authorization_url", "token_url", "scopes"):
            value = getattr(self, name) or getattr(known, name)
            setattr(self, name, " ".join(value.split()))
        if not self.token_url:
            raise ValidationError({"token_url": _("Enter the token URL.")})
        self.client_id = self.client_id.strip()
        if secret_field(self, "private_key").is_pending(self) and self.private_key:
            self._take_key(self.private_key)
        if self.provider == self.Provider.GOOGLE_SERVICE and not self.has_private_key:
            raise ValidationError({"private_key": _("Paste the service account's key.")})
        if not self.client_id:
            raise ValidationError(
                {"client_id": _("Enter the client ID, or the service account's address.")}
            )

    def _take_key(self, text: Secret) -> None:
        """Keep of a key that was entered what is needed, if it is for the token URL."""
        try:
            key = read_key(text)
        except ValidationError as error:
            raise ValidationError({"private_key": error.messages}) from None
        if key.token_url and not is_same_host(key.token_url, self.token_url):
            raise ValidationError(
                {
                    "private_key": _(
                        "This key is for another provider: its token_uri is not at the host of "
                        "the token URL. Compare the two; nothing was stored."
                    )
                }
            )
        if key.email and self.client_id not in ("", key.email):
            raise ValidationError(
                {
                    "client_id": _(
                        "The key is that of another service account, %(email)s. Leave this empty "
                        "to take that one."
                    )
                    % {"email": key.email}
                }
            )
        self.client_id = self.client_id or key.email
        if key.private_key != text:
            self.private_key = key.private_key
