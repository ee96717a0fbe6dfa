"""One mail host for Bob and Mary, inside this process: it files what each *login* sent.

Like Gmail, it does not look at the From header: whoever is logged in on the connection gets the
message into the Sent folder.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import warnings
from collections import Counter, defaultdict, deque
from email import message_from_bytes, policy

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

warnings.filterwarnings("ignore", module="aiosmtpd")
logging.getLogger("mail.log").setLevel(logging.ERROR)


class MailHost:
    """STARTTLS with a throw-away CA, AUTH, and a Sent folder per login.

    *latency* (seconds) is added to each reply, as a network would.
    """

    def __init__(self, accounts: dict[str, str], latency: float = 0.0) -> None:
        self.accounts = accounts
        self.latency = latency
        self.sent: dict[str, Counter[str]] = defaultdict(Counter)  # login -> From -> messages
        self.arrived: deque[dict[str, str]] = deque(maxlen=3)  # the latest, for who reads them
        self.connections = 0
        self.logins = 0
        self._lock = threading.Lock()
        authority = trustme.CA()
        self.ca_certificate = authority.cert_pem.bytes().decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._controller = _Controller(
            self,
            hostname="127.0.0.1",
            port=_free_port(),
            tls_context=context,
            require_starttls=True,
            auth_required=True,
            authenticator=self._authenticate,
            command_call_limit=1_000_000,
        )

    @property
    def port(self) -> int:
        return self._controller.port

    def start(self) -> None:
        self._controller.start()
        self.forget()

    def stop(self) -> None:
        self._controller.stop(no_assert=True)

    def forget(self) -> None:
        """Empty all folders and counters."""
        with self._lock:
            self.sent.clear()
            self.arrived.clear()
            self.connections = self.logins = 0

    async def handle_DATA(self, server, session, envelope) -> str:
        message = message_from_bytes(envelope.original_content, policy=policy.default)
        with self._lock:
            self.sent[session.auth_data.login.decode()][str(message["From"])] += 1
            self.arrived.appendleft(
                {
                    "to": ", ".join(envelope.rcpt_tos),
                    "subject": str(message["Subject"]),
                    "text": message.get_body(("plain",)).get_content(),
                }
            )
        await asyncio.sleep(self.latency)
        return "250 2.0.0 filed"

    def _authenticate(self, server, session, envelope, mechanism, data) -> AuthResult:
        right = isinstance(data, LoginPassword) and (
            self.accounts.get(data.login.decode()) == data.password.decode()
        )
        if not right:
            return AuthResult(success=False, handled=False)
        with self._lock:
            self.logins += 1
        return AuthResult(success=True, auth_data=data)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Protocol(SMTP):
    host: MailHost

    def connection_made(self, transport) -> None:
        if self.transport is None:  # it is called again after STARTTLS
            with self.host._lock:
                self.host.connections += 1
        super().connection_made(transport)

    async def push(self, status) -> None:
        await asyncio.sleep(self.host.latency)
        await super().push(status)


class _Controller(Controller):
    def factory(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            protocol = _Protocol(self.handler, **self.SMTP_kwargs)
        protocol.host = self.handler
        return protocol
