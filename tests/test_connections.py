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

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import mailpool
from mailpool import delivery, maintenance, overview, process, reporting
from mailpool.audit import AuditEntry
from mailpool.backends import EmailBackend
from mailpool.exceptions import ServerPaused
from mailpool.models import MailServer, SendingProcess
from mailpool.smtp import PoolStats
from tests import sending_processes
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.test_admin import CONNECTIONS, SERVERS, admin, staff  # noqa: F401
from tests.test_backend import message

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def reporter(monkeypatch):
    """This process as one that has not sent yet."""
    reporter = reporting.Reporter()
    monkeypatch.setattr(reporting, "_reporter", reporter)
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

        # So is one that has ended. Django has closed a command's connection by then.
        shell_process.stdin.close()
        assert shell_process.wait(20) == 0
        assert others()[shell.pid].state == "gone"
