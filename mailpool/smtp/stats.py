"""What a pool tells about itself. No secrets, only plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Reason = Literal["new", "evicted", "dead", "retry", "not_maintained"]
"""Why a connection was opened: none was idle; likewise, and another one had to make room; the idle
one was dead; a message goes again, after the one before had ended; none is kept."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One connection as it is now. Times are seconds."""

    id: str
    """Empty while it is being opened."""

    credential_id: str
    address: str
    server: str
    """The name of the server, as ``SessionParams`` has it."""

    username: str
    server_id: str
    generation: int
    state: str
    """``connecting``, ``busy``, ``idle`` or ``closing``."""

    age: float
    idle: float
    closes_in: float
    """When an idle one is closed, if nobody takes it; 0 for others."""

    messages: int
    reused: int
    """How often it was taken from the pool again."""

    tls: str
    cipher: str
    mechanism: str
    """By which the login was made (``PLAIN``, …); empty: without one."""


@dataclass(frozen=True, slots=True)
class Openings:
    """How many connections were opened to one server for one reason."""

    server: str
    reason: Reason
    count: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The connections of one process, and what has happened since it started."""

    pid: int
    max_sessions: int
    max_waiting: int
    waiting: int
    opened: int
    reused: int
    closed: int
    failed: int
    sessions: list[SessionInfo] = field(default_factory=list)
    openings: list[Openings] = field(default_factory=list)
    waiting_for: dict[str, int] = field(default_factory=dict)
    """Of *waiting*: credential id → how many wait for a session of it."""

    @property
    def open(self) -> int:
        """Sockets that exist or are reserved."""
        return len(self.sessions)

    @property
    def idle(self) -> int:
        return self._count("idle")

    @property
    def busy(self) -> int:
        return self._count("busy")

    @property
    def connecting(self) -> int:
        return self._count("connecting")

    @property
    def closing(self) -> int:
        return self._count("closing")

    def _count(self, state: str) -> int:
        return sum(session.state == state for session in self.sessions)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        states = ("open", "idle", "busy", "connecting", "closing")
        return {**asdict(self), **{state: getattr(self, state) for state in states}}
