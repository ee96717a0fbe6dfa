"""``Sending``: the messages of one call on their way, while the caller still makes more of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from smtplib import SMTPConnectError, SMTPResponseException
from threading import Condition, RLock
from typing import TYPE_CHECKING

from mailpool.exceptions import PoolTimeout
from mailpool.smtp.crew import Crew
from mailpool.smtp.envelope import Attempt
from mailpool.smtp.params import SessionParams
from mailpool.smtp.session import Session
from mailpool.smtp.wire import TimedOut

if TYPE_CHECKING:
    from mailpool.smtp.transmitter import Transmitter

# Opening a connection takes about as many round trips as this many messages on an open one.
MESSAGES_PER_SESSION = 10

# The end of a message waits for the next one, to leave together with it; no longer than this:
# seconds. A message takes a millisecond or so to render.
PATIENCE = 0.05


class Queue:
    """What waits for the sessions of one key. The caller adds, the crew takes."""

    def __init__(self, expected: int) -> None:
        # The lock itself is entered, not the condition: that is written in Python, and an
        # interruption within would leave it locked.
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._attempts: deque[Attempt] = deque()
        self._expected = expected
        self._in_use = 0  # sessions that are sending from it

    def add(self, attempt: Attempt | None) -> None:
        """One of the expected messages; ``None`` where there is none after all."""
        with self._lock:
            self._expected -= 1
            if attempt is not None:
                self._attempts.append(attempt)
            self._changed.notify_all()

    def expect_no_more(self) -> None:
        with self._lock:
            self._expected = 0
            self._changed.notify_all()

    def put_back(self, attempts: Sequence[Attempt]) -> None:
        with self._lock:
            self._attempts.extendleft(reversed(attempts))
            self._changed.notify_all()

    def begin_use(self) -> None:
        """A session sends from it; whoever has that comes back to it until it is empty."""
        with self._lock:
            self._in_use += 1

    def end_use(self) -> None:
        with self._lock:
            self._in_use -= 1

    def leave_to_others(self, attempt: Attempt) -> bool:
        """Put *attempt* back if a session is sending from the queue: is one?"""
        with self._lock:
            if self._in_use:
                self.put_back([attempt])
            return self._in_use > 0

    def wait(self, patience: float | None = None) -> bool:
        """Wait for a message while one may come, *patience* seconds at most: is there one?"""
        with self._lock:
            if not self._attempts and self._expected > 0:
                self._changed.wait_for(lambda: self._attempts or self._expected <= 0, patience)
            return bool(self._attempts)

    def take(self, *, stale: bool = True) -> Attempt | None:
        """The next message; without *stale*, none that has to have a fresh session."""
        with self._lock:
            if not self._attempts or (self._attempts[0].stale is not None and not stale):
                return None
            return self._attempts.popleft()


class Sending:
    """One call: ``run()`` sends what it is given, and fills in what becomes of each attempt.

    Up to *width* sessions at the same time, one for each key of *expected* (how many messages
    there will be), or without *keep_order* as many as its ``max_connections`` where there is
    enough to send. With several keys the first messages leave while further ones are made.
    """

    def __init__(
        self,
        transmitter: Transmitter,
        expected: Mapping[SessionParams, int],
        *,
        deadline: float | None,
        width: int,
        keep_order: bool,
    ) -> None:
        self._transmitter = transmitter
        self._deadline = deadline
        self._width = width
        self._queues = {params: Queue(count) for params, count in expected.items()}
        self._crew = Crew()
        tasks: list[Callable[[], None]] = []
        extra: list[Callable[[], None]] = []
        for params, queue in self._queues.items():
            tasks.append(partial(self._work, params, queue))
            if not keep_order:
                sessions = min(params.max_connections, 1 + expected[params] // MESSAGES_PER_SESSION)
                extra += [partial(self._assist, params, queue)] * (sessions - 1)
        self._tasks = [*tasks, *extra]

    def run(self, messages: Iterable[tuple[SessionParams, Attempt | None]]) -> None:
        """Send all *messages*, which are taken in the caller's thread, one by one.

        ``None`` stands for an expected message that does not come after all. Raises what
        *messages* raises, and what interrupts; then those under way get a moment to end, no
        further one is begun, and each attempt tells how far it came.
        """
        try:
            self._crew.start(self._tasks, self._width)
            for params, attempt in messages:
                self._queues[params].add(attempt)
            self._expect_no_more()
            self._crew.finish()
        except BaseException:
            self._crew.is_stopped = True  # before those who wait for messages look
            try:
                self._transmitter.hold_nothing()
                self._expect_no_more()
            finally:
                self._crew.stop()
            raise

    def _expect_no_more(self) -> None:
        for queue in self._queues.values():
            queue.expect_no_more()

    def _work(self, params: SessionParams, queue: Queue) -> None:
        """Send all that comes for *params*, on one session after the other."""
        unreachable: Exception | None = None
        while queue.wait() and not self._crew.is_stopped:
            attempt = queue.take()
            if attempt is None:  # others take from it as well
                continue
            if self._is_over():
                attempt.error = attempt.stale or PoolTimeout(
                    "The deadline passed before it was the message's turn."
                )
                continue
            if unreachable is not None:
                attempt.error = unreachable
                continue
            asked = time.monotonic()
            try:
                session = self._transmitter.session(
                    params, self._deadline, fresh=attempt.stale is not None
                )
            except Exception as error:
                if queue.leave_to_others(attempt):
                    return  # that there are no more sessions is no failure of the message
                if _is_to_last(error):
                    unreachable = error
                _not_begun(attempt, error, asked)
            else:
                self._use(session, attempt, queue)

    def _assist(self, params: SessionParams, queue: Queue) -> None:
        """Help with what comes for *params*, if there is a session to be had without waiting."""
        while queue.wait() and not self._crew.is_stopped:
            try:
                session = self._transmitter.spare_session(params, self._deadline)
            except Exception:
                return  # whoever does the main work will say it
            attempt = queue.take(stale=False)
            if attempt is None:
                self._transmitter.done_with(session)
                continue
            self._use(session, attempt, queue)
            self._work(params, queue)  # what its end left undone, for one

    def _use(self, session: Session, first: Attempt, queue: Queue) -> None:
        """Send *first* and more of *queue* on *session*, and put back what it leaves undone."""

        def take() -> Attempt | None:
            queue.wait(self._patience())
            if self._crew.is_stopped or self._is_over() or not self._transmitter.may_go_on(session):
                return None
            return queue.take(stale=False)

        queue.begin_use()
        try:
            if self._crew.enter(session):
                queue.put_back(session.transmit(first, take, deadline=self._deadline))
        finally:
            try:
                queue.end_use()
                self._transmitter.done_with(session)
            finally:
                self._crew.leave(session)  # last, so that an interruption waits for all of it

    def _patience(self) -> float:
        if self._deadline is None:
            return PATIENCE
        return max(0.0, min(PATIENCE, self._deadline - time.monotonic()))

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


def _is_to_last(error: Exception) -> bool:
    """Whether the call's other messages for this key are not to try again after *error*.

    They would take far too long over it, or tell a server that is overloaded the same again and
    again: also one that has had too many logins.
    """
    if isinstance(error, SMTPResponseException) and 400 <= error.smtp_code < 500:
        return True
    return isinstance(error, (TimeoutError, TimedOut, PoolTimeout, SMTPConnectError))


def _not_begun(attempt: Attempt, error: Exception, asked: float) -> None:
    """*attempt* got no session, though it *asked* for one at that time."""
    # With that error it was the place in the pool that it waited for.
    waited_only = isinstance(error, PoolTimeout)
    connecting = 0.0 if waited_only else time.monotonic() - asked
    attempt.could_not_begin(error, connecting=connecting)
