"""Key rotation: every secret under the newest key, while the site runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import models

from mailpool.exceptions import SecretError
from mailpool.vault import EncryptedTextField, Sealed, get_keyring

BATCH = 500


@dataclass
class Rotation:
    """What a rotation did, or with *dry_run* would have done."""

    newest: str
    rewritten: int = 0
    current: int = 0  # were under the newest key already
    changed_meanwhile: int = 0  # somebody set the secret at the same time; theirs stays
    unreadable: list[str] = field(default_factory=list)  # places whose secret does not open


def encrypted_fields() -> list[tuple[type[models.Model], EncryptedTextField]]:
    """Every encrypted field of every installed model."""
    return [
        (model, found)
        for model in apps.get_models()
        for found in model._meta.concrete_fields
        if isinstance(found, EncryptedTextField) and not model._meta.proxy
    ]


def secrets() -> Iterator[tuple[EncryptedTextField, models.Model]]:
    """All rows that hold a secret, with the field; read in batches, oldest key first to last."""
    for model, found in encrypted_fields():
        rows = model._base_manager.order_by("pk").only("pk", found.name)
        last: Any = None
        while batch := list((rows if last is None else rows.filter(pk__gt=last))[:BATCH]):
            for row in batch:
                if getattr(row, found.attname):
                    yield found, row
            last = batch[-1].pk


def key_usage() -> Counter[str]:
    """Key id → how many secrets are under it. ``""`` counts what has not even a key id."""
    usage: Counter[str] = Counter()
    for found, row in secrets():
        usage[Sealed(getattr(row, found.attname)).key_id] += 1
    return usage


def unreadable() -> list[str]:
    """The places whose secret does not open, whatever the reason."""
    places = []
    for found, row in secrets():
        try:
            found.open(row)
        except SecretError:
            places.append(f"{row} ({found.place(row)})")
    return places


def rotate(
    *, dry_run: bool = False, progress: Callable[[int], None] = lambda done: None
) -> Rotation:
    """Rewrite what is not under the newest key yet.

    Each row is swapped only if it still holds what was read, so a password that is changed at
    the same moment is never lost; interrupted, it goes on where it was when run again.
    Raises ``SecretError`` where no key is configured. *progress* is called with the number of
    secrets seen.
    """
    keyring = get_keyring()
    result = Rotation(keyring.newest)
    for number, (found, row) in enumerate(secrets(), start=1):
        progress(number)
        stored = Sealed(getattr(row, found.attname))
        if stored.key_id == result.newest:
            result.current += 1
            continue
        place = found.place(row)
        try:
            plain = keyring.open(stored, place)
        except SecretError:
            result.unreadable.append(f"{row} ({place})")
            continue
        if dry_run:
            result.rewritten += 1
            continue
        unchanged = type(row)._base_manager.filter(pk=row.pk, **{found.name: stored})
        if unchanged.update(**{found.name: keyring.seal(plain, place)}):
            result.rewritten += 1
        else:
            result.changed_meanwhile += 1
    return result
