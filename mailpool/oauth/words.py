"""What a provider says, fit to be shown to people: it may say anything, in any characters."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from urllib.parse import unquote

from django.utils.translation import gettext as _

# Characters that are looked at, and that are shown of them.
_READ = 1000
_SHOWN = 300

# Letters and digits of a secret in a row that give it away, and the fewest that are looked for.
_TELLTALE = 10
_LEAST = 6


def quotable(said: str, secrets: Iterable[str] = ()) -> str:
    """*said* in a line of printable characters, with none of *secrets* in any usual spelling."""
    secrets = [secret for secret in secrets if secret]
    for secret in secrets:
        said = said.replace(secret, "(hidden)")
    said = said[:_READ]
    readings = [_plain(reading) for reading in _readings(said)]
    if any(_repeats(reading, _plain(secret)) for secret in secrets for reading in readings):
        return _("(words that repeat a secret, and are not shown)")
    # Neither control characters nor those that turn the direction of writing are printable.
    return "".join(c if c.isprintable() else " " for c in said).strip()[:_SHOWN]


def _readings(text: str) -> set[str]:
    """*text*, and what it says to whoever undoes the escapes in it; they may be nested."""
    readings = {text}
    for _round in range(2):
        readings |= {undo(reading) for reading in readings for undo in _UNDO}
    return readings


def _without_json(text: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)


def _without_base64(text: str) -> str:
    """All that may be base64 in *text*, wherever it begins, with either alphabet."""
    found = []
    for run in re.findall(r"[A-Za-z0-9+/]{8,}", text.replace("-", "+").replace("_", "/")):
        for begin in range(4):
            whole = run[begin : begin + (len(run) - begin) // 4 * 4]
            rest = run[begin + len(whole) :]
            padded = whole + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else "")
            found.append(base64.b64decode(padded).decode("latin-1"))
    return " ".join(found)


_UNDO = (unquote, _without_json, html.unescape, _without_base64)


def _plain(text: str) -> str:
    """What is left of *text* in any case, with any breaks and quotes in it."""
    return "".join(c for c in text.casefold() if c.isascii() and c.isalnum())


def _repeats(text: str, secret: str) -> bool:
    size = min(len(secret), _TELLTALE)
    return size >= _LEAST and not _pieces(text, size).isdisjoint(_pieces(secret, size))


def _pieces(text: str, size: int) -> set[str]:
    return {text[begin : begin + size] for begin in range(len(text) - size + 1)}
