"""``Reply``: what a server answered to one command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailpool.text import one_line

_ENHANCED = re.compile(rb"([245]\.\d{1,3}\.\d{1,3})(?=\s|$)")

# How servers name the message that they took, after the enhanced code; the first match counts.
_QUEUE_IDS = [
    re.compile(pattern)
    for pattern in (
        r"(?i)\bqueued as ([\w.-]+)",  # Postfix, SendGrid and many others
        r"(?i)^ok id=([\w-]+)",  # Exim
        r"\[InternalId=(\d+)",  # Microsoft Exchange
        r"^([\w.-]+) (?i:message accepted)",  # Sendmail, OpenSMTPD
        r"(?i)^ok:? +\d+ +([\w.-]+) - gsmtp",  # Google
        r"(?i)^ok:? +(?:\d+ qp )?([\w.-]*\d[\w.-]*)",  # Amazon SES, qmail
    )
]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its code and the text of each of its lines."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def message(self) -> bytes:
        """The text, lines joined by ``\\n``, as ``smtplib``'s exceptions carry it."""
        return b"\n".join(self.lines)

    @property
    def text(self) -> str:
        """The text on one line, safe to be shown; ``message`` is what the server really said."""
        return one_line(self.message)

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463) such as ``4.4.2``; empty where there is none."""
        match = _ENHANCED.match(self.lines[0]) if self.lines else None
        return match[1].decode() if match else ""

    @property
    def queue_id(self) -> str:
        """The name that the server gave the message which it took; empty where it tells none."""
        text = self.text.removeprefix(self.enhanced).strip()
        return next((match[1] for each in _QUEUE_IDS if (match := each.search(text))), "")

    @property
    def ok(self) -> bool:
        """Whether the command was carried out (2yz)."""
        return 200 <= self.code < 300

    @property
    def means_goodbye(self) -> bool:
        """Whether the server ends or has ended the session: 421, or a time-out told as 451."""
        return self.code == 421 or (self.code == 451 and self.enhanced == "4.4.2")
