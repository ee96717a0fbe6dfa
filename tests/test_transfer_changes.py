"""What an import changes of rows that exist: hundreds at once, and nothing is lost by that."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import Counter
from contextlib import contextmanager
from contextvars import copy_context
from copy import copy

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection
from django.db.models.signals import post_save, pre_save
from django.test.utils import CaptureQueriesContext

import mailpool
from mailpool import changes
from mailpool.audit import AuditEntry
from mailpool.backends import EmailBackend
from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer, Tenant
from mailpool.transfer import Row, items, make_plan, writing
from mailpool.vault.keyring import Sealed
from tests import processes
from tests.smtpd import PASSWORD

pytestmark = pytest.mark.django_db

NEW = "a n3w, =one"


@pytest.fixture
def run(tmp_path):
    """Import rows with these columns; what was said, and the exit status."""

    def run(head, rows, *args):
        path = tmp_path / "f.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([head.split(","), *rows])
        out, status = io.StringIO(), 0
        try:
            call_command("mailpool_import", str(path), *args, stdout=out, stderr=out)
        except SystemExit as end:
            status = end.code
        assert NEW not in out.getvalue()
        return out.getvalue(), status

    return run


@pytest.fixture
def many(run):
    """Import *count* accounts, each of a tenant of its own; new ones, or changes of these."""

    def many(count, password=PASSWORD, priority="", name="Tenant", *args):
        head = "tenant,tenant_name,server,host,username,password,priority"
        rows = [
            (f"t{n}", f"{name} {n}", f"S{n % 3}", f"s{n % 3}.example.com", f"u{n}",
             f"{password} {n}", priority)
            for n in range(count)
        ]  # fmt: skip
        return run(head, rows, *args)

    return many


def stored():
    return {
        row.username: (row.password, row.priority)
        for row in Credential.objects.select_related("server")
    }


def test_many_changes_take_few_queries_for_each(many):
    many(200)
    before = {row.pk: row for row in Credential.objects.all()}
    AuditEntry.objects.all()._raw_delete("default")
    with CaptureQueriesContext(connection) as queries:
        assert many(200, NEW, "7")[1] == 0
    assert stored() == {f"u{n}": (f"{NEW} {n}", 7) for n in range(200)}
    verbs = Counter(query["sql"].split()[0] for query in queries)
    assert verbs["UPDATE"] == 200
    assert verbs["SELECT"] + verbs["INSERT"] < 20
    # Each is dated, and sealed for its own row.
    rows = list(Credential.objects.select_related("server"))
    assert all(row.password_set_at > before[row.pk].password_set_at for row in rows)
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        moved = copy(row)
        moved.password = Sealed(other.password_ciphertext)
        with pytest.raises(SecretError):
            _ = moved.password


def test_each_change_is_in_the_audit_in_the_order_of_the_file(many):
    many(20)
    newest = AuditEntry.objects.first().pk
    many(20, NEW, "7", "Other")
    found = AuditEntry.objects.filter(pk__gt=newest).order_by("pk")
    told = [(row.username, row.tenant, row.action, row.details, row.way) for row in found]
    whose = [(f"u{n}", f"t{n}") for n in range(20)]
    assert told == [
        (*who, action, details, "mailpool_import")
        for who in whose
        for action, details in (("password_set", ""), ("changed", "priority: 10 → 7"))
    ]
    assert {row.name for row in Tenant.objects.all()} == {f"Other {n}" for n in range(20)}
    assert {str(row.credential_id) for row in found} == {
        str(pk) for pk in Credential.objects.values_list("pk", flat=True)
    }


def test_changes_of_servers_are_in_the_audit(run, many):
    many(3)
    newest = AuditEntry.objects.first().pk
    rows = [("server", f"S{n}", n + 20) for n in range(3)]
    assert run("record,server,timeout", rows)[1] == 0
    found = AuditEntry.objects.filter(pk__gt=newest).order_by("pk")
    assert [(row.server, row.details) for row in found] == [
        (f"S{n}", f"timeout: 30 → {n + 20}") for n in range(3)
    ]


@contextmanager
def listening(signal):
    heard = []

    def hear(sender, instance, **kwargs):
        heard.append((instance.username, sorted(kwargs["update_fields"])))

    signal.connect(hear, sender=Credential)
    try:
        yield heard
    finally:
        signal.disconnect(hear, sender=Credential)


def test_django_tells_of_each_row_that_changes(many):
    many(3)
    with listening(pre_save) as before, listening(post_save) as after:
        many(3, PASSWORD, "7")
    assert before == after == [(f"u{n}", ["priority"]) for n in range(3)]


def refuse(monkeypatch, wrong):
    """Have the database refuse the changes of some accounts, as a constraint would."""
    save = Credential.save

    def refusing(row, *args, **kwargs):
        save(row, *args, **kwargs)
        if row.username in wrong:
            MailServer.objects.bulk_create([MailServer(pk=row.server_id, host="twice")])

    monkeypatch.setattr(Credential, "save", refusing)


def test_what_the_database_refuses_is_left_out_and_the_rest_is_right(many, monkeypatch):
    many(5)
    newest = AuditEntry.objects.first().pk
    refuse(monkeypatch, {"u2"})
    text, status = many(5, NEW, "7", "Tenant", "--keep-going")
    assert (status, "Line 4: The database refuses this." in text) == (1, True)
    right = [f"u{n}" for n in range(5) if n != 2]
    assert stored() == {
        "u2": (f"{PASSWORD} 2", 10),
        **{name: (f"{NEW} {name[1:]}", 7) for name in right},
    }
    found = AuditEntry.objects.filter(pk__gt=newest).order_by("pk")
    assert [row.username for row in found] == [name for name in right for _ in range(2)]


def test_everything_or_nothing_across_batches(many, monkeypatch):
    monkeypatch.setattr(items, "BATCH", 2)
    many(5)
    before, newest = stored(), AuditEntry.objects.first().pk
    refuse(monkeypatch, {"u4"})
    assert many(5, NEW, "7")[1] == 1
    assert stored() == before
    assert AuditEntry.objects.first().pk == newest


def test_progress_is_told_of_changes(many, monkeypatch, tmp_path):
    many(5)
    monkeypatch.setattr(items, "BATCH", 2)
    told = []
    rows = [
        Row(n + 2, {"tenant": f"t{n}", "server": f"S{n % 3}", "username": f"u{n}",
                                      "priority": "3"})
        for n in range(5)
    ]  # fmt: skip
    writing.apply(make_plan(rows), atomic=True, progress=lambda *now: told.append(now))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_rows_that_are_recorded_together_are_so_no_longer_afterwards(many):
    many(2)
    one, two = Credential.objects.order_by("username")
    newest = AuditEntry.objects.first().pk

    def told():
        found = AuditEntry.objects.filter(pk__gt=newest).order_by("pk")
        return [(row.username, row.details) for row in found]

    with pytest.raises(RuntimeError), changes.recorded_together([one], "default"):
        one.priority = 2
        one.save()
        raise RuntimeError
    assert told() == []
    one.save()
    assert told() == [("u0", "priority: 10 → 2")]
    with changes.recorded_together([one], "default"):
        one.priority = 3
        one.save()
        Credential.objects.filter(pk=one.pk).update(priority=4)
        two.priority = 5
        two.save()  # another row is recorded as always
    assert told()[1:] == [("u1", "priority: 10 → 5"), ("u0", "priority: 2 → 4")]


def test_each_row_is_recorded_once_by_whoever_is_first(many):
    """A receiver may write other rows as well, and some of the same ones."""
    many(2)
    one, two = Credential.objects.order_by("username")
    newest = AuditEntry.objects.first().pk
    one.pk = str(one.pk)
    with changes.recorded_together([one], "default"):
        Credential.objects.update(priority=2)
        with changes.recorded_together([two], "default"):
            one.priority = two.priority = 3
            one.save()
            two.save()
    found = AuditEntry.objects.filter(pk__gt=newest).order_by("pk")
    assert [(row.username, row.details) for row in found] == [
        ("u1", "priority: 10 → 2"),
        ("u1", "priority: 2 → 3"),
        ("u0", "priority: 10 → 3"),
    ]


def test_what_is_begun_while_rows_are_recorded_together_and_goes_on_is_recorded(many):
    """A task that a receiver starts has the context that it was started in, and runs later."""
    many(1)
    one = Credential.objects.get()
    newest = AuditEntry.objects.first().pk
    with changes.recorded_together([one], "default"):
        context = copy_context()
    one.priority = 2
    context.run(one.save)
    (row,) = AuditEntry.objects.filter(pk__gt=newest)
    assert row.details == "priority: 10 → 2"


# Real connections


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("real_mail")
def test_no_connection_outlives_the_change_of_its_password(mail_host, make_credential, run):
    names = [f"u{n}" for n in range(6)]
    for name in names:
        make_credential(mail_host, name)
    server = MailServer.objects.get()

    def send():
        mails = [
            EmailMessage("hello", "text", f"{name}@example.com", ["a@b.test"]) for name in names
        ]
        for name, each in zip(names, mails, strict=True):
            each.tenant = name
        EmailBackend().send_messages(mails)
        return {each.tenant: each.mailpool_result for each in mails}

    def change(password, *whose):
        rows = [(name, server.name, name, password) for name in whose]
        assert run("tenant,server,username,password", rows)[1] == 0

    send()
    mail_host.accounts.update(dict.fromkeys(names[:4], NEW))
    change(NEW, *names[:4])
    # Those of this process are closed at once, as it is committed, and nobody else's.
    assert sorted(info.username for info in mailpool.stats().sessions) == names[4:]
    again = send()
    assert {name for name, result in again.items() if not result.reused} == set(names[:4])
    assert {result.status for result in again.values()} == {"sent"}
    assert mail_host.connections == 10


IMPORT = """
import django; django.setup()
from django.core.management import call_command
call_command("mailpool_import", {path!r})
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("real_mail")
def test_no_connection_is_used_again_once_another_process_changed_its_password(
    mail_host, make_credential, tmp_path
):
    make_credential(mail_host, "bob")

    def send():
        mail = EmailMessage("hello", "text", "bob@example.com", ["a@b.test"])
        mail.tenant = "bob"
        EmailBackend().send_messages([mail])
        return mail.mailpool_result

    first = send()
    mail_host.accounts["bob"] = NEW
    path = tmp_path / "f.csv"
    path.write_text(
        f'tenant,server,username,password\nbob,{MailServer.objects.get()},bob,"{NEW}"\n'
    )
    processes.run(IMPORT.format(path=str(path)))
    assert mailpool.stats().open == 1  # nobody told this one
    second = send()
    assert (second.status, second.reused) == ("sent", False)
    assert second.session_id != first.session_id
    assert [info.id for info in mailpool.stats().sessions] == [second.session_id]


# At length


def test_many_passwords_are_changed(many, capsys):
    count = int(os.environ.get("IMPORT_TENANTS", "300"))
    many(count)
    seconds = []
    for password, priority in ((NEW, ""), (NEW, "7")):
        began = time.perf_counter()
        assert f"changed: {count} accounts" in many(count, password, priority)[0]
        seconds.append(time.perf_counter() - began)
    assert Credential.objects.filter(priority=7).count() == count
    assert AuditEntry.objects.filter(action="password_set").count() == count
    with capsys.disabled():
        print(f"\n{count} passwords changed: {seconds[0]:.1f} s, priorities {seconds[1]:.1f} s")
