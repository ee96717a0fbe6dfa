"""What a user would pick instead, and mailpool: each sends the same messages its own way.

A contestant is prepared once for a place (a port, logins), is given a first round to open what it
keeps open, and then sends what is measured.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend as DjangoBackend
from django.test import override_settings

import mailpool
from mailpool.backends import EmailBackend as MailpoolBackend
from mailpool.models import Credential, MailServer, Tenant
from tests.smtpd import PASSWORD

NODEMAILER = Path(__file__).with_name("nodemailer.js")


@dataclass(frozen=True)
class Place:
    """Where the mail goes: *logins* with one password, at *port* of localhost, STARTTLS."""

    port: int
    logins: tuple[str, ...]
    ca: str


@dataclass(frozen=True)
class Mail:
    login: str
    recipients: tuple[str, ...]
    body: str

    def message(self) -> EmailMessage:
        made = EmailMessage("Hello", self.body, f"{self.login}@example.com", self.recipients)
        made.tenant = self.login
        return made


class Contestant:
    name = ""
    batches = True  # whether it is given all messages at once
    opens = False  # whether it opens a connection for each, so that few of them take long enough

    def __init__(self, place: Place):
        self.place = place

    @classmethod
    def why_not(cls) -> str:
        """Why it can't take part; empty if it can."""
        return ""

    def send(self, mails: list[Mail]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Close what was kept open."""


class DjangoOpening(Contestant):
    name = "Django, opening per send"
    batches = False
    opens = True

    def backend(self, login: str) -> DjangoBackend:
        return DjangoBackend(
            host="localhost",
            port=self.place.port,
            username=login,
            password=PASSWORD,
            use_tls=True,
            timeout=60,
        )

    def send(self, mails):
        for mail in mails:
            self.backend(mail.login).send_messages([mail.message()])


class DjangoOneConnection(DjangoOpening):
    name = "Django, one connection"
    batches = True
    opens = False

    def __init__(self, place):
        super().__init__(place)
        self.backends = {login: self.backend(login) for login in place.logins}

    def send(self, mails):
        for login, backend in self.backends.items():
            backend.open()
            backend.send_messages([mail.message() for mail in mails if mail.login == login])

    def finish(self):
        for backend in self.backends.values():
            backend.close()


class DjangoSingle(DjangoOneConnection):
    name = "Django, one connection, single sends"
    batches = False

    def send(self, mails):
        for mail in mails:
            self.backends[mail.login].open()
            self.backends[mail.login].send_messages([mail.message()])


class Mailpool(Contestant):
    name = "mailpool, batch"
    server: dict[str, object] = {}
    options: dict[str, object] = {}

    def __init__(self, place):
        super().__init__(place)
        server, _ = MailServer.objects.update_or_create(
            name="benchmark",
            defaults={
                "host": "localhost",
                "port": place.port,
                "ca_certificate": place.ca,
                "max_messages": 100000,
                "max_lifetime": 3600,
                "idle_timeout": 600,
                "max_connections": 3,
                "single_flight": False,
                **self.server,
            },
        )
        for login in place.logins:
            tenant, _ = Tenant.objects.get_or_create(slug=login, name=login)
            Credential.objects.get_or_create(
                tenant=tenant, server=server, username=login, defaults={"password": PASSWORD}
            )

    def send(self, mails):
        MailpoolBackend(**self.options).send_messages([mail.message() for mail in mails])

    def finish(self):
        mailpool.close_connections()
        Credential.objects.all().delete()


class MailpoolSingle(Mailpool):
    name = "mailpool, single sends"
    batches = False

    def send(self, mails):
        for mail in mails:
            MailpoolBackend().send_messages([mail.message()])


class MailpoolSingleFlight(MailpoolSingle):
    name = "mailpool, single flight"
    server = {"single_flight": True}


class MailpoolFive(Mailpool):
    name = "mailpool, batch over 5 sessions"
    server = {"max_connections": 5}
    options = {"keep_order": False}


class _InstalledApp(Contestant):
    module = ""

    @classmethod
    def why_not(cls):
        return "" if importlib.util.find_spec(cls.module) else f"{cls.module} is not installed"

    def settings(self):
        return override_settings(
            EMAIL_PORT=self.place.port,
            EMAIL_HOST_USER=self.place.logins[0],
            EMAIL_HOST_PASSWORD=PASSWORD,
        )


class PostOffice(_InstalledApp):
    name = "django-post_office"
    module = "post_office"

    def send(self, mails):
        from post_office import mail as office
        from post_office.models import Email

        with self.settings():
            office.send_many(
                {
                    "recipients": list(mail.recipients),
                    "sender": f"{mail.login}@example.com",
                    "subject": "Hello",
                    "message": mail.body,
                }
                for mail in mails
            )
            sent, *_ = office.send_queued(processes=1)
            if sent != len(mails):
                raise RuntimeError(Email.objects.last().logs.last())


class DjangoMailer(_InstalledApp):
    name = "django-mailer"
    module = "mailer"
    opens = True

    def send(self, mails):
        from mailer.backend import DbBackend
        from mailer.engine import send_all
        from mailer.models import Message

        with self.settings():
            DbBackend().send_messages([mail.message() for mail in mails])
            send_all()
            if Message.objects.exists():
                raise RuntimeError("django-mailer has deferred messages")


class Aiosmtplib(_InstalledApp):
    name = "aiosmtplib, one connection"
    module = "aiosmtplib"

    def __init__(self, place):
        super().__init__(place)
        import aiosmtplib

        self.loop = asyncio.new_event_loop()
        self.client = aiosmtplib.SMTP(
            hostname="localhost",
            port=place.port,
            username=place.logins[0],
            password=PASSWORD,
            start_tls=True,
            tls_context=ssl.create_default_context(cadata=place.ca),
        )
        self.loop.run_until_complete(self.client.connect())

    def send(self, mails):
        async def all_of_them():
            for mail in mails:
                await self.client.send_message(mail.message().message())

        self.loop.run_until_complete(all_of_them())

    def finish(self):
        self.loop.run_until_complete(self.client.quit())
        self.loop.close()


class Nodemailer(Contestant):
    name = "Nodemailer's pool of 5"
    connections = 5

    def __init__(self, place):
        super().__init__(place)
        self.process = subprocess.Popen(
            ["node", str(NODEMAILER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask(
            {
                "port": place.port,
                "user": place.logins[0],
                "password": PASSWORD,
                "ca": place.ca,
                "connections": self.connections,
            }
        )

    @classmethod
    def why_not(cls):
        if not shutil.which("node"):
            return "Node is not installed"
        found = subprocess.run(
            ["node", "-e", "require.resolve('nodemailer')"], capture_output=True, check=False
        )
        return "nodemailer is not installed (NODE_PATH)" if found.returncode else ""

    def ask(self, what: object) -> None:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if answer != "done":
            raise RuntimeError(answer)

    def send(self, mails):
        self.ask(
            [
                {
                    "from": f"{mail.login}@example.com",
                    "to": mail.recipients,
                    "subject": "Hello",
                    "text": mail.body,
                }
                for mail in mails
            ]
        )

    def finish(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


class NodemailerOne(Nodemailer):
    name = "Nodemailer's pool of 1"
    connections = 1


class Raw(Contestant):
    """The limit: bytes that were made before, written and read without a look at them."""

    name = "raw socket, pipelined (the limit)"

    def __init__(self, place):
        super().__init__(place)
        login = place.logins[0]
        self.sock = socket.create_connection(("localhost", place.port))
        self.read_until(b"220 ")
        self.say(b"EHLO benchmark\r\n", b"250 ")
        self.say(b"STARTTLS\r\n", b"220 ")
        context = ssl.create_default_context(cadata=place.ca)
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.say(b"EHLO benchmark\r\n", b"250 ")
        import base64

        plain = base64.b64encode(f"\0{login}\0{PASSWORD}".encode())
        self.say(b"AUTH PLAIN %b\r\n" % plain, b"235 ")
        self.prepared: list[tuple[bytes, bytes, int]] = []

    def say(self, data: bytes, end: bytes) -> None:
        self.sock.sendall(data)
        self.read_until(end)

    def read_until(self, end: bytes) -> None:
        data = b""
        while not any(line.startswith(end) for line in data.split(b"\n")) or data[-1:] != b"\n":
            data += self.sock.recv(4096)

    def prepare(self, mails: Iterable[Mail]) -> None:
        self.prepared = []
        for mail in mails:
            rcpt = b"".join(b"RCPT TO:<%b>\r\n" % each.encode() for each in mail.recipients)
            self.prepared.append(
                (
                    b"MAIL FROM:<%b@example.com>\r\n%bDATA\r\n" % (mail.login.encode(), rcpt),
                    mail.message().message().as_bytes().replace(b"\n", b"\r\n") + b"\r\n.\r\n",
                    len(mail.recipients) + 2,
                )
            )

    def send(self, mails):
        end, lines = b"", 0
        for envelope, content, replies in self.prepared:
            self.sock.sendall(end + envelope)
            self.lines(lines + replies)
            end, lines = content, 1
        self.sock.sendall(end)
        self.lines(1)

    def lines(self, count: int) -> None:
        while count > 0:
            data = self.sock.recv(16384)
            if not data or b"\n5" in b"\n" + data:
                raise RuntimeError(repr(data))
            count -= data.count(b"\n")

    def finish(self):
        self.say(b"QUIT\r\n", b"221 ")
        self.sock.close()


class RawSingle(Raw):
    """Likewise, but nothing of a message is written before the one before it was answered."""

    name = "raw socket, single sends (the limit)"

    def send(self, mails):
        for envelope, content, replies in self.prepared:
            self.sock.sendall(envelope)
            self.lines(replies)
            self.sock.sendall(content)
            self.lines(1)


@contextmanager
def prepared(kind: type[Contestant], place: Place) -> Iterator[Contestant]:
    contestant = kind(place)
    try:
        yield contestant
    finally:
        contestant.finish()
