"""Key rotation: every secret under the newest key, while the site runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import models, router, transaction
from django.db.models.functions import Substr

from mailpool import audit
from mailpool.audit import Action
from mailpool.exceptions import SecretError
from mailpool.models import Credential
from mailpool.text import one_line
from mailpool.vault import EncryptedTextField, Sealed, get_keyring
from mailpool.vault.keyring import KEY_ID_AT, KEY_ID_LENGTH

# Rows that are read and committed together: an interruption loses no more than that work, and
# nobody who sets a password waits for longer.
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


def key_id_of(name: str) -> Substr:
    """In a query: the id of the key that the secret in the field *name* is under."""
    return Substr(name, KEY_ID_AT, KEY_ID_LENGTH, output_field=models.CharField())


def rows(model: type[models.Model], found: EncryptedTextField) -> models.QuerySet[Any]:
    """The rows of *model* with a secret in *found*, by key, with what opening them needs.

    Each has the id of its secret's key as ``sealed_with``.
    """
    queryset: models.QuerySet[Any] = model._base_manager.annotate(sealed_with=key_id_of(found.name))
    relations = {lookup.rpartition("__")[0] for lookup in found.bound_to if "__" in lookup}
    if relations:
        queryset = queryset.select_related(*relations)
    return queryset.exclude(**{found.name: Sealed("")}).order_by("pk")


def batches(queryset: models.QuerySet[Any]) -> Iterator[list[Any]]:
    """All rows of *queryset*, which is in the order of its keys, a few hundred at a time."""
    last: Any = None
    while batch := list((queryset if last is None else queryset.filter(pk__gt=last))[:BATCH]):
        yield batch
        last = batch[-1].pk


def key_usage() -> Counter[str]:
    """Key id → how many secrets are under it. ``""`` counts what has not even a key id."""
    usage: Counter[str] = Counter()
    for model, found in encrypted_fields():
        counted = (
            rows(model, found)
            .order_by()
            .values("sealed_with")
            .annotate(count=models.Count("pk"))
            .values_list("sealed_with", "count")
        )
        for key_id, count in counted:
            usage[key_id if Sealed.is_key_id(key_id) else ""] += count
    return usage


def unreadable() -> list[str]:
    """The places whose secret does not open, whatever the reason."""
    places = []
    for model, found in encrypted_fields():
        for batch in batches(rows(model, found)):
            for row in batch:
                try:
                    found.open(row)
                except SecretError:
                    places.append(_describe(found, row))
    return places


def rotate(
    *, dry_run: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> Rotation:
    """Rewrite what is not under the newest key yet.

    Each row is swapped only if it still holds what was read, so a password that is changed at
    the same moment is never lost; interrupted, it goes on where it was when run again.
    Raises ``SecretError`` where no key is configured. *progress* is called with the number of
    secrets seen, and with how many there were to see.
    """
    usage = key_usage()
    result = Rotation(get_keyring(*usage).newest)
    result.current = usage.pop(result.newest, 0)
    done, total = 0, usage.total()
    for model, found in encrypted_fields():
        for batch in batches(rows(model, found).exclude(sealed_with=result.newest)):
            # A key provider may have got a newer key meanwhile, which some are under already.
            result.newest = get_keyring(*(row.sealed_with for row in batch)).newest
            swaps = []
            for row in batch:
                if row.sealed_with == result.newest:
                    result.current += 1
                    continue
                try:
                    swaps.append((row, found.seal(row, found.open(row))))
                except SecretError:
                    result.unreadable.append(_describe(found, row))
            swapped = len(swaps if dry_run else _rewrite(found, swaps, result.newest))
            result.rewritten += swapped
            result.changed_meanwhile += len(swaps) - swapped
            done += len(batch)
            progress(done, total)
    return result


def _rewrite(
    found: EncryptedTextField, swaps: Sequence[tuple[Any, Sealed]], newest: str
) -> set[Any]:
    """Swap a batch, and record it where it is about credentials: one entry, not one for each."""
    with transaction.atomic(using=router.db_for_write(found.model)):
        swapped = swap(found, swaps)
        if swapped and found.model is Credential:
            text = f"{len(swapped)} passwords encrypted with the key {newest}"
            audit.record(Action.ROTATED, details=text)
    return swapped


def swap(found: EncryptedTextField, swaps: Sequence[tuple[Any, Sealed]]) -> set[Any]:
    """Give each row its new ciphertext if it still holds what was read. The keys of those.

    Past the model's own queryset, for which this would be new passwords: callers record it.
    """
    if not swaps:
        return set()
    model = type(swaps[0][0])
    swapped = set()
    with transaction.atomic(using=router.db_for_write(model)):
        for row, sealed in swaps:
            read = Sealed(getattr(row, found.attname))
            unchanged = model._base_manager.filter(pk=row.pk, **{found.name: read})
            if models.QuerySet.update(unchanged, **{found.name: sealed}):
                swapped.add(row.pk)
    return swapped


def _describe(found: EncryptedTextField, row: Any) -> str:
    return one_line(f"{row} ({found.place(row)})")
