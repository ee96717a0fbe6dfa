"""What all processes have open is on one page, and can be reset there."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import mailpool
from mailpool import delivery, maintenance, overview, process, reporting
from mailpool.audit import AuditEntry
from mailpool.backends import EmailBackend
from mailpool.exceptions import ServerPaused
from mailpool.models import MailServer, SendingProcess
from mailpool.smtp import SessionParams, SessionPool
from tests import processes, sending_processes
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtp.test_params import FakeSession
from tests.test_admin import CONNECTIONS, SERVERS, admin, staff  # noqa: F401
from tests.test_backend import message

pytestmark = pytest.mark.django_db(transaction=True)

# These can't start a thread at their end, so that the row of their process is left behind.
SAYS_GOODBYE = not (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 2)


@pytest.fixture(autouse=True)
def reporter(monkeypatch):
    """This process as one that has not sent yet."""
    reporter = reporting.Reporter()
    monkeypatch.setattr(reporting, "_reporter", reporter)
    monkeypatch.setattr(reporting, "EVERY", 1000.0)  # no test takes so long
    return reporter


@pytest.fixture
def bob(mail_host, make_credential, real_mail):
    return make_credential(mail_host, "bob")


@pytest.fixture
def mary(mail_host, make_credential, bob):
    return make_credential(mail_host, "mary")


def send(*slugs):
    return EmailBackend().send_messages([message(slug) for slug in slugs])


def wait_until(host, condition):
    with host._changed:
        assert host._changed.wait_for(condition, 10), f"{host.open} open of {host.connections}"


def kill(pid):
    """Kill it, and wait for its end. Its parent does not, so it stays behind as a zombie."""
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


def others():
    return {each.pid: each for each in overview.processes() if each.state != "own"}


# Other processes


def test_four_workers_and_a_shell(mail_host, bob, mary, admin):  # noqa: F811
    with sending_processes.running(workers=4) as (workers, shell, shell_process):
        senders = [*workers, shell]
        wait_until(mail_host, lambda: mail_host.connections == 1)  # the master's own
        for sender in senders:
            assert sender.send("bob") == "sent"
        assert shell.send("mary") == "sent"

        # All of them are on the page.
        with CaptureQueriesContext(connection) as queries:
            page = admin.get(CONNECTIONS).content.decode()
        assert len(queries) < 20
        found = others()
        for sender in senders:
            assert f"process {sender.pid} on" in page
            assert found[sender.pid].state == "running"
        assert [found[each.pid].open for each in senders] == [1, 1, 1, 1, 2]
        assert found[shell.pid].command == "django shell"
        use = next(each for each in overview.servers(overview.processes()))
        assert (use.idle, use.busy, use.processes) == (7, 0, 6)  # the master's as well

        # Reset: none is used again, each is closed at its process's next use of the server.
        assert admin.post(f"{SERVERS}{bob.server_id}/reset/").status_code == 302
        assert "7 connections were reset" in admin.get(CONNECTIONS).content.decode()
        before = mail_host.connections
        for sender in senders:
            assert sender.send("bob") == "sent"
        assert mail_host.connections == before + 5
        # The shell's session of mary as well, though bob alone has sent. The master did not send.
        wait_until(mail_host, lambda: mail_host.open == 6)
        use = overview.servers(overview.processes())[0]
        assert (use.idle, use.outdated) == (6, 1)

        # A pause: nothing is sent, nothing stays open, and it can be undone.
        url = f"{SERVERS}{bob.server_id}/"
        assert admin.post(f"{url}pause/", {"minutes": 15}).status_code == 302
        assert {sender.send("bob") for sender in senders} == {"ServerPaused"}
        wait_until(mail_host, lambda: mail_host.open == 1)
        assert admin.post(f"{url}resume/").status_code == 302
        assert {sender.send("bob") for sender in senders} == {"sent"}

        # One that is killed is gone, before anybody has asked for its exit status.
        kill(workers[0].pid)
        wait_until(mail_host, lambda: mail_host.open == 5)
        found = others()
        assert (found[workers[0].pid].state, found[workers[0].pid].open) == ("gone", 0)
        assert found[workers[1].pid].state == "running"
        assert "<strong>gone</strong>" in admin.get(CONNECTIONS).content.decode()
        out = io.StringIO()
        call_command("mailpool_status", stdout=out)
        assert "gone, told" in out.getvalue()

        # One that ends by itself says so, though Django has closed a command's connection by then.
        shell_process.stdin.close()
        assert shell_process.wait(20) == 0
        assert (shell.pid in others()) is not SAYS_GOODBYE
        assert others()[workers[0].pid].state == "gone"


SCRIPT = """
import django; django.setup()
from tests.sending_processes import _send
assert _send("bob") == "sent"
from mailpool.models import SendingProcess
assert SendingProcess.objects.count() == 1
"""
# A child of a fork that ends in the ordinary way, too.
FORK = """
import os, sys
from django.db import connections
connections.close_all()  # the child would say goodbye to MariaDB on it
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
assert SendingProcess.objects.count() == 1
"""


@pytest.mark.parametrize("more", ["", FORK, "raise SystemExit", "raise_an_error"])
def test_a_script_that_ends_takes_its_row_along(bob, more):
    script = processes.start(SCRIPT + more, stderr=subprocess.DEVNULL)
    assert script.wait(60) == (more == "raise_an_error")
    assert SendingProcess.objects.exists() is not SAYS_GOODBYE


def test_a_child_leaves_its_parents_row_alone(bob, reporter):
    send("bob")
    reporter.pid += 1  # as a child finds it
    reporter.leave()
    assert SendingProcess.objects.exists()
    reporter.pid -= 1
    reporter.leave()
    assert not SendingProcess.objects.exists()


def leaving():
    return next((each for each in threading.enumerate() if each.name == "mailpool-leaving"), None)


def test_a_database_that_hangs_does_not_keep_a_process_from_ending(bob, reporter, monkeypatch):
    send("bob")
    monkeypatch.setattr(reporting, "LEAVING", 0.05)
    with transaction.atomic():
        SendingProcess.objects.update(waiting=7)  # nobody else may write it now
        reporter.leave()
        thread = leaving()
        assert thread.daemon
    thread.join(30)
    assert not SendingProcess.objects.exists()


def test_a_database_that_fails_does_not_disturb_the_end(bob, reporter, no_table, caplog):
    reporter._using, reporter._database = "default", connection.settings_dict["NAME"]
    caplog.set_level("DEBUG", "mailpool")
    reporter.leave()
    assert "left behind" in caplog.text


def test_the_end_of_a_test_run_leaves_the_real_database_alone(bob, reporter, monkeypatch):
    send("bob")
    monkeypatch.setattr(reporter, "_database", "test_shop")  # Django has switched back since
    reporter.leave()
    assert SendingProcess.objects.exists()


def test_where_no_thread_can_be_started_the_row_is_left(bob, reporter, monkeypatch):
    send("bob")

    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        reporter.leave()
    assert SendingProcess.objects.exists()


# What a process tells


def statements(queries):
    return [each["sql"].split()[0] for each in queries if "sendingprocess" in each["sql"]]


def test_told_once_and_not_with_every_message(bob):
    with CaptureQueriesContext(connection) as queries:
        send("bob")
    assert statements(queries)[:2] == ["UPDATE", "INSERT"]
    with CaptureQueriesContext(connection) as queries:
        for _ in range(20):
            send("bob")
    assert statements(queries) == []


def test_told_again_when_it_is_time(bob, reporter):
    send("bob")
    before = SendingProcess.objects.get()
    reporter._due = 0.0
    with CaptureQueriesContext(connection) as queries:
        send("bob")
    assert statements(queries) == ["UPDATE"]
    after = SendingProcess.objects.get()
    assert (after.reused, after.seen_at > before.seen_at) == (before.reused + 1, True)


def test_new_connections_are_told_at_once_and_not_without_end(bob, mary):
    send("bob")
    send("mary")
    told = {each["credential_id"] for each in SendingProcess.objects.get().accounts}
    assert told == {str(bob.pk), str(mary.pk)}
    MailServer.objects.update(maintain_connection=False)  # so each opens one
    with CaptureQueriesContext(connection) as queries:
        for _ in range(reporting.SOONER_AT_MOST + 5):
            send("bob")
    assert statements(queries) == ["UPDATE"] * (reporting.SOONER_AT_MOST - 1)


def test_numbers_and_no_names(bob):
    send("bob", "bob")
    row = SendingProcess.objects.get()
    assert (row.pid, row.opened, row.waiting) == (os.getpid(), mailpool.stats().opened, 0)
    (account,) = reporting.from_json(row.accounts)
    assert (account.idle, account.busy, account.messages) == (1, 0, 2)
    assert (account.server_id, account.generation) == (str(bob.server_id), 0)
    assert 0 < account.closes_in <= bob.server.idle_timeout
    assert bob.username not in json.dumps(row.accounts)


def test_the_row_is_bounded(db, reporter):
    pool = SessionPool(connect=FakeSession, max_sessions=300)
    for number in range(300):
        params = SessionParams(credential_id=str(number), host="h", port=25, security="plain")
        with pool.session(params):
            pass
    reporter.write(pool, "default")
    row = SendingProcess.objects.get()
    assert (len(row.accounts), row.opened) == (reporting.MAX_ACCOUNTS, 300)


def test_who_waits_is_told_by_account(bob):
    params = delivery.session_params(bob)
    pool = SessionPool(connect=FakeSession, max_sessions=0, timeout=10)
    waiter = threading.Thread(target=lambda: pool.acquire(params))
    waiter.start()
    while not pool.stats().waiting:
        waiter.join(0.001)
    (account,) = reporting.accounts_of(pool.stats())
    assert (account.credential_id, account.waiting, account.idle) == (str(bob.pk), 1, 0)
    pool.max_sessions = 1
    with pool._lock:
        pool._serve()
    waiter.join(10)


def test_switched_off_nothing_is_told(bob, settings, admin):  # noqa: F811
    settings.MAILPOOL = {**settings.MAILPOOL, "REPORT_CONNECTIONS": False}
    send("bob")
    assert not SendingProcess.objects.exists()
    page = admin.get(CONNECTIONS).content.decode()
    assert "REPORT_CONNECTIONS is off" in page
    assert ">bob<" in page


# It never harms a send


@pytest.fixture
def no_table():
    with connection.schema_editor() as editor:
        editor.delete_model(SendingProcess)
    yield
    with connection.schema_editor() as editor:
        editor.create_model(SendingProcess)


def test_a_report_that_fails_is_logged_and_the_message_is_sent(bob, no_table, caplog):
    assert send("bob") == 1
    assert "could not report its connections; sending goes on" in caplog.text


def test_a_report_that_fails_breaks_no_transaction(bob, no_table, caplog):
    with transaction.atomic():
        tenant = TenantFactory(slug="new")
        assert send("bob") == 1
        assert "could not report" not in caplog.text
        assert type(tenant).objects.filter(slug="new").exists()
    assert type(tenant).objects.filter(slug="new").exists()
    assert "could not report" in caplog.text


def test_inside_a_transaction_it_is_told_at_its_end(bob, reporter):
    with transaction.atomic():
        send("bob")
        assert not SendingProcess.objects.exists()
    assert SendingProcess.objects.count() == 1
    SendingProcess.objects.all().delete()
    reporter._due = 0.0
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        send("bob")
        raise ZeroDivisionError
    assert not SendingProcess.objects.exists()


# What is made of it


def row(**changes):
    now = timezone.now()
    account = reporting.Account(
        str(uuid4()), str(uuid4()), 0, "h:25", idle=2, messages=1, closes_in=30
    )
    values = {
        "host": "elsewhere",
        "pid": 7,
        "started_at": now,
        "seen_at": now,
        "accounts": [reporting._as_json(account)],
    }
    return SendingProcess.objects.create(**values | changes)


def ago(**kwargs):
    return timezone.now() - timedelta(**kwargs)


def test_of_another_machine_silence_is_all_that_is_known():
    row(seen_at=ago(seconds=20))
    row(pid=8, seen_at=ago(seconds=40))
    row(pid=9, seen_at=ago(seconds=70))
    found = others()
    assert [found[pid].state for pid in (7, 8, 9)] == ["running", "running", "silent"]
    # What is past its idle timeout is closed, whoever keeps silent about it.
    assert [found[pid].open for pid in (7, 8, 9)] == [2, 0, 0]


def test_a_number_that_another_process_has_got_is_not_taken_for_it():
    here = {"machine": process.machine(), "pid": os.getpid()}
    row(**here, birth=process.birth(os.getpid()))
    assert others()[os.getpid()].state == "running"
    SendingProcess.objects.update(birth="1")
    assert others()[os.getpid()].state == "gone"
    SendingProcess.objects.update(machine="another container", birth="1")
    assert others()[os.getpid()].state == "running"


def test_a_row_of_another_version_is_read():
    account = {"credential_id": str(uuid4()), "server_id": "", "generation": 0, "address": "h:25"}
    row(accounts=[account | {"idle": 1, "closes_in": 30, "colour": "red"}])
    assert others()[7].open == 1


JUNK = ["id", "address", "generation", "idle", "age", "closes_in"]


@pytest.mark.parametrize("broken", ["no list", "no object", *JUNK])
def test_a_row_that_nobody_of_us_wrote_does_not_keep_the_page_away(admin, broken):  # noqa: F811
    sound = {"credential_id": str(uuid4()), "server_id": "", "generation": 0, "address": "h:25"}
    sound |= {"idle": 1, "closes_in": 30}
    if broken == "no list":
        accounts = {"idle": 1}
    elif broken == "no object":
        accounts = [1, "a", None, [], sound]
    else:
        name = "credential_id" if broken == "id" else broken
        accounts = [sound | {name: junk} for junk in ({"a": []}, "x", -1, None, 10**400)]
        accounts = [*(each for each in accounts if each[name] != "x" or name != "address"), sound]
    row(accounts=accounts)
    assert others()[7].open == (0 if broken == "no list" else 1)
    assert admin.get(CONNECTIONS).status_code == 200


def test_rows_go_when_they_tell_nothing_any_more(bob, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = {"machine": process.machine(), "pid": child.pid, "seen_at": ago(minutes=6)}
    gone = row(**here)
    just_gone = row(**here | {"seen_at": ago(minutes=1)})
    alive = row(**here | {"pid": os.getpid()})
    elsewhere = row(seen_at=ago(minutes=59))
    old = [row(seen_at=ago(minutes=61 + number)) for number in range(3)]
    monkeypatch.setattr(reporting, "CLEAN_UP_AT_MOST", 2)
    send("bob")
    left = set(SendingProcess.objects.values_list("pk", flat=True)) - {reporting.own_key()}
    assert left == {just_gone.pk, alive.pk, elsewhere.pk, old[0].pk}
    assert gone.pk not in left


def test_the_page_asks_no_more_for_more_processes(admin, bob):  # noqa: F811
    servers = [MailServerFactory() for _ in range(30)]
    accounts = [
        reporting.Account(str(uuid4()), str(servers[n % 30].pk), 0, "h:25", idle=1, closes_in=99)
        for n in range(reporting.MAX_ACCOUNTS)
    ]
    accounts = [reporting._as_json(account) for account in accounts]
    for number in range(60):
        row(pid=number + 1, accounts=accounts)
    with CaptureQueriesContext(connection) as queries:
        page = admin.get(CONNECTIONS, {"p": 2})
    assert len(queries) < 20
    assert len(page.context["processes"]) == 25
    assert len(page.context["servers"]) == 30
    assert 'href="?p=3"' in page.content.decode()


# Reset and pause


def test_reset_lets_the_running_message_end(mail_host, bob):
    block = EmailBackend()
    with block:
        block.send_messages([message("bob")])
        maintenance.reset(bob.server)
        assert mailpool.stats().busy == 1
        assert block.send_messages([message("bob")]) == 1
    send("bob")
    assert len(mail_host.delivered) == 3
    assert [info.generation for info in mailpool.stats().sessions] == [1]


def test_an_instance_from_before_undoes_neither(bob):
    before = MailServer.objects.get()
    maintenance.pause(MailServer.objects.get(), timezone.now() + timedelta(hours=1))
    before.name = "renamed"
    before.save()
    server = MailServer.objects.get()
    assert (server.name, server.generation, server.is_paused) == ("renamed", 1, True)


def test_reset_of_all_servers(admin, bob):  # noqa: F811
    other = MailServerFactory()
    send("bob")
    url = f"{CONNECTIONS}reset/"
    assert "all mail servers" in admin.get(url).content.decode()
    assert mailpool.stats().open == 1
    assert admin.post(url).status_code == 302
    assert mailpool.stats().open == 0
    assert set(MailServer.objects.values_list("generation", flat=True)) == {1}
    entry = AuditEntry.objects.get(action="reset")
    assert (entry.actor, entry.way, entry.server_id) == ("root", "admin", None)
    other.refresh_from_db()
    assert other.generation == 1


def test_paused_no_other_account_steps_in(mail_host, bob, make_credential):
    other = MailServerFactory(host="localhost", port=mail_host.port)
    CredentialFactory(tenant=bob.tenant, server=other, username="second", priority=99)
    maintenance.pause(bob.server, timezone.now() + timedelta(hours=1))
    sent = message("bob")
    with pytest.raises(ServerPaused, match="is being maintained until"):
        EmailBackend().send_messages([sent])
    assert sent.mailpool_result.status == "failed"
    assert mail_host.connections == 0
    MailServer.objects.filter(pk=bob.server_id).update(paused_until=ago(seconds=1))
    assert send("bob") == 1  # it ends by itself


def test_a_pause_that_has_ended_is_none(bob):
    with pytest.raises(ValueError, match="future"):
        maintenance.pause(bob.server, ago(seconds=1))
    assert not AuditEntry.objects.filter(action="paused").exists()


def test_pages_ask_first_and_say_what_comes_of_it(admin, bob):  # noqa: F811
    url = f"{SERVERS}{bob.server_id}/"
    send("bob")
    page = admin.get(f"{url}reset/").content.decode()
    assert "1 process tells of 1 idle ones and 0 in use" in " ".join(page.split())
    assert "Every message for it fails" in admin.get(f"{url}pause/").content.decode()
    assert admin.get(f"{url}resume/").status_code == 405
    assert admin.post(f"{url}pause/", {"minutes": 7}).status_code == 200
    server = MailServer.objects.get()
    assert (server.generation, server.paused_until) == (0, None)
    admin.post(f"{url}pause/", {"minutes": 60})
    assert "Paused" in admin.get(f"{url}change/").content.decode()
    assert "paused until" in admin.get(CONNECTIONS).content.decode()
    assert "is paused until" in admin.get(f"{url}verify/").content.decode()
    assert admin.post(f"{url}verify/").context["report"].ok  # before it goes on, one may look
    admin.post(f"{url}resume/")
    done = AuditEntry.objects.filter(server_id=server.pk, actor="root")
    assert {"paused", "resumed"} <= set(done.values_list("action", flat=True))


@pytest.mark.parametrize(
    ("permissions", "page", "allowed"),
    [
        ("view_connections", "reset", False),
        ("view_connections close_connections", "reset", True),
        ("close_connections change_mailserver", "reset", False),
        ("view_connections close_connections view_mailserver", "pause", False),
        ("change_mailserver", "pause", True),
        ("view_connections close_connections view_mailserver", "resume", False),
        ("change_mailserver", "resume", True),
    ],
)
def test_who_may(staff, permissions, page, allowed):  # noqa: F811
    server = MailServerFactory(paused_until=None)
    client = staff(*permissions.split())
    response = client.post(f"{SERVERS}{server.pk}/{page}/", {"minutes": 15})
    assert response.status_code == (302 if allowed else 403)
    server.refresh_from_db()
    assert (server.generation, server.is_paused) == (
        int(allowed and page != "resume"),
        allowed and page == "pause",
    )


def test_who_may_only_look_is_shown_no_actions(staff, bob):  # noqa: F811
    send("bob")
    page = staff("view_connections").get(CONNECTIONS).content.decode()
    assert "in service" in page
    assert "/reset/" not in page
    assert "/pause/" not in page
    assert ">bob<" not in page


def test_a_connection_of_another_process_is_not_closed_from_here(admin):  # noqa: F811
    page = admin.post(CONNECTIONS, {"session": "unknown"}, follow=True).content.decode()
    assert "Another process answered" in page


# mailpool_status


def test_status_tells_of_all_processes(bob):
    send("bob")
    row(pid=4711, command="gunicorn")
    maintenance.pause(bob.server, timezone.now() + timedelta(hours=1))
    out = io.StringIO()
    call_command("mailpool_status", stdout=out)
    assert "gunicorn 4711 @ elsewhere" in out.getvalue()
    assert f"“{bob.server}” is paused until" in out.getvalue()
    out = io.StringIO()
    call_command("mailpool_status", "--json", stdout=out)
    found = json.loads(out.getvalue())
    assert {each["pid"] for each in found["processes"]} == {4711, os.getpid()}
    assert found["servers"][0]["name"] == bob.server.name


@pytest.mark.parametrize("end", ["Ctrl-C", "closed pipe"])
def test_watch_goes_on_until_it_is_ended(bob, end):
    row(pid=4711, command="gunicorn")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    by = ("-m", "django", "mailpool_status", "--watch")
    with processes.start("0.1", by=by, **pipes) as watch:
        seen = 0
        while seen < 2:
            line = watch.stdout.readline()
            assert line, watch.stderr.read()
            assert "\033" not in line  # it is no terminal
            seen += "gunicorn 4711" in line
        if end == "Ctrl-C":
            watch.send_signal(signal.SIGINT)
        else:
            watch.stdout.close()
        assert watch.wait(20) == 0
        assert watch.stderr.read() == ""


def test_watch_for_a_machine_is_a_line_each_time(bob):
    by = ("-m", "django", "mailpool_status", "--json", "--watch")
    with processes.start("0.1", by=by, stdout=subprocess.PIPE) as watch:
        for _ in range(2):
            assert json.loads(watch.stdout.readline())["processes"]
        watch.send_signal(signal.SIGINT)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_watch_wants_a_sensible_number(seconds):
    with pytest.raises(CommandError, match="watch"):
        call_command("mailpool_status", f"--watch={seconds}")
