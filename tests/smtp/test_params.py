"""``SessionParams`` is the pool's key: whatever differs in it means another session."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import pytest

from mailpool.guard import Guard
from mailpool.smtp import SessionParams, SessionPool
from tests.scripted import ScriptedServer

# One other value for each field. A new field that is missing here fails the test below.
OTHERS = {
    "credential_id": "mary",
    "server_id": "another",
    "generation": 1,
    "host": "localhost",
    "port": None,  # another server's
    "security": "tls",
    "username": "Bob",
    "password": "Secret",
    "ca_certificate": "another",
    "local_hostname": "other.test",
    "timeout": 6.0,
    "maintain_connection": False,
    "max_connections": 4,
    "idle_timeout": 31.0,
    "max_lifetime": 301.0,
    "max_messages": 101,
    "connect_timeout": 6.0,
    "data_timeout": 6.0,
    "final_timeout": 6.0,
    "single_flight": True,
    "guard": Guard(),
    "auth": "bearer",
    "grant": "another",
    "access_token": "another",
    "server_name": "another",
    "client_certificate": "Certificate",
    "client_key": "Key",
    "mechanism": "LOGIN",
}

# What only goes together: the values that a field is varied with, and from which.
BEARER = {"auth": "bearer", "grant": "a grant", "access_token": "token", "password": ""}
TOGETHER = {"auth": ({}, BEARER), "grant": (BEARER, {"grant": "another"})}
NOT_IN_THE_KEY = {"access_token", "server_name"}


@pytest.fixture
def base():
    with ScriptedServer() as server, ScriptedServer() as other:
        OTHERS["port"] = other.port
        yield SessionParams(
            credential_id="bob",
            host="127.0.0.1",
            port=server.port,
            security="starttls",
            username="bob",
            password="secret",
            client_certificate="certificate",
            client_key="private",
            timeout=5,
        )


class FakeSession:
    """Stands for a session where only its identity matters."""

    is_open = True
    is_spent = False
    messages = reuses = 0
    tls_version = cipher = mechanism = closed_because = id = ""

    def __init__(self, params, deadline, memory):
        self.params = params

    def is_alive(self):
        return True

    def say_quit(self):
        pass

    def close(self, why="", timeout=0):
        self.is_open = False

    abort = close


def test_every_field_is_varied():
    assert set(OTHERS) == {field.name for field in fields(SessionParams)}


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - NOT_IN_THE_KEY))
def test_each_field_makes_another_session(base, name):
    before, after = TOGETHER.get(name, ({}, {name: OTHERS[name]}))
    base = replace(base, **before)
    pool = SessionPool(connect=FakeSession)
    with pool.session(base) as first:
        pass
    with pool.session(base) as again:
        assert again is first
    changed = replace(base, **after)
    assert changed != base
    with pool.session(changed) as other:
        assert other is not first
        assert other.params == changed


# The reuse defects that other clients shipped, each with the field that keeps it out here.
DEFECTS = {
    "credentials per connection (CVE-2014-0138, CVE-2014-0015, CVE-2015-3148)": "username",
    "credentials per connection, two accounts that are alike (CVE-2026-1965)": "credential_id",
    "password compared without case (CVE-2016-8616)": "password",
    "account and TLS-required level (CVE-2023-27535)": "security",
    "TLS required, clear connection reused (CVE-2026-4873)": "security",
    "TLS settings not compared for STARTTLS (CVE-2026-8286)": "ca_certificate",
    "issuer (CVE-2021-22924)": "ca_certificate",
    "CA store changed (CVE-2025-14819)": "ca_certificate",
    "IPv6 zone (CVE-2022-27775)": "host",
    "another port of the same host": "port",
    "OAuth bearer, of another grant (CVE-2022-22576)": "grant",
    "a password's session for a bearer login (CVE-2022-22576)": "auth",
    "client certificate (CVE-2016-5420, CVE-2016-7141)": "client_certificate",
    "the client certificate's key (CVE-2026-8932)": "client_key",
    "mechanism options (CVE-2023-27536, CVE-2026-8458)": "mechanism",
}


def test_guards_that_differ_make_sessions_that_differ(base):
    for other in ({"networks": ("10.0.0.0/8",)}, {"ports": (25,)}):
        assert replace(base, guard=Guard()) != replace(base, guard=Guard(**other))
    assert replace(base, guard=Guard()) == replace(base, guard=Guard())


def test_a_refreshed_token_goes_on_with_the_same_session(base):
    first = replace(base, **BEARER)
    refreshed = replace(first, access_token="another")
    assert refreshed == first
    assert hash(refreshed) == hash(first)
    pool = SessionPool(connect=FakeSession)
    with pool.session(first) as session:
        pass
    with pool.session(refreshed) as again:
        assert again is session


@pytest.mark.parametrize("defect", DEFECTS)
def test_reuse_defect_of_others(base, defect):
    test_each_field_makes_another_session(base, DEFECTS[defect])


def test_no_login_is_a_key_of_its_own(base):
    """CVE-2015-3143: a connection without a login is not one with a login."""
    anonymous = replace(base, username="", password="")
    assert anonymous != replace(anonymous, client_certificate="", client_key="")
    pool = SessionPool(connect=FakeSession)
    with pool.session(base) as authenticated:
        pass
    with pool.session(anonymous) as other:
        assert other is not authenticated


def test_host_is_compared_as_it_is_written(base):
    assert replace(base, host="::1%lo") != replace(base, host="::1%eth0")
    assert replace(base, ca_certificate="A") != replace(base, ca_certificate="a")


def test_repr_and_pickle_show_no_password(base):
    for shown in (repr(base), str(base), repr(base.password), repr(base.client_key)):
        assert "secret" not in shown.replace("(secret)", "")
        assert "private" not in shown
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(base)
    assert copy.copy(base) == base


def test_repr_shows_no_token(base):
    bearer = replace(base, **{**BEARER, "access_token": "ya29.secret"})
    assert "ya29" not in repr(bearer)
    assert "ya29" not in repr(bearer.access_token)


@pytest.mark.parametrize(
    "wrong",
    [
        {"security": "none"},
        {"security": ""},
        {"port": 0},
        {"port": 65536},
        {"host": ""},
        {"password": ""},
        {"username": ""},
        {"auth": "none"},
        {"grant": "a grant"},
        {"access_token": "token"},
        {**BEARER, "password": "secret"},
        {**BEARER, "grant": ""},
        {**BEARER, "access_token": ""},
        {**BEARER, "username": ""},
        {"client_certificate": ""},
        {"client_key": ""},
        {"security": "plain"},  # with a client certificate
        {"mechanism": "plain"},
        {"mechanism": "EXTERNAL"},  # with a password
        {"mechanism": "EXTERNAL", "password": "", "client_certificate": "", "client_key": ""},
        {"mechanism": "PLAIN", "username": "", "password": ""},
    ],
)
def test_impossible_values_are_refused(base, wrong):
    with pytest.raises(ValueError):
        replace(base, **wrong)
