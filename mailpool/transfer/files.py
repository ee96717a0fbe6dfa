"""CSV and JSON, as rows and the other way round."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

from mailpool.secret import Secret
from mailpool.transfer.columns import SECRETS, columns
from mailpool.transfer.problems import Problem, RowNumber, UnusableFile, shown

FORMATS = ("csv", "json")
MAX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000
MAX_PROBLEMS = 1000  # so many are reported; who has more has another file in hand

# Spreadsheets take a cell that begins like this for a formula, and run it. (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_ESCAPED = (*_FORMULA, "'")


@dataclass(slots=True)
class Row:
    """What one row says; cells that say nothing are not there."""

    line: int
    cells: dict[str, Any] = field(repr=False)


def read(data: bytes, format: str, *, most: int | None = None) -> tuple[list[Row], list[Problem]]:
    """The rows of a file, and what is wrong with single ones. ``UnusableFile`` where it has none,
    or more than *most*, ``MAX_ROWS`` without it.

    Passwords in the cells are ``Secret``; no error repeats a cell that may be one.
    """
    text = _decode(data)
    problems: list[Problem] = []
    rows: list[Row] = []
    for row in (_read_csv if format == "csv" else _read_json)(text, problems):
        if len(rows) == (MAX_ROWS if most is None else most):
            said = _("There are more than %(n)d rows. Split the file.")
            if most is not None:
                said = _("There are more than %(n)d rows. Use the command mailpool_import.")
            raise _unusable(row.line, said, len(rows))
        rows.append(row)
    if not rows and not problems:
        raise _unusable(1, _("There are no rows in the file."))
    return rows, problems


def write(rows: Iterable[Mapping[str, Any]], format: str) -> str:
    """The text of a file with *rows*."""
    rows = list(rows)
    if format == "json":
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        return f"[\n{lines}\n]\n" if rows else "[]\n"
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    used = {name for row in rows for name in row} | {"record", "tenant", "server", "username"}
    head = [name for name in columns() if name in used]
    writer.writerow(head)
    writer.writerows([_cell(row.get(name)) for name in head] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    """*value* for a spreadsheet, which must not take it for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = " ".join(value) if isinstance(value, list) else str(value)
    return f"'{text}" if text.startswith(_ESCAPED) else text


def _uncell(name: str, text: str) -> str:
    """A cell as it was before ``_cell``. Passwords stand as they are: nobody writes them so."""
    if name in SECRETS:
        return text
    return text[1:] if text.startswith("'") and text[1:].startswith(_ESCAPED) else text


def _unusable(line: int, text: str, number: int = 0, column: str = "") -> UnusableFile:
    return UnusableFile([Problem(line, column, text % {"n": number})])


def _decode(data: bytes) -> Secret:
    if len(data) > MAX_BYTES:
        raise _unusable(1, _("The file has more than %(n)d MB. Split it."), MAX_BYTES >> 20)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unusable(1, _("The file is in UTF-16. Save it as “CSV UTF-8”."))
    try:
        text = Secret(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _unusable(
            line, _("This is not UTF-8, so umlauts and accents would be lost. Save as “CSV UTF-8”.")
        ) from None
    if (at := text.find("\0")) >= 0:
        raise _unusable(
            text.count("\n", 0, at) + 1, _("There is a NUL character: this is no text file.")
        )
    return text


def _read_csv(text: str, problems: list[Problem]) -> Iterator[Row]:
    first = Secret(text.partition("\n")[0])
    known = columns()
    separator = max(",;\t", key=lambda each: sum(n in known for n in _names(first, each)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    before = 0
    try:
        head = [cell.strip().lower() for cell in next(reader, [])]
        _check_head(head)
        before = reader.line_num
        for cells in map(_hidden, reader):
            line, before = before + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) != len(head):
                counts = {"found": len(cells), "head": len(head)}
                advice = _(
                    "This row has another number of cells (%(found)d) than the first row "
                    "(%(head)d). Look for a separator too many or too few, or one that needs "
                    "quotes around its cell."
                )
                _report(problems, [Problem(line, "", advice % counts)])
                continue
            named = zip(head, cells, strict=True)
            yield _row(line, ((name, _uncell(name, cell)) for name, cell in named if cell.strip()))
    except csv.Error:
        # Its own text says little, and may have been made of a cell.
        raise _unusable(
            before + 1,
            _(
                "From here on the quotes do not match, or a cell is longer than %(n)d characters. "
                "A quote within a quoted cell is written twice."
            ),
            csv.field_size_limit(),
        ) from None


def _hidden(cells: list[str]) -> list[str]:
    """None of them shows itself in a traceback: which one is a password is seen later."""
    return [Secret(cell) for cell in cells]


def _names(first: str, separator: str) -> list[str]:
    return [cell.strip().strip('"').lower() for cell in first.split(separator)]


def _row(line: int, cells: Iterable[tuple[str, Any]]) -> Row:
    """Of *cells*, in no variable on their way: a traceback would show it."""

    def kept(name: str, value: Any) -> Any:
        return Secret(value) if name in SECRETS and isinstance(value, str) else value

    return Row(line, {name: kept(name, value) for name, value in cells})


def _report(problems: list[Problem], found: Sequence[Problem]) -> None:
    problems += found
    if len(problems) > MAX_PROBLEMS:
        text = _("There are more than %(n)d problems. Is this the right file?")
        end = Problem(problems[MAX_PROBLEMS].line, "", text % {"n": MAX_PROBLEMS})
        raise UnusableFile([*problems[:MAX_PROBLEMS], end])


def _check_head(head: Sequence[str]) -> None:
    # Where it is none it is a row of data, perhaps with a password. Nothing of it is repeated.
    known = columns()
    if len(head) > 2 * len(known) or sum(name in known for name in head) * 2 < len(head):
        text = _("The first row has to name the columns, such as tenant, server and username.")
        raise UnusableFile([Problem(1, "", f"{text} {_all_columns()}")])
    problems = [unknown_column(1, name) for name in head if name not in columns()]
    for number, name in enumerate(head):
        if name in head[:number]:
            problems.append(Problem(1, name, _("There are two columns of this name. Remove one.")))
    if problems:
        raise UnusableFile(problems)


def unknown_column(line: int, name: str) -> Problem:
    said = [_("There is no such column.")]
    if near := difflib.get_close_matches(name, columns(), 1):
        said.append(_("Did you mean %(name)s?") % {"name": near[0]})
    return Problem(line, shown(name) or "?", " ".join([*said, _all_columns()]))


def _all_columns() -> str:
    return _("All columns are listed by “mailpool_import --columns”.")


def _read_json(text: str, problems: list[Problem]) -> Iterator[Row]:
    found = list(_elements(text))
    shares_lines = len({line for line, _pairs in found}) < len(found)
    for number, (line, pairs) in enumerate(found, start=1):
        at = RowNumber(number) if shares_lines else line
        if (row := _object(at, pairs, problems)) is not None:
            yield row


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, which shows nothing in a traceback."""

    def __repr__(self) -> str:
        return "(object)"


def _elements(text: str) -> Iterator[tuple[int, Any]]:
    """Each element of the list with the line where it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
    at, line, counted = _blank(text, 0), 1, 0
    if text[at : at + 1] != "[":
        raise _unusable(
            1,
            _(
                "The file has to begin with [ and to end with ], for it is a list of rows: "
                '[{"tenant": "bob", …}, …].'
            ),
        )
    at = _blank(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text):
            raise _unusable(line, _cut_off())
        try:
            pairs, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line += text.count("\n", counted, getattr(error, "pos", counted))
            # A text that is not closed is told of where it begins.
            is_open = getattr(error, "msg", "").startswith("Unterminated string")
            if is_open or getattr(error, "pos", 0) >= len(text.rstrip()):
                raise _unusable(line, _cut_off()) from None
            raise _unusable(
                line, _("This is not JSON: look for a missing comma or quote.")
            ) from None
        yield line, pairs
        at = _blank(text, at)
        if text[at : at + 1] == ",":
            at = _blank(text, at + 1)
        elif at == len(text):
            raise _unusable(line, _cut_off())
        elif text[at : at + 1] != "]":
            raise _unusable(line, _("After this row a comma or the end of the list is missing."))
    if _blank(text, at + 1) != len(text):
        raise _unusable(line, _("There is something after the end of the list. Remove it."))


def _cut_off() -> str:
    return _(
        "The file ends before its list of rows does: something was cut off, or a quote or bracket "
        "is missing."
    )


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _object(line: int, pairs: Any, problems: list[Problem]) -> Row | None:
    if not isinstance(pairs, _Pairs) or not pairs:
        text = _('Each row is an object: {"tenant": "bob", …}.')
        _report(problems, [Problem(line, "", text)])
        return None
    known = columns()
    names = [name for name, _value in pairs[: 2 * len(known)]]  # more of them are wrong anyway
    wrong = [unknown_column(line, name) for name in names if name not in known]
    wrong += [
        Problem(line, shown(name), _("The row says this twice. Remove one."))
        for name in {name for name in names if names.count(name) > 1}
    ]
    _report(problems, wrong)
    return None if wrong else _row(line, ((name, v) for name, v in pairs if v is not None))
