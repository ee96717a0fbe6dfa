"""``Exchange``: messages on one open session, in as few round trips as the server allows.

What is written together: the end of one message, RSET where one is due, and the commands of the
next message. So n messages take n + 1 round trips, and with single flight one each. Every reply
is read, in order, by the step that asked for it; whatever does not fit ends the session.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from smtplib import (
    SMTPDataError,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)
from typing import TYPE_CHECKING

from mailpool.exceptions import DeliveryUnknown
from mailpool.smtp.envelope import Attempt, Envelope, Receipt, Said
from mailpool.smtp.reply import Reply
from mailpool.smtp.wire import NotSMTP

if TYPE_CHECKING:
    from mailpool.smtp.session import Session

# Commands that may be on their way before their replies are read: Postfix reads 4096 bytes at a
# time, and a client that writes on while replies pile up can end with both sides waiting.
PIPELINE_BYTES = 4096

# A single flight can't be taken back, so only on a session that has just been heard of: seconds.
SINGLE_FLIGHT_WITHIN = 5.0

# The first chunk on a session that has not been heard of just now, or of a key that has not flown
# yet. If the server takes it for a command after all, one byte makes none, and nothing is lost.
# (An empty chunk would do, but Postfix refuses those.)
PROBE_BYTES = 1

# So often a server has to show that it answers messages as it answers addresses.
TRUSTED_AFTER = 3

END = b"\r\n.\r\n"

_UNKNOWN_COMMAND = {500, 501, 502, 503, 504}

Take = Callable[[], Attempt | None]


def _never() -> bool:
    return False


@dataclass(slots=True)
class _Step:
    """Something to write, and who reads the reply to it."""

    data: bytes
    then: Callable[[Reply], None]
    needless: Callable[[], bool] = _never
    """Asked before it is written, where the replies before it are known."""

    end_of: Attempt | None = None
    """The attempt whose end is in *data*, from *end_at* on."""

    end_at: int = 0


class _Goodbye(Exception):
    """A fresh session was told 421: no further reply will come, and the refusal counts."""


class _WrongCount(NotSMTP):
    """Fewer or more replies than commands."""


class Exchange:
    """The messages of one call on *session*: *first*, then what *take* gives until it is none."""

    def __init__(self, session: Session, first: Attempt, take: Take) -> None:
        self._session = session
        self._wire = session.opened
        self._params = session.params
        self._timeouts = session.params.timeouts
        self._memory = session.memory
        self._pipelining = "PIPELINING" in session.features
        self._take = take
        self._again: Attempt | None = first  # to be offered before any other
        self._options = b""  # of the MAIL that comes next
        self._ready: Attempt | None = None  # the server waits for its content
        self._chunked = False  # ... as a chunk (RFC 3030)
        self._lone_dot = self._reset = False  # due before anything else
        # In this turn:
        self._content: Attempt | None = None  # whose content goes out
        self._offered: Attempt | None = None  # whose commands go out
        self._ended: Attempt | None = None  # whose end was answered
        self._heard = 0  # where in what the server says it begins
        # Those whose end was answered with what is said of an address, as if by one reply too many:
        self._suspects: list[Attempt] = []

    def run(self) -> list[Attempt]:
        """Send them, until there are no more or the session has ended.

        Each attempt says what became of it. Returns those that the end of the session left
        undone, in order; with ``stale`` set, one has used up its first try.
        """
        try:
            while True:
                self._expect_silence()
                offered = self._next()
                if not self._session.is_open:
                    raise SMTPServerDisconnected(
                        f"The session with {self._params.address} ended: "
                        f"{self._session.closed_because}."
                    )
                if not (offered or self._ready or self._reset):
                    break
                self._turn(offered)
        except _Goodbye as goodbye:
            self._session.abort(f"the server said {goodbye}")
            self._settle_goodbye()
            self._disbelieve(self._ended, f"The server said {goodbye}.")
            for attempt in self._suspects:
                self._disbelieve(attempt, f"The server said {goodbye}.", even_enhanced=True)
            return []
        except SMTPServerDisconnected as error:
            return self._lost(error)
        except BaseException as error:
            # Cut in the middle: replies may still come.
            why = f"interrupted by {type(error).__name__}"
            try:
                self._hear_end()
            finally:
                self._session.abort(why)
            self._settle_unknown(f"The exchange was {why}.", error)
            raise
        if self._suspects:
            self._count_to_quit()
        return []

    def _next(self) -> Attempt | None:
        """The attempt to be offered next. What this server is known not to take is settled."""
        while self._session.is_open:
            # With a suspect no further one is begun, so that the question is settled soon.
            attempt, self._again = self._again or (not self._suspects and self._take()), None
            if not attempt:
                return None
            try:
                self._options = self._mail_options(attempt.envelope)
            except (SMTPNotSupportedError, SMTPSenderRefused) as error:
                attempt.error = error
                continue
            return attempt
        return None

    def _mail_options(self, envelope: Envelope) -> bytes:
        """Parameters of MAIL; raises for what this server is known not to take."""
        features, options = self._session.features, b""
        if envelope.needs_smtputf8:
            if "SMTPUTF8" not in features:
                raise SMTPNotSupportedError(
                    f"{self._params.address} does not take addresses with non-ASCII characters "
                    "before the @ (SMTPUTF8)."
                )
            options += b" SMTPUTF8"
        if envelope.is_8bit and "8BITMIME" in features:
            options += b" BODY=8BITMIME"
        if "SIZE" in features:
            limit = features["SIZE"].split(" ")[0]
            if limit.isdigit() and 0 < int(limit) < envelope.size:
                text = (
                    f"5.3.4 The message has {envelope.size} bytes; {self._params.address} takes "
                    f"{limit}."
                )
                raise SMTPSenderRefused(552, text.encode(), envelope.sender)
            options += b" SIZE=%d" % envelope.size
        return options

    # A turn: one write where the server pipelines, and all replies to it

    def _turn(self, offered: Attempt | None) -> None:
        self._wire.forget_replies()
        self._heard = self._wire.position
        self._content, self._ready = self._ready, None
        self._offered, self._ended = offered, None
        self._wire.said = Said(*(each.envelope for each in (self._content, offered) if each))
        steps: list[_Step] = []
        if self._content:
            steps.append(self._ending(self._content))
        if self._lone_dot:
            steps.append(_Step(b".\r\n", self._on_lone_dot))
        if self._reset:
            steps.append(_Step(b"RSET\r\n", self._on_reset))
        self._lone_dot = self._reset = False
        single = False
        if offered:
            session, is_used = self._session, self._session.is_used
            offered.begin(
                session.id,
                reused=is_used,
                tls=session.tls_version,
                connecting=0.0 if is_used else session.opened_in,
            )
            self._session.messages += 1
            commands = self._commands(offered)
            single = commands[-1].end_of is not None
            steps += commands
        while steps:
            steps = self._write_and_read(steps)
        if offered and not offered.is_settled:
            self._judge(offered, single)

    def _write_and_read(self, steps: list[_Step]) -> list[_Step]:
        """As many steps as may go together, and their replies. Returns the others."""
        while steps and steps[0].needless():
            steps = steps[1:]
        count = size = 0
        for step in steps:
            size += 0 if step.end_of else len(step.data)
            if count and (not self._pipelining or size > PIPELINE_BYTES):
                break
            count += 1
        group, rest = steps[:count], steps[count:]
        self._expect_silence()
        self._write(group)
        for step in group:
            timeout = self._timeouts.final if step.end_of else None
            step.then(self._wire.read_reply(timeout))
        return rest

    def _expect_silence(self) -> None:
        """All replies to what was written have been read: there can't be another one."""
        if self._wire.has_unread:
            raise _WrongCount(f"{self._params.address} sent more replies than there were commands.")

    def _write(self, group: list[_Step]) -> None:
        ends: list[tuple[Attempt, int]] = []
        at = self._wire.sent
        for step in group:
            if step.end_of:
                ends.append((step.end_of, at + step.end_at))
            at += len(step.data)
        for attempt, _ in ends:
            attempt.handed_over = True  # as long as nobody knows better
        try:
            self._wire.write(b"".join(step.data for step in group), self._timeouts.data)
        except BaseException:
            for attempt, end in ends:
                attempt.handed_over = self._wire.sent > end
            raise

    def _hear_end(self) -> None:
        """The exchange breaks off; perhaps the answer to the content is there already."""
        content = self._content
        if content is None or content.is_settled:
            return
        reply = self._wire.last_words(self._heard)  # its answer is the first one of the turn
        if reply is None or not (reply.ok or reply.code >= 400):
            return
        if content.handed_over:
            with contextlib.suppress(SMTPServerDisconnected):
                self._on_end(content, reply)
        elif not reply.ok and not (content.reused and reply.means_goodbye):
            # It was refused before it was there as a whole.
            content.error = SMTPDataError(reply.code, reply.message)

    # The steps

    def _ending(self, attempt: Attempt, *, begun: bool = True) -> _Step:
        """The content, or where it was *begun* as a chunk the rest, and with it the end."""
        if self._chunked:
            content = attempt.envelope.content[PROBE_BYTES if begun else 0 :]
            data, end_at = b"BDAT %d LAST\r\n%b" % (len(content), content), 0
        else:
            content = attempt.envelope.stuffed()
            data, end_at = content + END, len(content)
        return _Step(
            data, lambda reply: self._on_end(attempt, reply), end_of=attempt, end_at=end_at
        )

    def _commands(self, attempt: Attempt) -> list[_Step]:
        """MAIL, RCPT … and what asks for the content, or the content itself."""

        def note(reply: Reply) -> None:
            if not reply.ok and reply.code < 400:
                raise _WrongCount(f"{self._params.address} left out a reply.")
            self._note(attempt, reply)

        def note_go_ahead(reply: Reply) -> None:
            if reply.code < 400 and (reply.code != 250 if self._chunked else reply.code != 354):
                raise _WrongCount(
                    f"{self._params.address} sent more replies than there were commands."
                )
            self._note(attempt, reply, is_last=True)

        def mail_refused() -> bool:
            return bool(attempt.replies) and not attempt.replies[0].ok

        def nobody_accepted() -> bool:
            return bool(attempt.replies) and not attempt.accepted

        envelope = attempt.envelope
        steps = [_Step(b"MAIL FROM:<%b>%b\r\n" % (envelope.sender.encode(), self._options), note)]
        steps += [
            _Step(b"RCPT TO:<%b>\r\n" % address.encode(), note, mail_refused)
            for address in envelope.recipients
        ]
        self._chunked = self._may_chunk()
        if self._may_fly(steps):
            last = self._ending(attempt, begun=False)
            last.then = lambda reply: self._on_flown(attempt, reply)
        elif self._chunked:
            first = envelope.content[:PROBE_BYTES]
            last = _Step(b"BDAT %d\r\n%b" % (len(first), first), note_go_ahead)
        else:
            last = _Step(b"DATA\r\n", note_go_ahead)
        last.needless = nobody_accepted
        return [*steps, last]

    def _may_chunk(self) -> bool:
        """Whether the content goes out in chunks."""
        return (
            self._params.single_flight
            and self._pipelining
            and "CHUNKING" in self._session.features
            and self._memory.single_flight != "broken"
        )

    def _may_fly(self, commands: list[_Step]) -> bool:
        """Whether the content goes along with the commands, so that nothing can be taken back."""
        return (
            self._chunked
            and self._memory.single_flight == "works"
            and self._wire.silent_for < SINGLE_FLIGHT_WITHIN
            and sum(len(step.data) for step in commands) <= PIPELINE_BYTES
        )

    def _note(self, attempt: Attempt, reply: Reply, is_last: bool = False) -> None:
        attempt.hear(reply)
        # A used session that says goodbye counts as lost; a fresh one, or one that has got the
        # whole message, has refused it.
        if attempt.reused and not attempt.handed_over:
            if reply.code == 421 or (reply.means_goodbye and not is_last):
                raise SMTPServerDisconnected(
                    f"{self._params.address} ended the session: {reply.text}"
                )
        elif reply.code == 421:
            raise _Goodbye(f"421 {reply.text}")

    def _on_end(self, attempt: Attempt, reply: Reply) -> None:
        if not reply.ok and reply.code < 400:
            raise NotSMTP(f"{self._params.address} answered {reply.code} to the end of a message.")
        self._ended = attempt
        if reply.ok:
            self._suspect(attempt, reply)
        attempt.hear(reply)
        if reply.ok:
            attempt.receipt = Receipt(
                session_id=self._session.id,
                reused=attempt.reused,
                code=reply.code,
                reply=reply.text,
                refused=attempt.refused,
                enhanced=reply.enhanced,
                queue_id=reply.queue_id,
                replies=tuple(attempt.replies),
            )
            return
        attempt.error = SMTPDataError(reply.code, reply.message)
        if reply.code == 421:
            raise SMTPServerDisconnected(f"{self._params.address} ended the session: {reply.text}")
        # Where the next message's commands are on their way already it is too late for RSET;
        # the end of a message clears everything anyway (RFC 5321, 4.1.1.4).
        self._reset = self._offered is None or self._offered is attempt

    def _on_flown(self, attempt: Attempt, reply: Reply) -> None:
        """The only reply to a message in single flight, after those to its recipients."""
        if reply.ok and attempt.accepted:
            self._on_end(attempt, reply)
            return
        if not reply.ok and reply.code < 400:
            raise NotSMTP(f"{self._params.address} answered {reply.code} to a chunk.")
        attempt.hear(reply)
        if attempt.accepted:
            self._suspect(attempt, reply)
        if attempt.accepted and reply.code in _UNKNOWN_COMMAND:
            # It may have read the message as commands: not with this server.
            self._memory.single_flight = "broken"
            attempt.error = SMTPDataError(reply.code, reply.message)
            self._session.abort(f"does not take chunks: {reply.text}")
        elif reply.code == 421:
            raise _Goodbye(f"421 {reply.text}")

    def _on_reset(self, reply: Reply) -> None:
        if reply.code == 421:
            raise SMTPServerDisconnected(f"{self._params.address} ended the session: {reply.text}")
        if not reply.ok:
            # Nothing refuses RSET (RFC 5321, 4.1.1.5): this was meant for another command.
            raise _WrongCount(
                f"{self._params.address} sent more replies than there were commands; "
                f"the one to RSET was {reply.code} {reply.text}"
            )

    def _on_lone_dot(self, reply: Reply) -> None:
        """Nobody was to get it, so nothing was sent, whatever the server says of it."""

    # What the replies mean

    def _judge(self, attempt: Attempt, single: bool) -> None:
        """All replies to the commands are there: go on, or settle it."""
        envelope, replies = attempt.envelope, attempt.replies
        asked = not single and len(replies) == len(envelope.recipients) + 2
        go_ahead = asked and replies[-1].code == 354
        if not replies[0].ok:
            if replies[0].code == 503 and self._ended and self._ended.error and not go_ahead:
                # The message before was refused, and here the server wants to hear RSET first.
                self._again, self._reset = attempt, True
                return
            attempt.error = SMTPSenderRefused(replies[0].code, replies[0].message, envelope.sender)
        elif not attempt.accepted:
            attempt.error = SMTPRecipientsRefused(attempt.refused)
        elif go_ahead or (self._chunked and asked and _takes_chunk(replies[-1])):
            self._expect_silence()
            if self._chunked:
                self._memory.single_flight = "works"
            self._ready = attempt
            return
        elif self._chunked and asked:
            if replies[-1].ok and self._memory.single_flight == "works":
                # Chunks are answered otherwise here: it was meant for a recipient.
                raise _WrongCount(
                    f"{self._params.address} sent more replies than there were commands."
                )
            # Offered, but not taken: DATA has to do. The byte may be lying about as the beginning
            # of a command, so not on this session.
            self._memory.single_flight = "broken"
            attempt.stale = SMTPServerDisconnected(
                f"{self._params.address} does not take chunks: {replies[-1].text}"
            )
            raise attempt.stale
        else:
            attempt.error = SMTPDataError(replies[-1].code, replies[-1].message)
        if go_ahead and attempt.accepted:
            # Anything that is written now would be submitted as a message.
            self._session.abort("asked for the data of a refused message")
            return
        self._lone_dot, self._reset = go_ahead, self._session.is_open

    def _settle_goodbye(self) -> None:
        """421 in the middle, where that is the outcome and not a reason to try again."""
        attempt = self._offered
        assert attempt is not None
        reply, answered = attempt.replies[-1], len(attempt.replies) - 1
        if answered == 0:
            attempt.error = SMTPSenderRefused(reply.code, reply.message, attempt.envelope.sender)
        elif answered <= len(attempt.envelope.recipients):
            attempt.error = SMTPRecipientsRefused(attempt.refused)
        else:
            attempt.error = SMTPDataError(reply.code, reply.message)

    def _suspect(self, attempt: Attempt, reply: Reply) -> None:
        """Remember *attempt* if its end was answered with what is said of an address."""
        if _is_about_an_address(reply) and self._memory.addresses_end < TRUSTED_AFTER:
            self._suspects.append(attempt)

    def _count_to_quit(self) -> None:
        """Some servers answer a message as they answer an address. Is it that, or an odd reply?

        If the next reply is the one to QUIT, there were as many replies as commands. After some
        such times it is this server's way, and not asked again.
        """
        wire = self._wire
        try:
            wire.write(b"QUIT\r\n")
            as_many = wire.read_reply().code == 221 and not wire.has_unread
        except SMTPServerDisconnected:
            as_many = False
        self._session.abort("was asked whether it miscounts")
        if as_many:
            self._memory.addresses_end += 1
            return
        self._memory.addresses_end = 0
        for attempt in self._suspects:
            self._disbelieve(attempt, "More replies than commands came.", even_enhanced=True)

    @staticmethod
    def _disbelieve(attempt: Attempt | None, why: str, *, even_enhanced: bool = False) -> None:
        """What passed for the answer to a message's end may have been another one.

        The enhanced code tells, where there is one: whatever it says of an address (x.1.y) was
        meant for MAIL or RCPT.
        """
        if attempt is None or not (attempt.handed_over and attempt.is_settled):
            return
        if isinstance(attempt.error, DeliveryUnknown):
            return
        last = attempt.replies[-1]
        if last.enhanced and not _is_about_an_address(last) and not even_enhanced:
            return
        attempt.receipt = None
        attempt.error = DeliveryUnknown(
            f"{why} Which reply was for the end of the message can't be told, so it may or may "
            "not have been accepted; it is not sent again."
        )

    def _lost(self, error: SMTPServerDisconnected) -> list[Attempt]:
        """The session has ended: settle what was on its way, and return what is to go again."""
        try:
            self._hear_end()
        finally:
            self._session.abort(str(error))
        self._settle_unknown(str(error), error)
        # Where replies are missing, the first one may have been swallowed as well as the last.
        self._disbelieve(self._ended, str(error))
        if isinstance(error, _WrongCount):
            # In single flight each reply of the message may have been taken for the next one.
            self._disbelieve(self._offered, str(error), even_enhanced=True)
        for attempt in self._suspects:
            self._disbelieve(attempt, str(error), even_enhanced=True)
        undone = []
        # Nothing of a message has left if the content that was to leave before it has not.
        untouched = self._content is not None and not self._content.handed_over
        for attempt in self._under_way():
            if attempt.is_settled:
                continue
            if untouched and attempt is not self._content:
                undone.append(attempt)
            elif attempt.reused or attempt.stale is error:
                attempt.stale = error
                undone.append(attempt)
            else:
                attempt.error = error
        return undone

    def _settle_unknown(self, text: str, cause: BaseException) -> None:
        for attempt in self._under_way():
            if not attempt.is_settled:
                attempt.ended = time.monotonic()
            if attempt.handed_over and not attempt.is_settled:
                attempt.error = DeliveryUnknown(
                    f"{text} The message may or may not have been accepted; it is not sent again."
                )
                attempt.error.__cause__ = cause
                if attempt is self._offered:
                    # Perhaps it was the network, perhaps the chunks: carefully the next time.
                    self._memory.single_flight = "untried"

    def _under_way(self) -> list[Attempt]:
        """Those whose outcome may be open, in their order."""
        turn = (self._content, self._ready, self._again, self._offered)
        return list(dict.fromkeys(attempt for attempt in turn if attempt is not None))


def _takes_chunk(reply: Reply) -> bool:
    """Whether it says that a chunk was taken, and not that an address was."""
    return reply.ok and not _is_about_an_address(reply)


def _is_about_an_address(reply: Reply) -> bool:
    """Whether it answers MAIL or RCPT, by its enhanced code: x.1.y (RFC 3463)."""
    return reply.enhanced[1:3] == ".1"
