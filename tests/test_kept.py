"""Statements that PostgreSQL keeps: the same rows, and never one less."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from datetime import UTC, datetime

import pytest
from django.core.mail import EmailMessage
from django.db import DataError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from mailpool.backends import EmailBackend
from mailpool.models import Credential, DeliveryRecord
from mailpool.models.records import make_key
from mailpool.recording import _statement
from mailpool.routing import _prepared_rows
from tests.test_prepared import everything

kept = pytest.importorskip("mailpool.kept", reason="needs psycopg")
AFTER = kept.AFTER

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="is PostgreSQL's own"),
]

ROW = {
    "when": datetime(2026, 3, 29, 1, 59, 59, 123456, UTC),
    "outcome": "sent",
    "tenant_id": uuid.uuid4(),
    "credential_id": uuid.uuid4(),
    "server_id": uuid.uuid4(),
    "tenant_name": 'Bób\'s \\ "shop"',
    "username": "büro",
    "message_id": "<1@example.com>",
    "sender": "bob@example.com",
    "recipients": 1,
    "recipient": "mary@example.com",
    "subject": "Grüße 🎉",
    "size": 2**31 - 1,
    "code": 250,
    "enhanced": "2.0.0",
    "reply": "2.0.0 Ok:\nqueued as 4ABC\tDEF {}',--",
    "queue_id": "4ABC",
    "session_id": "a1",
    "reused": True,
    "tls": "TLSv1.3",
}


def values(**fields):
    record = DeliveryRecord(pk=make_key(), **{**ROW, **fields})
    return [
        field.get_db_prep_save(getattr(record, field.attname), connection)
        for field in DeliveryRecord._meta.concrete_fields
    ]


def write(row=None, times=1):
    for _ in range(times):
        _statement("default", DeliveryRecord).execute([row or values()], alone=True)


def rows():
    with connection.cursor() as cursor:
        columns = ", ".join(f'"{field.column}"' for field in DeliveryRecord._meta.concrete_fields)
        cursor.execute(f"SELECT {columns} FROM mailpool_deliveryrecord ORDER BY id")
        return [list(row) for row in cursor.fetchall()]


def executions(what="INSERT"):
    """How often what PostgreSQL has prepared was executed on this connection."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generic_plans + custom_plans FROM pg_prepared_statements "
            "WHERE name LIKE 'mailpool%%' AND statement LIKE %s",
            [f"%{what} %"],
        )
        return cursor.fetchone()


@pytest.fixture(autouse=True)
def fresh_connection():
    connection.close()


@pytest.fixture
def prepared(fresh_connection):
    write(times=AFTER + 1)
    assert executions() == (1,)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tenant_id": None, "credential_id": None, "server_id": None, "queue_id": None},
        {"code": None, "recipient": None, "reused": False, "reply": "", "subject": ""},
    ],
)
def test_the_same_row_as_in_djangos_way(prepared, fields):
    DeliveryRecord.objects.all().delete()
    ours, djangos = values(**fields), values(**fields)
    write(ours)
    assert executions() == (2,)
    with connection.execute_wrapper(lambda execute, *args: execute(*args)):
        write(djangos)
    assert executions() == (2,)
    stored = rows()
    assert [row[0] for row in stored] == [ours[0], djangos[0]]
    assert stored[0][1:] == stored[1][1:]
    assert stored[0][2:] == ours[2:]
    assert DeliveryRecord.objects.first().when == ROW["when"]


def test_a_message_by_itself(mail_host, make_credential):
    make_credential(mail_host, "bob")
    for number in range(AFTER + 2):
        message = EmailMessage(f"Hello {number}", "text", "bob@example.com", ["r@a.example"])
        message.tenant = "bob"
        assert EmailBackend().send_messages([message]) == 1
    assert DeliveryRecord.objects.filter(outcome="sent", code=250).count() == AFTER + 2
    assert executions() == (2,)


def test_a_connection_that_writes_few_rows_prepares_nothing():
    write(times=AFTER)
    assert executions() is None
    connection.close()
    write()
    assert executions() is None
    assert len(rows()) == AFTER + 1


def test_a_pooler_that_hands_connections_on(prepared, caplog):
    """The next client's connection to the server does not know the statement."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'mailpool%%'")
        (name,) = cursor.fetchone()
        cursor.execute("DEALLOCATE ALL")
        write()
        assert len(rows()) == AFTER + 1 + 1
        # It is not asked for again, whatever may be there by then.
        places = ", ".join(f"${number}::text" for number in range(1, len(values()) + 1))
        cursor.execute(f"PREPARE {name} AS SELECT {places}")
        write(times=AFTER + 2)
    assert len(rows()) == AFTER + 1 + 1 + AFTER + 2
    assert executions("SELECT") == (0,)
    connection.close()
    write(times=AFTER + 1)
    assert executions() == (1,)


def test_a_pooler_that_is_told_of(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    write(times=AFTER + 3)
    assert executions() is None
    assert len(rows()) == AFTER + 3


def test_who_looks_at_queries_sees_it(prepared):
    with CaptureQueriesContext(connection) as captured:
        write()
    assert [query["sql"][:11] for query in captured] == ["INSERT INTO"]
    seen = []

    def look(execute, sql, *args):
        seen.append(sql[:11])
        return execute(sql, *args)

    with connection.execute_wrapper(look):
        write()
    assert seen == ["INSERT INTO"]
    assert executions() == (1,)


def test_in_a_pipeline_it_is_left_out(prepared):
    before = len(rows())
    with connection.connection.pipeline():
        write()
    assert executions() == (1,)
    assert len(rows()) == before + 1


def test_in_a_transaction_it_stands_or_falls_with_it(prepared):
    before = len(rows())
    with transaction.atomic():
        _statement("default", DeliveryRecord).execute([values()])
        write()  # whoever says that it is alone, and is not
        assert executions() == (1,)
        transaction.set_rollback(True)
    assert len(rows()) == before


def test_a_transaction_that_django_does_not_know_of(prepared):
    """A pooler may have begun it on a connection that does not know the statement."""
    before = len(rows())
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("DEALLOCATE ALL")
        write()
        cursor.execute("COMMIT")
    assert len(rows()) == before + 1


@pytest.mark.parametrize("how", ["by a backend", "by a tool"])
def test_a_schema_that_is_chosen_before_each_query(prepared, monkeypatch, how):
    """As backends do that keep each customer in a schema of its own."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA elsewhere")
        cursor.execute(
            "CREATE TABLE elsewhere.mailpool_deliveryrecord (LIKE public.mailpool_deliveryrecord)"
        )
    ours, chosen = connections["default"], ["elsewhere"]
    make_cursor = ours._cursor

    def choose(*args):
        with make_cursor() as cursor:
            cursor.execute(f"SET search_path TO {chosen[0]}, public")
        return make_cursor()

    try:
        here = rows()
        if how == "by a backend":
            backend = type("Backend", (type(ours),), {"_cursor": choose})
            monkeypatch.setattr(ours, "__class__", backend)
        else:
            monkeypatch.setattr(ours, "_cursor", choose)
        write()
        assert len(rows()) == 1
        assert executions() == (2,)
        chosen[0] = "public"
        write()
        assert len(rows()) == len(here) + 1
    finally:
        monkeypatch.undo()
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA elsewhere CASCADE")
        connection.close()


def test_what_the_database_refuses_is_said_as_ever(prepared):
    before = len(rows())
    with pytest.raises(DataError):
        write(values(outcome="longer than the column"))
    write()
    assert len(rows()) == before + 1


# The query that finds an account


@pytest.fixture
def accounts(fresh_connection, make_credential, mail_host):
    """A tenant's rows, as often as they are asked for."""
    ours = [make_credential(mail_host, "bob"), make_credential(mail_host, "mary")]

    def find(slug="bob", times=1):
        for _ in range(times):
            found = _prepared_rows("slug", slug)
        return found

    find.ours = ours
    return find


def test_the_same_accounts_as_in_djangos_way(accounts):
    djangos = accounts(times=AFTER)
    assert executions("SELECT") is None
    assert everything(*accounts()) == everything(*djangos)
    assert executions("SELECT") == (1,)
    assert [each.username for each in accounts("mary")] == ["mary"]
    assert accounts("nobody") == []
    Credential.objects.filter(username="bob").update(username="robert")
    assert [each.username for each in accounts("bob")] == ["robert"]
    assert executions("SELECT") == (4,)


def test_the_sites_own_account(accounts, make_credential, mail_host):
    own = make_credential(mail_host, tenant=None, username="own")
    for _ in range(AFTER + 2):
        assert _prepared_rows("pk", None) == [own]
    assert executions("SELECT") == (2,)


def test_accounts_behind_a_pooler(accounts):
    accounts(times=AFTER + 1)
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'mailpool%%'")
        (name,) = cursor.fetchone()
        cursor.execute("DEALLOCATE ALL")
        assert accounts() == accounts.ours[:1]
        cursor.execute(f"PREPARE {name} (text) AS SELECT $1 WHERE false")
    assert accounts(times=2) == accounts.ours[:1]
    assert executions("SELECT") == (0,)
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    accounts(times=AFTER + 2)
    assert executions("SELECT") is None


def test_accounts_in_a_transaction_are_asked_for_in_djangos_way(accounts):
    accounts(times=AFTER + 1)
    with transaction.atomic():
        Credential.objects.filter(username="bob").update(username="robert")
        assert [each.username for each in accounts()] == ["robert"]
    assert executions("SELECT") == (1,)


def test_accounts_in_a_pipeline_are_asked_for_in_djangos_way(accounts):
    accounts(times=AFTER + 1)
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    with connection.connection.pipeline():
        assert accounts() == accounts.ours[:1]


def test_accounts_in_a_transaction_that_django_does_not_know_of(accounts):
    accounts(times=AFTER + 1)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("DEALLOCATE ALL")
        assert accounts() == accounts.ours[:1]
        cursor.execute("ROLLBACK")


def test_values_that_the_server_binds(accounts):
    """EXECUTE can't be given any."""
    other = connections["default"].copy()
    other.settings_dict["OPTIONS"] = {"server_side_binding": True}
    select = kept.KeptSelect("SELECT username FROM mailpool_credential WHERE username = $1")
    with other.cursor() as cursor:
        for _ in range(AFTER + 1):
            assert select.fetch(other, cursor, ["bob"]) is None
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        assert cursor.fetchone() == (0,)
    other.close()


def test_columns_that_change_below(accounts):
    """A migration while processes run."""
    accounts(times=AFTER + 1)
    change = "ALTER TABLE mailpool_credential ALTER COLUMN username TYPE varchar(%s)"
    with connection.cursor() as cursor:
        cursor.execute(change, [400])
        try:
            assert accounts() == accounts.ours[:1]
            assert executions("SELECT") == (1,)
        finally:
            cursor.execute(change, [255])


@pytest.mark.parametrize("text", ["before\0after", "half \ud83c"])
def test_no_text_is_cut(prepared, text):
    before = len(rows())
    with pytest.raises((DataError, UnicodeEncodeError)):
        write(values(reply=text))
    assert len(rows()) == before
    write()
    assert executions() == (2,)


def test_ctrl_c_while_the_table_is_locked(prepared):
    """The wait ends, the connection can go on, and there is no row."""
    other = connection.copy()
    ours = connection.connection.info.backend_pid
    before = len(rows())

    def interrupt():
        with watcher.cursor() as cursor:
            state = None
            while state != "Lock":
                cursor.execute(
                    "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", [ours]
                )
                (state,) = cursor.fetchone()
        os.kill(os.getpid(), signal.SIGINT)

    watcher = connection.copy()
    watcher.inc_thread_sharing()
    thread = threading.Thread(target=interrupt)
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE mailpool_deliveryrecord IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(KeyboardInterrupt):
                thread.start()
                write()
            thread.join(10)
            cursor.execute("ROLLBACK")
    finally:
        other.close()
        watcher.close()
    assert len(rows()) == before
    write()
    assert len(rows()) == before + 1
