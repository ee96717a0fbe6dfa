"""``Transmitter``: one caller's messages, each on a session of its own key."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from smtplib import SMTPConnectError

from mailpool.exceptions import PoolTimeout
from mailpool.smtp.crew import Crew
from mailpool.smtp.envelope import Attempt, Envelope, Receipt
from mailpool.smtp.params import SessionParams
from mailpool.smtp.pool import SessionPool
from mailpool.smtp.session import Session
from mailpool.smtp.wire import TimedOut

# Opening a connection takes about as many round trips as this many messages on an open one.
MESSAGES_PER_SESSION = 10


class Transmitter:
    """Sends envelopes, and holds on to sessions until they are released.

    With *is_block* the caller asked to keep them; otherwise they go back to the pool early.

    This is where a message that met a session at the end of its life is sent once more, on a
    fresh one: only before the hand-over, only once. One call at a time.
    """

    def __init__(self, pool: SessionPool, *, is_block: bool = False) -> None:
        self._pool = pool
        self._is_block = is_block
        self._held: dict[SessionParams, list[Session]] = {}
        self._lock = threading.Lock()
        self._is_pressed = False  # somebody had to wait: nothing is held on to in this call

    def send(
        self, params: SessionParams, envelope: Envelope, deadline: float | None = None
    ) -> Receipt:
        """Send one message; raises what ``SessionPool.acquire()`` and ``Session.send()`` raise."""
        attempt = Attempt(envelope)
        self.transmit({params: [attempt]}, deadline=deadline)
        if attempt.error is not None:
            raise attempt.error
        assert attempt.receipt is not None
        return attempt.receipt

    def transmit(
        self,
        groups: Mapping[SessionParams, Sequence[Attempt]],
        *,
        deadline: float | None = None,
        width: int = 1,
        keep_order: bool = True,
    ) -> None:
        """Send all attempts of all *groups*, and fill in what becomes of each.

        Up to *width* sessions at the same time, one for each key, or without *keep_order* as many
        as its ``max_connections`` where there is enough to send. *deadline* (monotonic, seconds)
        bounds it: what has not begun by then fails. Raises nothing but interruptions, after which
        no session is half used and each attempt tells how far it came.
        """
        self._is_pressed = False
        crew = Crew()
        tasks, extra = [], []
        for params, attempts in groups.items():
            waiting = deque(attempts)
            tasks.append(partial(self._work, crew, params, waiting, deadline))
            if not keep_order:
                sessions = min(params.max_connections, 1 + len(attempts) // MESSAGES_PER_SESSION)
                extra += [partial(self._assist, crew, params, waiting, deadline)] * (sessions - 1)
        crew.run([*tasks, *extra], width)

    def release(self, params: SessionParams | None = None) -> None:
        """Give back the sessions of *params*, or all that are held."""
        with self._lock:
            if params is None:
                given_back = [session for held in self._held.values() for session in held]
                self._held.clear()
            else:
                given_back = self._held.pop(params, [])
        self._pool.release(*given_back)

    def _work(
        self, crew: Crew, params: SessionParams, waiting: deque[Attempt], deadline: float | None
    ) -> None:
        """Send all that waits for *params*, on one session after the other."""
        unreachable: Exception | None = None
        while not crew.is_stopped and (attempt := _pop(waiting)):
            if _is_over(deadline):
                attempt.error = attempt.stale or PoolTimeout(
                    "The deadline passed before it was the message's turn."
                )
                continue
            if unreachable is not None:
                attempt.error = unreachable
                continue
            try:
                session = self._session(params, deadline, fresh=attempt.stale is not None)
            except (TimeoutError, TimedOut, PoolTimeout, SMTPConnectError) as error:
                # Everything else is tried again for each message; these would take far too long,
                # or tell a server that is overloaded the same again and again.
                attempt.error = unreachable = error
            except Exception as error:
                attempt.error = error
            else:
                self._use(crew, session, attempt, waiting, deadline)

    def _assist(
        self, crew: Crew, params: SessionParams, waiting: deque[Attempt], deadline: float | None
    ) -> None:
        """Help with what waits for *params*, if there is a session to be had without waiting."""
        if not waiting:
            return
        try:
            session = self._pool.acquire(params, wait=False, deadline=deadline)
        except Exception:
            return  # whoever does the main work will say it
        attempt = _take_next(waiting)
        if attempt is None:
            self._pool.release(session)
            return
        self._use(crew, session, attempt, waiting, deadline)
        self._work(crew, params, waiting, deadline)  # what its end left undone, for one

    def _use(
        self,
        crew: Crew,
        session: Session,
        first: Attempt,
        waiting: deque[Attempt],
        deadline: float | None,
    ) -> None:
        """Send *first* and more of *waiting* on *session*, and put back what it leaves undone."""

        def take() -> Attempt | None:
            if not waiting or crew.is_stopped or _is_over(deadline):
                return None
            return _take_next(waiting) if self._pool.may_go_on(session) else None

        try:
            if crew.enter(session):
                undone = session.transmit(first, take, deadline=deadline)
                waiting.extendleft(reversed(undone))
        finally:
            crew.leave(session)
            self._done_with(crew, session)

    def _done_with(self, crew: Crew, session: Session) -> None:
        """Hold on to it for what comes next, or let others have it.

        One that the pool would close is held on to: one call opens no two of them.
        """
        keep = self._is_block or not session.params.maintain_connection
        with self._lock:
            # After an interruption nobody comes to give back what is held.
            keep = keep and session.is_open and not (self._is_pressed or crew.is_stopped)
            if keep:
                self._held.setdefault(session.params, []).append(session)
        if not keep:
            self._pool.release(session)

    def _session(self, params: SessionParams, deadline: float | None, *, fresh: bool) -> Session:
        while not fresh and (held := self._take_held(params)):
            if self._pool.may_go_on(held):
                return held
            self._pool.release(held)
        for key in [key for key in list(self._held) if key.credential_id == params.credential_id]:
            self.release(key)  # not a fresh one, or opened with settings that have changed since
        try:
            return self._pool.acquire(params, fresh=fresh, wait=False, deadline=deadline)
        except PoolTimeout:
            # Whoever waits while it holds on to something may wait for somebody who does the
            # same: so let go of everything first.
            self._is_pressed = True
            self.release()
            return self._pool.acquire(params, fresh=fresh, deadline=deadline)

    def _take_held(self, params: SessionParams) -> Session | None:
        with self._lock:
            held = self._held.get(params)
            session = held.pop() if held else None
            if not held:
                self._held.pop(params, None)
            return session


def _pop(waiting: deque[Attempt]) -> Attempt | None:
    try:
        return waiting.popleft()
    except IndexError:  # others take from it as well
        return None


def _take_next(waiting: deque[Attempt]) -> Attempt | None:
    """The next attempt, unless it has to have a fresh session."""
    attempt = _pop(waiting)
    if attempt is not None and attempt.stale is not None:
        waiting.appendleft(attempt)
        return None
    return attempt


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
