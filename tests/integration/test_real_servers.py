"""Against real mail servers that refuse whatever comes over another account's connection."""

from __future__ import annotations

import os
import smtplib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.core.mail import EmailMessage
from django.db import connection

import mailpool
from mailpool.backends import EmailBackend
from mailpool.verification import verify_credential
from tests.integration import exim, postfix
from tests.integration.exim import Exim
from tests.integration.postfix import Postfix
from tests.latency import LatencyProxy

LOGINS = ["bob", "mary", "zoe", "max"]
pytestmark = pytest.mark.django_db(transaction=True)


SERVERS = {"Postfix": (Postfix, postfix.why_not), "Exim": (Exim, exim.why_not)}


@pytest.fixture(scope="module", params=SERVERS)
def running(request, authority):
    kind, why_not = SERVERS[request.param]
    reason = why_not()
    if reason and os.environ.get("MAILPOOL_REQUIRE_SERVERS"):
        pytest.fail(reason)
    elif reason:
        pytest.skip(reason)
    # Not in pytest's folder, which only its own user may enter.
    with (
        TemporaryDirectory(prefix="mail-server-") as folder,
        kind(Path(folder), authority, LOGINS) as server,
    ):
        yield server


@pytest.fixture
def server(running, make_credential, real_mail):
    for login in LOGINS:
        make_credential(running, login)
    running.log.write_text("")
    return running


def message(login, sender=None, to=("a@elsewhere.example",)):
    made = EmailMessage("hello", "text\n.\nmore", sender or f"{login}@example.com", to)
    made.tenant = login
    return made


def test_verification_sees_what_the_server_offers(server):
    from mailpool.models import Credential

    report = verify_credential(Credential.objects.get(username="bob"), recipient="a@b.example")
    # The credential names no address of its own, and what is offered then is not bob's.
    assert report.failure.key in ("mail", "rcpt")
    assert "not owned by user bob" in report.failure.detail
    ehlo = next(step for step in report.steps if step.key == "ehlo-tls")
    assert "PIPELINING" in ehlo.detail


def test_interleaved_mail_from_threads_is_all_accepted(server):
    def work(number):
        try:
            for turn in range(20):
                EmailBackend().send_messages([message(LOGINS[(number + turn) % len(LOGINS)])])
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    accepted = wait_for(server, 160)
    assert all(sender == f"{login}@example.com" for login, sender in accepted)
    assert len(accepted) == 160
    assert server.connections() <= 3 * len(LOGINS)
    assert mailpool.stats().reused > 100


def wait_for(server, number):
    """What the server has logged, once it has logged so many."""
    deadline = time.monotonic() + 20
    while len(server.accepted()) < number and time.monotonic() < deadline:
        time.sleep(0.05)  # until the next look at the log
    return server.accepted()


def test_the_server_would_refuse_a_crossed_message(server):
    """The guard that the test above relies on."""
    with pytest.raises(
        (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused), match="not owned by user bob"
    ):
        EmailBackend().send_messages([message("bob", sender="mary@example.com")])
    # The connection is as good as before.
    good = message("bob")
    EmailBackend().send_messages([good])
    assert good.mailpool_result.reused


def test_a_batch_goes_over_one_connection_in_its_order(server):
    batch = [message(LOGINS[number % 2]) for number in range(60)]
    assert EmailBackend().send_messages(batch) == 60
    assert len(wait_for(server, 60)) == 60
    assert server.connections() == 2
    assert all(each.mailpool_result.queue_id for each in batch)
    assert len({each.mailpool_result.queue_id for each in batch}) == 60


def test_a_batch_without_order_uses_what_the_limit_allows(server):
    batch = [message("bob") for _ in range(60)]
    assert EmailBackend(keep_order=False).send_messages(batch) == 60
    assert wait_for(server, 60) == [("bob", "bob@example.com")] * 60
    assert 1 <= server.connections() <= 3


def test_single_flight_takes_one_round_trip(server):
    from mailpool.models import MailServer
    from mailpool.relocation import relocate

    with LatencyProxy(server.port, [0.0]) as proxy:
        MailServer.objects.update(single_flight=True)
        own = MailServer.objects.get()
        relocate(own, host=own.host, port=proxy.ports[0.0], security=own.security)

        def send(number, **kwargs):
            messages = [message("bob", **kwargs) for _ in range(number)]
            for each in messages:
                EmailBackend(fail_silently=True).send_messages([each])
            return [each.mailpool_result.status for each in messages]

        assert send(1) == ["sent"]
        proxy.counts()
        assert send(5) == ["sent"] * 5
        assert proxy.counts()["round_trips"] == 5
        assert send(1, sender="mary@example.com") == ["refused"]
        assert send(1) == ["sent"]
        assert wait_for(server, 7) == [("bob", "bob@example.com")] * 7
        assert server.connections() == 1
        mailpool.close_connections()


def test_many_recipients_in_one_transaction(server):
    to = [f"r{number}@elsewhere.example" for number in range(300)]
    made = message("bob", to=to)
    assert EmailBackend().send_messages([made]) == 1
    assert made.mailpool_result.refused == {}


def test_pool_recovers_from_a_restart(server):
    assert EmailBackend().send_messages([message("bob")]) == 1
    server.stop()
    try:
        with pytest.raises((OSError, smtplib.SMTPException)):
            EmailBackend().send_messages([message("bob")])
    finally:
        server.start()
    assert EmailBackend().send_messages([message("bob"), message("mary")]) == 2
