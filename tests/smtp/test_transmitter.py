"""What a caller holds on to between messages, and what it lets go of."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event

import pytest

from mailpool.smtp import Attempt, Envelope, SessionPool, Transmitter
from mailpool.smtp.crew import Crew
from mailpool.smtp.sending import Sending
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

    crew.start([send, Event().is_set], 2)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    crew.stop()
    assert session.was_cut.is_set()
    assert left.wait(5)
    assert not crew.enter(session)


def test_what_a_helper_has_after_an_interruption_is_not_held(server, params, pool):
    params = replace(params, maintain_connection=False)
    call = Transmitter(pool)
    attempt = Attempt(ENVELOPE)
    sending = Sending(call, {params: 1}, deadline=None, width=1, keep_order=True)
    with pytest.raises(KeyboardInterrupt):
        sending.run(interrupted([]))
    call.release()
    session = pool.acquire(params)
    sending._use(session, attempt, sending._queues[params])
    assert not attempt.is_settled
    assert pool.stats().open == 0
    assert server.bodies == []


def interrupted(messages):
    yield from messages
    raise KeyboardInterrupt


def test_an_interruption_while_messages_are_made_leaves_nobody_waiting(server, params, pool):
    """What has left has its outcome; helpers that wait for more go home."""
    mary = replace(params, credential_id="mary")
    arrived = Event()
    server.when("end of data").sets(arrived).behaves()
    sent = Attempt(ENVELOPE)

    def messages():
        yield params, sent
        assert arrived.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Transmitter(pool).transmit_as_made({params: 2, mary: 1}, messages(), width=2)
    helpers = [thread for thread in threading.enumerate() if thread.name == "mailpool-send"]
    for helper in helpers:
        helper.join(5)
    assert not any(helper.is_alive() for helper in helpers)
    assert sent.receipt is not None
    assert pool.stats().busy == 0


def test_messages_leave_while_others_are_still_made(server, params, pool):
    mary = replace(params, credential_id="mary")
    arrived = Event()
    server.when("end of data").sets(arrived).behaves()
    first, second = Attempt(ENVELOPE), Attempt(ENVELOPE)

    def messages():
        yield params, first
        assert arrived.wait(5)  # there is no second message yet
        yield mary, second

    Transmitter(pool).transmit_as_made({params: 1, mary: 1}, messages(), width=2)
    assert first.receipt
    assert second.receipt


def test_a_message_that_does_not_come_after_all_is_not_waited_for(params, pool):
    mary = replace(params, credential_id="mary")
    attempts = [Attempt(ENVELOPE), Attempt(ENVELOPE)]
    made = [(params, attempts[0]), (params, None), (mary, attempts[1])]
    Transmitter(pool).transmit_as_made({params: 2, mary: 2}, made, width=2)
    assert all(attempt.receipt for attempt in attempts)


def test_those_who_assist_wait_for_messages_that_are_still_made(server, params, pool):
    """Without order, several sessions send one credential's messages, also if they come slowly."""
    params = replace(params, max_connections=3)
    together, begun = Barrier(3), Event()
    server.when("end of data", occurrence=1)._does(lambda talk: together.wait(5)).behaves()
    server.when("MAIL").sets(begun).behaves()
    attempts = [Attempt(ENVELOPE) for _ in range(30)]

    def messages():
        yield params, attempts[0]
        assert begun.wait(5)  # so that the others have seen it come and go
        for attempt in attempts[1:]:
            yield params, attempt

    Transmitter(pool).transmit_as_made(
        {params: len(attempts)}, messages(), width=3, keep_order=False
    )
    assert all(attempt.receipt for attempt in attempts)
    assert server.connections == 3


def test_what_fails_in_a_helper_is_raised_and_the_others_go_on(params, pool, monkeypatch):
    mary = replace(params, credential_id="mary")
    attempts = {params: [Attempt(ENVELOPE)], mary: [Attempt(ENVELOPE)]}
    call = Transmitter(pool)
    own = call.session

    def session(key, deadline, *, fresh):
        if key is params:
            raise SystemExit
        return own(key, deadline, fresh=fresh)

    monkeypatch.setattr(call, "session", session)
    with pytest.raises(SystemExit):
        call.transmit(attempts, width=2)
    assert attempts[mary][0].receipt
    assert not attempts[params][0].is_settled


def test_who_gets_no_session_leaves_the_messages_to_those_who_have_one(server, params, pool):
    """Some providers allow fewer connections than one would like to have."""
    attempts = [Attempt(ENVELOPE) for _ in range(30)]
    assisted, asked = Event(), Event()

    class Refused:
        """The moment at which the connection is refused, and what follows from that done."""

        def wait(self, timeout):
            at_work = [each for each in threading.enumerate() if each.name == "mailpool-send"]
            is_done = any(each.error for each in attempts) or len(at_work) < 2
            return asked.wait(timeout) and is_done

    class Late(Transmitter):
        def session(self, *args, **kwargs):
            assert assisted.wait(5)
            asked.set()
            return super().session(*args, **kwargs)

    server.when("greeting", connection=2).says("421 4.3.2 too many connections").closes()
    server.when("end of data", occurrence=1).sets(assisted).waits_for(Refused()).behaves()
    params = replace(params, max_connections=2)
    Late(pool).transmit({params: attempts}, width=3, keep_order=False)
    assert [each.error for each in attempts if each.error] == []
    assert len(server.accepted) == 30


@pytest.mark.parametrize("step", ["greeting", "EHLO", "AUTH"])
def test_a_server_that_wants_to_be_asked_later_is_asked_once_in_a_batch(server, params, pool, step):
    server.when(step).says("454 4.7.0 Too many login attempts, please try again later").closes()
    attempts = [Attempt(ENVELOPE) for _ in range(5)]
    Transmitter(pool).transmit({params: attempts})
    assert {each.error.smtp_code for each in attempts} == {454}
    assert server.connections == 1
