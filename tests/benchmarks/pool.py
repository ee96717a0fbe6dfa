"""A pool whose sessions are no connections, to time the pool alone."""

from __future__ import annotations

import secrets

from mailpool.smtp import SessionPool


class FakeSession:
    is_open = True
    is_spent = False
    messages = reuses = 0
    tls_version = cipher = mechanism = closed_because = ""

    def __init__(self, params, deadline, memory):
        self.params = params
        self.id = secrets.token_hex(6)

    def is_alive(self):
        return True

    def say_quit(self):
        pass

    def close(self, why="", timeout=0):
        self.is_open = False

    abort = close


class FakeSessions:
    def __init__(self):
        self.pool = SessionPool(connect=FakeSession, max_sessions=100_000)
