"""Each cell of the failure table, for each way to send.

The message that something happens to is the victim's. It goes alone or in the middle of a batch,
over a session that is fresh or has sent before; and whatever happens to it, its neighbours
arrive, each once.
"""

from __future__ import annotations

import select
import threading
from dataclasses import replace
from smtplib import (
    SMTPDataError,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

import pytest

from mailpool.exceptions import DeliveryUnknown
from mailpool.smtp import Attempt, Envelope, Transmitter
from tests.scripted import EXTENSIONS, ScriptedServer

VICTIM = "victim@example.com"
MODES = ["one at a time", "pipelined", "batched", "batched one at a time", "single flight"]
FLIGHT = "single flight"
ENDINGS = ["closes", "resets"]
GOODBYES = ["421 4.3.2 going down", "451 4.4.2 timeout waiting for data"]
COMMANDS = ["MAIL", "RCPT", "DATA"]


def envelope(name, *recipients):
    return Envelope(
        f"{name}@example.com",
        recipients or ("a@example.com",),
        f"Subject: {name}\r\n\r\nThis is {name}.\r\n".encode(),
    )


class Line:
    """Sends the victim's message in one of the ways."""

    def __init__(self, mode, server, params, pool):
        self.mode, self.server, self.params, self.pool = mode, server, params, pool
        self.neighbours = []

    def neighbour(self):
        attempt = Attempt(envelope(f"neighbour-{len(self.neighbours)}"))
        self.neighbours.append(attempt)
        return attempt

    def prepare(self, *, reused):
        """Before the rules: a session that has sent, or (the key known, though) none."""
        if reused or self.mode == FLIGHT:
            self.transmit(self.neighbour())
        if not reused:
            self.pool.close()

    def transmit(self, *attempts, deadline=None):
        transmitter = Transmitter(self.pool)
        try:
            transmitter.transmit({self.params: attempts}, deadline=deadline)
        finally:
            transmitter.release()

    def send(self, *recipients, reused, deadline=None):
        """The victim's attempt, once all is over."""
        victim = Attempt(envelope("victim", *recipients))
        attempts = [victim]
        if self.mode.startswith("batched"):
            if reused:
                attempts.insert(0, self.neighbour())
            attempts += [self.neighbour(), self.neighbour()]
        self.transmit(*attempts, deadline=deadline)
        return victim

    def wait_until_ended(self):
        """Until the end of the idle session's connection has come across the network."""
        for slot in list(self.pool._idle_order):
            select.select([slot.session.opened.sock], [], [], 5)

    def count(self, name):
        """How often the server has taken that message over, now that it has read all there is."""
        self.server.catch_up(self.pool.stats().open)
        return sum(f"This is {name}.".encode() in body for body in self.server.accepted)

    @property
    def connections(self):
        return self.server.connections - self._before

    def begin(self):
        self._before = self.server.connections - (1 if self.pool.stats().open else 0)


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def server(mode):
    missing = "PIPELINING" if mode.endswith("one at a time") else None
    with ScriptedServer(extensions=[each for each in EXTENSIONS if each != missing]) as server:
        yield server


@pytest.fixture
def patience(request):
    """Time-outs; part of the key, so they are the same from the start."""
    return getattr(request, "param", {"timeout": 5})


@pytest.fixture
def line(mode, server, params, pool, patience):
    line = Line(mode, server, replace(params, single_flight=mode == FLIGHT, **patience), pool)
    yield line
    for number, attempt in enumerate(line.neighbours):
        assert line.count(f"neighbour-{number}") == 1, "a neighbour's message"
        assert attempt.receipt is not None
        assert attempt.receipt.code == 250
    assert pool.stats().busy == 0
    assert pool.stats().idle == pool.stats().open


@pytest.fixture(params=[False, True], ids=["fresh", "reused"])
def reused(request, line):
    line.prepare(reused=request.param)
    line.begin()
    return request.param


@pytest.fixture
def used(line):
    line.prepare(reused=True)
    line.begin()


@pytest.fixture
def fresh(line):
    line.prepare(reused=False)
    line.begin()


def skip_data_in_flight(line, step):
    if line.mode == FLIGHT and step == "DATA":
        pytest.skip("there is no DATA in single flight")


def arrived_on_a_fresh_session(line, victim):
    assert victim.receipt is not None
    assert victim.receipt.code == 250
    assert not victim.receipt.reused
    assert line.count("victim") == 1
    assert line.connections == 2


@pytest.mark.parametrize("ending", ENDINGS)
def test_reused_session_found_dead_at_checkout(line, ending):
    line.prepare(reused=False)
    returned = threading.Event()
    rule = line.server.when("end of data", sender="neighbour-9@example.com").behaves()
    getattr(rule.waits_for(returned), ending)()
    last = Attempt(envelope("neighbour-9"))
    line.transmit(last)
    assert last.receipt is not None
    returned.set()  # the session is in the pool
    line.wait_until_ended()
    line.begin()
    victim = line.send(reused=False)
    arrived_on_a_fresh_session(line, victim)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("step", COMMANDS)
def test_reused_session_dies_before_the_end(line, step, ending):
    skip_data_in_flight(line, step)
    getattr(line.server.when(step, sender=VICTIM, times=1), ending)()
    victim = line.send(reused=True)
    if line.mode == FLIGHT:
        # The end had left with the rest.
        assert isinstance(victim.error, DeliveryUnknown)
        assert line.count("victim") == 0
        assert line.connections == 1
    else:
        arrived_on_a_fresh_session(line, victim)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("step", COMMANDS)
def test_the_retry_happens_once(line, step):
    skip_data_in_flight(line, step)
    line.server.when(step, sender=VICTIM).closes()
    victim = line.send(reused=True)
    assert isinstance(victim.error, SMTPServerDisconnected | DeliveryUnknown)
    assert isinstance(victim.error, DeliveryUnknown) == (line.mode == FLIGHT)
    assert line.count("victim") == 0
    batched = line.mode.startswith("batched")
    assert line.connections == (1 if line.mode == FLIGHT else 3 if batched else 2)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("step", COMMANDS)
def test_fresh_session_dies_before_the_end(line, step, ending):
    skip_data_in_flight(line, step)
    getattr(line.server.when(step, sender=VICTIM, times=1), ending)()
    victim = line.send(reused=False)
    if line.mode == FLIGHT:
        assert isinstance(victim.error, DeliveryUnknown)
    else:
        assert isinstance(victim.error, SMTPServerDisconnected)
        assert not isinstance(victim.error, DeliveryUnknown)
    assert line.count("victim") == 0


@pytest.mark.parametrize("patience", [{"timeout": 5, "final_timeout": 0.3}], indirect=True)
@pytest.mark.parametrize("ending", [*ENDINGS, "freezes"])
def test_connection_lost_after_the_end(line, reused, ending):
    getattr(line.server.when("end of data", sender=VICTIM), ending)()
    victim = line.send(reused=reused)
    assert isinstance(victim.error, DeliveryUnknown)
    assert [b"This is victim." in body for _, body in line.server.bodies].count(True) == 1


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("goodbye", GOODBYES)
@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_goodbye_on_a_reused_session(line, step, goodbye):
    line.server.when(step, sender=VICTIM, times=1).says(goodbye).then.closes()
    victim = line.send(reused=True)
    if line.mode == FLIGHT:
        # Never twice once the end may have left, even where the server denies it.
        assert victim.receipt is None
        assert line.count("victim") == 0
        assert line.connections == 1
    else:
        arrived_on_a_fresh_session(line, victim)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("step", "error"),
    [("MAIL", SMTPSenderRefused), ("RCPT", SMTPRecipientsRefused), ("DATA", SMTPDataError)],
)
def test_421_on_a_fresh_session(line, step, error):
    skip_data_in_flight(line, step)
    line.server.when(step, sender=VICTIM).says("421 4.7.0 too many connections").then.closes()
    victim = line.send(reused=False)
    assert isinstance(victim.error, error)
    assert line.count("victim") == 0


@pytest.mark.parametrize("code", ["450 4.2.0", "550 5.7.1"])
@pytest.mark.parametrize(
    ("step", "error"),
    [("MAIL", SMTPSenderRefused), ("DATA", SMTPDataError), ("end of data", SMTPDataError)],
)
def test_refused_message(line, reused, step, error, code):
    skip_data_in_flight(line, step)
    line.server.when(step, sender=VICTIM).says(f"{code} no")
    victim = line.send(reused=reused)
    assert type(victim.error) is error
    assert victim.error.smtp_code == int(code[:3])
    assert victim.error.smtp_error == f"{code[4:]} no".encode()
    assert line.count("victim") == 0
    assert line.connections == 1
    if not line.mode.startswith("batched"):
        assert line.server.verbs()[-1] == "RSET"


def test_some_recipients_refused(line, reused):
    line.server.when("RCPT", sender=VICTIM, times=1).says("550 5.1.1 no such user")
    victim = line.send("a@example.com", "b@example.com", "c@example.com", reused=reused)
    assert victim.receipt is not None
    assert victim.receipt.refused == {"a@example.com": (550, b"5.1.1 no such user")}
    assert [reply.code for reply in victim.receipt.replies][:4] == [250, 550, 250, 250]
    assert line.count("victim") == 1
    assert line.connections == 1
    assert "RSET" not in line.server.verbs()


def test_all_recipients_refused(line, reused):
    line.server.when("RCPT", sender=VICTIM).says("550 5.1.1 no such user")
    victim = line.send("a@example.com", "b@example.com", reused=reused)
    assert isinstance(victim.error, SMTPRecipientsRefused)
    assert set(victim.error.recipients) == {"a@example.com", "b@example.com"}
    assert line.count("victim") == 0
    assert line.connections == 1
    assert line.server.verbs().count("RSET") == 1


def test_421_after_the_end(line, reused):
    line.server.when("end of data", sender=VICTIM).says("421 4.3.0 try later").then.closes()
    victim = line.send(reused=reused)
    assert isinstance(victim.error, SMTPDataError)
    assert line.count("victim") == 0
    assert [b"This is victim." in body for _, body in line.server.bodies].count(True) == 1


# Beyond the table: servers that break the protocol


@pytest.mark.parametrize("step", [*COMMANDS, "end of data"])
def test_too_many_replies(line, reused, step):
    skip_data_in_flight(line, step)
    rule = line.server.when(step, sender=VICTIM, times=1)
    if step == "DATA":
        rule.sends(b"250 2.0.0 extra\r\n").then.behaves()
    else:
        rule.behaves().sends(b"250 2.1.0 extra\r\n")
    victim = line.send(reused=reused)
    if victim.receipt is None and not isinstance(victim.error, DeliveryUnknown):
        assert line.count("victim") == 0
    else:
        assert line.count("victim") == 1


@pytest.mark.parametrize("patience", [{"timeout": 0.5, "final_timeout": 0.5}], indirect=True)
@pytest.mark.parametrize("step", [*COMMANDS, "end of data"])
def test_too_few_replies(line, reused, step):
    skip_data_in_flight(line, step)
    line.server.when(step, sender=VICTIM, times=1).swallows()
    victim = line.send(reused=reused)
    if victim.receipt is not None:
        assert line.count("victim") == 1
        assert step != "end of data"
    elif step == "end of data" or line.mode == FLIGHT:
        assert isinstance(victim.error, DeliveryUnknown)
        assert line.count("victim") == 1
    else:
        assert line.count("victim") == 0


@pytest.mark.parametrize("text", [b"<html>hello</html>\r\n", b"250-" + b"x" * 9000, b"999 x\r\n"])
@pytest.mark.parametrize("step", [*COMMANDS, "end of data"])
def test_garbage(line, reused, step, text):
    skip_data_in_flight(line, step)
    line.server.when(step, sender=VICTIM).sends(text)
    victim = line.send(reused=reused)
    assert isinstance(victim.error, SMTPServerDisconnected | DeliveryUnknown)
    unknown = step == "end of data" or line.mode == FLIGHT
    assert isinstance(victim.error, DeliveryUnknown) == unknown
    assert line.count("victim") == 0


@pytest.mark.parametrize("size", [1, 3, 7])
def test_replies_in_pieces(line, reused, size):
    line.server.speaks(size)
    victim = line.send("a@example.com", "b@example.com", reused=reused)
    assert victim.receipt is not None
    assert line.count("victim") == 1
    assert line.connections == 1


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_connection_lost_within_the_content(line, reused, ending, count):
    """The end has left, but has not been read: only the server could tell."""
    if line.mode == FLIGHT:
        pytest.skip("the content is no step of its own")
    getattr(line.server.when("body", sender=VICTIM, times=1).reads(count), ending)()
    victim = line.send(reused=reused)
    assert victim.receipt is None or line.count("victim") == 1
    if victim.error:
        assert isinstance(victim.error, SMTPServerDisconnected | DeliveryUnknown)
        assert line.count("victim") == 0


# Where a shortcut would be taken


def test_421_after_the_end_closes_even_if_the_server_does_not(line, reused):
    line.server.when("end of data", sender=VICTIM).says("421 4.3.0 try later")
    victim = line.send(reused=reused)
    assert isinstance(victim.error, SMTPDataError)
    assert victim.session_id not in {info.id for info in line.pool.stats().sessions}


@pytest.mark.usefixtures("used")
def test_421_to_data_on_a_reused_session(line):
    skip_data_in_flight(line, "DATA")
    line.server.when("DATA", sender=VICTIM, times=1).says("421 4.3.2 going down").then.closes()
    arrived_on_a_fresh_session(line, line.send(reused=True))


@pytest.mark.usefixtures("fresh")
def test_451_on_a_fresh_session_is_a_refusal_like_another(line):
    line.server.when("MAIL", sender=VICTIM, times=1).says("451 4.4.2 timeout")
    victim = line.send(reused=False)
    assert isinstance(victim.error, SMTPSenderRefused)
    assert line.connections == 1


def test_go_ahead_for_a_refused_message_is_never_used(line, reused):
    """What is written then would be submitted as a message."""
    skip_data_in_flight(line, "DATA")
    line.server.when("MAIL", sender=VICTIM, times=1).says("550 5.7.1 not you")
    line.server.when("RCPT", sender=VICTIM, times=1).sends(b"250 2.1.5 ok\r\n")
    line.server.when("DATA", sender=VICTIM, times=1).sends(b"354 go ahead\r\n")
    victim = line.send(reused=reused)
    assert isinstance(victim.error, SMTPSenderRefused)
    assert line.count("victim") == 0
    assert all(body.strip() != b"." for _, body in line.server.bodies)


def test_a_stray_reply_is_not_taken_for_the_answer(line, reused):
    """A refused message is never reported as sent."""
    line.server.when("end of data", sender=VICTIM).sends(b"250 ok\r\n554 no\r\n")
    victim = line.send(reused=reused)
    assert victim.receipt is None
    assert line.count("victim") == 0


def test_a_server_that_answers_messages_like_addresses_is_believed(line, reused):
    """``250 2.1.5``; asked a few times for each key whether it miscounts."""
    line.server.when("end of data").says("250 2.1.5 queued")
    victim = line.send(reused=reused)
    assert victim.receipt is not None
    assert line.count("victim") == 1
    for _ in range(3):
        line.transmit(line.neighbour())
    asked = line.server.verbs().count("QUIT")
    line.transmit(line.neighbour())
    assert line.server.verbs().count("QUIT") == asked


def test_a_refused_rset_is_a_reply_too_many(line, used):
    """Nothing refuses RSET: the reply was another command's, so none after it can be trusted."""
    line.server.when("RCPT", sender="refused@example.com").says("550 5.1.1 no such user")
    line.server.when("RSET", times=1).says("503 5.5.1 need RCPT first")
    refused, victim = Attempt(envelope("refused")), Attempt(envelope("victim"))
    line.transmit(refused, victim)
    assert isinstance(refused.error, SMTPRecipientsRefused)
    if line.mode == FLIGHT:
        assert isinstance(victim.error, DeliveryUnknown)
        assert "more replies than there were commands" in str(victim.error)
        assert line.count("victim") == 1
    else:
        arrived_on_a_fresh_session(line, victim)


@pytest.mark.parametrize("mode", [FLIGHT], indirect=True)
def test_a_chunk_is_not_taken_by_the_reply_to_an_address(server, params, pool):
    """One reply too many to RCPT would pass for the chunk's, and the chunk's for the end's."""
    params = replace(params, single_flight=True)
    server.when("RCPT", times=1).behaves().sends(b"250 2.1.5 once more\r\n")
    server.when("end of data", connection=1).closes()
    victim = Attempt(envelope("victim"))
    transmitter = Transmitter(pool)
    transmitter.transmit({params: [victim]})
    assert victim.receipt is not None
    assert not victim.receipt.reused
    assert sum(b"This is victim." in body for body in server.accepted) == 1
    assert server.connections == 2


@pytest.mark.parametrize("mode", ["batched"], indirect=True)
@pytest.mark.parametrize("patience", [{"timeout": 0.5, "final_timeout": 0.5}], indirect=True)
@pytest.mark.usefixtures("used")
def test_the_next_messages_refusal_is_not_taken_for_a_swallowed_answer(line):
    """The message was accepted, and told nobody; the 550 is about the next sender."""
    line.server.when("end of data", sender=VICTIM).swallows()
    line.server.when("MAIL", sender="refused@example.com").says("550 5.1.0 no such sender")
    victim, refused = Attempt(envelope("victim")), Attempt(envelope("refused"))
    line.transmit(victim, refused)
    assert isinstance(victim.error, DeliveryUnknown)
    assert line.count("victim") == 1
