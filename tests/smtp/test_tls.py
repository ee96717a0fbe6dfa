"""A reconnect takes up the TLS session of its own key, and of no other."""

from __future__ import annotations

import ssl

import pytest

from mailpool.smtp import Session, SessionParams, SessionPool, tls
from mailpool.smtp.memory import KeyMemory
from tests.smtpd import PASSWORD, MailHost


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def host(request, authority):
    context = authority.server_context()
    context.maximum_version = {
        "TLSv1.2": ssl.TLSVersion.TLSv1_2,
        "TLSv1.3": ssl.TLSVersion.TLSv1_3,
    }[request.param]
    with MailHost(authority, context=context) as host:
        host.version = request.param
        yield host


@pytest.fixture
def params(host):
    return params_of(host, "bob")


def params_of(host, name):
    return SessionParams(
        credential_id=name,
        host="localhost",
        port=host.port,
        security="starttls",
        username=name,
        password=PASSWORD,
        ca_certificate=host.authority.pem,
        timeout=10,
    )


def test_reconnecting_resumes_as_often_as_it_is_done(host, params):
    memory = KeyMemory()
    resumed = []
    for _ in range(4):
        session = Session.open(params, memory=memory)
        resumed.append(session.tls_resumed)
        assert session.tls_version == host.version
        session.close()
    assert resumed == [False, True, True, True]


def test_the_pool_resumes_within_a_key_and_never_across_keys(host):
    """The TLS session cache has the connections' own key (CVE-2014-8151, 2016-5419, 2017-7468,
    2021-22890, 2024-0853)."""
    pool = SessionPool(timeout=10)
    resumed = {}
    for name in ("bob", "mary", "bob"):
        with pool.session(params_of(host, name), fresh=True) as session:
            resumed.setdefault(name, []).append(session.tls_resumed)
            session.abort("so that the next one connects")
    assert resumed == {"bob": [False, True], "mary": [False]}


def test_a_session_of_another_context_is_left_alone(host, params):
    """Two threads that make the first context of an authority at once may make two."""
    memory = KeyMemory()
    Session.open(params, memory=memory).close()
    tls.tls_context.cache_clear()
    session = Session.open(params, memory=memory)
    assert not session.tls_resumed
    session.close()
    session = Session.open(params, memory=memory)
    assert session.tls_resumed
    session.close()


def test_where_reading_a_session_leaks_it_is_not_done_for_ever(host, params, monkeypatch):
    monkeypatch.setattr(tls, "_READING_LEAKS", True)
    monkeypatch.setattr(tls, "_MAX_LEAKS", 0)
    memory = KeyMemory()
    for _ in range(2):
        session = Session.open(params, memory=memory)
        assert not session.tls_resumed
        session.close()
