"""What a session sends, and what becomes of it."""

from __future__ import annotations

import base64
import quopri
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mailpool.secret import SecretBytes
from mailpool.smtp.reply import Reply

_LINE_END = re.compile(rb"\r\n|\r|\n")
_DOT_AT_LINE_START = re.compile(rb"(?m)^\.")

# Bytes of a message that are looked through for what a server repeats of it; it could name one word
# after another.
_REPEATED_OF = 256 * 1024

# Like base64, in a part of its own or in a header; what only looks like it does no harm.
_LIKE_BASE64 = re.compile(rb"[A-Za-z0-9+/]{8,}(?:\r\n[A-Za-z0-9+/]+)*")


class Said:
    """What a server was told about *envelopes*, and may repeat: ``word in said``.

    However it spells it: in small letters, without backslashes, or decoded.
    """

    def __init__(self, *envelopes: Envelope) -> None:
        self._envelopes = envelopes

    def __contains__(self, word: object) -> bool:
        assert isinstance(word, bytes)
        return any(text.find(plainly(word)) >= 0 for text in self._texts)

    @cached_property
    def _texts(self) -> list[SecretBytes]:
        return [
            plainly(text)
            for each in self._envelopes
            for text in (
                "\n".join((each.sender, *each.recipients)).encode("utf-8", "replace"),
                *_readings(each.content[:_REPEATED_OF]),
            )
        ]


def plainly(text: bytes) -> SecretBytes:
    """*text* for comparisons, however a server spells it."""
    return SecretBytes(text.replace(b"\\", b"").lower())


def _readings(content: bytes) -> Iterator[bytes]:
    """*content* as it stands, and decoded in both ways that mail is encoded in.

    Wherever it looks like that: a parser would have to be right about each part of any message.
    """
    yield content
    yield quopri.decodestring(content)
    yield b"".join(_from_base64(found) for found in _LIKE_BASE64.findall(content))


def _from_base64(text: bytes) -> bytes:
    digits = text.replace(b"\r\n", b"")
    if len(digits) % 4 == 1:  # cut off
        digits = digits[:-1]
    return base64.b64decode(digits + b"==")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message, rendered: who sends it, who gets it, and its bytes.

    Addresses are addr-specs (``a@example.com``), domains in ASCII. Line ends of *content* are
    made CRLF: a bare CR or LF is where one server sees the end of a message and the next one
    doesn't (CVE-2023-51764 and its family). Raises ``ValueError`` for an address that would
    break out of its command.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    needs_smtputf8: bool = False

    def __post_init__(self) -> None:
        if not self.recipients:
            raise ValueError("an envelope needs at least one recipient.")
        for address in (self.sender, *self.recipients):
            if any(char in address for char in "\r\n<>\0"):
                raise ValueError(f"{address!r} can't be used in an SMTP command.")
        content = _LINE_END.sub(b"\r\n", self.content)
        object.__setattr__(self, "content", content.removesuffix(b"\r\n") + b"\r\n")

    @property
    def size(self) -> int:
        """Bytes of the message, as SIZE (RFC 1870) counts them."""
        return len(self.content)

    @property
    def is_8bit(self) -> bool:
        return not self.content.isascii()

    def stuffed(self) -> bytes:
        """The content for DATA, dots at line starts doubled, without its last line end."""
        return _DOT_AT_LINE_START.sub(b"..", self.content).removesuffix(b"\r\n")


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server took the message over.

    *refused* holds the recipients that it refused: address → (code, text of the reply).
    *replies* are all its replies, in the order of the commands.
    """

    session_id: str
    reused: bool
    code: int
    reply: str
    refused: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    enhanced: str = ""
    """The enhanced status code, such as ``2.0.0``; empty where the server gives none."""

    queue_id: str = ""
    """The server's own name for the message; empty where it tells none."""

    replies: tuple[Reply, ...] = field(default=(), repr=False)


@dataclass(slots=True, eq=False)
class Attempt:
    """One envelope on its way, and what is known of it by now.

    Filled in while the exchange goes on, so that an interruption at any point leaves the truth:
    with neither *receipt* nor *error*, the message is unsent if *handed_over* is false, and may
    have arrived if it is true.
    """

    envelope: Envelope
    receipt: Receipt | None = None
    error: Exception | None = None
    handed_over: bool = False
    """Whether the first byte of the message's end may have left."""

    session_id: str | None = None
    reused: bool = False
    """Whether the session had been lent or had sent before, so that a failure may be its age."""

    stale: Exception | None = None
    """Why the session, a used one, ended before the hand-over: a fresh one may take the message."""

    replies: list[Reply] = field(default_factory=list)
    tls: str = ""
    """The TLS version of the session; empty without TLS."""

    # Seconds; points in time are monotonic.
    made: float = field(default_factory=time.monotonic)
    connecting: float = 0.0
    """How much of the time before it began went into a connection that was opened for it."""

    began: float | None = None
    """When its commands left, on the session that it ended with."""

    ended: float | None = None
    """When the last was heard of it."""

    def begin(
        self, session_id: str, *, reused: bool, tls: str = "", connecting: float = 0.0
    ) -> None:
        """It is now on this session's turn."""
        self.session_id, self.reused, self.tls = session_id, reused, tls
        self.connecting = connecting
        self.began = time.monotonic()
        self.replies.clear()

    def hear(self, reply: Reply) -> None:
        """The next reply that is about it."""
        self.replies.append(reply)
        self.ended = time.monotonic()

    def could_not_begin(self, error: Exception, *, connecting: float = 0.0) -> None:
        """There is no session for it."""
        self.error, self.connecting = error, connecting
        self.began, self.ended = None, time.monotonic()

    @property
    def seconds(self) -> float | None:
        """How long connecting and sending took; ``None`` where no server took the message."""
        if self.receipt is None or self.began is None or self.ended is None:
            return None
        return self.connecting + self.ended - self.began

    @property
    def is_settled(self) -> bool:
        return self.receipt is not None or self.error is not None

    @property
    def refused(self) -> dict[str, tuple[int, bytes]]:
        """The recipients that were refused so far: address → (code, text)."""
        answers = zip(self.envelope.recipients, self.replies[1:], strict=False)
        return {address: (each.code, each.message) for address, each in answers if not each.ok}

    @property
    def accepted(self) -> int:
        """How many recipients were accepted so far."""
        return sum(reply.ok for reply in self.replies[1 : 1 + len(self.envelope.recipients)])
