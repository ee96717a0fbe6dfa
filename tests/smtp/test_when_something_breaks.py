"""Every row of the failure table, against a server that misbehaves at exactly that point."""

from __future__ import annotations

import itertools
from smtplib import (
    SMTPDataError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

import pytest

from mailpool.exceptions import DeliveryUnknown

GOODBYE = ["421 4.3.2 going down", "451 4.4.2 timeout waiting for data"]
ENDINGS = ["closes", "resets"]


def is_idle(pool):
    return pool.stats().idle == 1


def test_message_arrives_as_it_is(server, send, pool):
    receipt = send("a@example.com", "b@example.com", text=b"Subject: x\n\n.\n..two\nend")
    assert server.bodies == [(1, b"Subject: x\r\n\r\n..\r\n...two\r\nend\r\n.\r\n")]
    assert (receipt.code, receipt.reply, receipt.refused) == (250, "2.0.0 queued as 1", {})
    assert not receipt.reused
    assert is_idle(pool)


def test_no_rset_after_a_clean_message(server, send):
    send()
    assert send().reused
    assert server.connections == 1
    assert "RSET" not in server.verbs()
    assert "NOOP" not in server.verbs()


def test_nothing_is_said_twice_that_could_end_a_login(server, send):
    """A greeting after the login loses it at one provider."""
    for _ in range(3):
        send()
    verbs = server.verbs()
    assert verbs[:2] == ["EHLO", "AUTH"]
    assert [verb for verb in verbs[2:] if verb in ("EHLO", "HELO", "AUTH", "RSET", "NOOP")] == []
    assert verbs.count("MAIL") == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_reused_session_found_dead_at_checkout_is_replaced_unseen(server, send, ending):
    # The server ends the connection when it has taken the message.
    rule = server.when("end of data", connection=1).behaves()
    getattr(rule, ending)()
    send()
    assert not send().reused
    assert server.connections == 2
    assert len(server.bodies) == 2


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_reused_session_that_dies_before_the_end_is_retried_once_on_a_fresh_one(
    server, send, step, ending
):
    getattr(server.when(step, connection=1, occurrence=2), ending)()
    send()
    receipt = send()
    assert not receipt.reused
    assert server.connections == 2
    assert len(server.bodies) == 2


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_the_retry_happens_once_only(server, send, step):
    server.when(step, connection=1, occurrence=2).closes()
    server.when(step, connection=2).closes()
    send()
    with pytest.raises(SMTPServerDisconnected):
        send()
    assert server.connections == 2
    assert len(server.bodies) == 1


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_fresh_session_that_dies_is_reported(server, send, pool, step, ending):
    getattr(server.when(step), ending)()
    with pytest.raises(SMTPServerDisconnected) as caught:
        send()
    assert not isinstance(caught.value, DeliveryUnknown)
    assert server.connections == 1
    assert pool.stats().open == 0


@pytest.mark.parametrize("ending", [*ENDINGS, "freezes"])
@pytest.mark.parametrize("reused", [False, True])
def test_connection_lost_after_the_end_is_unknown_and_never_resent(
    server, params, pool, ending, reused
):
    from dataclasses import replace

    from mailpool.smtp import Envelope, Transmitter

    params = replace(params, timeout=0.5)
    envelope = Envelope("bob@example.com", ("a@example.com",), b"Subject: x\r\n\r\nx\r\n")
    transmitter = Transmitter(pool)
    if reused:
        transmitter.send(params, envelope)
    getattr(server.when("end of data", occurrence=2 if reused else 1), ending)()
    with pytest.raises(DeliveryUnknown):
        transmitter.send(params, envelope)
    transmitter.release()
    assert server.connections == 1
    assert len(server.bodies) == (2 if reused else 1)
    assert pool.stats().open == 0


def test_garbage_after_the_end_is_unknown(server, send, pool):
    server.when("end of data").sends(b"thanks!\r\n")
    with pytest.raises(DeliveryUnknown):
        send()
    assert pool.stats().open == 0


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
@pytest.mark.parametrize("goodbye", GOODBYE)
def test_goodbye_to_a_reused_session_is_retried_on_a_fresh_one(server, send, step, goodbye):
    server.when(step, connection=1, occurrence=2).says(goodbye).then.closes()
    send()
    assert not send().reused
    assert server.connections == 2
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("step", "error"),
    [("MAIL", SMTPSenderRefused), ("RCPT", SMTPRecipientsRefused), ("DATA", SMTPDataError)],
)
def test_421_on_a_fresh_session_is_smtplibs_exception(server, send, pool, step, error):
    server.when(step).says("421 4.7.0 too many connections").then.closes()
    with pytest.raises(error):
        send()
    assert server.connections == 1
    assert pool.stats().open == 0


@pytest.mark.parametrize("code", ["450 4.2.0", "550 5.7.1"])
@pytest.mark.parametrize(("step", "error"), [("MAIL", SMTPSenderRefused), ("DATA", SMTPDataError)])
def test_refused_mail_or_data_resets_and_keeps_the_session(server, send, pool, step, error, code):
    server.when(step, occurrence=1).says(f"{code} no")
    with pytest.raises(error) as caught:
        send()
    assert caught.value.smtp_code == int(code[:3])
    assert is_idle(pool)
    assert server.verbs()[-1] == "RSET"
    assert send().reused
    assert server.connections == 1


def test_some_recipients_refused_goes_to_the_rest(server, send, pool):
    server.when("RCPT", occurrence=2).says("550 5.1.1 no such user")
    receipt = send("a@example.com", "b@example.com", "c@example.com")
    assert receipt.refused == {"b@example.com": (550, b"5.1.1 no such user")}
    assert len(server.bodies) == 1
    assert is_idle(pool)
    assert "RSET" not in server.verbs()


def test_all_recipients_refused_sends_nothing_and_keeps_the_session(server, send, pool):
    server.when("RCPT").says("550 5.1.1 no such user")
    with pytest.raises(SMTPRecipientsRefused) as caught:
        send("a@example.com", "b@example.com")
    assert set(caught.value.recipients) == {"a@example.com", "b@example.com"}
    # A server that asks for data all the same gets a lone dot, and has no recipients for it.
    assert [body for _, body in server.bodies if body != b".\r\n"] == []
    assert server.verbs()[-1] == "RSET"
    assert is_idle(pool)


def test_refused_body_is_reported_and_not_sent_again(server, send, pool):
    server.when("end of data", occurrence=1).says("554 5.6.0 looks like spam")
    with pytest.raises(SMTPDataError) as caught:
        send()
    assert caught.value.smtp_error == b"5.6.0 looks like spam"
    assert len(server.bodies) == 1
    assert is_idle(pool)
    assert send().reused


def test_421_after_the_body_is_a_refusal_and_closes(server, send, pool):
    send()
    server.when("end of data").says("421 4.3.0 try later").then.closes()
    with pytest.raises(SMTPDataError):
        send()
    assert len(server.bodies) == 2  # not retried: the end had left
    assert pool.stats().open == 0


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_a_reply_that_is_not_smtp_closes_the_session(server, send, pool, step):
    server.when(step).sends(b"<html>hello</html>\r\n")
    with pytest.raises(SMTPException):
        send()
    assert pool.stats().open == 0
    assert server.bodies == []


def test_more_replies_than_commands_closes_the_session(server, send, pool):
    server.when("end of data", connection=1).says("250 2.0.0 queued\r\n250 2.0.0 and again")
    assert send().code == 250
    assert pool.stats().idle in (0, 1)  # the second reply may still be on its way
    assert not send().reused
    assert server.connections == 2


def test_an_extra_reply_before_the_data_stops_everything(server, send, pool):
    server.when("RCPT").says("250 2.1.5 ok\r\n250 2.1.5 ok")
    with pytest.raises(SMTPException):
        send()
    assert pool.stats().open == 0


def test_endless_reply_lines_are_cut_off(server, send, pool):
    server.when("MAIL").sends(b"250-" + b"x" * 100_000)
    with pytest.raises(SMTPServerDisconnected, match="line of more than"):
        send()
    assert pool.stats().open == 0


def test_endless_replies_are_cut_off(server, send, pool):
    server.when("MAIL").sends(b"250-x\r\n" * 10_000)
    with pytest.raises(SMTPServerDisconnected, match="not SMTP"):
        send()
    assert pool.stats().open == 0


def test_server_that_drips_bytes_does_not_outlast_the_timeout(server, params, pool):
    """The time-out is for a whole reply, not for each of its bytes."""
    import time
    from dataclasses import replace

    from mailpool.smtp import Envelope, Transmitter

    def drip(conversation):
        while not conversation.server.stopping.wait(0.1):
            conversation.write(b"2")

    server.when("MAIL")._does(drip)
    started = time.monotonic()
    with pytest.raises(SMTPServerDisconnected, match="in time"):
        Transmitter(pool).send(
            replace(params, timeout=1),
            Envelope("bob@example.com", ("a@example.com",), b"x\r\n"),
        )
    assert time.monotonic() - started < 5
    assert pool.stats().open == 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupted_exchange_closes_the_session(server, send, pool, monkeypatch, interruption):
    """A cancelled exchange would leave the replies off by one (redis-py, CVE-2023-28858)."""
    from mailpool.smtp.wire import Wire

    send()
    original = Wire.read_reply

    def interrupted(self, timeout=None):
        original(self, timeout)
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(Wire, "read_reply", interrupted)
        with pytest.raises(interruption):
            send()
    assert pool.stats().open == 0
    assert not send().reused


def test_many_recipients_stay_within_what_the_server_can_take(server, send):
    recipients = [f"recipient-{number}@example.com" for number in range(500)]
    receipt = send(*recipients)
    assert receipt.refused == {}
    assert server.verbs().count("RCPT") == 500
    assert len(server.bodies) == 1


def test_warm_message_takes_two_round_trips_where_the_server_pipelines(authority):
    """Counted as writes of the client that were followed by waiting for a reply."""
    from mailpool.smtp import Envelope, Session, SessionParams
    from mailpool.smtp.wire import Wire
    from tests.scripted import ScriptedServer

    turns = []

    class Counting(Wire):
        def write(self, data, timeout=None):
            turns.append("write")
            super().write(data, timeout)

        def read_reply(self, timeout=None):
            turns.append("read")
            return super().read_reply(timeout)

    with ScriptedServer() as server:
        session = Session.open(
            SessionParams(credential_id="x", host="127.0.0.1", port=server.port, security="plain")
        )
        session._wire.__class__ = Counting
        session.send(Envelope("a@example.com", tuple(f"r{n}@example.com" for n in range(10)), b"x"))
        session.close()
    trips = sum(a == "write" and b == "read" for a, b in itertools.pairwise(turns))
    assert trips - 1 == 2  # and one for QUIT


def test_no_more_is_under_way_than_a_server_takes(server, send, monkeypatch):
    """Replies pile up on a connection whose client only writes; then both sides wait."""
    from mailpool.smtp.wire import Wire

    unread, most = [], []

    class Counting(Wire):
        def write(self, data, timeout=None):
            unread.append(len(data))
            most.append(sum(unread))
            super().write(data, timeout)

        def read_reply(self, timeout=None):
            unread.clear()
            return super().read_reply(timeout)

    monkeypatch.setattr("mailpool.smtp.handshake.Wire", Counting)
    send(*(f"recipient-{number}@example.com" for number in range(500)))
    assert max(most) <= 4096


def test_interruption_while_the_last_reply_is_looked_for(server, send, pool, monkeypatch):
    from mailpool.smtp.exchange import Exchange

    send()
    server.when("RCPT").closes()

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Exchange, "_hear_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send()
    assert pool.stats().open == 0


def test_single_flight_only_on_a_session_that_was_heard_of_just_now(server, params, pool):
    from dataclasses import replace

    from mailpool.smtp import Envelope, Transmitter

    if "PIPELINING" not in server.extensions:
        return  # is not used there at all
    params = replace(params, single_flight=True)
    envelope = Envelope("bob@example.com", ("a@example.com",), b"Subject: x\r\n\r\nx\r\n")

    def send():
        before = len(server.commands)
        call = Transmitter(pool)
        call.send(params, envelope)
        call.release()
        return [line for _, line in server.commands[before:] if line.startswith("BDAT")]

    assert len(send()) == 2  # carefully at first
    assert len(send()) == 1
    (slot,) = pool._idle_order
    slot.session.opened._heard_at -= 10
    assert len(send()) == 2


def test_what_is_offered_in_clear_text_does_not_count_after_tls(authority):
    from mailpool.smtp import Session, SessionParams
    from tests.scripted import ScriptedServer

    with ScriptedServer(security="starttls", context=authority.server_context()) as server:
        server.when("EHLO", occurrence=1).sends(b"250-x\r\n250-SMTPUTF8\r\n250 STARTTLS\r\n")
        session = Session.open(
            SessionParams(
                credential_id="x",
                host="localhost",
                port=server.port,
                security="starttls",
                ca_certificate=authority.pem,
            )
        )
        assert "SMTPUTF8" not in session.features
        assert "PIPELINING" in session.features
        session.close()


@pytest.mark.parametrize("challenge", ["!!!", "a"])
def test_challenge_that_is_not_base64(server, params, challenge):
    from mailpool.smtp import Session

    server.extensions = ["AUTH CRAM-MD5"]
    server.when("AUTH").says(f"334 {challenge}")
    with pytest.raises(SMTPException):
        Session.open(params)


@pytest.mark.parametrize(
    ("peer", "is_here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("10.0.0.1", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_where_a_password_may_go_in_clear_text(params, peer, is_here):
    """Decided by whom the connection is with, and not by what the host is called."""
    from mailpool.smtp import Handshake

    class Connected:
        tls = None

        class sock:
            getpeername = staticmethod(lambda: (peer, 25))

    handshake = Handshake(params)
    handshake._wire = Connected
    assert handshake._peer_is_this_machine() is is_here
