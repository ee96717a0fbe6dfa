"""The addresses that a credential may send as."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

from mailpool import changes
from mailpool.audit import AuditEntry
from mailpool.changes import Audited, AuditedQuerySet
from mailpool.models.credentials import Credential
from mailpool.models.scopes import ScopeField
from mailpool.validators import normalize_sender, validate_sender


class SenderAddressField(models.CharField):  # type: ignore[type-arg]
    """Stored in normalized form: routing compares text, and would never find another one."""

    def pre_save(self, model_instance: Any, add: bool) -> str:
        address = normalize_sender(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, address)
        return address


class SenderQuerySet(AuditedQuerySet):
    """Keeps what is derived from other columns out of reach of bulk updates."""

    def update(self, **kwargs: Any) -> int:
        if {"credential", "credential_id", "address", "scope"} & kwargs.keys():
            raise TypeError("A sender is changed with save(): its form and owner are derived.")
        return super().update(**kwargs)


class Sender(Audited):
    """An address, or all of a domain, that a credential may send as."""

    is_part = True

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    credential = models.ForeignKey(
        Credential, on_delete=models.CASCADE, related_name="senders", verbose_name=_("credential")
    )
    address = SenderAddressField(
        _("address"),
        max_length=254,
        validators=[validate_sender],
        help_text=_("shop@example.com, or @example.com for all of a domain."),
    )
    scope = ScopeField(max_length=64, editable=False, default="")

    objects = SenderQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("address",)
        verbose_name = _("sender")
        verbose_name_plural = _("senders")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["scope", "address"],
                name="mailpool_sender_unique",
                violation_error_message=_("This tenant has this sender already."),
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["address"], name="mailpool_sender_address")]

    def __str__(self) -> str:
        return str(self.address)

    @classmethod
    def describe(cls, found: Sequence[changes.Change]) -> list[AuditEntry]:
        return changes.of_senders(found)

    def get_scope(self) -> str:
        """The scope of the credential that the sender belongs to, as the database has it."""
        credential = self.credential
        if not credential._state.adding:
            # The instance may be older than a move to another tenant.
            credential = Credential.objects.filter(pk=credential.pk).first() or credential
        return credential.get_scope()

    def clean(self) -> None:
        try:
            self.address = normalize_sender(self.address)
        except ValidationError:
            return  # which the field has said already
        # The credential may be a new one that the same form is about to save; a missing one is
        # reported by its own field.
        if self.credential_id is None and not Sender.credential.is_cached(self):
            return
        scope = self.get_scope()
        if (
            Sender.objects.exclude(pk=self.pk)
            .filter(scope=scope, address=self.address)
            .exclude(credential__pk=self.credential_id)
            .exists()
        ):
            raise ValidationError({"address": _("This tenant has this sender already.")})
