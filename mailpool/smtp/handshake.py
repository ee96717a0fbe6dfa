"""``Handshake``: from ``SessionParams`` to a connection that is secured and logged in."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from smtplib import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from mailpool.exceptions import ClientCertificateError
from mailpool.secret import Secret, SecretBytes
from mailpool.smtp.auth import EXTERNAL, authenticate, hiding
from mailpool.smtp.memory import KeyMemory
from mailpool.smtp.params import SessionParams
from mailpool.smtp.reply import Reply
from mailpool.smtp.tls import Resumable, client_context, tls_context
from mailpool.smtp.wire import NotSMTP, TimedOut, Wire
from mailpool.text import one_line

LAST_WORDS_TIMEOUT = 1.0  # seconds; they are there already, or never will be

_AUTH_SYNTAX_CODES = {500, 501, 502, 504}  # the mechanism, not the password, was refused

# Alerts of a server (RFC 8446, 6.2) that can only be about the client's certificate.
_ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants one",
    "NO_CERTIFICATE": "it wants one",
    "CERTIFICATE_EXPIRED": "it says that it has expired",
    "CERTIFICATE_REVOKED": "it says that it was revoked",
    "UNKNOWN_CA": "it does not know the authority that issued it",
    "CERTIFICATE_UNKNOWN": "it gives no further reason",
    "BAD_CERTIFICATE": "it calls it a bad one",
    "UNSUPPORTED_CERTIFICATE": "it does not support its kind",
    "ACCESS_DENIED": "it denies access to its owner",
}


class Handshake:
    """Connects, secures and logs in, step by step, from one ``SessionParams``.

    The same steps open a session and are what "Verify connection" shows. *deadline* (monotonic,
    seconds) bounds all of them together, *memory* is what earlier sessions of the same *params*
    found out. Afterwards ``wire`` is the connection and ``features`` what the server offers on it.
    """

    def __init__(
        self,
        params: SessionParams,
        *,
        deadline: float | None = None,
        memory: KeyMemory | None = None,
    ) -> None:
        self.params = params
        self.memory = memory or KeyMemory()
        self.features: dict[str, str] = {}
        self.max_messages = params.max_messages
        self.tls_version = ""
        self.tls_resumed = False
        self.cipher = ""
        self.mechanism = ""  # by which the login was made
        self._deadline = deadline
        self._addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]] = []
        self._resumable: Resumable | None = None
        self._wire: Wire | None = None

    def run(self) -> None:
        """Make all steps.

        Raises ``OSError`` (``ssl.SSLCertVerificationError`` among them) where no connection comes
        about, ``ServerNotAllowed`` where the guard lets none come about, ``smtplib``'s exceptions
        for what the server refuses. Each says which server.
        """
        for _, step in self.steps():
            step()

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise SMTPServerDisconnected(f"There is no connection to {self.params.address}.")
        return self._wire

    def close(self) -> None:
        """Give up, without a word."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """The steps by name, each a call that does it and returns what it found.

        To be made in this order, each of them. A step that fails closes the connection.
        """
        steps: list[tuple[str, Callable[[], str]]] = [
            ("resolve", self._resolve),
            ("connect", self._connect),
        ]
        if self.params.security == "tls":
            steps.append(("tls", self._start_tls))
        steps += [("greeting", self._greeting), ("ehlo", self._ehlo)]
        if self.params.security == "starttls":
            # EHLO again: what was offered in clear text may have been anybody's words. Not after
            # AUTH, though, where one provider forgets the login.
            steps += [
                ("starttls", self._ask_for_tls),
                ("tls", self._start_tls),
                ("ehlo-tls", self._ehlo),
            ]
        if self.params.mechanisms:
            steps.append(("auth", self._login))
        for name, step in steps:
            yield name, self._guarded(step)
        self.wire.deadline = None
        if self.wire.tls is not None:
            kept = self._resumable if self.tls_resumed else None
            self.memory.tls = kept or Resumable.of(self.wire.tls)

    def _guarded(self, step: Callable[[], str]) -> Callable[[], str]:
        def run() -> str:
            try:
                return step()
            except BaseException as error:
                self.close()
                if refusal := self._refused_certificate(error):
                    raise refusal from error
                raise

        return run

    def _refused_certificate(self, error: BaseException) -> ClientCertificateError | None:
        """What *error* says of the client certificate, in plain words.

        With TLS 1.3 the server says it after the handshake, in the place of its first answer.
        """
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__
        while cause is not None and isinstance(cause.__cause__, ssl.SSLError):
            cause = cause.__cause__
        alert = str(getattr(cause, "reason", None) or "").partition("_ALERT_")[2]
        address, has_one = self.params.address, bool(self.params.client_certificate)
        if alert in _ALERTS and has_one:
            return ClientCertificateError(
                f"{address} did not accept the client certificate: {_ALERTS[alert]}."
            )
        if alert in _ALERTS:
            return ClientCertificateError(f"{address} wants a client certificate and got none.")
        return None

    def _resolve(self) -> str:
        host, port = self.params.host, self.params.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise socket.gaierror(
                number or socket.EAI_NONAME, f"The host name {host!r} could not be found."
            ) from error
        if self.params.guard is not None:
            self.params.guard.check(host, port, [str(address[0]) for *_, address in found])
        # Connected to is what was checked: the name is not looked up a second time.
        self._addresses = [(family, address) for family, _, _, _, address in found]
        return ", ".join(dict.fromkeys(str(address[0]) for _, address in self._addresses))

    def _connect(self) -> str:
        params = self.params
        until = time.monotonic() + params.timeouts.connect
        if self._deadline is not None:
            until = min(until, self._deadline)
        failure: OSError = TimeoutError("timed out")
        for number, (family, address) in enumerate(self._addresses):
            remaining = until - time.monotonic()
            if remaining <= 0:
                break
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                # Those that come after get their share: one that answers nothing (often IPv6)
                # must not use it all up.
                sock.settimeout(remaining / (len(self._addresses) - number))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            self._wire = Wire(
                sock,
                params.address,
                params.timeout,
                deadline=self._deadline,
                hide=hiding(params),
            )
            return f"connected to {address[0]}"
        reason = "timed out" if isinstance(failure, TimeoutError) else str(failure.strerror)
        text = f"Could not connect to {params.address}: {reason}."
        if failure.errno is None:
            raise TimeoutError(text) from failure
        raise type(failure)(failure.errno, text) from failure

    def _start_tls(self) -> str:
        params, wire = self.params, self.wire
        if params.client_certificate:
            key = Secret(params.client_key)
            context = client_context(params.ca_certificate, params.client_certificate, key)
        else:
            context = tls_context(params.ca_certificate)
        # Taken out: where it is what the server stumbles over, the next connection goes without.
        self._resumable, self.memory.tls = self.memory.tls, None
        resume = self._resumable.session_for(context) if self._resumable else None
        try:
            wire.start_tls(context, params.host, resume)
        except ssl.SSLCertVerificationError as error:
            named = ssl.SSLCertVerificationError(
                error.errno,
                f"The certificate of {params.address} was not accepted: {error.verify_message}.",
            )
            named.verify_code, named.verify_message = error.verify_code, error.verify_message
            raise named from error
        except ssl.SSLError as error:
            hint = ""
            if error.reason in {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"}:
                hint = " It speaks clear text on this port: choose STARTTLS, or another port."
            elif str(error.reason).endswith("_ALERT_HANDSHAKE_FAILURE"):
                hint = " It may want a client certificate, or another one."
            raise ssl.SSLError(
                error.errno, f"No TLS with {params.address}: {error.reason or error}.{hint}"
            ) from error
        except TimeoutError as error:
            raise TimeoutError(f"{params.address} did not finish the TLS handshake.") from error
        except SMTPServerDisconnected:
            raise
        except OSError as error:
            raise ConnectionError(
                error.errno, f"{params.address} ended the TLS handshake: {error}."
            ) from error
        secured = wire.tls
        assert secured is not None
        self.tls_version = secured.version() or ""
        self.tls_resumed = bool(secured.session_reused)
        self.cipher = (secured.cipher() or ("",))[0]
        found = f"{self.tls_version}, {self.cipher}, {self._certificate(secured)}"
        # Whether the server asked for it is not to be found out.
        return f"{found}, client certificate at hand" if params.client_certificate else found

    @staticmethod
    def _certificate(secured: ssl.SSLSocket) -> str:
        certificate = secured.getpeercert() or {}
        expires = certificate.get("notAfter")
        if not isinstance(expires, str):
            return "certificate verified"
        when = datetime.fromtimestamp(ssl.cert_time_to_seconds(expires), UTC)
        days = (when - datetime.now(UTC)).days
        return f"certificate valid until {when:%Y-%m-%d} ({days} days)"

    def _greeting(self) -> str:
        address = self.params.address
        try:
            reply = self.wire.read_reply()
        except NotSMTP as error:
            hint = ""
            if self.params.security != "tls":
                hint = " If it speaks TLS from the start, choose implicit TLS."
            raise SMTPConnectError(-1, f"{error}{hint}".encode()) from error
        except SMTPServerDisconnected as error:
            hint = " A port for implicit TLS does that."
            if self.params.security == "tls":
                hint = self._certificate_hint(error)
            # Of the same class: whether it was a time-out matters.
            raise type(error)(f"No greeting from {address}: {error}{hint}") from error
        if reply.code != 220:
            raise SMTPConnectError(reply.code, reply.message)
        return reply.text

    def _certificate_hint(self, error: SMTPServerDisconnected) -> str:
        """For a connection that ends right after TLS: some servers end it without an alert."""
        if self.tls_version != "TLSv1.3" or isinstance(error, (NotSMTP, TimedOut)):
            return ""
        other = "another" if self.params.client_certificate else "a"
        return f" The server may want {other} client certificate."

    def _ehlo(self) -> str:
        self.features.clear()
        try:
            reply = self._command(b"EHLO " + self.params.local_hostname.encode("idna"))
        except SMTPServerDisconnected as error:
            if self.params.security == "starttls" and (hint := self._certificate_hint(error)):
                raise type(error)(f"{str(error).rstrip('.')}.{hint}") from error
            raise
        if not reply.ok:
            if self.params.security == "starttls" or self.params.username or reply.code == 421:
                raise SMTPHeloError(reply.code, reply.message)
            reply = self._command(b"HELO " + self.params.local_hostname.encode("idna"))
            if not reply.ok:
                raise SMTPHeloError(reply.code, reply.message)
            return "HELO only"
        for line in reply.lines[1:]:
            keyword, _, arguments = one_line(line.decode("ascii", "replace")).partition(" ")
            if keyword.upper().startswith("AUTH="):  # as some old servers write it
                keyword, arguments = "AUTH", f"{keyword[5:]} {arguments}"
            known = self.features.get(keyword.upper(), "")
            self.features[keyword.upper()] = f"{known} {arguments}".strip()
        # RFC 9422: the server says itself after how many messages it ends a session.
        announced = re.search(r"\bMAILMAX=(\d{1,9})\b", self.features.get("LIMITS", "").upper())
        self.max_messages = self.params.max_messages
        if announced and int(announced[1]) > 0:
            self.max_messages = min(self.max_messages, int(announced[1]))
        return ", ".join(f"{name} {value}".strip() for name, value in self.features.items())

    def _ask_for_tls(self) -> str:
        if "STARTTLS" not in self.features:
            raise SMTPNotSupportedError(
                f"{self.params.address} does not offer STARTTLS, and mail is not sent in clear "
                "text. Use a port that offers it (587), or implicit TLS (465)."
            )
        reply = self._command(b"STARTTLS")
        if reply.code != 220:
            raise SMTPResponseException(reply.code, reply.message)
        return reply.text

    def _login(self) -> str:
        params = self.params
        secret = "access token" if params.access_token else "password" if params.password else ""
        if secret and not self.wire.tls and not self._peer_is_this_machine():
            raise SMTPNotSupportedError(
                f"The {secret} is not sent to {params.address} in clear text. Choose STARTTLS or "
                "implicit TLS for this server."
            )
        offered = self.features.get("AUTH", "").upper().split()
        usable = [mechanism for mechanism in params.mechanisms if mechanism in offered]
        if not usable and not params.needs_login:
            return "no login: the server does not offer EXTERNAL, for the client certificate"
        if not usable:
            what = f"only {' '.join(offered)}" if offered else "no login"
            who = "this account may only log" if params.mechanism else "mailpool logs"
            raise SMTPNotSupportedError(
                f"{params.address} offers {what} here; {who} in by {', '.join(params.mechanisms)}."
                " Nothing secret was sent."
            )
        for mechanism in usable:
            reply = authenticate(self._command, mechanism, params)
            if reply.code == 235:
                self.mechanism = mechanism
                who = f" as {params.username}" if params.username else ""
                by = "EXTERNAL, the client certificate" if mechanism == EXTERNAL else mechanism
                return f"logged in{who} by {by}"
            if reply.code not in _AUTH_SYNTAX_CODES:
                break
        raise SMTPAuthenticationError(reply.code, reply.message)

    def _peer_is_this_machine(self) -> bool:
        peer = str(self.wire.sock.getpeername()[0]).partition("%")[0]
        address = ipaddress.ip_address(peer)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    def _command(self, line: bytes) -> Reply:
        try:
            self.wire.write(SecretBytes(line + b"\r\n"))
        except TimedOut:
            raise
        except SMTPServerDisconnected:
            # What it said before it went tells more: a 421, or with TLS 1.3 what it has against
            # the client certificate.
            return self.wire.read_reply(LAST_WORDS_TIMEOUT)
        return self.wire.read_reply()
