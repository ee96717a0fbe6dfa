"""An SMTP submission client with a pool. Knows nothing of Django.

``params`` says how to connect and is the pool's key; ``wire`` is the socket; ``handshake`` opens a
connection; ``session`` is an authenticated one; ``exchange`` is what is said on it to send;
``pool`` keeps sessions; ``transmitter`` is a caller's; ``sending`` is one call's messages on their
way, by a ``crew`` of threads.
"""

from mailpool.smtp.envelope import Attempt, Envelope, Receipt
from mailpool.smtp.handshake import Handshake
from mailpool.smtp.params import SessionParams
from mailpool.smtp.pool import SessionPool
from mailpool.smtp.session import Session
from mailpool.smtp.stats import PoolStats, SessionInfo
from mailpool.smtp.transmitter import Transmitter

__all__ = [
    "Attempt",
    "Envelope",
    "Handshake",
    "PoolStats",
    "Receipt",
    "Session",
    "SessionInfo",
    "SessionParams",
    "SessionPool",
    "Transmitter",
]
