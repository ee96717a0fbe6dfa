"""A socket with SMTP replies on it: bytes out, one checked reply at a time in."""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Container
from smtplib import SMTPServerDisconnected

from mailpool.smtp.reply import Reply

MAX_LINE = 4096  # bytes; RFC 5321 allows 512, some servers are more talkative
MAX_LINES = 256
PIECE = 65536  # bytes that are handed to the network at a time

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class NotSMTP(SMTPServerDisconnected):
    """What the peer said is not an SMTP reply, so nothing on this connection can be trusted."""


class TimedOut(SMTPServerDisconnected):
    """The peer did not answer, or take what was sent to it, in time."""


class Wire:
    """A connected socket. Any failure on it raises ``SMTPServerDisconnected``.

    *timeout* (seconds) is for a reply, and for the network to take a piece of what is written,
    where a call names no other. *clock* is a monotonic clock in seconds, *deadline* a time on it
    that no operation outlasts while it is set. *hide* takes out of what the peer says what must
    not be passed on; it is told what was *said* to the peer, which may repeat that.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        timeout: float,
        *,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        hide: Callable[[bytes, Container[bytes]], bytes] = lambda text, said: text,
    ) -> None:
        self.sock = sock
        self.address = address
        self.timeout = timeout
        self.deadline = deadline
        self.said: Container[bytes] = ()  # what replies may be about
        self.sent = 0  # bytes that the network took; never fewer than the peer can have read
        self._heard_at = clock()  # when the latest reply came
        self._clock = clock
        self._hide = hide
        self._buffer = bytearray()
        self._next = 0  # where in it the next reply begins

    @property
    def tls(self) -> ssl.SSLSocket | None:
        return self.sock if isinstance(self.sock, ssl.SSLSocket) else None

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that nobody asked for."""
        return len(self._buffer) > self._next

    @property
    def position(self) -> int:
        """Where the next reply begins, for ``last_words()``."""
        return self._next

    def forget_replies(self) -> None:
        """Drop the bytes of the replies that were read."""
        del self._buffer[: self._next]
        self._next = 0

    @property
    def silent_for(self) -> float:
        """Seconds since the latest reply."""
        return self._clock() - self._heard_at

    def start_tls(
        self, context: ssl.SSLContext, host: str, resume: ssl.SSLSession | None = None
    ) -> None:
        """Encrypt the connection and check that the certificate belongs to *host*.

        *resume* is the TLS session of an earlier connection with the same key and context. Raises
        ``SMTPServerDisconnected`` if the peer has already said something: it would be taken for
        an encrypted answer (the STARTTLS injection family, CVE-2021-22947).
        """
        if self.has_unread:
            raise NotSMTP(f"{self.address} sent text ahead of the TLS handshake: rejected.")
        self.sock.settimeout(self._remaining(self._clock() + self.timeout))
        self.sock = context.wrap_socket(self.sock, server_hostname=host, session=resume)

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send all of *data*; the network has to take each piece of it within *timeout*.

        Where this fails, ``sent`` tells exactly how far it got: a TLS record that was not taken
        whole can't be read by the peer at all.
        """
        view = memoryview(data)
        timeout = timeout or self.timeout
        try:
            while view:
                self.sock.settimeout(self._remaining(self._clock() + timeout))
                piece = view[:PIECE]
                # Counted first: an interruption between the two lines must not lose the count.
                self.sent += len(piece)
                taken = 0
                try:
                    taken = self.sock.send(piece)
                except OSError:
                    self.sent -= len(piece)
                    raise
                self.sent -= len(piece) - taken
                view = view[taken:]
        except OSError as error:
            raise self._lost(error) from error

    def read_reply(self, timeout: float | None = None) -> Reply:
        """The next reply, whole, within *timeout* seconds; ``NotSMTP`` if it is none."""
        until = self._clock() + (timeout or self.timeout)
        lines: list[bytes] = []
        code = b""
        start = self._next
        while True:
            end = self._line_end(start, until)
            line = self._hide(bytes(self._buffer[start:end]), self.said).removesuffix(b"\r")
            match = _REPLY_LINE.fullmatch(line)
            if match is None or (code and match[1] != code) or len(lines) >= MAX_LINES:
                raise NotSMTP(f"{self.address} answered {line[:80]!r}, which is not SMTP.")
            code = match[1]
            lines.append((match[3] or b"").strip())
            start = end + 1
            if match[2] != b"-":
                self._next, self._heard_at = start, self._clock()
                return Reply(int(code), tuple(lines))

    def last_words(self, position: int) -> Reply | None:
        """The reply at *position*, if it is there already; for an exchange that breaks off.

        It may have been read before: whoever was interrupted then may not have seen it.
        """
        self._next = position
        try:
            return self.read_reply(timeout=0.01)
        except (SMTPServerDisconnected, ValueError):
            return None

    def unexpected(self) -> str | None:
        """``None`` for a connection that is alive and silent, else why it can't be used.

        Costs no round trip. A TLS 1.3 connection can be readable only because of session
        tickets, so one read that doesn't wait has to tell.
        """
        if self.has_unread:
            return "unread data"
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        try:
            if not poller.poll(0) and not (self.tls and self.tls.pending()):
                return None
            self.sock.settimeout(0)
            data = self._hide(self.sock.recv(MAX_LINE), self.said)
        except (ssl.SSLWantReadError, BlockingIOError):
            return None  # tickets, nothing that was meant for us
        except (OSError, ValueError) as error:
            return f"connection lost ({error})"
        if not data:
            return "closed by the server"
        return f"the server said {data[:120].decode('ascii', 'replace').strip()!r}"

    def cut(self) -> None:
        """End the connection under another thread that uses it; that thread then closes it."""
        # Not SSLSocket's own shutdown(), after which what is written goes out in clear text.
        socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's end. Nothing is written, so a forked parent's TLS stays intact."""
        self.sock.close()

    def _line_end(self, start: int, until: float) -> int:
        """Where the line that begins at *start* ends; waits for it *until* then."""
        while (end := self._buffer.find(b"\n", start, start + MAX_LINE + 1)) < 0:
            size = len(self._buffer)
            if size - start > MAX_LINE:
                raise NotSMTP(f"{self.address} sent a line of more than {MAX_LINE} bytes.")
            try:
                self.sock.settimeout(self._remaining(until))
                # In no variable, which a traceback would show: nothing is hidden in it yet.
                self._buffer += self.sock.recv(16384)
            except OSError as error:
                raise self._lost(error) from error
            if len(self._buffer) == size:
                raise SMTPServerDisconnected(f"{self.address} closed the connection.")
        return end

    def _remaining(self, until: float) -> float:
        if self.deadline is not None:
            until = min(until, self.deadline)
        remaining = until - self._clock()
        if remaining <= 0:
            raise TimeoutError("timed out")
        return remaining

    def _lost(self, error: OSError) -> SMTPServerDisconnected:
        if isinstance(error, TimeoutError):
            return TimedOut(f"{self.address} did not answer in time.")
        return SMTPServerDisconnected(f"Lost the connection to {self.address}: {error}")
