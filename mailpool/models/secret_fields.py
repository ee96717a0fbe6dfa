"""What models with encrypted fields have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from django.db import models

from mailpool.vault import EncryptedTextField


def secret_field(row: models.Model, name: str) -> EncryptedTextField:
    return cast("EncryptedTextField", row._meta.get_field(name))


def leave_out_unset_secrets(
    row: models.Model, kwargs: dict[str, Any], also: Collection[str] = ()
) -> None:
    """Have ``save()`` write only those secrets of an existing row that were set on *row*.

    Otherwise somebody who has held the instance for a while would put an old secret back, or
    one under a key that was rotated out meanwhile. *also* are further fields to leave alone.
    """
    secrets = [found for found in row._meta.fields if isinstance(found, EncryptedTextField)]
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
            if not found.is_pending(row):
                written -= {found.attname, found.changed_at}
        kwargs["update_fields"] = written
