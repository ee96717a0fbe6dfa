"""What a file says of each tenant, server and account, and what is to become of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from mailpool.models import Sender
from mailpool.server_presets import SERVER_PRESETS
from mailpool.transfer.columns import (
    ACCOUNT,
    RECORDS,
    SERVER,
    SITE,
    TENANT,
    Column,
    columns,
    fields_of,
)
from mailpool.transfer.files import Row
from mailpool.transfer.problems import Problem, place

# Rows whose keys are looked up, or that are written, together.
BATCH = 500

Key = tuple[str, str, str]  # of an account: tenant, server, username
T = TypeVar("T")


def batches(things: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(things)
    while batch := list(islice(iterator, BATCH)):
        yield batch


@dataclass(slots=True)
class Said:
    """All that a file says of one tenant, server or account; of an account on one line."""

    line: int
    cells: dict[str, Any] = field(default_factory=dict, repr=False)
    where: dict[str, int] = field(default_factory=dict)  # the line of each cell
    lines: set[int] = field(default_factory=set)
    has_own_row: bool = False

    def line_of(self, column: str) -> int:
        return self.where.get(column, self.line)


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is set or changed, for people; of a secret only that it is."""

    column: str
    new: str
    old: str | None = None

    def __str__(self) -> str:
        old = "" if self.old is None else f"{self.old} → "
        return f"{self.column}: {old}{self.new}"


@dataclass(slots=True)
class Item:
    """A tenant, server or account as it is to be."""

    record: str
    title: str
    said: Said
    row: Any
    is_new: bool
    needs: tuple[Item, ...] = ()
    differences: list[Difference] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)  # of the row, that differ
    senders: list[Sender] = field(default_factory=list)  # to be added
    broken: bool = False

    @property
    def differs(self) -> bool:
        return self.is_new or bool(self.differences)

    def take(self, column: Column) -> None:
        """Have the row hold what the file says in *column*, and note it if that is a change."""
        new = self.said.cells[column.name]
        old = column.value_of(self.row)
        same = old == new or (column.is_block and _lines(old) == _lines(new))
        if same and not self.is_new:
            return
        setattr(self.row, column.field, new)
        shown = None if self.is_new else column.show(old)
        self.note(column.name, column.show(new), shown, column.field)

    def take_fields(self) -> None:
        for column in fields_of(self.record):
            if column.name in self.said.cells:
                self.take(column)

    def note(self, column: str, new: str, old: str | None, field: str = "") -> None:
        self.differences.append(Difference(column, new, old))
        if field:
            self.fields.append(field)


def _lines(text: Any) -> list[str]:
    return str(text).strip().splitlines()


@dataclass
class Draft:
    """A plan that is being made."""

    private_key: X25519PrivateKey | None = None
    compares_secrets: bool = True
    problems: list[Problem] = field(default_factory=list)
    said: dict[str, dict[Any, Said]] = field(
        default_factory=lambda: {record: {} for record in RECORDS}
    )
    items: dict[str, dict[Any, Item]] = field(
        default_factory=lambda: {record: {} for record in RECORDS}
    )

    def complain(self, item: Item, column: str, text: str) -> None:
        item.broken = True
        self.problems.append(Problem(item.said.line_of(column), column, text))

    def complain_of(self, item: Item, error: ValidationError) -> None:
        """Put what the model finds wrong down to the columns that its fields come from."""
        by_field = {column.field: column.name for column in fields_of(item.record)}
        known = columns()
        found = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
        for name, texts in found.items():
            own = {TENANT: "tenant", SERVER: "server"}.get(item.record, "")
            column = by_field.get(name) or (name if name in known else own)
            self.complain(item, column, " ".join(dict.fromkeys(texts)))

    def gather(self, rows: Sequence[Row]) -> None:
        """Sort what *rows* say by what it is about."""
        for row in rows:
            self._gather(row.line, *self._parse(row))

    def _parse(self, row: Row) -> tuple[dict[str, Any], set[str]]:
        """What the cells say, and the columns of those that can't be read."""
        known, values, wrong = columns(), {}, set()
        for name, cell in row.cells.items():
            column = known[name]
            if isinstance(cell, str) and not cell.strip() and not column.field:
                continue
            try:
                values[name] = column.parse(cell)
            except ValueError as error:
                self.problems.append(Problem(row.line, name, str(error)))
                wrong.add(name)
        return values, wrong

    def _gather(self, line: int, values: dict[str, Any], wrong: set[str]) -> None:
        if "record" in wrong:
            return
        record = values.pop("record", ACCOUNT).lower()
        if record not in RECORDS:
            text = _("Write tenant, server or account, or leave it empty for an account.")
            self.problems.append(Problem(line, "record", text))
            return
        if not self._belongs(line, record, values):
            return
        preset = values.get("preset")
        if preset is not None and preset not in SERVER_PRESETS:
            text = _("There is no such provider. Known are: %(known)s.")
            text %= {"known": ", ".join(SERVER_PRESETS)}
            self.problems.append(Problem(line, "preset", text))
            del values["preset"]
            wrong.add("preset")
        elif preset is not None:
            values.setdefault("server", SERVER_PRESETS[preset].name)
        for name in {TENANT: ["tenant"], SERVER: ["server"]}.get(record, ["tenant", "server"]):
            if not values.get(name):
                # One that can't be read was told so, and is not missing as well.
                if wrong.isdisjoint((name, "preset") if name == "server" else (name,)):
                    self.problems.append(Problem(line, name, _missing(name, record)))
                return
        if (slug := values.get("tenant")) not in (None, SITE):
            self._say(TENANT, slug, line, values, own_row=record == TENANT)
        elif record == TENANT:
            self.problems.append(Problem(line, "tenant", _("The site itself is no tenant.")))
        if owner := values.get("server_tenant"):
            self._say(TENANT, owner, line, {})
        if record != TENANT:
            self._say(SERVER, values["server"], line, values, own_row=record == SERVER)
        if record == ACCOUNT and "username" not in wrong:
            key = (values["tenant"], values["server"], values.get("username", ""))
            self._say(ACCOUNT, key, line, values, own_row=True)

    def _belongs(self, line: int, record: str, values: dict[str, Any]) -> bool:
        """Whether all cells are of the *record*; accounts say of tenant and server as well."""
        known = columns()
        wrong = [name for name in values if record not in (ACCOUNT, known[name].record)]
        for name in wrong:
            text = _("A row about a %(record)s has nothing in this column. Empty the cell.")
            self.problems.append(Problem(line, name, text % {"record": record}))
        return not wrong

    def _say(
        self, record: str, key: Any, line: int, values: dict[str, Any], own_row: bool = False
    ) -> None:
        known = columns()
        said = self.said[record].setdefault(key, Said(line))
        said.lines.add(line)
        if own_row and said.has_own_row:
            text = _("%(place)s is about the same %(record)s. Remove one of them.")
            text %= {"place": place(said.line), "record": record}
            self.problems.append(Problem(line, "", text))
            return
        said.has_own_row |= own_row
        if own_row:
            said.line = line
        for name, value in values.items():
            if known[name].record != record:
                continue
            if said.cells.setdefault(name, value) != value:
                text = _("%(place)s says something else. Write the same, or leave one empty.")
                text %= {"place": place(said.line_of(name))}
                self.problems.append(Problem(line, name, text))
            said.where.setdefault(name, line)


def _missing(name: str, record: str) -> str:
    if record == TENANT:
        return _("Write the tenant's slug.")
    if name == "tenant":
        return _("Write the tenant's slug, or (site) for the site's own account.")
    return _("Write the mail server's name, or choose a provider in the column preset.")
