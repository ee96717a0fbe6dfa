"""Promises of the pool, with a connect and a clock of the tests' own. Threads meet at events."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from smtplib import SMTPAuthenticationError

import pytest

from mailpool.exceptions import PoolTimeout
from mailpool.smtp import SessionParams, SessionPool

BOB = SessionParams(
    credential_id="bob", host="smtp.test", port=25, security="starttls", max_connections=2
)
MARY = replace(BOB, credential_id="mary")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Session:
    """A session without a network. ``sockets`` counts what is open, on behalf of the host."""

    def __init__(self, params, host):
        self.params = params
        self.host = host
        self.id = f"s{host.opened}"
        self.is_open = self.alive = True
        self.is_spent = False
        self.messages = self.reuses = self.noops = 0
        self.tls_version = self.cipher = self.mechanism = self.closed_because = ""

    def is_alive(self):
        return self.is_open and self.alive

    def noop(self, timeout):
        self.noops += 1
        return self.alive

    def say_quit(self):
        pass

    def close(self, timeout=0):
        if self.is_open:
            self.is_open = False
            with self.host.lock:
                self.host.sockets -= 1

    def abort(self, why):
        self.closed_because = why
        self.close()


class Host:
    """What ``connect`` talks to: counts sockets, and can hold or fail a connect."""

    def __init__(self):
        self.lock = threading.Lock()
        self.opened = self.sockets = self.most = 0
        self.fail = None
        self.hold = None
        self.connecting = threading.Semaphore(0)

    def connect(self, params, deadline, memory):
        with self.lock:
            self.opened += 1
            self.sockets += 1
            self.most = max(self.most, self.sockets)
        session = Session(params, self)
        self.connecting.release()
        if self.hold:
            self.hold.wait(10)
        if self.fail:
            session.close()
            raise self.fail
        return session


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pool(host, clock):
    pool = SessionPool(connect=host.connect, clock=clock, max_sessions=10, timeout=5)
    yield pool
    pool.close()


def waiting(pool, number):
    """Wait until so many callers wait."""
    for _ in range(10_000):
        if pool.stats().waiting == number:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"{pool.stats().waiting} wait instead of {number}")


def test_idle_session_is_lent_again(pool, host):
    with pool.session(BOB) as first:
        pass
    with pool.session(BOB) as second:
        assert second is first
    assert host.opened == 1
    assert pool.stats().reused == 1


def test_last_in_first_out(pool):
    a, b = pool.acquire(BOB), pool.acquire(BOB)
    pool.release(a)
    pool.release(b)
    assert pool.acquire(BOB) is b


def test_dead_session_is_replaced_in_its_place(pool, host):
    with pool.session(BOB) as first:
        pass
    first.alive = False
    with pool.session(BOB) as second:
        assert second is not first
    assert not first.is_open
    assert host.most == 1


def test_noop_only_after_a_long_idle(host, clock):
    pool = SessionPool(connect=host.connect, clock=clock)
    params = replace(BOB, idle_timeout=600, max_lifetime=3600)
    with pool.session(params) as session:
        pass
    clock.now += 59
    with pool.session(params):
        assert session.noops == 0
    clock.now += 61
    with pool.session(params) as again:
        assert again is session
        assert session.noops == 1
    pool.close()


@pytest.mark.parametrize(("idle", "lent_again"), [(29, True), (30, False), (31, False)])
def test_idle_timeout(pool, clock, idle, lent_again):
    with pool.session(BOB) as first:
        pass
    clock.now += idle
    with pool.session(BOB) as second:
        assert (second is first) == lent_again


def test_lifetime_ends_even_a_busy_session_with_jitter_downwards(pool, clock):
    with pool.session(BOB) as first:
        clock.now += 269  # 10 % below 300, at the least
    assert first.is_open
    with pool.session(BOB) as again:
        assert again is first
        clock.now += 31
    assert not first.is_open


def test_spent_session_is_closed(pool):
    with pool.session(BOB) as session:
        session.is_spent = True
    assert not session.is_open
    assert pool.stats().open == 0


def test_switch_off_closes_on_return(pool):
    with pool.session(replace(BOB, maintain_connection=False)) as session:
        pass
    assert not session.is_open


def test_switching_off_closes_what_was_kept(pool):
    with pool.session(BOB) as kept:
        pass
    with pool.session(replace(BOB, maintain_connection=False)) as other:
        assert other is not kept
        assert not kept.is_open


def test_new_password_proves_itself_before_the_old_sessions_go(pool, host):
    old = replace(BOB, username="bob", password="old")
    new = replace(old, password="new")
    with pool.session(old) as kept:
        pass
    host.fail = OSError("unreachable")
    with pytest.raises(OSError, match="unreachable"):
        pool.acquire(new)
    assert kept.is_open
    host.fail = None
    with pool.session(new):
        assert not kept.is_open
    assert pool.stats().open == 1


def test_busy_session_of_an_old_password_is_closed_when_it_returns(pool):
    old = replace(BOB, username="bob", password="old")
    session = pool.acquire(old)
    with pool.session(replace(old, password="new")):
        pass
    pool.release(session)
    assert not session.is_open


def test_limit_counts_old_and_new_password_together(pool, host):
    old = replace(BOB, username="bob", password="old")
    a, b = pool.acquire(old), pool.acquire(old)
    pool.release(a)
    c = pool.acquire(replace(old, password="new"))
    assert host.most == 2
    assert not a.is_open
    pool.release(b)
    pool.release(c)


def test_waiters_are_served_in_order(pool):
    held = [pool.acquire(BOB), pool.acquire(BOB)]
    served = []

    def work(number):
        session = pool.acquire(BOB)
        served.append(number)
        pool.release(session)

    with ThreadPoolExecutor(5) as executor:
        for number in range(5):
            executor.submit(work, number)
            waiting(pool, number + 1)
        pool.release(held.pop())
        # One session, handed from one to the next.
    assert served == [0, 1, 2, 3, 4]
    pool.release(held.pop())


def test_timeout_waiting_is_a_pool_timeout_and_loses_nothing(host):
    pool = SessionPool(connect=host.connect, timeout=0.05)
    held = [pool.acquire(BOB), pool.acquire(BOB)]
    with pytest.raises(PoolTimeout, match="2 per credential"):
        pool.acquire(BOB)
    assert pool.stats().waiting == 0
    for session in held:
        pool.release(session)
    assert pool.stats().idle == 2
    assert pool.acquire(BOB) in held
    pool.close()


def test_too_many_waiters_fail_at_once(host):
    pool = SessionPool(connect=host.connect, max_waiting=0)
    held = [pool.acquire(BOB), pool.acquire(BOB)]
    with pytest.raises(PoolTimeout, match="MAX_WAITING"):
        pool.acquire(BOB)
    for session in held:
        pool.release(session)
    pool.close()


def test_session_granted_in_the_moment_of_the_timeout_is_not_lost(pool, monkeypatch):
    """The waiter gives up and is served at the same time: the session stays in the pool."""
    held = [pool.acquire(BOB), pool.acquire(BOB)]

    class Late(threading.Event):
        def wait(self, timeout=None):
            pool.release(held.pop())  # grants to this very waiter
            raise KeyboardInterrupt

    from mailpool.smtp import pool as module

    original = module.Waiter
    monkeypatch.setattr(module, "Waiter", lambda *args: original(*args, ready=Late()))
    with pytest.raises(KeyboardInterrupt):
        pool.acquire(BOB)
    monkeypatch.undo()
    assert pool.stats().waiting == 0
    assert pool.stats().idle == 1
    pool.release(held.pop())
    assert pool.stats().idle == 2


def test_failed_connect_gives_its_place_to_the_next(pool, host):
    host.hold, host.fail = threading.Event(), OSError("refused")
    with ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(pool.acquire, BOB) for _ in range(2)]
        for _ in range(2):
            host.connecting.acquire(timeout=5)
        futures += [executor.submit(pool.acquire, BOB) for _ in range(2)]
        waiting(pool, 2)
        host.hold.set()
        assert [type(future.exception(5)) for future in futures] == [OSError] * 4
    assert pool.stats().open == 0
    assert host.most == 2


def test_process_limit_closes_the_least_recently_used(host, clock):
    pool = SessionPool(connect=host.connect, clock=clock, max_sessions=3)
    all_params = [replace(BOB, credential_id=f"c{number}") for number in range(4)]
    sessions = []
    for params in all_params[:3]:
        with pool.session(params) as session:
            sessions.append(session)
        clock.now += 1
    with pool.session(all_params[0]):
        pass
    with pool.session(all_params[3]):
        assert [session.is_open for session in sessions] == [True, False, True]
    assert host.most == 3
    pool.close()


def test_process_limit_makes_callers_wait(host):
    pool = SessionPool(connect=host.connect, max_sessions=1, timeout=5)
    bob = pool.acquire(BOB)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(pool.acquire, MARY)
        waiting(pool, 1)
        pool.release(bob)
        mary = future.result(5)
    assert not bob.is_open
    assert host.most == 1
    pool.release(mary)
    pool.close()


def test_a_slow_connect_holds_nobody_else_up(pool, host):
    host.hold = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        slow = executor.submit(pool.acquire, BOB)
        host.connecting.acquire(timeout=5)
        hold, host.hold = host.hold, None
        with pool.session(MARY):
            assert pool.stats().connecting == 1
        hold.set()
        pool.release(slow.result(5))


def test_refused_login_is_not_tried_again_for_a_while(pool, host, clock):
    params = replace(BOB, username="bob", password="wrong")
    host.fail = SMTPAuthenticationError(535, b"5.7.8 no")
    for _ in range(3):
        with pytest.raises(SMTPAuthenticationError, match="no"):
            pool.acquire(params)
    assert host.opened == 1
    with pytest.raises(SMTPAuthenticationError):
        pool.acquire(replace(params, password="another"))  # a changed password is another key
    assert host.opened == 2
    clock.now += 61
    host.fail = None
    pool.release(pool.acquire(params))
    assert host.opened == 3


def test_login_that_is_refused_meanwhile_is_not_tried_by_those_who_waited(pool, host):
    params = replace(BOB, username="bob", password="wrong", max_connections=1)
    host.hold, host.fail = threading.Event(), SMTPAuthenticationError(535, b"5.7.8 no")
    with ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(pool.acquire, params)]
        host.connecting.acquire(timeout=5)
        futures += [executor.submit(pool.acquire, params) for _ in range(3)]
        waiting(pool, 3)
        host.hold.set()
        assert {type(future.exception(5)) for future in futures} == {SMTPAuthenticationError}
    assert host.opened == 1
    assert pool.stats().open == 0


@pytest.mark.parametrize("when", ["release", "evict", "supersede", "health"])
def test_interruption_while_closing_leaves_no_socket_and_no_place_behind(host, when):
    def interrupted(session):
        session.close = lambda timeout=0: (_ for _ in ()).throw(KeyboardInterrupt)
        session.is_alive = session.close if when == "health" else session.is_alive
        session.abort = lambda why: Session.close(session)

    pool = SessionPool(connect=host.connect, max_sessions=1 if when == "evict" else 10)
    params = replace(BOB, username="bob", password="old")
    session = pool.acquire(params)
    interrupted(session)
    with pytest.raises(KeyboardInterrupt):
        if when == "release":
            session.is_spent = True
            pool.release(session)
        else:
            pool.release(session)
            others = {"evict": MARY, "supersede": replace(params, password="new")}
            pool.acquire(others.get(when, params))
    assert host.sockets == 0
    assert pool.stats().open == 0
    assert pool._total == 0


def test_temporary_refusal_of_a_login_is_tried_again(pool, host):
    host.fail = SMTPAuthenticationError(454, b"4.7.0 later")
    for _ in range(2):
        with pytest.raises(SMTPAuthenticationError):
            pool.acquire(BOB)
    assert host.opened == 2


def test_a_login_that_was_verified_is_forgiven(pool, host):
    host.fail = SMTPAuthenticationError(535, b"5.7.8 no")
    with pytest.raises(SMTPAuthenticationError):
        pool.acquire(BOB)
    host.fail = None
    pool.forgive("bob")
    pool.release(pool.acquire(BOB))


def test_close_closes_idle_now_and_busy_on_return(pool):
    idle, busy = pool.acquire(BOB), pool.acquire(BOB)
    other = pool.acquire(MARY)
    pool.release(idle)
    assert pool.close({"bob"}) == 2
    assert not idle.is_open
    assert busy.is_open
    pool.release(busy)
    assert not busy.is_open
    pool.release(other)
    assert other.is_open


def test_close_one_session(pool):
    a, b = pool.acquire(BOB), pool.acquire(BOB)
    b.id = "the-one"
    pool.release(a)
    pool.release(b)
    assert pool.close(session_id="the-one") == 1
    assert (a.is_open, b.is_open) == (True, False)


def test_reaper_closes_idle_sessions_without_anybody_asking(host):
    pool = SessionPool(connect=host.connect)
    closed = threading.Event()
    with pool.session(replace(BOB, idle_timeout=0.05)) as session:
        original = session.close
        session.close = lambda timeout=0: (original(), closed.set())
    assert closed.wait(5)
    assert pool.stats().open == 0


def test_error_in_the_block_gives_the_session_back(pool):
    with pytest.raises(ZeroDivisionError), pool.session(BOB) as session:
        1 / 0  # noqa: B018
    assert pool.stats().idle == 1
    assert session.is_open


def test_many_threads_stay_within_both_limits(host):
    pool = SessionPool(connect=host.connect, max_sessions=5, timeout=30)
    keys = [replace(BOB, credential_id=f"c{number}") for number in range(8)]
    lent: set[str] = set()
    lock = threading.Lock()

    def work(seed):
        for step in range(300):
            params = keys[(seed + step) % len(keys)]
            with pool.session(params, fresh=step % 50 == 0) as session:
                assert session.params == params
                with lock:
                    assert session not in lent, "one session, two callers"
                    lent.add(session)
                with lock:
                    lent.discard(session)

    with ThreadPoolExecutor(16) as executor:
        list(executor.map(work, range(16)))
    assert host.most <= 5
    assert host.sockets == pool.stats().open == pool.stats().idle
    pool.close()
    assert host.sockets == 0
    assert not pool._slots
    assert not pool._idle
    assert pool._total == 0


def test_in_a_forked_child_nothing_of_the_parent_is_left(pool):
    """What the hook does in the child, without a fork of the test run itself."""
    idle, busy = pool.acquire(BOB), pool.acquire(MARY)
    pool.release(idle)
    said = []
    for session in (idle, busy):
        session.close = lambda timeout=0: said.append("QUIT")
        session.abort = lambda why: said.append(why)
    pool.forget_parent()
    assert said == ["belongs to the parent process"] * 2
    assert pool.stats().open == 0


def test_jitter_shortens_lifetimes(pool, clock, monkeypatch):
    """Sessions that were opened together do not all end together."""
    ends = []
    for chance in (0.0, 1.0):
        monkeypatch.setattr("random.random", lambda chance=chance: chance)
        with pool.session(replace(BOB, credential_id=f"bob{chance}")) as session:
            ends.append(pool._slot_of(session).expires - clock())
    assert ends == [BOB.max_lifetime, BOB.max_lifetime * 0.9]


def test_a_holder_does_not_go_on_past_the_lifetime(pool, clock):
    with pool.session(BOB) as session:
        assert pool.may_go_on(session)
        clock.now += BOB.max_lifetime + 1
        assert not pool.may_go_on(session)


def test_close_reaches_what_is_being_opened(host):
    connecting, go_on = threading.Event(), threading.Event()

    def connect(params, deadline, memory):
        connecting.set()
        assert go_on.wait(5)
        return host.connect(params, deadline, memory)

    pool = SessionPool(connect=connect)
    thread = threading.Thread(target=lambda: pool.release(pool.acquire(BOB)))
    thread.start()
    assert connecting.wait(5)
    assert pool.close({BOB.credential_id}) == 1
    go_on.set()
    thread.join(5)
    assert pool.stats().open == 0


def test_interruption_while_several_go_back_leaves_none_behind(host):
    pool = SessionPool(connect=host.connect)
    keys = [replace(BOB, credential_id=name, maintain_connection=False) for name in "abc"]
    sessions = [pool.acquire(key) for key in keys]

    def interrupted():
        raise KeyboardInterrupt

    sessions[0].say_quit = interrupted
    with pytest.raises(KeyboardInterrupt):
        pool.release(*sessions)
    assert pool.stats().open == host.sockets == 0


def test_without_threads_sessions_are_kept_and_expire_all_the_same(host, clock, monkeypatch):
    """At the end of the interpreter, or where no more threads may be started."""

    def no_thread(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    pool = SessionPool(connect=host.connect, clock=clock)
    with pool.session(BOB):
        pass
    assert pool.stats().idle == 1
    clock.now += BOB.idle_timeout + 2
    with pool.session(MARY):
        pass
    assert {info.credential_id for info in pool.stats().sessions} == {MARY.credential_id}


def test_reaper_does_not_oversleep_what_came_back_while_it_was_busy(host):
    pool = SessionPool(connect=host.connect)
    slow, goes_first = threading.Event(), threading.Event()
    first = pool.acquire(replace(BOB, idle_timeout=0.1))
    closing = type(first).close

    def close_slowly(timeout=0):
        goes_first.set()
        assert slow.wait(5)
        closing(first)

    first.close = close_slowly
    other = pool.acquire(replace(MARY, idle_timeout=0.2))
    lasting = pool.acquire(replace(MARY, credential_id="lasting", idle_timeout=300))
    pool.release(lasting)
    closed = threading.Event()
    other.close = lambda timeout=0: (closing(other), closed.set())
    pool.release(first)
    assert goes_first.wait(5)
    pool.release(other)
    slow.set()
    assert closed.wait(5)
    pool.close()


def test_refused_login_does_not_hold_back_sessions_that_are_logged_in(pool, host):
    with pool.session(BOB) as kept:
        host.fail = SMTPAuthenticationError(535, b"5.7.8 too many sessions")
        with pytest.raises(SMTPAuthenticationError):
            pool.acquire(BOB)
    with pool.session(BOB) as session:
        assert session is kept
