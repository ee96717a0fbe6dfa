"""Text that others wrote, before it is sent or shown."""

from __future__ import annotations

import re

# Control characters, and halves of characters ("lone surrogates"), which no encoding has.
_NOT_FOR_LOGINS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def fits_a_login(text: str) -> bool:
    """Whether a username or password can be sent: RFC 4616 and RFC 4013 have no control
    characters in them, and a line end would begin another command or answer.
    """
    return _NOT_FOR_LOGINS.search(text) is None


def is_unicode(text: str) -> bool:
    """Whether *text* can be encoded. Asked first: the exception would hold all of it."""
    return _SURROGATES.search(text) is None
