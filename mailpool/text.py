"""Text that others wrote, before it is sent or shown."""

from __future__ import annotations

import re

# Halves of characters, which no encoding has.
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("[\0\r\n\ud800-\udfff]")
# What ends a line, turns the direction of writing, or can't be seen at all. The joiners and marks
# of direction that names in some scripts are written with (U+200C to U+200F) are none of these.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def can_be_a_name(text: str) -> bool:
    """Whether it can be sent as a username: no control character, which RFC 4013 forbids and which
    could begin another command or answer.
    """
    return _CONTROLS.search(text) is None


def can_be_shown(text: str) -> bool:
    """Whether people see on one line what it is, and not something else."""
    return _UNSEEN.search(text) is None


def can_be_a_password(text: str) -> bool:
    """Whether it can be sent as a password, in which people have the oddest characters: no NUL,
    which ends it in PLAIN (RFC 4616), and no line end.
    """
    return _LINE_ENDS.search(text) is None


def is_unicode(text: str) -> bool:
    """Whether *text* can be encoded. Asked first: the exception would hold all of it."""
    return _SURROGATES.search(text) is None


def one_line(text: str | bytes) -> str:
    """*text* as it may be logged, stored and shown on a terminal, whoever wrote it.

    On one line, since another one could pass for a line of ours; and without what steers a
    terminal or turns the direction of writing (U+202E). What can't be shown is U+FFFD.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text
    )
