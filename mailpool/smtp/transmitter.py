"""``Transmitter``: one caller's messages, each on a session of its own key."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from mailpool.exceptions import PoolTimeout
from mailpool.smtp.envelope import Attempt, Envelope, Receipt
from mailpool.smtp.params import SessionParams
from mailpool.smtp.pool import SessionPool
from mailpool.smtp.sending import Sending
from mailpool.smtp.session import Session


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
        self._holds_nothing = False  # in this call, since somebody had to wait or it is over

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
        """Send all attempts of all *groups*, as ``transmit_as_made()`` does."""
        self.transmit_as_made(
            {params: len(attempts) for params, attempts in groups.items()},
            ((params, each) for params, attempts in groups.items() for each in attempts),
            deadline=deadline,
            width=width,
            keep_order=keep_order,
        )

    def transmit_as_made(
        self,
        expected: Mapping[SessionParams, int],
        messages: Iterable[tuple[SessionParams, Attempt | None]],
        *,
        deadline: float | None = None,
        width: int = 1,
        keep_order: bool = True,
    ) -> None:
        """Send *messages* while they are made, and fill in what becomes of each.

        *expected* is how many will come for each key at the most. *deadline* (monotonic, seconds)
        bounds it: what has not begun by then fails. Raises what *messages* raises and
        interruptions, after which no session is half used and each attempt tells how far it came.
        """
        with self._lock:
            self._holds_nothing = False
        sending = Sending(self, expected, deadline=deadline, width=width, keep_order=keep_order)
        sending.run(messages)

    def release(self, params: SessionParams | None = None) -> None:
        """Give back the sessions of *params*, or all that are held."""
        with self._lock:
            if params is None:
                given_back = [session for held in self._held.values() for session in held]
                self._held.clear()
            else:
                given_back = self._held.pop(params, [])
        self._pool.release(*given_back)

    def leave(self) -> None:
        """As ``release()``, for a finalizer: the pool takes them back when one is needed."""
        held, self._held = self._held, {}
        self._pool.leave([session for sessions in held.values() for session in sessions])

    # For ``Sending``

    def session(self, params: SessionParams, deadline: float | None, *, fresh: bool) -> Session:
        """One that is held, or one of the pool's; raises what ``SessionPool.acquire()`` raises."""
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
            self.hold_nothing()
            self.release()
            return self._pool.acquire(params, fresh=fresh, deadline=deadline)

    def spare_session(self, params: SessionParams, deadline: float | None) -> Session:
        """One that can be had without waiting for it, or ``PoolTimeout``."""
        held = self._take_held(params)
        if held and self._pool.may_go_on(held):
            return held
        if held:
            self._pool.release(held)
        return self._pool.acquire(params, wait=False, deadline=deadline)

    def may_go_on(self, session: Session) -> bool:
        return self._pool.may_go_on(session)

    def hold_nothing(self) -> None:
        """For the rest of this call. After an interruption nobody comes to give it back."""
        with self._lock:
            self._holds_nothing = True

    def done_with(self, session: Session) -> None:
        """Hold on to it for what comes next, or let others have it.

        One that the pool would close is held on to: one call opens no two of them.
        """
        keep = self._is_block or not session.params.maintain_connection
        with self._lock:
            keep = keep and session.is_open and not self._holds_nothing
            if keep:
                self._held.setdefault(session.params, []).append(session)
        if not keep:
            self._pool.release(session)

    def _take_held(self, params: SessionParams) -> Session | None:
        with self._lock:
            held = self._held.get(params)
            session = held.pop() if held else None
            if not held:
                self._held.pop(params, None)
            return session
