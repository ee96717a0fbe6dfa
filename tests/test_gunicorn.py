"""A real gunicorn and a shell: all their connections are on the page, and can be reset there."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess

import pytest

from mailpool import overview
from tests import processes, sending_processes
from tests.test_admin import CONNECTIONS, SERVERS, admin  # noqa: F401
from tests.test_connections import (  # noqa: F401
    SAYS_GOODBYE,
    bob,
    kill,
    mary,
    others,
    reporter,
    wait_until,
)

pytestmark = pytest.mark.django_db(transaction=True)

WORKERS = 4


class Gunicorn:
    """``with Gunicorn(*options):`` has ``WORKERS`` workers, each with one request at a time."""

    def __init__(self, *options: str):
        self._stack = contextlib.ExitStack()
        # Ours, and listening before gunicorn is there: requests wait for it.
        self._listener = self._open()
        self._told = self._open()
        fd = self._listener.fileno()
        options = (f"--bind=fd://{fd}", f"--workers={WORKERS}", "--no-control-socket", *options)
        self.process = processes.start(
            "django.core.wsgi:get_wsgi_application()",
            by=("-m", "gunicorn", "--env=DJANGO_SETTINGS_MODULE=tests.gunicorn_project", *options),
            pass_fds=[fd],
        )

    def _open(self) -> socket.socket:
        opened = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        opened.settimeout(30)
        return opened

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(self, *exc) -> None:
        self._stack.close()
        self.stop()

    def stop(self) -> None:
        """In the ordinary way, as on every deployment."""
        self.process.terminate()
        assert self.process.wait(30) == 0

    def send(self, slug: str) -> set[int]:
        """Have every worker send one message of that tenant: the workers' process ids."""
        port, told_at = (each.getsockname()[1] for each in (self._listener, self._told))
        with contextlib.ExitStack() as stack:
            requests = []
            for _ in range(WORKERS):
                request = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                requests.append(stack.enter_context(contextlib.closing(request)))
                request.request("GET", f"/send/{slug}/{told_at}/")
            told = []
            for _ in range(WORKERS):
                wire = stack.enter_context(self._told.accept()[0])
                told.append((wire, wire.makefile().readline().split()))
            for wire, _said in told:
                wire.sendall(b".")
            assert {request.getresponse().status for request in requests} == {200}
        assert {outcome for _wire, (_pid, outcome) in told} == {"sent"}
        return {int(pid) for _wire, (pid, _outcome) in told}


@contextlib.contextmanager
def shell():
    """A shell that sends when it is told to."""
    code = f"import sys; {sending_processes.SHELL}"
    by = ("-m", "django", "shell", "--no-imports", "-c")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with processes.start(code, by=by, **pipes) as process:
        yield sending_processes.Sender(process.stdout, process.stdin)
        process.stdin.close()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_four_workers_of_gunicorn_and_a_shell(mail_host, bob, mary, admin, options):  # noqa: F811
    with Gunicorn(*options) as server, shell() as sender:
        workers = server.send("bob")
        assert len(workers) == WORKERS
        assert server.send("mary") == workers
        assert sender.send("bob") == "sent"

        # All are on the page with all they have, and with nobody else's.
        page = admin.get(CONNECTIONS).content.decode()
        found = others()
        assert set(found) == {*workers, sender.pid}
        assert {each.state for each in found.values()} == {"running"}
        for pid in found:
            assert f"process {pid} on" in page
        assert {pid: found[pid].open for pid in workers} == dict.fromkeys(workers, 2)
        assert found[sender.pid].open == 1
        assert {found[pid].command for pid in workers} == {"gunicorn"}
        assert mail_host.open == mail_host.connections == 9

        # Once more: on the same ones.
        assert server.send("bob") == workers
        assert mail_host.connections == 9

        # Reset: none of the nine is used again, and each is closed when its process sends next.
        assert admin.post(f"{SERVERS}{bob.server_id}/reset/").status_code == 302
        assert "9 connections were reset" in admin.get(CONNECTIONS).content.decode()
        assert server.send("bob") == workers
        wait_until(mail_host, lambda: mail_host.open == 5)  # the shell's old one is left
        assert sender.send("bob") == "sent"
        assert mail_host.connections == 14
        wait_until(mail_host, lambda: mail_host.open == 5)
        assert {each.connection for each in mail_host.delivered[-5:]} == set(range(10, 15))
        use = overview.servers(overview.processes())[0]
        assert (use.idle, use.outdated, use.processes) == (5, 0, 5)

        # Killed: gone, and the one that gunicorn starts in its place is there as soon as it sends.
        killed = min(workers)
        kill(killed)
        wait_until(mail_host, lambda: mail_host.open == 4)
        assert (others()[killed].state, others()[killed].open) == ("gone", 0)
        later = server.send("bob")
        (new,) = later - workers
        assert later == workers - {killed} | {new}
        found = others()
        assert (found[new].state, found[new].open) == ("running", 1)
        assert {found[pid].state for pid in later} == {"running"}
        assert found[killed].state == "gone"
        page = admin.get(CONNECTIONS).content.decode()
        assert page.count("<strong>gone</strong>") == 1
        assert f"process {new} on" in page
        assert mail_host.connections == 15

    # Those that have ended in the ordinary way are no more: gone is who died.
    assert {pid for pid, each in others().items() if each.state == "gone"} >= {killed}
    assert (set(others()) == {killed}) is SAYS_GOODBYE
