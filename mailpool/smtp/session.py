"""``Session``: one authenticated SMTP connection, opened from one ``SessionParams``."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from smtplib import SMTPRecipientsRefused, SMTPSenderRefused, SMTPServerDisconnected

from mailpool.smtp.envelope import Attempt, Envelope, Receipt, Said
from mailpool.smtp.exchange import Exchange, Take
from mailpool.smtp.handshake import Handshake
from mailpool.smtp.memory import KeyMemory
from mailpool.smtp.params import SessionParams
from mailpool.smtp.reply import Reply
from mailpool.smtp.wire import Wire

QUIT_TIMEOUT = 1.0  # seconds; saying goodbye must not hold anything up
NOOP_TIMEOUT = 5.0  # seconds; who needs longer for that is as good as dead


class Session:
    """An open, authenticated connection. Not thread-safe: the pool lends it to one caller.

    ``open()`` makes one; ``send()`` is one message and ``send_many()`` a batch; ``close()`` says
    QUIT. Whatever leaves the connection in doubt closes it, after which ``is_open`` is false.
    """

    def __init__(self, handshake: Handshake) -> None:
        self.params = handshake.params
        self.memory = handshake.memory
        self.id = secrets.token_hex(6)
        self.features = handshake.features
        self.max_messages = handshake.max_messages
        self.tls_version = handshake.tls_version
        self.tls_resumed = handshake.tls_resumed
        self.cipher = handshake.cipher
        self.mechanism = handshake.mechanism
        self.messages = 0  # envelopes that were tried, sent or not
        self.reuses = 0  # times that the pool handed it out again
        self.opened_in = 0.0  # seconds
        self.closed_because = ""
        self.on_close: Callable[[Session], None] | None = None
        self._said_quit = False
        self._pid = os.getpid()
        self._wire: Wire | None = handshake.wire

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Session {self.id} {self.params.username}@{self.params.address} {state}>"

    # Opening and closing

    @classmethod
    def open(
        cls,
        params: SessionParams,
        deadline: float | None = None,
        memory: KeyMemory | None = None,
    ) -> Session:
        """Connect, secure and log in, until *deadline* (monotonic, seconds) at the latest.

        *memory* is what earlier sessions of the same *params* found out. Raises what
        ``Handshake.run()`` raises.
        """
        started = time.monotonic()
        handshake = Handshake(params, deadline=deadline, memory=memory)
        handshake.run()
        session = cls(handshake)
        session.opened_in = time.monotonic() - started
        return session

    @property
    def opened(self) -> Wire:
        """The connection; ``SMTPServerDisconnected`` where there is none that may be used."""
        if self._wire is None:
            raise SMTPServerDisconnected(f"The session with {self.params.address} is closed.")
        if self._pid != os.getpid():
            raise SMTPServerDisconnected("This session belongs to the parent process.")
        return self._wire

    @property
    def is_open(self) -> bool:
        return self._wire is not None and self._pid == os.getpid()

    @property
    def is_used(self) -> bool:
        """Whether it was lent or has sent before, so that a failure may just mean its age."""
        return self.messages > 0 or self.reuses > 0

    @property
    def is_spent(self) -> bool:
        """Whether it has sent as many messages as it may."""
        return self.messages >= self.max_messages

    def is_alive(self) -> bool:
        """Whether the connection can be used now, found out without a round trip."""
        if not self.is_open:
            return False
        trouble = self.opened.unexpected()
        if trouble:
            self.abort(trouble)
        return not trouble

    def noop(self, timeout: float = NOOP_TIMEOUT) -> bool:
        """Ask the server whether it is still there: one round trip, for long idle times.

        *timeout* is in seconds.
        """
        wire = self.opened
        try:
            wire.write(b"NOOP\r\n", timeout)
            if wire.read_reply(timeout).ok and not wire.has_unread:
                return True
            self.abort("refused NOOP")
        except SMTPServerDisconnected as error:
            self.abort(str(error))
        return False

    def say_quit(self) -> None:
        """Say QUIT, and leave it to ``close()`` to wait for the answer. Never raises."""
        if self.is_open and not self._said_quit:
            self._said_quit = True
            self.opened.deadline = None
            with contextlib.suppress(Exception):
                self.opened.write(b"QUIT\r\n", 0.1)

    def close(self, timeout: float = QUIT_TIMEOUT) -> None:
        """Say QUIT, wait *timeout* seconds at most for the answer, close. Never raises."""
        self.say_quit()
        if self.is_open and timeout > 0:
            with contextlib.suppress(Exception):
                self.opened.read_reply(timeout)
        self.abort(self.closed_because or "closed")

    def abort(self, why: str) -> None:
        """Close hard, without a word; the fork rule needs that too. Never raises."""
        wire, self._wire = self._wire, None
        if wire is not None:
            self.closed_because = why
            with contextlib.suppress(Exception):
                wire.close()
            if self.on_close and self._pid == os.getpid():
                with contextlib.suppress(Exception):
                    self.on_close(self)

    def cut(self) -> None:
        """End the connection from another thread than the one that uses it. Never raises."""
        wire = self._wire
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.cut()

    # Sending

    def send(self, envelope: Envelope) -> Receipt:
        """Send one message.

        Raises what the server refuses as ``smtplib``'s exceptions: the session stays usable
        unless ``is_open`` says otherwise. ``SMTPServerDisconnected`` where the session ended
        before the message was handed over; ``DeliveryUnknown`` where its end may have left and
        no reply came.
        """
        outcome = self.send_many([envelope])[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def send_many(self, envelopes: Iterable[Envelope]) -> list[Receipt | Exception]:
        """Send all *envelopes*, in n + 1 round trips where the server pipelines.

        What became of each, in their order: a receipt, or what ``send()`` would raise.
        """
        attempts = [Attempt(envelope) for envelope in envelopes]
        waiting = deque(attempts)

        def take() -> Attempt | None:
            return waiting.popleft() if waiting and not self.is_spent else None

        if waiting:
            self.transmit(waiting.popleft(), take)
        outcomes: list[Receipt | Exception] = []
        for attempt in attempts:
            why = self.closed_because or f"it has sent {self.messages} messages"
            ended = SMTPServerDisconnected(f"The session ended before the message's turn: {why}.")
            outcomes.append(attempt.receipt or attempt.error or attempt.stale or ended)
        return outcomes

    def transmit(
        self, first: Attempt, take: Take, *, deadline: float | None = None
    ) -> list[Attempt]:
        """Send *first*, then what *take* gives, and fill in what becomes of each.

        Until *take* gives ``None`` or the session has ended; then those that it left undone are
        returned. *deadline* (monotonic, seconds) bounds all of it. Raises nothing but what
        interrupts: ``KeyboardInterrupt`` and the like.
        """
        wire = self.opened
        wire.deadline = deadline
        try:
            return Exchange(self, first, take).run()
        finally:
            wire.deadline, wire.said = None, ()  # messages are large, and sessions idle for long

    def try_sender(self, address: str) -> str:
        """Offer a sender without sending; the server's answer, or ``SMTPSenderRefused``."""
        reply = self._command(b"MAIL FROM:<%b>", address)
        if not reply.ok:
            raise SMTPSenderRefused(reply.code, reply.message, address)
        return reply.text

    def try_recipient(self, address: str) -> str:
        """Offer a recipient after a sender; the answer, or ``SMTPRecipientsRefused``."""
        reply = self._command(b"RCPT TO:<%b>", address)
        if not reply.ok:
            raise SMTPRecipientsRefused({address: (reply.code, reply.message)})
        return reply.text

    def _command(self, line: bytes, address: str) -> Reply:
        wire, encoded = self.opened, address.encode()
        wire.said = Said(Envelope(address, (address,), b""))
        wire.write(line % encoded + b"\r\n")
        return wire.read_reply()
