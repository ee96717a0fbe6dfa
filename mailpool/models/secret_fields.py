"""What models with encrypted fields have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

from mailpool.vault import EncryptedTextField
from mailpool.vault.fields import encrypted_fields_of, forget_undone

# Characters. What providers hand out as passwords has less than a hundred, and servers need not
# take more than 12,288 of a login (RFC 4954). An RSA key of 16,384 bits has 13,000 in PEM form.
LONGEST_PASSWORD = 4096
LONGEST_KEY = 32_768


def secret_field(row: models.Model, name: str) -> EncryptedTextField:
    return cast("EncryptedTextField", row._meta.get_field(name))


def check_length(row: models.Model, name: str, longest: int) -> None:
    """``ValidationError`` where the secret that was set on *row* is longer; a stored one is not
    decrypted for this."""
    if len(secret_field(row, name).pending(row) or "") > longest:
        text = _("This is too long: it may have up to %(longest)d characters. Copy it again.")
        raise ValidationError({name: ValidationError(text, params={"longest": longest})})


def begin_save(row: models.Model, kwargs: dict[str, Any]) -> bool:
    """To be called first in ``save()``; whether *row* is a new one."""
    forget_undone(row)
    return row._state.adding or bool(kwargs.get("force_insert"))


def leave_out_unset_secrets(
    row: models.Model, kwargs: dict[str, Any], also: Collection[str] = ()
) -> None:
    """Have ``save()`` write only those secrets of an existing row that were set on *row*.

    Otherwise somebody who has held the instance for a while would put an old secret back, or
    one under a key that was rotated out meanwhile. *also* are further fields to leave alone.
    ``note_written()`` is to follow.
    """
    secrets = encrypted_fields_of(row)
    fields = kwargs.get("update_fields")
    if fields is not None:
        named = set(fields)
        for found in secrets:
            if {found.name, found.attname} & named and found.changed_at:
                named.add(found.changed_at)  # goes with it
        kwargs["update_fields"] = named
    elif not row._state.adding and not kwargs.get("force_insert"):
        written = {field.attname for field in row._meta.concrete_fields}
        written -= row.get_deferred_fields() | {row._meta.pk.attname}
        written -= set(also)
        for found in secrets:
            with_it = {found.attname, found.changed_at or found.attname}
            if found.is_pending(row):
                written |= with_it  # one that was not loaded as well
            else:
                written -= with_it
        kwargs["update_fields"] = written
