"""Django's contract: what is sent, counted, raised and kept open."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import threading
import time
import warnings

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage, mail_admins, send_mail, send_mass_mail
from django.db import connection

import mailpool
from mailpool import delivery, signals
from mailpool.backends import EmailBackend
from mailpool.exceptions import BatchError, NoRoute
from mailpool.models import MailServer
from mailpool.smtp import Transmitter
from tests import processes
from tests.scripted import ScriptedServer

pytestmark = pytest.mark.django_db(transaction=True)
HAS_MAILERS = hasattr(mail, "mailers")


def message(tenant="bob", subject="hello", to=("a@example.com",), **kwargs):
    made = EmailMessage(subject, "text", f"{tenant}@example.com", to, **kwargs)
    made.tenant = tenant
    return made


@pytest.fixture
def bob(mail_host, make_credential, real_mail):
    return make_credential(mail_host, "bob")


@pytest.fixture
def mary(mail_host, make_credential, bob):
    return make_credential(mail_host, "mary")


def subjects(host, login):
    return [each.message["Subject"] for each in host.sent_as(login)]


def test_counts_what_a_server_took(mail_host, bob, mary):
    messages = [message("bob"), message("mary"), message("bob", to=["refused@example.com"])]
    assert EmailBackend(fail_silently=True).send_messages(messages) == 2
    assert EmailBackend().send_messages([]) == 0
    assert EmailBackend().send_messages(None) == 0


def test_one_tenants_failure_does_not_stop_the_others_mail(mail_host, bob, mary):
    messages = [message("bob", "1"), message("nobody"), message("mary", "1"), message("bob", "2")]
    with pytest.raises(NoRoute, match="nobody"):
        EmailBackend().send_messages(messages)
    assert subjects(mail_host, "bob") == ["1", "2"]
    assert subjects(mail_host, "mary") == ["1"]
    assert [m.mailpool_result.status for m in messages] == ["sent", "failed", "sent", "sent"]


def test_a_message_that_can_not_be_rendered_is_not_begun(mail_host, bob):
    """Begun and given up after DATA, it would arrive empty."""

    class Unreadable(EmailMessage):
        def message(self, **kwargs):
            raise RuntimeError("an attachment is gone")

    broken = Unreadable("2", "text", "bob@example.com", ["a@example.com"])
    broken.tenant = "bob"
    with pytest.raises(RuntimeError, match="attachment"):
        EmailBackend().send_messages([message("bob", "1"), broken, message("bob", "3")])
    assert subjects(mail_host, "bob") == ["1", "3"]
    assert broken.mailpool_result.status == "failed"


def test_several_failures_are_one_batch_error(mail_host, bob):
    bad = [message("nobody"), message("bob", to=["refused@example.com"])]
    with pytest.raises(BatchError) as caught:
        EmailBackend().send_messages([bad[0], message("bob"), bad[1]])
    assert [failed for failed, _ in caught.value.failures] == bad
    assert [error for _, error in caught.value.failures] == [m.mailpool_result.error for m in bad]
    assert "2 messages failed" in str(caught.value)
    assert len(mail_host.delivered) == 1


def test_order_is_kept_within_a_credential(mail_host, bob, mary):
    slugs = ["bob", "mary"] * 60  # more than one window
    EmailBackend().send_messages([message(slug, str(n)) for n, slug in enumerate(slugs)])
    assert subjects(mail_host, "bob") == [str(n) for n in range(0, 120, 2)]
    assert subjects(mail_host, "mary") == [str(n) for n in range(1, 120, 2)]


def test_fail_silently_hides_exceptions_and_not_outcomes(mail_host, bob, caplog):
    for made in (message("nobody"), message("bob", to=["refused@example.com"]), message(to=[])):
        assert EmailBackend(fail_silently=True).send_messages([made]) == 0
        assert made.mailpool_result.status in ("failed", "refused")
        assert made.mailpool_result.error is not None
    ours = [record for record in caplog.records if record.name == "mailpool"]
    assert [record.levelname for record in ours] == ["WARNING"] * 3


def test_result_tells_how_it_went(mail_host, bob):
    first, second = message(), message()
    EmailBackend().send_messages([first])
    EmailBackend().send_messages([second])
    result = second.mailpool_result
    assert (result.status, result.code, result.reused) == ("sent", 250, True)
    assert result.reply.startswith("2.0.0 queued")
    assert result.credential_id == str(bob.pk)
    assert result.session_id == first.mailpool_result.session_id
    assert (result.refused, result.error) == ({}, None)
    assert not first.mailpool_result.reused


@pytest.mark.parametrize("status", ["sent", "refused", "failed"])
def test_a_signal_for_each_outcome_and_a_bad_receiver_does_no_harm(mail_host, bob, status):
    seen = []

    def receiver(sender, message, result, **kwargs):
        seen.append((message, result))
        raise RuntimeError("a receiver's own mistake")

    outcome = getattr(signals, f"message_{status}")
    outcome.connect(receiver)
    made = {
        "sent": message(),
        "refused": message(to=["refused@example.com"]),
        "failed": message("nobody"),
    }[status]
    try:
        EmailBackend(fail_silently=True).send_messages([made])
    finally:
        outcome.disconnect(receiver)
    assert seen == [(made, made.mailpool_result)]


# The switch


def test_with_the_switch_on_calls_share_a_connection(mail_host, bob):
    for _ in range(3):
        EmailBackend().send_messages([message(), message()])
    assert mail_host.connections == 1
    assert mail_host.logins == ["bob"]


def switch_off(server):
    MailServer.objects.filter(pk=server.pk).update(maintain_connection=False)


def test_with_the_switch_off_each_call_and_credential_has_its_own(mail_host, bob, mary):
    switch_off(bob.server)
    EmailBackend().send_messages([message("bob"), message("mary")] * 60)
    assert mail_host.connections == 2
    EmailBackend().send_messages([message("bob"), message("bob")])
    assert mail_host.connections == 3
    mail_host.wait_until_closed()


def test_a_block_keeps_its_connection_even_with_the_switch_off(mail_host, bob):
    switch_off(bob.server)
    with EmailBackend() as backend:
        for _ in range(3):
            backend.send_messages([message()])
        assert mailpool.stats().busy == 1
    assert mail_host.connections == 1
    mail_host.wait_until_closed()


def test_open_and_close(mail_host, bob):
    backend = EmailBackend()
    assert backend.open() is True
    assert backend.open() is False
    assert mail_host.connections == 0  # whose it will be, the first message tells
    backend.send_messages([message()])
    assert mailpool.stats().busy == 1
    backend.close()
    backend.close()
    assert mailpool.stats().idle == 1


FLIP = """
import django; django.setup()
from mailpool.models import MailServer
from mailpool.smtp import Transmitter
server = MailServer.objects.get()
server.maintain_connection = {value}
server.save()
"""


def test_switch_flipped_in_another_process_is_in_force_at_the_next_send(mail_host, bob):
    EmailBackend().send_messages([message()])
    assert (mail_host.connections, mail_host.open) == (1, 1)
    processes.run(FLIP.format(value=False))
    EmailBackend().send_messages([message()])
    mail_host.wait_until_closed()  # the kept one as well
    assert mail_host.connections == 2
    EmailBackend().send_messages([message()])
    mail_host.wait_until_closed()
    assert mail_host.connections == 3
    processes.run(FLIP.format(value=True))
    EmailBackend().send_messages([message()])
    EmailBackend().send_messages([message()])
    assert mail_host.connections == 4
    assert mail_host.open == 1


def test_saving_a_change_closes_idle_connections_of_this_process(mail_host, bob, mary):
    EmailBackend().send_messages([message("bob"), message("mary")])
    bob.password = "another"
    bob.save()
    assert [info.username for info in mailpool.stats().sessions] == ["mary"]
    bob.server.timeout = 9
    bob.server.save()
    assert mailpool.stats().open == 0


def test_deleted_tenant_has_no_connections_left(mail_host, bob):
    EmailBackend().send_messages([message()])
    bob.tenant.delete()
    assert mailpool.stats().open == 0


def test_close_connections_chooses(mail_host, bob, mary, django_assert_num_queries):
    def send():
        EmailBackend().send_messages([message("bob"), message("mary")])

    send()
    assert mailpool.close_connections(credential=bob) == 1
    send()
    with django_assert_num_queries(0):
        assert mailpool.close_connections(credential=bob.pk.hex) == 1
    send()
    assert mailpool.close_connections(tenant=mary.tenant.pk) == 1
    send()
    assert mailpool.close_connections(server=bob.server) == 2
    send()
    session = mailpool.stats().sessions[0].id
    assert mailpool.close_connections(session_id=session) == 1
    assert mailpool.close_connections() == 1
    mail_host.wait_until_closed()


# Django's helpers and settings


def test_djangos_helpers(mail_host, bob, settings):
    admin = "admin@example.com"
    settings.ADMINS = [admin] if django.VERSION >= (6, 0) else [("A", admin)]
    with mailpool.use_tenant("bob"):
        assert send_mail("1", "text", None, ["a@example.com"]) == 1
        data = [("2", "text", None, ["a@example.com"]), ("3", "text", None, ["a@example.com"])]
        assert send_mass_mail(data) == 2
        mail_admins("4", "text")
    assert [s.split()[-1] for s in subjects(mail_host, "bob")] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("login", [{"auth_user": "x"}, {"auth_password": "x"}])
def test_a_login_that_somebody_passes_is_not_ignored(mail_host, bob, login):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The 'auth_user'|.*auth_user", category=Warning)
        with pytest.raises(TypeError, match="Logins are kept as credentials"):
            send_mail("1", "text", None, ["a@example.com"], **login)


@pytest.mark.parametrize("option", ["username", "host", "use_tls", "tennant"])
def test_unknown_options_are_errors(option):
    with pytest.raises(TypeError, match=option):
        EmailBackend(**{option: "x"})


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_tenant_is_an_error(empty):
    with pytest.raises(ValueError, match="not empty"):
        EmailBackend(tenant=empty)


def test_backend_of_a_tenant(mail_host, bob, mary):
    with mailpool.use_tenant("mary"):
        EmailBackend(tenant="bob").send_messages(
            [EmailMessage("hello", "text", "x@example.com", ["a@example.com"])]
        )
    assert len(mail_host.sent_as("bob")) == 1


@pytest.mark.skipif(HAS_MAILERS, reason="get_connection() is deprecated by MAILERS")
def test_get_connection_with_a_tenant(mail_host, bob):
    backend = mail.get_connection(tenant="bob")
    assert send_mail("1", "text", None, ["a@example.com"], connection=backend) == 1
    assert len(mail_host.sent_as("bob")) == 1


@pytest.mark.skipif(not HAS_MAILERS, reason="MAILERS came with Django 6.1")
class TestMailers:
    def configure(self, settings, **options):
        settings.MAILERS = {
            "default": {"BACKEND": "mailpool.backends.EmailBackend"},
            "acme": {"BACKEND": "mailpool.backends.EmailBackend", "OPTIONS": options},
        }

    def test_options_choose_the_tenant(self, mail_host, bob, settings):
        self.configure(settings, tenant="bob")
        EmailMessage("1", "text", None, ["a@example.com"]).send(using="acme")
        send_mail("2", "text", None, ["a@example.com"], using="acme")
        assert subjects(mail_host, "bob") == ["1", "2"]
        assert mail_host.connections == 1

    def test_options_may_hide_failures(self, mail_host, bob, settings):
        self.configure(settings, tenant="nobody", fail_silently=True)
        assert EmailMessage("1", "text", None, ["a@example.com"]).send(using="acme") == 0

    @pytest.mark.parametrize("options", [{"tenant": ""}, {"host": "x"}, {"usrename": "x"}])
    def test_bad_options_are_invalid_mailers_that_name_the_alias(self, settings, options):
        self.configure(settings, **options)
        with pytest.raises(mail.InvalidMailer, match="acme"):
            mail.mailers["acme"]


@pytest.mark.skipif(not HAS_MAILERS, reason="about the settings that Django 6.1 deprecates")
@pytest.mark.filterwarnings("ignore:The EMAIL_BACKEND setting is deprecated")
def test_without_mailers_django_alone_warns(mail_host, bob, settings):
    """With EMAIL_BACKEND on Django 6.1: the deprecation is Django's own, none is ours."""
    with warnings.catch_warnings(record=True) as caught, mailpool.use_tenant("bob"):
        warnings.simplefilter("always")
        if hasattr(settings, "MAILERS"):
            del settings.MAILERS
        settings.EMAIL_BACKEND = "mailpool.backends.EmailBackend"
        assert send_mail("1", "text", None, ["a@example.com"]) == 1
    assert [str(w.message) for w in caught if "mailpool" in str(w.message)] == []
    assert len(mail_host.sent_as("bob")) == 1


@pytest.fixture
def ctrl_c():
    """As at a terminal: a process whose parent ignores Ctrl-C has no handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("reply", "status"), [("end of data", "unknown"), ("MAIL", "failed")])
@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_batch_reports_every_message(make_credential, real_mail, reply, status):
    """Ctrl-C in the middle: what was sent is sent, what was under way is told as it is."""
    # One at a time: the second MAIL comes when the first message's reply has been read.
    with ScriptedServer(extensions=["AUTH PLAIN"]) as server:
        make_credential(server, "bob")
        interrupt = server.when(reply, occurrence=2)
        main = threading.main_thread().ident
        interrupt._does(lambda talk: signal.pthread_kill(main, signal.SIGINT)).freezes()
        messages = [message(subject=str(number)) for number in range(3)]
        with pytest.raises(KeyboardInterrupt):
            EmailBackend().send_messages(messages)
        assert [m.mailpool_result.status for m in messages] == ["sent", status, "failed"]
        assert mailpool.stats().open == 0


def test_interruption_leaves_no_message_without_an_outcome(bob, monkeypatch):
    """Also where it comes before a later part of the batch was begun."""
    monkeypatch.setattr(delivery, "WINDOW_MESSAGES", 2)
    batch = [message(subject=str(number)) for number in range(7)]
    EmailBackend().send_messages([batch[6]])  # has an outcome of an earlier call
    calls = itertools.count()

    def transmit(jobs, transmitter, terms):
        if next(calls) == 1:
            raise KeyboardInterrupt
        delivery.transmit_jobs(jobs, transmitter, terms)

    backend = EmailBackend()
    backend.transmit = transmit
    with pytest.raises(KeyboardInterrupt):
        backend.send_messages(batch)
    statuses = [each.mailpool_result.status for each in batch]
    assert statuses == ["sent", "sent"] + ["failed"] * 5
    assert mailpool.stats().busy == 0


def test_no_connection_is_held_while_the_database_writes(bob, monkeypatch):
    """Nor between the parts of a long batch, which goes on with the same one."""
    monkeypatch.setattr(delivery, "WINDOW_MESSAGES", 2)
    busy = []

    def look(execute, sql, *args):
        if sql.startswith("INSERT"):
            busy.append(mailpool.stats().busy)
        return execute(sql, *args)

    batch = [message(subject=str(number)) for number in range(5)]
    with connection.execute_wrapper(look):
        EmailBackend().send_messages(batch)
    assert len(busy) >= 3
    assert set(busy) == {0}
    assert len({each.mailpool_result.session_id for each in batch}) == 1


def test_signals_come_in_the_callers_thread(bob, mail_host, make_credential):
    """Receivers may use the database, as the caller's transaction has it."""
    make_credential(mail_host, "mary")
    heard = []

    def receiver(**kwargs):
        heard.append(threading.get_ident())

    signals.message_sent.connect(receiver)
    try:
        EmailBackend().send_messages([message(), message("mary"), message()])
    finally:
        signals.message_sent.disconnect(receiver)
    assert heard == [threading.get_ident()] * 3


def test_interruption_in_a_receiver_does_not_undo_what_was_sent(bob):
    def interrupt(**kwargs):
        raise KeyboardInterrupt

    batch = [message(subject=str(number)) for number in range(3)]
    signals.message_sent.connect(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            EmailBackend().send_messages(batch)
    finally:
        signals.message_sent.disconnect(interrupt)
    assert [each.mailpool_result.status for each in batch] == ["sent"] * 3


def test_signals_come_when_the_connection_is_back(mail_host, bob):
    """So that a receiver may send mail itself, whatever the switch and the limit."""
    MailServer.objects.update(maintain_connection=False, max_connections=1)
    busy = []

    def look(**kwargs):
        busy.append(mailpool.stats().busy)

    signals.message_sent.connect(look)
    try:
        EmailBackend().send_messages([message(), message()])
    finally:
        signals.message_sent.disconnect(look)
    assert busy == [0, 0]
    assert mail_host.connections == 1


def test_batch_error_travels_between_processes():
    error = BatchError([(message(), ValueError("no"))])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert [str(failure) for _, failure in again.failures] == ["no"]


def test_a_header_that_hides_the_recipients_stays(mail_host, bob):
    """On every version of Django, with addresses that need SMTPUTF8 as well."""
    hidden = message(
        to=["secret@example.com", "j\u00f6rg@example.com"], headers={"To": "list@example.com"}
    )
    EmailBackend().send_messages([hidden])
    (delivered,) = mail_host.delivered
    assert delivered.message["To"] == "list@example.com"
    assert b"secret" not in delivered.content


def test_a_child_that_inherits_a_block_in_use_is_not_stuck(bob):
    backend = EmailBackend()
    backend.open()
    held, end = threading.Event(), threading.Event()

    def hold():
        with backend._lock:
            held.set()
            end.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
        child = os.fork()
    if child == 0:
        signal.alarm(5)
        backend.close()
        os._exit(0)
    try:
        assert os.waitpid(child, 0)[1] == 0
    finally:
        end.set()
        thread.join(5)
        backend.close()


# Parts of a batch


def test_a_batch_in_parts_by_size(mail_host, bob, make_credential, monkeypatch):
    """What does not fit into memory at a time waits, and results stay in the messages' order."""
    monkeypatch.setattr(delivery, "WINDOW_BYTES", 1)
    make_credential(mail_host, "mary")
    batch = [message(("bob", "mary")[number % 2], subject=str(number)) for number in range(5)]
    assert EmailBackend().send_messages(batch) == 5
    assert [each.mailpool_result.status for each in batch] == ["sent"] * 5
    assert {each.message["Subject"] for each in mail_host.delivered} == set("01234")


@pytest.mark.parametrize("width", [0, 1])
def test_without_parallel_connections(settings, mail_host, bob, make_credential, width):
    settings.MAILPOOL = {**settings.MAILPOOL, "MAX_PARALLEL": width}
    make_credential(mail_host, "mary")
    assert EmailBackend().send_messages([message("bob"), message("mary")]) == 2


def test_a_transmission_that_does_nothing_ends(bob):
    backend = EmailBackend(fail_silently=True)
    backend.transmit = lambda jobs, transmitter, terms: None
    lost = message("bob")
    assert backend.send_messages([lost]) == 0
    assert lost.mailpool_result.status == "failed"


def test_an_error_that_is_false_is_an_error(bob):
    class Odd(ValueError):
        def __len__(self):
            return 0

    class OddMessage(EmailMessage):
        def message(self, *args, **kwargs):
            raise Odd("odd")

    odd = OddMessage("x", "x", "bob@example.com", ["a@example.com"])
    odd.tenant = "bob"
    with pytest.raises(Odd):
        EmailBackend().send_messages([odd])
    assert odd.mailpool_result.status == "failed"


def test_interruption_while_connections_are_given_back(bob, monkeypatch):
    """The messages were sent, and that is what everybody hears."""
    own, heard = Transmitter.release, []

    def release(self, *args):
        own(self, *args)
        monkeypatch.setattr(Transmitter, "release", own)
        raise KeyboardInterrupt

    def hear(result, **kwargs):
        heard.append(result.status)

    monkeypatch.setattr(Transmitter, "release", release)
    signals.message_sent.connect(hear)
    batch = [message("bob"), message("bob")]
    try:
        with pytest.raises(KeyboardInterrupt):
            EmailBackend().send_messages(batch)
    finally:
        signals.message_sent.disconnect(hear)
    assert heard == ["sent", "sent"]
    assert [each.mailpool_result.status for each in batch] == ["sent", "sent"]


FIRST_SENDS = """
import threading
import django
django.setup()
from mailpool import delivery

both, limits, pools = threading.Barrier(2), delivery._limits, []

def meet():
    both.wait(10)
    return limits()

delivery._limits = meet
threads = [threading.Thread(target=lambda: pools.append(delivery.get_pool())) for _ in range(2)]
for each in threads:
    each.start()
for each in threads:
    each.join()
assert pools[0] is pools[1], "two pools have twice the limits"
"""


def test_threads_that_send_first_at_the_same_time_have_one_pool():
    processes.run(FIRST_SENDS)


def leave_open(subject):
    backend = EmailBackend()
    backend.open()
    backend.send_messages([message(subject=subject)])


def test_a_block_that_nobody_closes_keeps_no_connection_from_others(mail_host, bob, settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "POOL_TIMEOUT": 5}
    for number in range(bob.server.max_connections + 2):
        leave_open(f"{number}")
        gc.collect()
    assert mail_host.connections == 1
    assert delivery.stats().open == 1


def test_who_waits_gets_what_a_block_leaves_meanwhile(mail_host, bob):
    MailServer.objects.update(max_connections=1)
    backend = EmailBackend()
    backend.open()
    backend.send_messages([message()])
    other = threading.Thread(
        target=lambda: (EmailBackend().send_messages([message()]), connection.close())
    )
    other.start()
    while not delivery.stats().waiting:
        time.sleep(0.01)
    del backend
    gc.collect()
    other.join(10)
    assert len(mail_host.sent_as("bob")) == 2
    assert mail_host.connections == 1
