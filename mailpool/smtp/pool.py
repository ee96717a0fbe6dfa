"""``SessionPool``: idle sessions by key, limits, waiters, expiry, forks.

Everything that waits on the network (connecting, QUIT) happens outside the lock, with a slot
reserved first: a slot is given back only when its socket is closed, so the number of sockets
never exceeds the limits. Methods that take sessions out under the lock return them, and the
caller does the I/O.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from mailpool.events import event
from mailpool.exceptions import PoolTimeout
from mailpool.smtp.memory import KeyMemory, Memories
from mailpool.smtp.params import SessionParams
from mailpool.smtp.refusals import RefusedLogins
from mailpool.smtp.session import NOOP_TIMEOUT, QUIT_TIMEOUT, Session
from mailpool.smtp.slot import Grant, Slot, Waiter
from mailpool.smtp.stats import Openings, PoolStats, Reason

logger = logging.getLogger("mailpool.pool")

NOOP_AFTER = 60.0  # seconds idle; before that, a look at the socket tells enough
LIFETIME_JITTER = 0.1  # sessions opened together shall not all end together
SWEEP_EVERY = 1.0  # seconds between looks for expired sessions where no thread can do it
LOOK_EVERY = 1.0  # seconds between a waiter's looks for sessions that were left


class SessionPool:
    """Keeps authenticated sessions open, and lends each to one caller at a time.

    *connect* opens a session from its params until a deadline, with what is remembered of its
    key; *clock* is monotonic; both can be replaced in tests. *max_sessions* bounds the sockets of
    this process, *max_waiting* the callers that wait, *timeout* (seconds) how long waiting and
    connecting may take together, and *auth_pause* how long a refused login is not tried again.
    *on_open* and *on_close* hear of each session, in whatever thread opens or closes it.
    """

    def __init__(
        self,
        *,
        connect: Callable[[SessionParams, float, KeyMemory], Session] = Session.open,
        clock: Callable[[], float] = time.monotonic,
        max_sessions: int = 100,
        max_waiting: int = 1000,
        timeout: float = 30.0,
        auth_pause: float = 60.0,
        on_open: Callable[[Session], None] | None = None,
        on_close: Callable[[Session], None] | None = None,
    ) -> None:
        self.max_sessions = max_sessions
        self.max_waiting = max_waiting
        self.timeout = timeout
        self.auth_pause = auth_pause
        self._connect = connect
        self._clock = clock
        self._on_open = on_open
        self._on_close = on_close
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._slots: dict[str, set[Slot]] = {}  # credential id -> its sockets
        self._total = 0
        self._idle: dict[SessionParams, list[Slot]] = {}  # last in, first out
        self._idle_order: OrderedDict[Slot, None] = OrderedDict()  # least recently used first
        self._waiters: deque[Waiter] = deque()
        self._left: deque[Session] = deque()
        self._refused = RefusedLogins(self._clock)
        self._memories = Memories()
        self._counts = {"opened": 0, "reused": 0, "closed": 0, "failed": 0}
        self._reasons: Counter[tuple[str, Reason]] = Counter()  # by server, why opened
        self._reaper: threading.Thread | None = None
        self._reaper_due = 0.0
        self._swept = self._clock()
        self._wake = threading.Event()

    # Lending

    @contextmanager
    def session(
        self, params: SessionParams, *, fresh: bool = False, deadline: float | None = None
    ) -> Iterator[Session]:
        """Lend a session for *params*, and take it back at the end of the block.

        An exception in the block does not close the session; one that leaves it in doubt has
        closed it already. Raises what ``acquire()`` raises.
        """
        session = self.acquire(params, fresh=fresh, deadline=deadline)
        try:
            yield session
        finally:
            self.release(session)

    def acquire(
        self,
        params: SessionParams,
        *,
        fresh: bool = False,
        wait: bool = True,
        deadline: float | None = None,
    ) -> Session:
        """A session for *params*: an idle one that is alive, else (or if *fresh*) a new one.

        *deadline* is on the monotonic clock; the pool's time-out from now on counts as well.
        Raises ``PoolTimeout`` where none becomes free by then (or now, unless *wait*) or too many
        wait, ``SMTPAuthenticationError`` at once where the server refused this very login a
        moment ago, and whatever opening a session raises.
        """
        self._leave_parent_behind()
        self._take_back_left()
        until = self._clock() + self.timeout
        deadline = until if deadline is None else min(deadline, until)
        if self._reaper is None and self._clock() - self._swept >= SWEEP_EVERY:
            self.close_expired()  # no thread can do it
        grant = self._reserve(params, fresh, deadline if wait else None)
        slot = grant.slot
        try:
            if grant.evicted:
                grant.evicted.close(timeout=0)
            elif slot.session is not None:
                if self._is_healthy(slot, deadline):
                    return self._lend(slot)
                slot.session.abort("found dead at checkout")
                with self._lock:
                    self._counts["closed"] += 1
            return self._open(slot, params, deadline, _reason(grant, params, fresh))
        except BaseException:
            for session in (grant.evicted, slot.session):
                if session is not None:
                    session.abort("interrupted")
            self._free(slot)
            raise

    def release(self, *sessions: Session) -> None:
        """Take *sessions* back: keep each for the next caller with the same key, or close it."""
        closing: list[Slot] = []
        try:
            for session in sessions:
                if self._pid != os.getpid():
                    session.abort("belongs to the parent process")
                elif slot := self._slot_of(session):
                    if not self._keep(slot):
                        closing.append(slot)
                else:
                    session.close()
            self._close_slots(closing)
        except BaseException:  # Ctrl-C; none may stay lent to nobody
            for session in sessions:
                slot = self._slot_of(session)
                if slot is not None and slot.state != "idle":
                    session.abort("interrupted")
                    self._free(slot)
            raise

    def leave(self, sessions: Collection[Session]) -> None:
        """For a finalizer: *sessions* are nobody's any more, and are taken back when one is needed.

        It runs wherever garbage is collected, perhaps where this thread holds the lock: no lock is
        taken here, and nothing is closed.
        """
        self._left.extend(sessions)

    def _take_back_left(self) -> None:
        while True:
            try:
                session = self._left.popleft()
            except IndexError:
                return
            self.release(session)

    def _keep(self, slot: Slot) -> bool:
        """Put a session among the idle ones, if it may be kept."""
        with self._lock:
            if not self._may_keep(slot):
                slot.state = "closing"
                return False
            slot.state, slot.idle_since = "idle", self._clock()
            self._idle.setdefault(slot.params, []).append(slot)
            self._idle_order[slot] = None
            self._serve()
            self._look_after(slot)
            return True

    def _reserve(self, params: SessionParams, fresh: bool, deadline: float | None) -> Grant:
        with self._lock:
            if not self._idle.get(params):
                self._refused.check(params)
            # Nobody is overtaken here: whatever becomes free goes to those who wait at once, so
            # as long as somebody waits for it there is nothing to be had.
            if grant := self._try_grant(params, fresh):
                return grant
            if deadline is None:
                raise self._no_session(params)
            if len(self._waiters) >= self.max_waiting:
                raise PoolTimeout(
                    f"{len(self._waiters)} senders wait for a connection already; no more may "
                    "(MAILPOOL['MAX_WAITING'])."
                )
            waiter = Waiter(params, fresh)
            self._waiters.append(waiter)
        try:
            while not waiter.ready.wait(min(LOOK_EVERY, max(0.0, deadline - self._clock()))):
                self._take_back_left()
                with self._lock:
                    if waiter.grant is None and self._clock() >= deadline:
                        raise self._no_session(params)
        except BaseException:
            with self._lock:
                if waiter.grant is None:
                    self._waiters.remove(waiter)
            if waiter.grant is not None:  # granted in this very moment: not to be lost
                self._give_back(waiter.grant)
            raise
        assert waiter.grant is not None
        return waiter.grant

    def _give_back(self, grant: Grant) -> None:
        if grant.slot.session:
            self.release(grant.slot.session)
            return
        if grant.evicted:
            grant.evicted.close(timeout=0)
        self._free(grant.slot)

    def _no_session(self, params: SessionParams) -> PoolTimeout:
        return PoolTimeout(
            f"No connection to {params.address} became free in time: the limit is "
            f"{params.max_connections} per credential and {self.max_sessions} in this process."
        )

    def _try_grant(self, params: SessionParams, fresh: bool) -> Grant | None:
        """An idle session of this key, or a place to open one in; under the lock."""
        idle = self._idle.get(params)
        if idle and not fresh and idle[-1].due > self._clock():
            slot = idle[-1]
            self._take_idle(slot)
            slot.state = "busy"
            return Grant(slot, found=slot.session)
        own = self._slots.get(params.credential_id, set())
        victim = None
        if len(own) >= params.max_connections:
            # Perhaps one with an older password, or just not fresh: it makes room.
            victim = next((slot for slot in self._idle_order if slot in own), None)
        elif self._total >= self.max_sessions:
            victim = next(iter(self._idle_order), None)
        else:
            return Grant(self._add(params))
        if victim is None:
            return None
        # The new owner closes it before connecting, so no place is ever used twice at a time.
        self._take_idle(victim)
        self._remove(victim)
        self._counts["closed"] += 1
        return Grant(self._add(params), evicted=victim.session)

    def _add(self, params: SessionParams) -> Slot:
        slot = Slot(params, "connecting", self._clock())
        self._slots.setdefault(params.credential_id, set()).add(slot)
        self._total += 1
        return slot

    def _remove(self, slot: Slot) -> None:
        own = self._slots[slot.params.credential_id]
        own.remove(slot)
        self._total -= 1
        if not own:
            del self._slots[slot.params.credential_id]

    def _serve(self) -> None:
        """Give what has become free to those who wait for it, in order; under the lock."""
        blocked: set[str] = set()
        for waiter in list(self._waiters):
            credential = waiter.params.credential_id
            if credential in blocked:
                continue
            waiter.grant = self._try_grant(waiter.params, waiter.fresh)
            if waiter.grant:
                self._waiters.remove(waiter)
                waiter.ready.set()
            else:
                blocked.add(credential)

    def _open(self, slot: Slot, params: SessionParams, deadline: float, reason: Reason) -> Session:
        """Open a session in a reserved slot."""
        with self._lock:
            slot.state, slot.session = "connecting", None
            # Refused to somebody else, perhaps, while this one waited for its turn.
            self._refused.check(params)
            memory = self._memories.of(params)
        try:
            session = self._connect(params, deadline, memory)
        except BaseException as error:
            with self._lock:
                self._counts["failed"] += 1
                self._refused.note(params, error, self.auth_pause)
            raise
        with self._lock:
            now = self._clock()
            slot.session, slot.state, slot.since = session, "busy", now
            jitter = params.max_lifetime * LIFETIME_JITTER * random.random()  # noqa: S311
            slot.expires = now + params.max_lifetime - jitter
            self._counts["opened"] += 1
            self._reasons[params.server_name, reason] += 1
            # The new settings have proved themselves: what the old ones opened may go.
            superseded = self._retire(
                [slot for slot in self._slots[params.credential_id] if slot.params != params]
            )
        if self._on_open:
            session.on_close = self._on_close
            self._on_open(session)
        self._close_slots(superseded, timeout=0)
        logger.debug(
            "Opened session %s with %s.",
            session.id,
            params.address,
            extra=event(
                "mailpool.session_opened",
                session=session.id,
                credential=params.credential_id,
                server=params.server_name,
                reason=reason,
            ),
        )
        return session

    def _is_healthy(self, slot: Slot, deadline: float) -> bool:
        session = slot.session
        assert session is not None
        if not session.is_alive():
            logger.info(
                "Session %s has ended: %s",
                session.id,
                session.closed_because,
                extra=event(
                    "mailpool.session_ended",
                    session=session.id,
                    credential=slot.params.credential_id,
                    server=slot.params.server_name,
                    messages=session.messages,
                ),
            )
            return False
        now = self._clock()
        if now - slot.idle_since < NOOP_AFTER:
            return True
        # If nothing comes back there has to be time left for a fresh one.
        return session.noop(timeout=min(NOOP_TIMEOUT, max(0.01, (deadline - now) / 3)))

    def _lend(self, slot: Slot) -> Session:
        assert slot.session is not None
        slot.session.reuses += 1
        with self._lock:
            self._counts["reused"] += 1
        return slot.session

    def _may_keep(self, slot: Slot) -> bool:
        session = slot.session
        return (
            session is not None
            and session.is_open
            and slot.params.maintain_connection
            and not slot.retired
            and not session.is_spent
            and self._clock() < slot.expires
        )

    def forgive(self, credential_id: str | None = None) -> None:
        """Forget refused logins, of a credential that has just been seen to work or all."""
        with self._lock:
            self._refused.forget(credential_id)

    # Closing

    def close(
        self,
        credential_ids: Collection[str] | None = None,
        *,
        session_id: str | None = None,
    ) -> int:
        """Close sessions: those of the given credentials, the one with that id, or all.

        Idle ones are closed now, busy ones when they come back, and those that are being opened
        after their first use. Returns how many that are.
        """
        self._leave_parent_behind()
        with self._lock:
            chosen = [
                slot
                for slot in self._all_slots()
                if slot.state in ("idle", "busy", "connecting")
                and not slot.retired
                and (credential_ids is None or slot.params.credential_id in credential_ids)
                and (session_id is None or (slot.session and slot.session.id == session_id))
            ]
            idle = self._retire(chosen)
        self._close_slots(idle)
        return len(chosen)

    def leave_behind(self, server_id: str, generation: int) -> None:
        """Close what was opened for that server in a generation before this one.

        Idle sessions are closed now, without waiting for an answer, others when they come back.
        """
        self._leave_parent_behind()
        with self._lock:
            idle = self._retire(
                [
                    slot
                    for slot in self._all_slots()
                    if slot.params.generation < generation
                    and slot.params.server_id == server_id
                    and slot.state != "closing"
                ]
            )
        self._close_slots(idle, timeout=0)

    def _retire(self, slots: list[Slot]) -> list[Slot]:
        """Have none of them lent again; under the lock. Returns those to be closed now."""
        for slot in slots:
            slot.retired = True
        idle = [slot for slot in slots if slot.state == "idle"]
        self._begin_closing(idle)
        return idle

    def close_expired(self) -> None:
        """Close idle sessions that are past their time."""
        with self._lock:
            self._swept = now = self._clock()
            expired = [slot for slot in self._idle_order if slot.due <= now]
            self._begin_closing(expired)
        self._close_slots(expired)

    def _begin_closing(self, slots: list[Slot]) -> None:
        for slot in slots:
            self._take_idle(slot)
            slot.state = "closing"

    def _close_slots(self, slots: list[Slot], *, timeout: float = QUIT_TIMEOUT) -> None:
        """Close all, and wait for the answers to all their QUITs together: *timeout* seconds."""
        until = time.monotonic() + timeout
        try:
            for slot in slots:
                if slot.session:
                    slot.session.say_quit()
            for slot in slots:
                if slot.session:
                    slot.session.close(timeout=until - time.monotonic())
                self._free(slot)
        except BaseException:  # Ctrl-C while a server takes its time over QUIT
            for slot in slots:
                if slot.session:
                    slot.session.abort("interrupted")
                self._free(slot)
            raise

    def _take_idle(self, slot: Slot) -> None:
        del self._idle_order[slot]
        same_key = self._idle[slot.params]
        same_key.remove(slot)
        if not same_key:
            del self._idle[slot.params]

    def _free(self, slot: Slot) -> None:
        """Give a slot back whose socket is closed."""
        with self._lock:
            if slot not in self._slots.get(slot.params.credential_id, ()):
                return
            self._remove(slot)
            if slot.session is not None:
                self._counts["closed"] += 1
            self._serve()

    def _all_slots(self) -> Iterator[Slot]:
        for slots in self._slots.values():
            yield from slots

    def _slot_of(self, session: Session) -> Slot | None:
        with self._lock:
            own = self._slots.get(session.params.credential_id, ())
            return next((slot for slot in own if slot.session is session), None)

    def shut_down(self) -> None:
        """Close everything at the end of the process, without waiting for anybody."""
        if self._pid != os.getpid() or not self._lock.acquire(timeout=0.5):
            return
        try:
            sessions = [slot.session for slot in self._idle_order if slot.session]
        finally:
            self._lock.release()
        for session in sessions:
            session.close(timeout=0)

    # The reaper closes what nobody asks for any more.

    def _look_after(self, slot: Slot) -> None:
        """Make sure that *slot* is closed in time if nobody takes it; under the lock."""
        if self._reaper is None or not self._reaper.is_alive():
            self._reaper_due = 0.0
            self._reaper = threading.Thread(target=self._reap, name="mailpool-reaper", daemon=True)
            try:
                self._reaper.start()
            except RuntimeError:  # at the end of the interpreter, or where threads have run out
                self._reaper = None
        elif slot.due < self._reaper_due:
            self._wake.set()

    def _reap(self) -> None:
        while True:
            self._wake.clear()
            self.close_expired()
            with self._lock:
                if not self._idle_order:
                    self._reaper = None
                    return
                # As it is now: others came back while those were closed.
                self._reaper_due = min(slot.due for slot in self._idle_order)
                pause = max(0.05, self._reaper_due - self._clock())
            self._wake.wait(pause)

    # Forks

    def forget_parent(self) -> None:
        """In a forked child: drop the parent's sessions without a word on their connections."""
        inherited = [slot.session for slot in self._all_slots() if slot.session]
        self._reset()
        for session in inherited:
            session.abort("belongs to the parent process")

    def _leave_parent_behind(self) -> None:
        # Normally done by the hook; a fork made in C does not call it.
        if self._pid != os.getpid():
            self.forget_parent()

    # Keeping one over several messages

    def may_go_on(self, session: Session) -> bool:
        """Whether the holder of *session* may send one more message on it."""
        slot = self._slot_of(session)
        return (
            slot is not None
            and not slot.retired
            and not session.is_spent
            and self._clock() < slot.expires
            and session.is_alive()
        )

    # Looking

    @property
    def opened(self) -> int:
        """How many sessions were opened so far; cheap, for whoever asks often."""
        return self._counts["opened"]

    def stats(self) -> PoolStats:
        """What the pool is doing now."""
        self._leave_parent_behind()
        with self._lock:
            now = self._clock()
            sessions = [slot.info(now) for slot in self._all_slots()]
            return PoolStats(
                pid=self._pid,
                max_sessions=self.max_sessions,
                max_waiting=self.max_waiting,
                waiting=len(self._waiters),
                sessions=sorted(sessions, key=lambda info: -info.age),
                openings=[Openings(*key, count) for key, count in self._reasons.items()],
                waiting_for=dict(Counter(each.params.credential_id for each in self._waiters)),
                **self._counts,
            )


def _reason(grant: Grant, params: SessionParams, fresh: bool) -> Reason:
    if fresh:
        return "retry"
    if grant.found is not None:
        return "dead"
    if not params.maintain_connection:
        return "not_maintained"
    return "evicted" if grant.evicted else "new"


_pools: weakref.WeakSet[SessionPool] = weakref.WeakSet()


def _forget_parents() -> None:
    for pool in _pools:
        pool.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)
