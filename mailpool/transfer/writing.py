"""Carries a plan out, hundreds of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any

from django.db import DataError, IntegrityError, models, router, transaction
from django.utils.translation import gettext as _

from mailpool.changes import Audited, recorded_together
from mailpool.models import Credential, Sender
from mailpool.transfer.items import Item, batches
from mailpool.transfer.plan import Plan
from mailpool.transfer.problems import Problem


class _Undo(Exception):
    """Takes back everything that was written."""


def apply(
    plan: Plan, *, atomic: bool, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Item]:
    """Write what *plan* says; what was written.

    *atomic*: everything or, where anything is wrong, nothing. Otherwise what is right stands, each
    few hundred rows as soon as they are written. What the database refuses (somebody may have been
    faster) is added to the plan's problems.
    """
    written: list[Item] = []
    if atomic and plan.problems:
        return written
    using = router.db_for_write(Credential)
    items = plan.usable
    try:
        with transaction.atomic(using=using) if atomic else nullcontext():
            for batch in _batches(items):
                written += _write(batch, plan.problems, using)
                progress(len(written), len(items))
            if atomic and plan.problems:
                raise _Undo
    except _Undo:
        return []
    return written


def _batches(items: list[Item]) -> Iterator[list[Item]]:
    """Those that go into one table in one way, as the plan has them: owners first."""
    for _key, group in groupby(items, lambda item: (item.record, item.is_new)):
        yield from batches(group)


def _write(batch: list[Item], problems: list[Problem], using: str) -> list[Item]:
    """Write *batch*, at once if that can be, or else one by one to find out what is wrong."""
    # What was meant to be written before, and was not.
    batch = [item for item in batch if not any(need.broken for need in item.needs)]
    if _try(batch, using):
        return batch
    written = []
    for item in batch:
        if _try([item], using):
            written.append(item)
        else:
            item.broken = True
            text = _(
                "The database refuses this. Somebody may have stored the same a moment ago, or "
                "two rows differ in upper and lower case only. Look, and import again."
            )
            problems.append(Problem(item.said.line, "", text))
    return written


def _try(items: list[Item], using: str) -> bool:
    try:
        with transaction.atomic(using=using):
            _store(items, using)
    except (IntegrityError, DataError):
        return False
    return True


def _store(items: list[Item], using: str) -> None:
    new = [item.row for item in items if item.is_new]
    if new:
        model: Any = type(new[0])
        model._base_manager.using(using).bulk_create(new)
    changed = [item for item in items if not item.is_new and item.fields]
    if changed:
        rows = [item.row for item in changed]
        is_audited = isinstance(rows[0], Audited)
        with recorded_together(rows, using) if is_audited else nullcontext():
            for item in changed:
                item.row.save(using=using, update_fields=set(item.fields))
    senders: list[models.Model] = [sender for item in items for sender in item.senders]
    if senders:
        Sender.objects.using(using).bulk_create(senders)
