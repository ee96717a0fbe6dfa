"""Nothing takes longer than it may: phases, deadlines, QUIT, NOOP.

The limits are fractions of a second where they are tested and half a minute where they are not, so
a limit that is ignored shows by tens of seconds.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from smtplib import SMTPServerDisconnected

import pytest

from mailpool.exceptions import DeliveryUnknown, PoolTimeout
from mailpool.smtp import Attempt, Envelope, Session, SessionPool, Transmitter
from tests.scripted import ScriptedServer

LONG = 30.0
SOON = 10.0


def attempt(text=b"Subject: x\r\n\r\nx\r\n"):
    return Attempt(Envelope("bob@example.com", ("a@example.com",), text))


@contextmanager
def soon():
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SOON


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def patient(params):
    return replace(params, timeout=LONG)


@pytest.fixture
def black_hole():
    """A port that answers no SYN: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        else:
            pytest.fail("the queue is never full")
        yield address


def test_connecting(patient, black_hole):
    with soon(), pytest.raises(TimeoutError, match="timed out"):
        Session.open(replace(patient, port=black_hole[1], connect_timeout=0.3))


def test_deadline_of_connecting(patient, black_hole):
    with soon(), pytest.raises(TimeoutError, match="timed out"):
        SessionPool(timeout=LONG).acquire(
            replace(patient, port=black_hole[1]), deadline=time.monotonic() + 0.3
        )


def test_an_address_that_answers_nothing_leaves_time_for_the_next(
    server, patient, black_hole, monkeypatch
):
    family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*family, black_hole), (*family, ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    Session.open(replace(patient, connect_timeout=2)).close()


@pytest.mark.parametrize("step", ["greeting", "EHLO", "AUTH"])
def test_deadline_of_opening(server, patient, step):
    server.when(step).freezes()
    with soon(), pytest.raises(SMTPServerDisconnected, match="in time"):
        SessionPool(timeout=LONG).acquire(patient, deadline=time.monotonic() + 0.5)


def test_the_answer_to_the_end(server, patient, pool):
    server.when("end of data").freezes()
    lost = attempt()
    with soon():
        Transmitter(pool).transmit({replace(patient, final_timeout=0.3): [lost]})
    assert isinstance(lost.error, DeliveryUnknown)


def test_the_transfer(server, patient, pool):
    server.when("body").freezes()
    lost = attempt(b"x" * (32 << 20))
    with soon():
        Transmitter(pool).transmit({replace(patient, data_timeout=0.3): [lost]})
    assert isinstance(lost.error, SMTPServerDisconnected)
    assert not lost.handed_over


@pytest.mark.parametrize("step", ["MAIL", "end of data"])
def test_deadline_of_a_batch(server, patient, pool, step):
    server.when(step, occurrence=2).freezes()
    batch = [attempt() for _ in range(4)]
    with soon():
        Transmitter(pool).transmit({patient: batch}, deadline=time.monotonic() + 1)
    assert batch[0].receipt is not None
    assert all(each.error is not None for each in batch[1:])
    assert isinstance(batch[-1].error, PoolTimeout)
    assert pool.stats().busy == 0


def test_nothing_is_begun_after_the_deadline(server, patient, pool):
    """Not on a session that is in the middle of a batch either."""
    deadline = time.monotonic() + 0.5

    def slow(talk):
        while time.monotonic() < deadline + 0.05:
            talk.server.stopping.wait(0.01)

    server.when("MAIL", occurrence=2)._does(slow).behaves()
    batch = [attempt() for _ in range(5)]
    patient = replace(patient, timeout=LONG)
    Transmitter(pool).transmit({patient: batch}, deadline=deadline)
    assert batch[0].receipt is not None
    assert server.verbs().count("MAIL") <= 2
    assert isinstance(batch[-1].error, PoolTimeout)


def test_session_that_answers_no_noop_is_replaced_unseen(server, patient, monkeypatch):
    monkeypatch.setattr("mailpool.smtp.pool.NOOP_AFTER", 0.0)
    server.when("NOOP", connection=1).freezes()
    small = SessionPool(timeout=3)
    with small.session(patient):
        pass
    with soon(), small.session(patient) as session:
        assert not session.is_used
    assert server.connections == 2


def test_noop_with_more_than_one_answer_is_not_trusted(server, patient):
    server.when("NOOP").says("250 2.0.0 ok\r\n421 4.3.2 going down")
    session = Session.open(patient)
    assert not session.noop() or not session.is_alive()


def test_expired_sessions_of_a_frozen_server_hold_nobody_up(server, patient):
    server.when("QUIT").freezes()
    with ScriptedServer() as other:
        crowd = SessionPool(timeout=LONG)
        mary = replace(patient, credential_id="mary", port=other.port)
        for number in range(8):
            name = f"bob{number}"
            with crowd.session(replace(patient, credential_id=name, idle_timeout=0.05)):
                pass
        crowd._clock = lambda: time.monotonic() + 1000
        with crowd.session(mary, deadline=crowd._clock() + 2):
            pass
        crowd.close()


def test_sessions_are_said_goodbye_together(server, patient):
    """One moment for the answers to all QUITs, not one for each."""
    server.when("QUIT").freezes()
    crowd = SessionPool(timeout=LONG)
    names = [f"bob{number}" for number in range(20)]
    for name in names:
        with crowd.session(replace(patient, credential_id=name)):
            pass
    with soon():
        assert crowd.close() == 20
    assert crowd.stats().open == 0
    call = Transmitter(crowd)
    keys = [replace(patient, credential_id=name, maintain_connection=False) for name in names]
    call.transmit({key: [attempt()] for key in keys}, width=4)
    with soon():
        call.release()
    assert crowd.stats().open == 0


def test_a_crowded_server_is_not_asked_again_for_each_message(server, patient, pool):
    server.when("greeting").says("421 4.7.0 too many connections").then.closes()
    batch = [attempt() for _ in range(10)]
    Transmitter(pool).transmit({patient: batch})
    assert all(each.error is not None for each in batch)
    assert server.connections == 1


@pytest.mark.parametrize("step", ["greeting", "EHLO"])
def test_a_mute_server_is_waited_for_once(server, patient, pool, step):
    server.when(step).freezes()
    batch = [attempt() for _ in range(30)]
    with soon():
        Transmitter(pool).transmit({replace(patient, timeout=0.5): batch})
    assert all(each.error is not None for each in batch)
    assert server.connections == 1


def test_a_full_pool_is_waited_for_once(server, patient):
    full = SessionPool(max_sessions=1, timeout=0.5)
    with full.session(replace(patient, credential_id="mary")):
        batch = [attempt() for _ in range(30)]
        with soon():
            Transmitter(full).transmit({patient: batch})
    assert all(isinstance(each.error, PoolTimeout) for each in batch)
    full.close()
