"""One record for each message and attempt, and nothing that depends on it."""

from __future__ import annotations

import logging
import re
import signal
import uuid
from contextlib import nullcontext
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.db import InterfaceError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailpool import delivery, recording, signals
from mailpool.backends import EmailBackend
from mailpool.management.commands.mailpool_prune import Command as Prune
from mailpool.models import (
    Credential,
    DeliveryRecipient,
    DeliveryRecord,
    MailServer,
    Sender,
    Tenant,
)
from mailpool.models.records import RANDOM_BITS, first_key, make_key
from tests.records import add_records
from tests.scripted import ScriptedServer

pytestmark = pytest.mark.django_db

LIST = "/admin/mailpool/deliveryrecord/"


@pytest.fixture
def records(settings):
    def level(name):
        settings.MAILPOOL = {**settings.MAILPOOL, "RECORDS": name}

    return level


def message(to=("r@elsewhere.example",), **kwargs):
    made = EmailMessage("Secret plans", "text", "bob@example.com", list(to), **kwargs)
    made.tenant = "bob"
    return made


def send(*messages):
    return EmailBackend(fail_silently=True).send_messages(messages or [message()])


def make_rows(count, when=None, **values):
    start = first_key(when or timezone.now()) >> RANDOM_BITS
    return DeliveryRecord.objects.bulk_create(
        DeliveryRecord(pk=make_key(start + number), outcome="sent", **values)
        for number in range(count)
    )


# What is recorded


def test_what_was_sent(mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    first, second = message(headers={"Message-ID": "<one@example.com>"}), message()
    send(first)
    send(second)
    newest, oldest = DeliveryRecord.objects.all()
    assert (oldest.outcome, oldest.code, oldest.enhanced) == ("sent", 250, "2.0.0")
    assert (oldest.reply, oldest.queue_id) == ("2.0.0 queued as 00000001", "00000001")
    assert oldest.message_id == "<one@example.com>"
    assert oldest.sender == "bob@example.com"
    assert oldest.size == len(mail_host.delivered[0].content)
    assert (oldest.tenant, oldest.credential, oldest.server) == (
        credential.tenant,
        credential,
        credential.server,
    )
    assert (oldest.tenant_name, oldest.username) == ("bob", "bob")
    assert oldest.server_name == credential.server.name
    assert (oldest.reused, newest.reused) == (False, True)
    assert oldest.session_id == newest.session_id == first.mailpool_result.session_id
    assert oldest.tls.startswith("TLSv1.")
    assert (oldest.connecting > 0, newest.connecting) == (True, 0)
    assert newest.message_id == mail_host.delivered[1].message["Message-ID"]
    assert abs(timezone.now() - newest.when) < timedelta(minutes=1)
    assert oldest.pk >> RANDOM_BITS <= newest.pk >> RANDOM_BITS


def test_outcomes(make_credential):
    with ScriptedServer() as server:
        make_credential(server, "bob")
        server.when("RCPT", connection=1).says("550 5.1.1 <r@elsewhere.example>: no such user")
        server.when("end of data", connection=2).closes()
        send()
        delivery.get_pool().close()
        send()
        lost = message()
        lost.tenant = "nobody"
        send(lost)
    failed, unknown, refused = DeliveryRecord.objects.all()
    assert (refused.outcome, refused.code, refused.enhanced) == ("refused", 550, "5.1.1")
    assert (refused.refused, refused.error) == (1, "SMTPRecipientsRefused")
    assert refused.reply == "5.1.1 <(address)>: no such user"
    assert (unknown.outcome, unknown.error, unknown.code) == ("unknown", "DeliveryUnknown", None)
    assert (failed.outcome, failed.error, failed.credential) == ("failed", "NoRoute", None)
    assert "There is no tenant" in failed.reply
    assert (failed.recipients, failed.sender) == (1, "bob@example.com")


@pytest.mark.parametrize("why", ["inactive", "none", "sender", "sender's owner"])
def test_mail_that_finds_no_account_is_its_tenants(make_credential, mail_host, support, why):
    """Who asks why a tenant's mail fails looks among the tenant's records, and finds it."""
    credential = make_credential(mail_host, "bob")
    one = message()
    if why == "none":
        credential.delete()
    elif why in ("inactive", "sender's owner"):
        Credential.objects.update(is_active=False)
    else:
        Sender.objects.create(credential=credential, address="office@example.com")
    if why == "sender's owner":
        Sender.objects.create(credential=credential, address="bob@example.com")
        del one.tenant
    send(one)
    (record,) = page(support, f"?tenant={credential.tenant_id}")
    assert (record.outcome, record.credential_id, record.server_id) == ("failed", None, None)
    assert record.tenant_name == "bob"
    assert one.mailpool_result.tenant == "bob"
    assert page(support, "?tenant=site") == []


def test_a_second_try_on_a_fresh_connection_is_told(make_credential):
    with ScriptedServer() as server:
        make_credential(server, "bob")
        server.when("MAIL", connection=1, occurrence=2).closes()
        send()
        send()
    second, first = DeliveryRecord.objects.all()
    assert (first.retried, second.retried) == (False, True)
    assert (second.outcome, second.reused) == ("sent", False)


ADDRESSES = ["First@elsewhere.example", "refused@elsewhere.example"]


@pytest.mark.parametrize("level", ["off", "counts", "addresses", "subjects", "mistake"])
def test_no_more_than_was_chosen(mail_host, make_credential, records, level):
    records(level)
    make_credential(mail_host, "bob")
    send(message(ADDRESSES))
    if level == "off":
        assert not DeliveryRecord.objects.exists()
        return
    record = DeliveryRecord.objects.get()
    assert (record.recipients, record.refused) == (2, 1)
    assert "5.1.1 no such user" in record.reply
    stored = str(vars(record)) + str(list(DeliveryRecipient.objects.values()))
    has_addresses = level in ("addresses", "subjects")
    assert ("elsewhere.example" in stored) == has_addresses
    assert ("Secret plans" in stored) == (level == "subjects")
    if has_addresses:
        for address in ADDRESSES:
            assert DeliveryRecord.objects.to(address).get() == record
        assert not DeliveryRecord.objects.to("else@elsewhere.example")


def test_one_statement_for_a_batch(mail_host, make_credential, records):
    make_credential(mail_host, "bob")
    with CaptureQueriesContext(connection) as captured:
        send(*(message() for _ in range(30)))
    assert sum(query["sql"].startswith("INSERT") for query in captured) == 1
    rows = list(DeliveryRecord.objects.all())
    assert len(rows) == 30
    assert [row.queue_id for row in reversed(rows)] == [f"{n:08X}" for n in range(1, 31)]


@pytest.mark.parametrize("text", ["\0", "\udc80", "x" * 5000, "Ünïcode 🙂"])
def test_whatever_a_server_says_can_be_stored(make_credential, text):
    with ScriptedServer() as server:
        make_credential(server, "bob")
        answer = f"550 5.7.1 {text}".encode("utf-8", "surrogateescape")[:1500]
        server.when("MAIL").sends(answer + b"\r\n")
        send()
    assert DeliveryRecord.objects.get().outcome in ("refused", "failed")


def test_an_interruption_records_nothing_twice(mail_host, make_credential):
    make_credential(mail_host, "bob")

    def interrupt(**kwargs):
        raise KeyboardInterrupt

    signals.message_sent.connect(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            send(message(), message(), message())
    finally:
        signals.message_sent.disconnect(interrupt)
    assert DeliveryRecord.objects.count() == len(mail_host.delivered) == 3


# A record that can't be written


@pytest.fixture
def broken_table(db):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE mailpool_deliveryrecord RENAME TO mailpool_elsewhere")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE mailpool_elsewhere RENAME TO mailpool_deliveryrecord")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_failed_write_changes_nothing_for_the_caller(
    mail_host, make_credential, broken_table, caplog, in_transaction
):
    make_credential(mail_host, "bob")
    heard = []

    def hear(**kwargs):
        heard.append(kwargs)

    signals.records_failed.connect(hear)
    try:
        sent = [message(), message()]
        with caplog.at_level(logging.ERROR, "mailpool.records"):
            if in_transaction:
                with transaction.atomic():
                    assert EmailBackend().send_messages(sent) == 2
                    assert Credential.objects.count() == 1  # the transaction is not broken
            else:
                assert EmailBackend().send_messages(sent) == 2
    finally:
        signals.records_failed.disconnect(hear)
    assert len(mail_host.delivered) == 2
    assert [each.mailpool_result.status for each in sent] == ["sent", "sent"]
    assert [(each["count"], each["sender"]) for each in heard] == [(2, DeliveryRecord)]
    (logged,) = caplog.records
    assert (logged.event, logged.mailpool_records) == ("mailpool.records_not_written", 2)
    assert delivery.stats().busy == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_only_what_is_missing_is_reported(
    mail_host, make_credential, records, caplog, in_transaction
):
    """The records stand; of their further recipients they are told apart."""
    records("addresses")
    make_credential(mail_host, "bob")
    heard = []

    def hear(**kwargs):
        heard.append((kwargs["count"], kwargs["recipients"]))

    def refuse(execute, sql, params, many, context):
        if 'INTO "mailpool_deliveryrecipient"' in sql.replace("`", '"'):
            raise OperationalError("disk full")
        return execute(sql, params, many, context)

    signals.records_failed.connect(hear)
    try:
        with transaction.atomic() if in_transaction else nullcontext():
            with connection.execute_wrapper(refuse):
                assert send(message(["a@b.example", "c@b.example", "d@b.example"])) == 1
            assert DeliveryRecord.objects.count() == 1
    finally:
        signals.records_failed.disconnect(hear)
    assert (DeliveryRecord.objects.count(), DeliveryRecipient.objects.count()) == (1, 0)
    assert heard == [(0, 2)]
    (logged,) = [each for each in caplog.records if each.name == "mailpool.records"]
    assert (logged.mailpool_records, logged.mailpool_recipients) == (0, 2)
    assert "0 delivery records and 2 further recipients of others could not be" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("at", ["SAVEPOINT", "INSERT"])
def test_a_transaction_whose_line_is_cut_does_not_pass_for_done(
    mail_host, make_credential, caplog, at
):
    """The caller would believe its own rows to be stored. (SQLite has no line.)"""
    make_credential(mail_host, "bob")
    done = []

    def cut(execute, sql, params, many, context):
        if sql.startswith(at) and not done:
            done.append(cut_the_line())
        return execute(sql, params, many, context)

    fails = pytest.raises((OperationalError, InterfaceError))
    with fails if connection.vendor != "sqlite" else nullcontext(), transaction.atomic():
        Tenant.objects.create(slug="new")
        with connection.execute_wrapper(cut):
            assert send() == 1
    assert done
    is_there = connection.vendor == "sqlite"
    assert Tenant.objects.filter(slug="new").exists() == is_there
    assert DeliveryRecord.objects.exists() == is_there
    assert ("1 delivery records could not be written" in caplog.text) != is_there
    assert len(mail_host.delivered) == 1


@pytest.mark.django_db(transaction=True)
def test_a_bad_row_does_not_take_others_along(mail_host, make_credential, monkeypatch, caplog):
    make_credential(mail_host, "bob")
    taken = make_rows(1)[0].pk
    keys = iter([taken, *(make_key() for _ in range(5))])
    monkeypatch.setattr(recording, "make_key", lambda *args: next(keys))
    send(message(), message())
    assert DeliveryRecord.objects.count() == 3
    assert not [each for each in caplog.records if each.name == "mailpool.records"]


def cut_the_line():
    """As a restart of the database server does; SQLite has no line."""
    other = connection.copy()
    with other.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid]
            )
        elif connection.vendor == "mysql":
            cursor.execute(f"KILL {connection.connection.thread_id()}")
    other.close()


@pytest.mark.django_db(transaction=True)
def test_a_line_to_the_database_that_is_cut_costs_no_record(
    mail_host, make_credential, monkeypatch, caplog
):
    make_credential(mail_host, "bob")
    cut = message()
    render = cut.message
    monkeypatch.setattr(cut, "message", lambda *args, **kwargs: cut_the_line() or render())
    assert send(cut, message()) == 2
    assert (DeliveryRecord.objects.count(), len(mail_host.delivered)) == (2, 2)
    assert not [each for each in caplog.records if each.name == "mailpool.records"]


@pytest.mark.django_db(transaction=True)
def test_a_write_that_fails_leaves_a_sound_connection_open(mail_host, make_credential, caplog):
    """The caller may have a cursor, a lock or settings of its own on it."""
    make_credential(mail_host, "bob")
    tried = []

    def too_late(execute, sql, params, many, context):
        if "mailpool_deliveryrecord" not in sql:
            return execute(sql, params, many, context)
        tried.append(sql)
        raise OperationalError("canceling statement due to lock timeout")

    open_one = connection.connection
    with connection.execute_wrapper(too_late):
        assert send() == 1
    assert connection.connection is open_one is not None
    assert len(tried) == 1
    assert "1 delivery records could not be written" in caplog.text


# Connections


def test_connections_are_told_of_without_secrets(mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    heard = []

    def opened(**kwargs):
        heard.append(("opened", kwargs))

    def closed(**kwargs):
        heard.append(("closed", kwargs))

    signals.connection_opened.connect(opened)
    signals.connection_closed.connect(closed)
    try:
        send()
        delivery.close_connections()
    finally:
        signals.connection_opened.disconnect(opened)
        signals.connection_closed.disconnect(closed)
    assert [name for name, _ in heard] == ["opened", "closed"]
    for _, told in heard:
        assert told["credential_id"] == str(credential.pk)
        assert told["address"] == f"localhost:{mail_host.port}"
        assert credential.password not in repr(told)
    assert heard[0][1]["session_id"] == heard[1][1]["session_id"]
    assert (heard[1][1]["messages"], heard[1][1]["reason"]) == (1, "closed")


# What is deleted


def test_records_outlive_what_they_are_about(mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    send()
    server = credential.server
    credential.tenant.delete()
    server.delete()
    record = DeliveryRecord.objects.get()
    assert (record.tenant_name, record.username) == ("bob", "bob")


def test_prune_removes_what_is_old_in_batches(capsys, settings):
    now = timezone.now()
    old = make_rows(25, now - timedelta(days=40))
    new = make_rows(5, now - timedelta(days=5))
    for row in (old[0], new[0]):
        DeliveryRecipient.objects.create(record=row, address="x@example.com")
    seen = []
    assert recording.prune(now - timedelta(days=90), progress=seen.append) == 0
    with pytest.raises(CommandError, match="RECORDS_KEEP_DAYS"):
        call_command("mailpool_prune")
    for days in ("-1", "40000"):
        with pytest.raises(CommandError, match="Nothing was removed"):
            call_command("mailpool_prune", f"--older-than={days}")
    settings.MAILPOOL = {**settings.MAILPOOL, "RECORDS_KEEP_DAYS": 30}
    call_command("mailpool_prune", "--dry-run")
    assert capsys.readouterr().out.startswith("25 records")
    assert DeliveryRecord.objects.count() == 30
    removed = recording.prune(now - timedelta(days=30), progress=seen.append, batch=10)
    assert (removed, seen) == (25, [10, 20, 25])
    assert set(DeliveryRecord.objects.all()) == set(new)
    assert DeliveryRecipient.objects.get().record == new[0]
    call_command("mailpool_prune", "--older-than", "1", "--json")
    assert '"removed": 5' in capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_prune_ends_with_a_line_at_ctrl_c(capsys, monkeypatch):
    make_rows(25, timezone.now() - timedelta(days=40))
    monkeypatch.setattr(recording.prune, "__kwdefaults__", {"progress": None, "batch": 10})
    monkeypatch.setattr(Prune, "_progress", lambda *args: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        Prune().run_from_argv(["manage.py", "mailpool_prune", "--older-than=30"])
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert (out, err.strip().partition(".")[0]) == ("", "Interrupted")
    assert err.count("\n") == 2  # the line that Ctrl-C was typed on, and what there is to say
    assert DeliveryRecord.objects.count() == 15
    monkeypatch.undo()
    call_command("mailpool_prune", "--older-than=30")
    assert not DeliveryRecord.objects.exists()


def test_a_scrubbed_copy_has_no_records(capsys):
    make_rows(3)
    call_command("mailpool_scrub", "--no-input")
    assert re.search(r"delivery records +3", capsys.readouterr().out)
    assert not DeliveryRecord.objects.exists()


# The admin


@pytest.fixture
def support(client):
    """Somebody who may look at records and at nothing else."""
    user = get_user_model().objects.create_user("support", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_deliveryrecord"))
    client.force_login(user)
    return client


def page(client, query=""):
    answer = client.get(LIST + query)
    assert answer.status_code == 200, answer.status_code
    return answer.context["cl"].result_list


def test_pages_follow_the_key(support):
    rows = make_rows(120)
    found, url = [], ""
    for _ in range(3):
        answer = support.get(LIST + url)
        found += answer.context["cl"].result_list
        url = answer.context["cl"].older_url
    assert url == ""
    assert found == sorted(rows, key=lambda row: -row.pk)
    assert page(support, "?before=nonsense")[0] == found[0]


@pytest.mark.parametrize(
    ("query", "told", "shown"),
    [
        ("when=junk", "The filter by time does not know “junk”, so nothing is shown.", 0),
        ("when=2001-13-31", "The filter by time does not know “2001-13-31”", 0),
        ("code=x", "The filter by reply code does not know “x”", 0),
        ("tenant=x", "The filter by tenant does not know “x”", 0),
        ("server=x", "The filter by mail server does not know “x”", 0),
        ("credential=x", "The filter by credential does not know “x”", 0),
        ("before=x", "The address of this page names no record, so it is the newest.", 2),
        ("outcome__exact=x", "The filter by outcome does not know “x”, so nothing is shown.", 0),
        ("sender__contains=b", "There is no filter by “sender__contains”, so it was left out.", 2),
        (
            "outcome__isnull=True&code__gt=1",
            "There is no filter by “outcome__isnull”, “code__gt”",
            2,
        ),
        ("utm_source=mail&p=1&o=1&_popup=1&e=1", "There is no filter by “utm_source”", 2),
        ("outcome__exact=refused&outcome__exact=sent", "", 2),
        ("when=2001-01-31", "", 0),
        (f"server={uuid.uuid4()}", "", 0),
        ("when=&code=&before=", "", 2),
    ],
)
def test_a_filter_that_is_none_is_told_of(support, query, told, shown):
    make_rows(2)
    answer = support.get(f"{LIST}?{query}")
    said = [str(each) for each in answer.context["messages"]]
    assert len(answer.context["cl"].result_list) == shown
    assert [each[: len(told)] for each in said] == ([told] if told else [])
    assert list(support.get(LIST).context["messages"]) == []


def test_filters_and_search(support, mail_host, make_credential, records):
    records("addresses")
    bob, mary = make_credential(mail_host, "bob"), make_credential(mail_host, "mary")
    elsewhere = MailServer.objects.create(name="Elsewhere", host="elsewhere")
    send(message(["one@a.example", "two@a.example"]), message(["refused@a.example"]))
    other = message(["three@a.example"])
    other.tenant, other.from_email = "mary", "mary@example.com"
    send(other)
    hers, his_refused, his = DeliveryRecord.objects.all()
    assert page(support, f"?tenant={mary.tenant.pk}") == [hers]
    assert page(support, f"?tenant={bob.tenant.pk}&credential={bob.pk}") == [his_refused, his]
    assert page(support, f"?server={bob.server.pk}") == [hers, his_refused, his]
    link = f"server={elsewhere.pk}"
    assert link in support.get(LIST).content.decode()
    assert link not in support.get(f"{LIST}?tenant={bob.tenant.pk}").content.decode()
    link = f"tenant={bob.tenant.pk}"
    assert link in support.get(f"{LIST}?server={bob.server.pk}").content.decode()
    assert link not in support.get(f"{LIST}?server={elsewhere.pk}").content.decode()
    assert support.get(f"{LIST}?server=nonsense&tenant=nonsense").status_code == 200
    assert page(support, "?tenant=site") == page(support, "?tenant=nonsense") == []
    assert page(support, "?outcome__exact=refused") == [his_refused]
    assert page(support, "?code=550") == [his_refused]
    assert page(support, "?code=x") == page(support, "?code=5500") == []
    assert page(support, "?code=250") == [hers, his]
    assert page(support, "?when=hour") == [hers, his_refused, his]
    assert page(support, "?when=2001-01-31") == page(support, "?when=2001-13-31") == []
    assert page(support, f"?q={his.queue_id}") == [his]
    assert page(support, f"?q={his.message_id}") == page(
        support, f"?q={his.message_id.strip('<>')}"
    )
    assert page(support, f"?q={his.message_id}") == [his]
    for address in ("one@a.example", "TWO@a.example"):
        assert page(support, f"?q={address}") == [his]
    assert page(support, "?q=four@a.example") == []


@pytest.mark.parametrize("stored", ["<no-domain.1>", "no-domain.1", "<a@b>", "a@b"])
def test_a_message_id_is_found_however_it_is_written(support, stored):
    (one,) = make_rows(1, message_id=stored)
    (two,) = make_rows(1, message_id="<other>", queue_id="no-domain.1")
    bare = stored.strip("<>")
    for term in (bare, f"<{bare}>", f" {bare} "):
        found = page(support, f"?q={quote(term)}")
        assert one in found
        assert (two in found) == (term.strip() == two.queue_id)
    assert page(support, "?q=no-domain") == []


def test_a_filter_that_is_none_reads_nothing_by_it_and_leads_nowhere(support):
    make_rows(60, sender="bob@example.com")
    with CaptureQueriesContext(connection) as captured:
        answer = support.get(f"{LIST}?sender__contains=nobody&outcome__exact=sent")
    assert not [each["sql"] for each in captured if "nobody" in each["sql"]]
    list_ = answer.context["cl"]
    assert len(list_.result_list) == 50
    assert "outcome__exact=sent" in list_.older_url
    assert "sender" not in list_.older_url


def test_the_page_of_a_record(support, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    same = {"Message-ID": "<one@example.com>"}
    send(message(headers=same))
    send(message(headers=same))
    newest, oldest = DeliveryRecord.objects.all()
    text = support.get(f"{LIST}{newest.pk}/change/").content.decode()
    assert "queued as 00000002" in text
    assert "Attempts of the same message" in text
    assert f"{LIST}{oldest.pk}/change/" in text
    for row in ("credential", "mailserver", "tenant"):
        assert f'href="/admin/mailpool/{row}/' not in text  # which they may not see
    assert support.get(f"{LIST}123/change/")["Location"] == "/admin/"
    root = get_user_model().objects.create_superuser("root", password="x")
    support.force_login(root)
    text = support.get(f"{LIST}{newest.pk}/change/").content.decode()
    for row in (credential, credential.server, credential.tenant):
        url = f"/admin/mailpool/{row._meta.model_name}/{row.pk}/change/"
        assert f'href="{url}"' in text
        assert f'href="{LIST}?' in support.get(url).content.decode()


@pytest.mark.parametrize("active", [None, "Asia/Kathmandu", "Pacific/Apia"])
def test_without_use_tz_times_are_the_sites(support, mail_host, make_credential, settings, active):
    """Whatever zone is active: nothing knows then that the times are others."""
    settings.USE_TZ = False
    make_credential(mail_host, "bob")
    send()
    (record,) = DeliveryRecord.objects.all()
    assert abs(datetime.now() - record.when) < timedelta(minutes=1)
    with timezone.override(active):
        before = timezone.now() - timedelta(minutes=1)
        assert list(DeliveryRecord.objects.since(before)) == [record]
        assert page(support, "?when=hour") == [record]
        assert page(support, f"?when={record.when:%Y-%m-%d}") == [record]
        assert support.get(f"{LIST}{record.pk}/change/").status_code == 200
        assert recording.prune(before) == 0
        assert recording.prune(timezone.now() + timedelta(minutes=1)) == 1


def test_nobody_changes_a_record(admin_client, support, django_user_model):
    (row,) = make_rows(1)
    for client in (admin_client, support):
        assert client.get(f"{LIST}add/").status_code == 403
        assert client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
        client.post(f"{LIST}{row.pk}/change/", {"outcome": "failed"})
    row.refresh_from_db()
    assert row.outcome == "sent"
    support.force_login(django_user_model.objects.create_user("x", password="x", is_staff=True))
    assert support.get(LIST).status_code == 403
    assert support.get(f"{LIST}{row.pk}/change/").status_code == 403


def test_what_has_records_can_be_deleted_in_the_admin(admin_client, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    send()
    url = f"/admin/mailpool/credential/{credential.pk}/delete/"
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert not Credential.objects.exists()
    record = DeliveryRecord.objects.get()
    assert admin_client.get(f"{LIST}{record.pk}/change/").status_code == 200


QUERIES = [
    "",
    "?before={middle}",
    "?tenant={tenant}",
    "?tenant=site",
    "?tenant={tenant}&credential={credential}",
    "?credential={credential}",
    "?tenant={large}&credential={seldom}",
    "?tenant={large}&credential={seldom}&outcome__exact=refused",
    "?tenant={large}&server={server}",
    "?tenant={large}&code=550",
    "?server={server}&outcome__exact=sent",
    "?q=r{middle}@a.example&tenant={large}",
    "?q=Q{middle}&outcome__exact=refused",
    "?code=251",
    "?code=354",
    "?server={server}",
    "?outcome__exact=sent",
    "?outcome__exact=refused",
    "?outcome__exact=unknown",
    "?code=250",
    "?code=550",
    "?code=599",
    "?outcome__exact=failed",
    "?when=hour",
    "?when=2020-01-31",
    "?tenant={tenant}&outcome__exact=refused&when=week",
    "?q=%3C{middle}@x.example%3E",
    "?q=r{middle}@a.example",
    "?q=second-r{middle}@a.example",
    "?q=Q{middle}",
    "?q=no-domain&outcome__exact=sent",
    "?q=%3CQ{middle}%3E",
    "?outcome__exact=refused&outcome__exact=unknown",
    "?outcome__isnull=True",
    "?sender__contains=nobody",
]


def lists(client, large, small, seldom):
    """Each list's query and address; what its filters offer was read, as once in a minute."""
    names = {
        "large": large.tenant_id,
        "seldom": seldom.pk,
        "middle": DeliveryRecord.objects.order_by("pk")[10_000].pk,
        "tenant": small.tenant_id,
        "credential": small.pk,
        "server": small.server_id,
    }
    for query in QUERIES:
        url = LIST + query.format(**names)
        client.get(url)
        yield query, url


def test_no_list_reads_the_whole_table(admin_client, make_credential, mail_host):
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL's planner is asked")
    credential = make_credential(mail_host, "bob")
    other = make_credential(mail_host, "mary", server=MailServer.objects.create(name="o", host="o"))
    # A second account of the tenant that sends most, used once and long ago.
    seldom = make_credential(mail_host, tenant=credential.tenant, username="seldom", priority=9)
    with connection.cursor() as cursor:
        cursor.execute(
            FILL,
            [
                *(credential.tenant_id, other.tenant_id),
                *(credential.pk, other.pk),
                *(credential.server_id, other.server_id),
                20_000,
            ],
        )
        cursor.execute(
            "INSERT INTO mailpool_deliveryrecipient (record_id, address) "
            "SELECT id, 'second-' || recipient FROM mailpool_deliveryrecord"
        )
        add_records(seldom, ago=timedelta(days=1000))
        cursor.execute("ANALYZE mailpool_deliveryrecord, mailpool_deliveryrecipient")
    for query, url in lists(admin_client, credential, other, seldom):
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(url)
        asked = [each["sql"] for each in captured if each["sql"].startswith("SELECT")]
        assert len(asked) <= 5, query
        for sql in asked:
            if "mailpool_deliveryrecord" in sql:
                with connection.cursor() as cursor:
                    cursor.execute("EXPLAIN (ANALYZE) " + sql.replace("%", "%%"), ())
                    plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Seq Scan on mailpool_delivery" not in plan, f"{query}\n{plan}"
                # Nor is it read whole in the order of the key.
                removed = re.findall(r"Rows Removed by Filter: (\d+)", plan)
                assert sum(map(int, removed)) < 5000, f"{query}\n{plan}"


@pytest.mark.skipif(connection.vendor != "mysql", reason="counts what MariaDB and MySQL read")
@pytest.mark.django_db(transaction=True)  # ANALYZE ends a transaction
def test_no_list_reads_the_whole_table_of_mariadb(admin_client, make_credential, mail_host):
    credential = make_credential(mail_host, "bob")
    other = make_credential(mail_host, "mary", server=MailServer.objects.create(name="o", host="o"))
    seldom = make_credential(mail_host, tenant=credential.tenant, username="seldom", priority=9)
    for part in range(10):
        for whose, count, values in (
            (credential, 1940, {"code": 250}),
            (credential, 39, {"code": 550, "outcome": "refused"}),
            (credential, 1, {"outcome": "unknown"}),
            (other, 20, {"code": 250}),
        ):
            add_records(whose, count, ago=timedelta(minutes=part), **values)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE mailpool_deliveryrecord SET message_id = CONCAT('<', id, '@x.example>'), "
            "queue_id = CONCAT('Q', id), recipient = CONCAT('r', id, '@a.example')"
        )
        cursor.execute(
            "INSERT INTO mailpool_deliveryrecipient (record_id, address) "
            "SELECT id, CONCAT('second-', recipient) FROM mailpool_deliveryrecord"
        )
    add_records(seldom, ago=timedelta(days=1000))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE TABLE mailpool_deliveryrecord, mailpool_deliveryrecipient")
        cursor.fetchall()
    for query, url in lists(admin_client, credential, other, seldom):
        before = rows_read()
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(url)
        assert rows_read() - before < 5000, query
        # With many more rows than these, two filters' indexes would be read whole otherwise, to see
        # what is in both: with 700,000 in seconds instead of milliseconds.
        asked = [each["sql"] for each in captured if "ORDER BY `mailpool_deliv" in each["sql"]]
        assert all("`id` > 0" in sql for sql in asked), asked
        assert asked or "when=2020" in query, query


def rows_read():
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(count) for _name, count in cursor.fetchall())


FILL = """
INSERT INTO mailpool_deliveryrecord ("id", "when", outcome, tenant_id, credential_id, server_id,
    tenant_name, server_name, username, message_id, sender, recipients, refused, recipient, subject,
    size, code, enhanced, reply, queue_id, session_id, reused, retried, tls, waiting, connecting,
    sending, error)
SELECT key, to_timestamp((key >> 11) / 1000000.0),
    CASE WHEN n %% 50 = 0 THEN 'refused' WHEN n %% 1000 = 1 THEN 'unknown' ELSE 'sent' END,
    CASE WHEN n %% 100 > 0 THEN tenant_a ELSE tenant_b END,
    CASE WHEN n %% 100 > 0 THEN credential_a ELSE credential_b END,
    CASE WHEN n %% 100 > 0 THEN server_a ELSE server_b END,
    'bob', 'server', 'bob', '<' || key || '@x.example>', 'bob@example.com', 1, 0,
    'r' || key || '@a.example', '', 700,
    CASE WHEN n %% 50 = 0 THEN 550 WHEN n %% 1000 = 1 THEN NULL ELSE 250 END,
    '2.0.0', '2.0.0 Ok: queued', 'Q' || key, 'abcdef', true, false, 'TLSv1.3', 0, 0, 3, ''
FROM (SELECT %s::uuid AS tenant_a, %s::uuid AS tenant_b, %s::uuid AS credential_a,
        %s::uuid AS credential_b, %s::uuid AS server_a, %s::uuid AS server_b) AS keys,
    (SELECT n, ((extract(epoch FROM now()) * 1000000)::bigint - n::bigint * 6000000) << 11 AS key
        FROM generate_series(1, %s) AS n) AS numbers
"""


def test_no_database_is_warned_of(capsys):
    """MariaDB has no partial indexes, which Django would say with every command."""
    assert [found.id for found in DeliveryRecord.check(databases=["default"])] == []
