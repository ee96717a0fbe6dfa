"""What is wrong with a file, told so that whoever wrote it can put it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.text import Truncator

from mailpool.exceptions import MailpoolError
from mailpool.text import one_line


class RowNumber(int):
    """What counts instead of the line where several rows are on one, as programs write JSON."""


def place(line: int) -> str:
    """Where something is, for people."""
    return f"Row {line}" if isinstance(line, RowNumber) else f"Line {line}"


def shown(cell: Any) -> str:
    """What a report repeats of a cell or a column's name, whatever that is."""
    return Truncator(one_line(str(cell))).chars(60)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong: where, what, and what to do. Never a secret."""

    line: int
    column: str  # empty: the row as a whole
    text: str

    def __str__(self) -> str:
        where = ", ".join(filter(None, (place(self.line), self.column)))
        return f"{where}: {self.text}"


class UnusableFile(MailpoolError):
    """The file can't be read at all, or not as rows: nothing is compared or written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))
