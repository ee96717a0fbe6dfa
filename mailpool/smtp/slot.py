"""What the pool keeps books on: one ``Slot`` per socket, one ``Waiter`` per caller that waits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from mailpool.smtp.params import SessionParams
from mailpool.smtp.session import Session
from mailpool.smtp.stats import SessionInfo

State = Literal["connecting", "busy", "idle", "closing"]


@dataclass(eq=False, slots=True)
class Slot:
    """One socket's place in the pool, from before it is opened until after it is closed."""

    params: SessionParams
    state: State
    since: float  # when the session was opened
    expires: float = 0.0
    idle_since: float = 0.0
    retired: bool = False  # to be closed when it comes back
    session: Session | None = None

    @property
    def due(self) -> float:
        """When it is closed, if it is idle until then."""
        return min(self.idle_since + self.params.idle_timeout, self.expires)

    def info(self, now: float) -> SessionInfo:
        """What it is at *now*, without secrets."""
        session = self.session
        return SessionInfo(
            id=session.id if session else "",
            credential_id=self.params.credential_id,
            server=self.params.server_name,
            address=self.params.address,
            username=self.params.username,
            server_id=self.params.server_id,
            generation=self.params.generation,
            state=self.state,
            age=now - self.since,
            idle=now - self.idle_since if self.state == "idle" else 0.0,
            closes_in=max(0.0, self.due - now) if self.state == "idle" else 0.0,
            messages=session.messages if session else 0,
            reused=session.reuses if session else 0,
            tls=session.tls_version if session else "",
            cipher=session.cipher if session else "",
            mechanism=session.mechanism if session else "",
        )


@dataclass(eq=False, slots=True)
class Waiter:
    params: SessionParams
    fresh: bool
    ready: threading.Event = field(default_factory=threading.Event)
    grant: Grant | None = None


@dataclass(eq=False, slots=True)
class Grant:
    """What a caller got: a slot, and whether a session that is in it must be closed first."""

    slot: Slot
    evicted: Session | None = None
    found: Session | None = None
    """The idle one that was in the slot; it may turn out dead."""
