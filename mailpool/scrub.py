"""Makes the copy of a database harmless: no secret is left in it, and no credential is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models, router, transaction
from django.db.models import ExpressionWrapper, F, Q
from django.utils import timezone

from mailpool import audit, delivery, marker, recording
from mailpool.models import Credential, DeliveryRecord
from mailpool.rotation import encrypted_fields
from mailpool.vault import EncryptedTextField

BATCH = 500


@dataclass(frozen=True, slots=True)
class Remains:
    """What a scrubbed database has none of; false if there is nothing."""

    active: int
    """Credentials that are switched on."""

    secrets: dict[str, int]
    """``app.Model.field`` → how many rows hold a secret in it; of every encrypted field."""

    records: int = 0
    """Delivery records. They are no danger to anybody's account, so they don't count here."""

    def __bool__(self) -> bool:
        return bool(self.active or self.total)

    @property
    def total(self) -> int:
        return sum(self.secrets.values())


def find() -> Remains:
    """Count what there is to remove. Nothing is decrypted, so no key is needed."""
    return Remains(
        active=_rows(Credential).filter(is_active=True).count(),
        secrets={
            f"{model._meta.label}.{found.name}": _rows(model, found).filter(stored__gt="").count()
            for model, found in _fields()
        },
        records=_rows(DeliveryRecord).count(),
    )


def scrub(*, progress: Callable[[int], None] = lambda done: None) -> Remains:
    """Switch off every credential, remove every secret, and make the database this site's.

    Each batch stands as soon as it is written: interrupted, it goes on when it is run again. The
    marker comes last, so until then a site with a name of its own sends nothing. Returns what
    somebody entered meanwhile; if there is any, the marker stays as it was. *progress* is called
    with the number of secrets removed.
    """
    # First, and all at once: from here on nothing is sent, however long the rest takes.
    with transaction.atomic(using=router.db_for_write(Credential)):
        off = _rows(Credential).filter(is_active=True).update(is_active=False)
        _record(off, f"{off} credentials switched off")
    done = 0
    for model, found in _fields():
        for keys in _batches(model, found):
            with transaction.atomic(using=router.db_for_write(model)):
                removed = _rows(model).filter(pk__in=keys).update(**_blank(model, found))
                if model is Credential:
                    _record(removed, f"{removed} passwords removed")
            done += removed
            progress(done)
    # They tell who wrote to whom, which is nobody's business on a copy.
    removed_records = recording.prune(timezone.now() + timedelta(days=1))
    _record(removed_records, f"{removed_records} delivery records removed")
    delivery.close_connections()
    left = find()
    if not left:
        marker.write(marker.own())
    return left


def _record(count: int, text: str) -> None:
    """One entry for all of them: one for each would say the same thing so many times."""
    if count:
        audit.record(audit.Action.SCRUBBED, details=text)


def _fields() -> list[tuple[type[models.Model], EncryptedTextField]]:
    # A column that a model inherits from another one's table is that one's.
    return [(model, found) for model, found in encrypted_fields() if found.model is model]


def _rows(model: type[models.Model], found: EncryptedTextField | None = None) -> Any:
    """All rows of *model*, with the column of *found* as ``stored``: text that can be compared.

    Past the managers, which may hide rows, and past the querysets, which may refuse to update.
    """
    rows: models.QuerySet[Any] = models.QuerySet(model).using(router.db_for_write(model)).order_by()
    if found is None:
        return rows
    return rows.alias(stored=ExpressionWrapper(F(found.name), output_field=models.TextField()))


def _batches(model: type[models.Model], found: EncryptedTextField) -> Iterator[list[Any]]:
    """The keys of the rows in which something is to be blanked."""
    holds = Q(stored__gt="")
    for name in _blank(model, found).keys() - {found.name}:
        holds |= Q(**{f"{name}__isnull": False})
    rows = _rows(model, found).filter(holds).order_by("pk").values_list("pk", flat=True)
    last: Any = None
    while keys := list((rows if last is None else rows.filter(pk__gt=last))[:BATCH]):
        yield keys
        last = keys[-1]


def _blank(model: type[models.Model], found: EncryptedTextField) -> dict[str, Any]:
    """What is written into a row: no secret, and no date on which it was set."""
    values: dict[str, Any] = {found.name: ""}
    if found.changed_at and model._meta.get_field(found.changed_at).null:
        values[found.changed_at] = None
    return values
