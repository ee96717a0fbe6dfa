"""What a caller holds on to between messages, and what it lets go of."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, get_ident

import pytest

from mailpool.smtp import Attempt, Envelope, SessionPool, Transmitter
from mailpool.smtp.crew import Crew
from tests.scripted import ScriptedServer

ENVELOPE = Envelope("bob@example.com", ("a@example.com",), b"Subject: x\r\n\r\nx\r\n")


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


def test_without_the_switch_one_call_opens_one_session(server, params, pool):
    params = replace(params, maintain_connection=False)
    call = Transmitter(pool)
    for _ in range(3):
        call.send(params, ENVELOPE)
    assert server.connections == 1
    call.release()
    assert pool.stats().open == 0
    other = Transmitter(pool)
    other.send(params, ENVELOPE)
    other.release()
    assert server.connections == 2


def test_with_the_switch_the_session_is_free_between_groups(params, pool):
    call = Transmitter(pool)
    call.send(params, ENVELOPE)
    assert pool.stats().idle == 1


def test_a_block_keeps_its_session(params, pool):
    block = Transmitter(pool, is_block=True)
    block.send(params, ENVELOPE)
    assert pool.stats().busy == 1
    block.release()
    assert pool.stats().idle == 1


def test_a_block_replaces_a_session_that_ended_meanwhile(server, params, pool):
    server.when("end of data", connection=1).behaves().closes()
    block = Transmitter(pool, is_block=True)
    block.send(params, ENVELOPE)
    assert not block.send(params, ENVELOPE).reused
    assert server.connections == 2
    block.release()


def test_a_block_replaces_a_session_that_was_closed_from_outside(server, params, pool):
    block = Transmitter(pool, is_block=True)
    block.send(params, ENVELOPE)
    pool.close({params.credential_id})
    assert not block.send(params, ENVELOPE).reused
    assert server.connections == 2
    block.release()


def test_a_block_goes_on_with_changed_settings(server, params, pool):
    block = Transmitter(pool, is_block=True)
    block.send(params, ENVELOPE)
    block.send(replace(params, password="new", max_connections=1), ENVELOPE)
    assert pool.stats().open == 1
    assert server.connections == 2
    block.release()


def test_messages_per_session_are_counted_in_a_batch(server, params, pool):
    params = replace(params, max_messages=2)
    call = Transmitter(pool)
    for _ in range(5):
        call.send(params, ENVELOPE)
    call.release()
    assert server.connections == 3


def test_limit_that_the_server_announces_is_kept(server, params, pool):
    """RFC 9422: MAILMAX is how many messages the server takes on a connection."""
    server.extensions.append("LIMITS RCPTMAX=100 MAILMAX=2")
    call = Transmitter(pool)
    for _ in range(5):
        call.send(params, ENVELOPE)
    call.release()
    assert server.connections == 3


def test_blocks_that_need_what_the_other_one_holds_do_not_wait_for_each_other(server, params):
    pool = SessionPool(max_sessions=2, timeout=5)
    bob = replace(params, max_connections=1)
    mary = replace(bob, credential_id="mary", username="mary")
    both = Barrier(2)

    def work(first, second):
        block = Transmitter(pool, is_block=True)
        try:
            block.send(first, ENVELOPE)
            both.wait(5)
            return block.send(second, ENVELOPE).code
        finally:
            block.release()

    with ThreadPoolExecutor(2) as executor:
        a, b = executor.submit(work, bob, mary), executor.submit(work, mary, bob)
        assert (a.result(10), b.result(10)) == (250, 250)
    pool.close()
    assert len(server.bodies) == 4


# Interruptions


class Interrupted:
    """A session that is in the middle of something until it is cut."""

    def __init__(self):
        self.was_cut = Event()

    def cut(self):
        self.was_cut.set()


def test_an_interruption_ends_what_helpers_have_under_way(monkeypatch):
    monkeypatch.setattr("mailpool.smtp.crew.GRACE", 0.2)
    crew, session, busy, left = Crew(), Interrupted(), Event(), Event()

    def send():
        assert crew.enter(session)
        busy.set()
        session.was_cut.wait(5)
        crew.leave(session)
        left.set()

    def interrupt():
        assert busy.wait(5)
        raise KeyboardInterrupt

    main = get_ident()

    def either():
        return interrupt() if get_ident() == main else send()

    with pytest.raises(KeyboardInterrupt):
        crew.run([either, either], 2)
    assert session.was_cut.is_set()
    assert left.wait(5)
    assert not crew.enter(session)


def test_what_a_helper_opens_after_an_interruption_is_not_held(server, params, pool):
    params = replace(params, maintain_connection=False)
    call, crew = Transmitter(pool), Crew()
    session = pool.acquire(params)
    call.release()
    crew.is_stopped = True
    waiting = deque([Attempt(ENVELOPE)])
    call._use(crew, session, waiting[0], waiting, None)
    assert pool.stats().open == 0
    assert server.bodies == []
