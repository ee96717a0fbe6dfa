"""Changes of credentials, senders, servers and OAuth clients get into the audit, in the transaction
of the change.

Rows are read before and after, and what differs is described: what the database had is the
truth, not what an instance remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from django.core.exceptions import ObjectDoesNotExist
from django.db import connections, models, router, transaction
from django.db.models import prefetch_related_objects
from django.db.models.signals import post_save, pre_delete, pre_save
from django.dispatch import receiver
from django.utils import translation

from mailpool import audit
from mailpool.audit import Action, AuditEntry
from mailpool.vault import EncryptedTextField

# A row as it was and as it is; None where there is none.
Change = tuple[Any, Any]

# Rows that are read, changed and compared together.
BATCH = 500

# Models and keys of those that whoever began a block records at its end. By the connection to the
# database, whose transaction that is: a context would be copied into what is only begun there.
_together: WeakKeyDictionary[Any, frozenset[tuple[type[Any], Any]]] = WeakKeyDictionary()


class Audited(models.Model):
    """A model whose changes are recorded. Says itself what it is called in the entries."""

    # What goes with its owner without a word: the owner's deletion says it all.
    is_part: ClassVar[bool] = False

    # The relations that it takes a name from, read for many rows at once.
    named_after: ClassVar[tuple[str, ...]] = ()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using), _recorded(type(self), using, lambda: [self.pk]):
            super().save(*args, **kwargs)

    def audited_as(self) -> dict[str, Any]:
        """The columns of an entry that say which row it is about, with the names of now."""
        raise NotImplementedError

    @classmethod
    def describe(cls, changes: Sequence[Change]) -> list[AuditEntry]:
        """What happened to the rows."""
        rows = [row for change in changes for row in change if row is not None]
        prefetch_related_objects(rows, *cls.named_after)
        with translation.override(None):  # the record has one language
            return [found for old, new in changes for found in _of_row(old, new)]


class AuditedQuerySet(models.QuerySet[Any]):
    """Records what it writes, row by row."""

    def update(self, **kwargs: Any) -> int:
        self._for_write = True
        with transaction.atomic(using=self.db):
            # By key and locked: a row that comes to fit only now would be changed unseen.
            fit = self.model._base_manager.using(self.db).select_for_update()
            fit = fit.filter(pk__in=self.order_by().values("pk"))
            keys = list(fit.values_list("pk", flat=True))
            updated = 0
            for start in range(0, len(keys) or 1, BATCH):
                batch = keys[start : start + BATCH]
                rows = self.filter(pk__in=batch)
                with _recorded(self.model, self.db, partial(list, batch)):
                    updated += super(AuditedQuerySet, rows).update(**kwargs)
        return updated

    def bulk_create(
        self,
        objs: Any,
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> list[Any]:
        if update_conflicts:
            # Which rows that will be is not known before, and not told afterwards.
            raise TypeError("Rows that exist are changed with save() or update(), for the audit.")
        rows = list(objs)
        self._for_write = True
        with (
            transaction.atomic(using=self.db),
            # Only with *ignore_conflicts* some of them may be there already.
            _recorded(
                self.model, self.db, lambda: [row.pk for row in rows], are_new=not ignore_conflicts
            ),
        ):
            return super().bulk_create(rows, batch_size, ignore_conflicts, False, *args, **kwargs)


@contextmanager
def recorded_together(rows: Sequence[Audited], using: str) -> Iterator[None]:
    """Record what happens to *rows*, which exist and are of one model, when the block ends.

    Within it their ``save()`` leaves that out: to read a row before and after, and to write an
    entry, takes several times as long as to save it. All of it is one transaction.
    """
    model = type(rows[0])
    keys = _as_read(model, [row.pk for row in rows])
    with transaction.atomic(using=using), _recorded(model, using, lambda: keys):
        connection = connections[using]
        others = _together.get(connection, frozenset())
        _together[connection] = others | {(model, key) for key in keys}
        try:
            yield
        finally:
            _together[connection] = others


@contextmanager
def _recorded(
    model: type[Any], using: str, keys: Callable[[], Sequence[Any]], *, are_new: bool = False
) -> Iterator[None]:
    """Record what happens to the rows with *keys* inside the block; new ones get theirs there."""

    def own() -> list[Any]:
        others = _together.get(connections[using], frozenset())
        return [key for key in _as_read(model, keys()) if (model, key) not in others]

    before = {} if are_new else _read(model, using, own())
    yield
    _record(model, using, before, own())


def _as_read(model: type[Any], keys: Sequence[Any]) -> list[Any]:
    """Each once, as it is in rows that were read: an instance may have its key as text."""
    to_python = model._meta.pk.to_python
    return list(dict.fromkeys(to_python(key) for key in keys if key is not None))


@receiver(pre_save, dispatch_uid="mailpool.changes.look")
def look(sender: type[Any], instance: Any, using: str, raw: bool, **kwargs: Any) -> None:
    """Remember the row that a fixture, which goes past ``save()``, is about to write over."""
    if raw and isinstance(instance, Audited):
        instance.__dict__["_audit_before"] = _read(sender, using, [instance.pk])


@receiver(post_save, dispatch_uid="mailpool.changes.tell")
def tell(sender: type[Any], instance: Any, using: str, raw: bool, **kwargs: Any) -> None:
    """Record what a fixture has changed."""
    if raw and isinstance(instance, Audited):
        _record(sender, using, instance.__dict__.pop("_audit_before"), [instance.pk])


@receiver(pre_delete, dispatch_uid="mailpool.changes.go")
def go(sender: type[Any], instance: Any, using: str, origin: Any = None, **kwargs: Any) -> None:
    """Record a deletion, of the row itself or of what it belongs to, while there are names."""
    if isinstance(instance, Audited):
        cause = origin.model if isinstance(origin, models.QuerySet) else type(origin)
        if instance.is_part and not getattr(cause, "is_part", False):
            return
        rows = _read(sender, using, [instance.pk]).values()
        audit.write(sender.describe([(row, None) for row in rows]), using)


def _read(model: type[Any], using: str, keys: Sequence[Any]) -> dict[Any, Any]:
    rows = model._base_manager.using(using)
    if connections[using].in_atomic_block:
        rows = rows.select_for_update()
    found: dict[Any, Any] = rows.in_bulk(keys)
    return found


def _record(model: type[Any], using: str, before: dict[Any, Any], keys: Sequence[Any]) -> None:
    after = _read(model, using, keys)
    changes = [(before.get(key), after[key]) for key in keys if key in after]
    changes = [(old, new) for old, new in changes if old is None or _differing(old, new)]
    if changes:
        audit.write(model.describe(changes), using)


def _differing(old: Any, new: Any) -> list[Any]:
    """The fields that people enter, or a password goes into, and that differ."""
    return [
        field
        for field in new._meta.concrete_fields
        if field.editable and getattr(old, field.attname) != getattr(new, field.attname)
    ]


def _of_row(old: Any, new: Any) -> Iterator[AuditEntry]:
    if new is None:
        yield audit.entry(Action.DELETED, old)
        return
    if old is None:
        fields = [
            field
            for field in new._meta.concrete_fields
            if field.editable and getattr(new, field.attname) not in (None, "")
        ]
        facts = [f"{field.verbose_name}: {_value(new, field)}" for field in fields]
        yield audit.entry(Action.CREATED, new, "; ".join(facts))
        return
    facts = []
    for field in _differing(old, new):
        if isinstance(field, EncryptedTextField):
            action = Action.PASSWORD_SET if field.is_set(new) else Action.PASSWORD_REMOVED
            which = "" if field.name == "password" else str(field.verbose_name)
            yield audit.entry(action, new, which)
        elif field.name == "is_active":
            yield audit.entry(Action.ENABLED if new.is_active else Action.DISABLED, new)
        else:
            facts.append(f"{field.verbose_name}: {_value(old, field)} → {_value(new, field)}")
    if facts:
        yield audit.entry(Action.CHANGED, new, "; ".join(facts))


def of_senders(changes: Sequence[Change]) -> list[AuditEntry]:
    """What happened to senders, as changes of their credentials."""
    rows = [row for change in changes for row in change if row is not None]
    prefetch_related_objects(rows, "credential__tenant", "credential__server")
    return [found for old, new in changes for found in _of_sender(old, new)]


def _of_sender(old: Any, new: Any) -> Iterator[AuditEntry]:
    if old and new and old.credential_id == new.credential_id:
        yield _about_owner(new, f"sender: {old.address} → {new.address}")
        return
    if old:
        yield _about_owner(old, f"sender removed: {old.address}")
    if new:
        yield _about_owner(new, f"sender added: {new.address}")


def _about_owner(sender: Any, text: str) -> AuditEntry:
    try:
        return audit.entry(Action.CHANGED, sender.credential, text)
    except ObjectDoesNotExist:  # a fixture may have it later on
        return AuditEntry(action=Action.CHANGED, credential_id=sender.credential_id, details=text)


def _value(row: Any, field: Any) -> str:
    """The value for people. Of a secret only whether there is one."""
    if isinstance(field, EncryptedTextField):
        return "set" if field.is_set(row) else "not set"
    if isinstance(field, models.BooleanField):
        return "yes" if getattr(row, field.attname) else "no"
    if isinstance(field, models.ForeignKey):
        return audit.name_of(row, field.name) or "(site)"
    value = getattr(row, field.attname)
    if value in (None, ""):
        return "(empty)"
    if isinstance(field, models.TextField):  # certificates, which say nothing to anybody
        return f"SHA-256 {sha256(value.encode()).hexdigest()[:16]}"
    return str(value)
