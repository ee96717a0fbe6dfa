from __future__ import annotations

import pytest

from mailpool.smtp import Envelope, SessionParams, SessionPool, Transmitter
from tests.scripted import EXTENSIONS, ScriptedServer


@pytest.fixture(params=["pipelined", "one at a time"])
def server(request):
    """A server that misbehaves on command, with and without PIPELINING."""
    extensions = EXTENSIONS if request.param == "pipelined" else EXTENSIONS[1:]
    with ScriptedServer(extensions=extensions) as server:
        yield server


@pytest.fixture
def params(server):
    return SessionParams(
        credential_id="bob",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        username="bob",
        password="secret",
        timeout=5,
    )


@pytest.fixture
def pool():
    pool = SessionPool(timeout=5)
    yield pool
    pool.close()


@pytest.fixture
def transmitter(pool):
    transmitter = Transmitter(pool)
    yield transmitter
    transmitter.release()


@pytest.fixture
def send(transmitter, params):
    """Send one message and let go of the session, as a call of its own does."""

    def send(*recipients, text=b"Subject: hello\r\n\r\nhello\r\n", **kwargs):
        try:
            return transmitter.send(
                params,
                Envelope("bob@example.com", recipients or ("a@example.com",), text, **kwargs),
            )
        finally:
            transmitter.release()

    return send
