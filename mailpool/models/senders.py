"""The addresses that a credential may send as."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.db.models import CharField, F, Q, Value
from django.db.models.functions import Concat
from django.utils.translation import gettext_lazy as _

from mailpool import changes
from mailpool.audit import AuditEntry
from mailpool.changes import Audited, AuditedQuerySet
from mailpool.models.credentials import Credential
from mailpool.models.scopes import ScopeField, proof_of
from mailpool.validators import normalize_sender, validate_sender


class SenderAddressField(models.CharField):  # type: ignore[type-arg]
    """Stored in normalized form: routing compares text, and would never find another one."""

    def pre_save(self, model_instance: Any, add: bool) -> str:
        address = normalize_sender(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, address)
        return address


# What was proven, and the code that is on its way. Written by ``ownership`` alone, and never by
# somebody who saves an instance that is a minute old.
_OWNERSHIP: dict[str, Any] = {
    "proof": "",
    "proven_by": "",
    "proven_at": None,
    "code_digest": "",
    "code_until": None,
    "code_tries": 0,
}


class SenderQuerySet(AuditedQuerySet):
    """Keeps what is derived from other columns out of reach of bulk updates."""

    def update(self, **kwargs: Any) -> int:
        if {"credential", "credential_id", "address", "scope"} & kwargs.keys():
            raise TypeError("A sender is changed with save(): its form and owner are derived.")
        if _OWNERSHIP.keys() & kwargs.keys():
            raise TypeError("Ownership of a sender is proven with mailpool.ownership.")
        return super().update(**kwargs)

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """As ever, with one look at the credentials of all of them instead of one each."""
        rows = list(objs)
        self._for_write = True
        slim = Credential.objects.using(self.db).only("tenant")
        owners = slim.in_bulk({row.credential_id for row in rows})
        for row in rows:
            if row.credential_id in owners:
                row.__dict__["_scope_read"] = owners[row.credential_id].get_scope()
        try:
            return super().bulk_create(rows, *args, **kwargs)
        finally:
            for row in rows:
                row.__dict__.pop("_scope_read", None)

    def note(self, **values: Any) -> int:
        """Write *values* of the ownership. What that means, the caller puts into the audit."""
        return models.QuerySet.update(self, **values)

    def of_tenants(self, *, proven: bool) -> SenderQuerySet:
        """Those of tenants that are *proven*, or that are not: the site's own need no proof.

        A tenant that was changed with SQL alone is not noticed here, as it is by routing.
        """
        proof = Concat(F("scope"), Value(" "), F("address"), output_field=CharField())
        is_proven = Q(proof=proof)
        rows = self.filter(credential__tenant__isnull=False)
        return rows.filter(is_proven if proven else ~is_proven)

    def void(self, **values: Any) -> int:
        """Forget what was proven, and write *values*."""
        return self.note(**{**_OWNERSHIP, **values})


class Sender(Audited):
    """An address, or all of a domain, that a credential may send as."""

    is_part = True

    class Way(models.TextChoices):
        CODE = "code", _("emailed code")
        DNS = "dns", _("DNS record")
        OPERATOR = "operator", _("operator")

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
    proof = models.CharField(max_length=320, blank=True, editable=False, default="")
    proven_by = models.CharField(
        _("proven by"), max_length=10, choices=Way.choices, blank=True, editable=False, default=""
    )
    proven_at = models.DateTimeField(_("proven on"), null=True, blank=True, editable=False)
    code_digest = models.CharField(max_length=64, blank=True, editable=False, default="")
    code_until = models.DateTimeField(null=True, blank=True, editable=False)
    code_tries = models.PositiveSmallIntegerField(editable=False, default=0)

    objects = SenderQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("address",)
        verbose_name = _("sender")
        verbose_name_plural = _("senders")
        permissions: ClassVar = [
            ("confirm_sender", "Can confirm that a tenant owns a sender"),
        ]
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

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row. Another address, or another tenant, has to be proven anew."""
        is_new = self._state.adding or bool(kwargs.get("force_insert"))
        if not is_new:
            fields = kwargs.get("update_fields")
            if fields is None:
                fields = {field.name for field in self._meta.concrete_fields} - {"id"}
            kwargs["update_fields"] = set(fields) - _OWNERSHIP.keys()
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            super().save(*args, **kwargs)
            if not is_new:
                rows = SenderQuerySet(type(self), using=using).filter(pk=self.pk)
                # Also a code for what it was: its digest is of that, and would not match.
                rows.exclude(proof__in=["", proof_of(self.scope, self.address)]).void()

    @property
    def is_proven(self) -> bool:
        """Whether the tenant, as ``credential`` has it, was proven to own it. The site's own need
        no proof."""
        scope = self.credential.get_scope()
        return not scope or self.proof == proof_of(scope, self.address)

    @classmethod
    def describe(cls, found: Sequence[changes.Change]) -> list[AuditEntry]:
        return changes.of_senders(found)

    def get_scope(self) -> str:
        """The scope of the credential that the sender belongs to, as the database has it."""
        if (read := self.__dict__.get("_scope_read")) is not None:
            return str(read)
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
