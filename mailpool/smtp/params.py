"""``SessionParams``: everything that makes one SMTP connection what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mailpool.guard import Guard
from mailpool.secret import Secret
from mailpool.smtp.auth import BEARER_MECHANISMS, EXTERNAL, MECHANISMS, PASSWORD_MECHANISMS
from mailpool.text import can_be_a_name, can_be_a_password

Security = Literal["starttls", "tls", "plain"]
SECURITIES: tuple[Security, ...] = ("starttls", "tls", "plain")

Auth = Literal["password", "bearer"]


class Timeouts(NamedTuple):
    """How long each phase may take, seconds."""

    connect: float
    reply: float
    data: float
    final: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParams:
    """How to open a session, and the key that the pool keeps it under.

    A session is opened from this value and from nothing else, and is only ever handed to a
    caller whose own value is equal: so two callers that differ in anything that can change a
    connection, password and credential id included, can't share one. Of an OAuth 2 login it is
    the grant that counts, and not which of its short-lived tokens a session was opened with.

    Times are seconds. ``repr`` does not show the secrets, and the value can't be pickled.
    """

    credential_id: str
    """Whose session it is. Two tenants never share one, even with all else equal."""

    server_id: str = ""
    """By which sessions of one server are found, whatever credential they are of."""

    generation: int = 0
    """Of that server's connections: a higher one leaves all that were opened before it behind."""

    host: str
    port: int
    security: Security
    username: str = ""
    """Empty: no login is attempted."""

    password: str = field(default="", repr=False)
    auth: Auth = "password"
    """How to log in. ``bearer``: with an OAuth 2 access token, and never with a password."""

    grant: str = ""
    """Which permission the access token stands for. A new grant is another key."""

    access_token: str = field(default="", repr=False, compare=False)
    """Not in the key, so that a session goes on when the token it was opened with is replaced."""

    server_name: str = field(default="", compare=False)
    """What people call the server, for metrics and logs. Not in the key: it changes nothing."""

    ca_certificate: str = field(default="", repr=False)
    """PEM; empty for the system's authorities."""

    client_certificate: str = field(default="", repr=False)
    """PEM, with its chain: for a server that asks for one. Together with *client_key* (PEM)."""

    client_key: str = field(default="", repr=False)

    mechanism: str = ""
    """The only way to log in. Empty: by password, the first of those that are known; without a
    username by the client certificate, if there is one and the server offers that."""

    guard: Guard | None = None
    """Where the connection may go. ``None``: anywhere."""

    local_hostname: str = "localhost"
    """The name given with EHLO."""

    timeout: float = 30.0
    """Longest wait for each answer of the server, and for what names no time-out of its own."""

    connect_timeout: float | None = None
    """For the TCP connection. ``None``: as *timeout*."""

    data_timeout: float | None = None
    """For the network to take each 64 KiB of a message. ``None``: as *timeout*."""

    final_timeout: float | None = None
    """For the answer to the end of a message. ``None``: four times *timeout*. RFC 5321 has ten
    minutes, so that nobody gives up and sends again what was accepted after all. That is not done
    here, so giving up earlier costs an outcome that is unknown, and nothing else."""

    single_flight: bool = False
    """Whether commands and content go out in one write where the server takes chunks."""

    maintain_connection: bool = True
    """Whether the session may be kept for another call once a call is done with it."""

    max_connections: int = 3
    """Open sessions of this credential in one process."""

    idle_timeout: float = 30.0
    max_lifetime: float = 300.0
    max_messages: int = 100

    def __post_init__(self) -> None:
        if self.security not in SECURITIES:
            raise ValueError(f"security must be one of {', '.join(SECURITIES)}.")
        if not self.host or not 1 <= self.port <= 65535:
            raise ValueError("a session needs a host and a port from 1 to 65535.")
        if self.auth == "bearer":
            if not (self.username and self.grant and self.access_token) or self.password:
                raise ValueError("a bearer login is a username, a grant and an access token.")
        elif self.auth != "password" or self.grant or self.access_token:
            raise ValueError("auth must be password, or bearer with a grant and an access token.")
        if self.mechanism and self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be empty or one of {', '.join(MECHANISMS)}.")
        if self.auth == "bearer":
            if self.mechanism:
                raise ValueError("an access token has mechanisms of its own.")
        elif self.mechanism == EXTERNAL:
            if self.password or not self.client_certificate:
                raise ValueError("EXTERNAL logs in by a client certificate, without a password.")
        elif bool(self.username) != bool(self.password):
            raise ValueError("username and password go together.")
        elif self.mechanism and not self.username:
            raise ValueError(f"{self.mechanism} needs a username.")
        if bool(self.client_certificate) != bool(self.client_key):
            raise ValueError("client certificate and client key go together.")
        if self.client_certificate and self.security == "plain":
            raise ValueError("a client certificate needs TLS.")
        for name in ("username", "access_token", "local_hostname", "password"):
            can_be_sent = can_be_a_password if name == "password" else can_be_a_name
            if not can_be_sent(getattr(self, name)):
                raise ValueError(
                    "there is a control character, or half a character, in the "
                    f"{name.replace('_', ' ')}: nothing was sent."
                )
        # Frozen, and still hidden from every traceback that shows this object's fields.
        object.__setattr__(self, "password", Secret(self.password))
        object.__setattr__(self, "access_token", Secret(self.access_token))
        object.__setattr__(self, "client_key", Secret(self.client_key))

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The ways to log in that may be used, best first; none where there is no login."""
        if self.mechanism:
            return (self.mechanism,)
        if self.auth == "bearer":
            return BEARER_MECHANISMS
        if self.username:
            return PASSWORD_MECHANISMS
        return (EXTERNAL,) if self.client_certificate else ()

    @property
    def needs_login(self) -> bool:
        """Whether nothing may be sent without one."""
        return bool(self.username or self.mechanism)

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(
            connect=self.connect_timeout or self.timeout,
            reply=self.timeout,
            data=self.data_timeout or self.timeout,
            final=self.final_timeout or 4 * self.timeout,
        )

    @property
    def address(self) -> str:
        """``host:port`` for messages to people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
