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

from mailpool.secret import SecretBytes
from mailpool.smtp.auth import authenticate, mechanisms
from mailpool.smtp.memory import KeyMemory
from mailpool.smtp.params import SessionParams
from mailpool.smtp.reply import Reply
from mailpool.smtp.tls import Resumable, tls_context
from mailpool.smtp.wire import NotSMTP, Wire

_AUTH_SYNTAX_CODES = {500, 501, 502, 504}  # the mechanism, not the password, was refused


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
        if self.params.username:
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
            except BaseException:
                self.close()
                raise

        return run

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
            self._wire = Wire(sock, params.address, params.timeout, deadline=self._deadline)
            return f"connected to {address[0]}"
        reason = "timed out" if isinstance(failure, TimeoutError) else str(failure.strerror)
        text = f"Could not connect to {params.address}: {reason}."
        if failure.errno is None:
            raise TimeoutError(text) from failure
        raise type(failure)(failure.errno, text) from failure

    def _start_tls(self) -> str:
        params, wire = self.params, self.wire
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
        return f"{self.tls_version}, {self.cipher}, {self._certificate(secured)}"

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
            hint = "" if self.params.security == "tls" else " A port for implicit TLS does that."
            # Of the same class: whether it was a time-out matters.
            raise type(error)(f"No greeting from {address}: {error}{hint}") from error
        if reply.code != 220:
            raise SMTPConnectError(reply.code, reply.message)
        return reply.text

    def _ehlo(self) -> str:
        self.features.clear()
        reply = self._command(b"EHLO " + self.params.local_hostname.encode("idna"))
        if not reply.ok:
            if self.params.security == "starttls" or self.params.username or reply.code == 421:
                raise SMTPHeloError(reply.code, reply.message)
            reply = self._command(b"HELO " + self.params.local_hostname.encode("idna"))
            if not reply.ok:
                raise SMTPHeloError(reply.code, reply.message)
            return "HELO only"
        for line in reply.lines[1:]:
            keyword, _, arguments = line.decode("ascii", "replace").partition(" ")
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
        wanted = mechanisms(params)
        if not self.wire.tls and not self._peer_is_this_machine():
            secret = "password" if params.auth == "password" else "access token"
            raise SMTPNotSupportedError(
                f"The {secret} is not sent to {params.address} in clear text. Choose STARTTLS or "
                "implicit TLS for this server."
            )
        offered = self.features.get("AUTH", "").upper().split()
        usable = [mechanism for mechanism in wanted if mechanism in offered]
        if not usable:
            what = f"only {' '.join(offered)}" if offered else "no login"
            raise SMTPNotSupportedError(
                f"{params.address} offers {what} here; this account logs in by {', '.join(wanted)}."
            )
        for mechanism in usable:
            reply = authenticate(self._command, mechanism, params)
            if reply.code == 235:
                return f"logged in as {params.username} by {mechanism}"
            if reply.code not in _AUTH_SYNTAX_CODES:
                break
        raise SMTPAuthenticationError(reply.code, reply.message)

    def _peer_is_this_machine(self) -> bool:
        peer = str(self.wire.sock.getpeername()[0]).partition("%")[0]
        address = ipaddress.ip_address(peer)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    def _command(self, line: bytes) -> Reply:
        self.wire.write(SecretBytes(line + b"\r\n"))
        return self.wire.read_reply()
