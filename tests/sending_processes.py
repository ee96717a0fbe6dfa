"""Processes that send when they are told to: a server with workers that it forks, and a shell."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from tests import processes

MASTER = "from tests import sending_processes; sending_processes.master({number})"
SHELL = "from tests import sending_processes; sending_processes.obey(sys.stdin, sys.stdout)"


class Sender:
    """A process, from outside."""

    def __init__(self, read, write):
        self._read, self._write = read, write
        self.pid = int(self._read.readline())

    def send(self, slug: str) -> str:
        """Have it send a message of that tenant: ``sent``, or the name of the error."""
        self._write.write(f"{slug}\n")
        self._write.flush()
        return self._read.readline().strip()


@contextlib.contextmanager
def running(workers: int):
    """``(workers, shell)``: the senders; all are gone at the end."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        code = MASTER.format(number=f"{workers}, {listener.getsockname()[1]}")
        server = stack.enter_context(processes.start(code, **pipes))
        shell = stack.enter_context(
            processes.start(
                f"import sys; {SHELL}", by=("-m", "django", "shell", "--no-imports", "-c"), **pipes
            )
        )
        try:
            found = []
            for _ in range(workers):
                wire = stack.enter_context(listener.accept()[0])
                stream = stack.enter_context(wire.makefile("rw"))
                found.append(Sender(stream, stream))
            yield found, Sender(shell.stdout, shell.stdin), shell
        finally:
            server.kill()  # its workers see that their connection ends
            if shell.poll() is None:
                shell.stdin.close()


def master(number: int, port: int) -> None:
    """Load the project and use it, as a server does that preloads; then fork the workers."""
    import django
    from django.db import connections

    django.setup()
    _send("mary")
    connections.close_all()
    for _ in range(number):
        if os.fork() == 0:
            wire = socket.create_connection(("127.0.0.1", port))
            stream = wire.makefile("rw")
            with contextlib.suppress(OSError):
                obey(stream, stream)
            os._exit(0)
    sys.stdin.read()


def obey(read, write) -> None:
    from django.db import connections

    print(os.getpid(), file=write, flush=True)
    for line in read:
        outcome = _send(line.strip())
        connections.close_all()  # as at the end of a request
        print(outcome, file=write, flush=True)


def _send(slug: str) -> str:
    from django.core.mail import EmailMessage

    from mailpool.backends import EmailBackend

    message = EmailMessage("hello", "text", f"{slug}@example.com", ["a@example.com"])
    message.tenant = slug
    try:
        EmailBackend().send_messages([message])
    except Exception as error:
        return type(error).__name__
    return "sent"
