"""A mail host for tests: real sockets, STARTTLS or implicit TLS, AUTH, and a record by login."""

from __future__ import annotations

import ssl
import threading
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default as default_policy

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

PASSWORD = "correct-horse-battery"  # every account's, unless it was given another one


@dataclass
class Delivered:
    """One message as the server took it."""

    login: str
    connection: int
    sender: str
    recipients: list[str]
    content: bytes
    mail_options: list[str]

    @property
    def message(self):
        return message_from_bytes(self.content, policy=default_policy)


@dataclass
class Authority:
    """A throw-away CA and a server certificate for the names given."""

    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def pem(self) -> str:
        return self.ca.cert_pem.bytes().decode()

    def server_context(self, *names: str, **kwargs) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("localhost", "127.0.0.1")), **kwargs).configure_cert(context)
        return context


class _Protocol(SMTP):
    """Counts connections, and refuses what the host tells it to."""

    def __init__(self, *args, host: MailHost, **kwargs):
        self.host = host
        self.number = 0
        super().__init__(*args, **kwargs)

    def connection_made(self, transport):
        if self.transport is None:  # not the second call, after STARTTLS
            self.number = self.host._connected(self)
        super().connection_made(transport)

    def connection_lost(self, error):
        self.host._disconnected(self)
        super().connection_lost(error)

    def _create_session(self):
        session = super()._create_session()
        session.number = self.number
        return session


class MailHost:
    """``with MailHost(...) as host:`` listens on 127.0.0.1; ``host.delivered`` is what came in.

    *accounts* are login → password; an unknown login gets in with ``PASSWORD``.
    """

    def __init__(
        self,
        authority: Authority | None = None,
        *,
        security: str = "starttls",
        names: tuple[str, ...] = (),
        accounts: dict[str, str] | None = None,
        smtputf8: bool = True,
        size: int = 33554432,
        context: ssl.SSLContext | None = None,
    ):
        self.security = security
        self.authority = authority
        self.accounts = accounts or {}
        self.delivered: list[Delivered] = []
        self.logins: list[str] = []
        self.refused_logins = 0
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self._transports: dict[int, _Protocol] = {}
        self._changed = threading.Condition()
        if security != "plain" and context is None:
            context = authority.server_context(*names)
        host = self

        class _Controller(Controller):
            def factory(self):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return _Protocol(self.handler, host=host, **self.SMTP_kwargs)

        self._controller = _Controller(
            self,
            hostname="127.0.0.1",
            port=_free_port(),
            ssl_context=context if security == "tls" else None,
            tls_context=context if security == "starttls" else None,
            require_starttls=security == "starttls",
            auth_require_tls=security == "starttls",
            auth_required=True,
            authenticator=self._authenticate,
            enable_SMTPUTF8=smtputf8,
            data_size_limit=size,
            command_call_limit=1_000_000,
            timeout=120,
            ready_timeout=20,
        )

    @property
    def port(self) -> int:
        return self._controller.port

    def __enter__(self) -> MailHost:
        self._controller.start()
        self.wait_until_closed()  # the controller's own, which tried whether it listens
        self.connections = self.most_open = 0
        return self

    def __exit__(self, *exc) -> None:
        self._abort_connections()  # asyncio would wait for the client to end them
        self._controller.stop(no_assert=True)

    # What tests ask

    def sent_as(self, login: str) -> list[Delivered]:
        """The Sent folder of *login*: what was sent on its authenticated connections."""
        return [each for each in self.delivered if each.login == login]

    def by_login(self) -> dict[str, list[Delivered]]:
        folders = defaultdict(list)
        for each in self.delivered:
            folders[each.login].append(each)
        return folders

    def wait_until_closed(self, timeout: float = 10) -> None:
        """Wait for the server to see that all connections have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self.open, timeout), f"{self.open} still open"

    def drop_connections(self) -> None:
        """Close every connection from the server's side, and wait until that has happened."""
        self._abort_connections()
        self.wait_until_closed()

    def _abort_connections(self) -> None:
        self._controller.loop.call_soon_threadsafe(
            lambda: [protocol.transport.abort() for protocol in list(self._transports.values())]
        )

    # aiosmtpd's hooks

    async def handle_DATA(self, server, session, envelope):
        self.delivered.append(
            Delivered(
                login=session.auth_data.login.decode() if session.auth_data else "",
                connection=session.number,
                sender=envelope.mail_from,
                recipients=list(envelope.rcpt_tos),
                content=envelope.original_content,
                mail_options=list(envelope.mail_options),
            )
        )
        return f"250 2.0.0 queued as {len(self.delivered):08X}"

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("refused"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        if address.startswith("refused"):
            return "550 5.7.1 not your sender"
        envelope.mail_from = address
        envelope.mail_options.extend(mail_options)
        return "250 2.1.0 ok"

    def _authenticate(self, server, session, envelope, mechanism, data):
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        login = data.login.decode()
        if data.password.decode() != self.accounts.get(login, PASSWORD):
            self.refused_logins += 1
            return AuthResult(success=False, handled=False)
        self.logins.append(login)
        return AuthResult(success=True, auth_data=data)

    def _connected(self, protocol: _Protocol) -> int:
        with self._changed:
            self.connections += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            self._transports[self.connections] = protocol
            return self.connections

    def _disconnected(self, protocol: _Protocol) -> None:
        with self._changed:
            if self._transports.pop(protocol.number, None):
                self.open -= 1
            self._changed.notify_all()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
