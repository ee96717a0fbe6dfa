"""A worker that forks after sending shares nothing with its parent."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import warnings

import pytest

from mailpool import delivery
from mailpool.smtp import Envelope, Transmitter

pytestmark = pytest.mark.django_db


@pytest.fixture
def params(mail_host, make_credential):
    return delivery.session_params(make_credential(mail_host, "bob"))


def send(params, subject, transmitter=None):
    content = f"Subject: {subject}\r\n\r\ntext\r\n".encode()
    own = transmitter or Transmitter(delivery.get_pool())
    receipt = own.send(params, Envelope("bob@example.com", ("a@example.com",), content))
    if transmitter is None:
        own.release()
    return receipt


def in_child(work):
    """Fork, do *work* in the child, and return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test's server has threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def connections_by_subject(host):
    return {each.message["Subject"]: each.connection for each in host.delivered}


def test_child_opens_its_own_connection_and_the_parents_still_works(mail_host, params):
    send(params, "before")

    def work():
        assert delivery.stats().open == 0
        assert not send(params, "child").reused
        assert delivery.stats().pid == os.getpid()
        delivery.get_pool().close()

    assert in_child(work) == 0
    assert send(params, "after").reused
    assert connections_by_subject(mail_host) == {"before": 1, "child": 2, "after": 1}


def test_child_that_only_exits_leaves_the_parents_connection_alone(mail_host, params):
    """Neither QUIT nor a TLS close may go out on what the child inherited."""
    send(params, "before")
    pool = delivery.get_pool()
    assert in_child(pool.shut_down) == 0
    assert in_child(pool.close) == 0
    assert send(params, "after").reused
    assert mail_host.connections == 1


def test_fork_inside_a_block(mail_host, params):
    """A session that the parent holds is not the child's."""
    block = Transmitter(delivery.get_pool(), is_block=True)
    send(params, "before", block)

    def work():
        assert not send(params, "child", block).reused
        block.release()
        delivery.get_pool().close()

    assert in_child(work) == 0
    assert send(params, "after", block).reused
    block.release()
    assert connections_by_subject(mail_host) == {"before": 1, "child": 2, "after": 1}


def inherited():
    """The parent's session, as it lies in the pool."""
    return next(iter(delivery.get_pool()._all_slots())).session


def test_child_drops_what_it_inherited_before_it_does_anything(mail_host, params):
    send(params, "before")
    session = inherited()

    def work():
        assert session._wire is None

    assert in_child(work) == 0
    assert session.is_open
    assert send(params, "after").reused


def test_fork_that_python_does_not_know_of(mail_host, params, monkeypatch):
    """As a server in C does it: no hook runs, so the process id has to tell."""
    send(params, "before")
    monkeypatch.setattr("mailpool.smtp.pool._pools", set())
    session = inherited()

    def work():
        assert session._wire is not None
        assert delivery.stats().open == 0
        assert session._wire is None
        assert not send(params, "child").reused
        delivery.get_pool().close()

    assert in_child(work) == 0
    assert send(params, "after").reused
    assert connections_by_subject(mail_host) == {"before": 1, "child": 2, "after": 1}


def _work_of_a_process(params_fields):
    from mailpool.smtp import SessionParams

    send(SessionParams(**params_fields), "child")
    delivery.get_pool().close()


def test_multiprocessing(mail_host, params):
    from dataclasses import fields

    send(params, "before")
    plain = {field.name: getattr(params, field.name) for field in fields(params)}
    process = multiprocessing.get_context("fork").Process(target=_work_of_a_process, args=(plain,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join(30)
    assert process.exitcode == 0
    assert send(params, "after").reused
    assert connections_by_subject(mail_host) == {"before": 1, "child": 2, "after": 1}


EXIT = """
    import sys
    from mailpool.smtp import Envelope, SessionParams, SessionPool, Transmitter
    import atexit
    pool = SessionPool()
    atexit.register(pool.shut_down)
    params = SessionParams(credential_id="bob", host="127.0.0.1", port=int(sys.argv[1]),
                           security="plain")
    transmitter = Transmitter(pool)
    transmitter.send(params, Envelope("a@example.com", ("b@example.com",), b"x"))
    transmitter.release()
    assert pool.stats().idle == 1
"""


@pytest.mark.parametrize("frozen", [False, True])
def test_process_exit_says_goodbye_and_never_hangs(frozen):
    from tests.scripted import ScriptedServer

    with ScriptedServer() as server:
        if frozen:
            server.when("QUIT").freezes()
        code = textwrap.dedent(EXIT)
        subprocess.run([sys.executable, "-c", code, str(server.port)], check=True, timeout=10)
        assert len(server.bodies) == 1
    assert server.verbs()[-1] == "QUIT"
