"""OAuth 2 logins on the wire: OAUTHBEARER (RFC 7628) and XOAUTH2."""

from __future__ import annotations

import base64
import json
import traceback
from dataclasses import replace
from smtplib import SMTPAuthenticationError, SMTPNotSupportedError, SMTPServerDisconnected

import pytest

from mailpool.smtp import SessionParams, SessionPool
from tests.scripted import ScriptedServer

TOKEN = "ya29.a0Ab-secret_token~" + "x" * 200
LONG = TOKEN + "y" * 1200
BOTH = "AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER"


def encoded(data) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.b64encode(raw).decode()


@pytest.fixture
def server():
    with ScriptedServer(extensions=["PIPELINING", BOTH]) as server:
        yield server


@pytest.fixture
def bearer(server):
    return SessionParams(
        credential_id="bob",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        username="bob@example.com",
        auth="bearer",
        grant="first",
        access_token=TOKEN,
        timeout=5,
    )


@pytest.fixture
def pool():
    pool = SessionPool(timeout=5)
    yield pool
    pool.close()


def said(server) -> list[str]:
    """What came from AUTH on."""
    lines = [line for _, line in server.commands]
    return lines[next(n for n, line in enumerate(lines) if line.startswith("AUTH")) :]


def first_line(server) -> str:
    """What OAUTHBEARER begins with."""
    where = f"host=127.0.0.1\1port={server.port}"
    return encoded(f"n,a=bob@example.com,\1{where}\1auth=Bearer {TOKEN}\1\1".encode())


def refusal(pool, params) -> SMTPAuthenticationError:
    """The error of a login; with its traceback, it holds no form of the token."""
    with pytest.raises(SMTPAuthenticationError) as caught:
        pool.acquire(params)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for form in (TOKEN, TOKEN[:20], encoded(TOKEN.encode())[:20]):
        assert form not in text
    return caught.value


def test_standard_mechanism_is_preferred_and_says_all_at_once(server, bearer, pool):
    with pool.session(bearer):
        pass
    line = said(server)[0]
    assert line == f"AUTH OAUTHBEARER {first_line(server)}"


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_a_long_token_is_said_in_answer_to_a_challenge(server, bearer, pool, mechanism):
    """RFC 4954: the line of the command has 512 octets at the most."""
    server.extensions = [f"AUTH {mechanism}"]
    server.when("AUTH").says("334 ")
    params = replace(bearer, access_token=LONG)
    with pytest.raises(SMTPAuthenticationError):
        pool.acquire(params)  # which does not know the next line, and has it all the same
    command, answer, *_ = said(server)
    assert command == f"AUTH {mechanism}"
    assert f"auth=Bearer {LONG}\1\1" in base64.b64decode(answer).decode()


def test_a_long_token_and_a_server_that_lets_it_in(server, bearer, pool):
    where = f"host=127.0.0.1\1port={server.port}"
    line = encoded(f"n,a=bob@example.com,\1{where}\1auth=Bearer {LONG}\1\1".encode())
    server.when("AUTH").says("334 ")
    server.when(line.upper()).says("235 2.7.0 welcome")
    with pool.session(replace(bearer, access_token=LONG)):
        pass


@pytest.mark.parametrize("length", [512, 513])
def test_what_fits_is_said_at_once(server, bearer, pool, length):
    server.extensions = ["AUTH XOAUTH2"]
    around = len("user=bob@example.com\1auth=Bearer \1\1")
    size = (length - len("AUTH XOAUTH2 \r\n")) // 4 * 3 - around
    token = "t" * (size if length == 512 else size + 1)
    server.when("AUTH").says("235 2.7.0 welcome")
    with pool.session(replace(bearer, access_token=token)):
        pass
    assert (said(server)[0] == "AUTH XOAUTH2") == (length > 512)


def test_xoauth2_where_there_is_nothing_else(server, bearer, pool):
    server.extensions = ["AUTH LOGIN XOAUTH2"]
    with pool.session(bearer):
        pass
    message = base64.b64decode(said(server)[0].removeprefix("AUTH XOAUTH2 ")).decode()
    assert message == f"user=bob@example.com\1auth=Bearer {TOKEN}\1\1"


def test_xoauth2_where_the_standard_one_is_only_announced(server, bearer, pool):
    server.when("AUTH", occurrence=1).says("504 5.5.4 unrecognized authentication type")
    with pool.session(bearer):
        pass
    assert [line.split()[1] for line in said(server)[:2]] == ["OAUTHBEARER", "XOAUTH2"]


def test_comma_and_equals_sign_in_a_username(server, bearer, pool):
    with pool.session(replace(bearer, username="bob,=@example.com")):
        pass
    message = base64.b64decode(said(server)[0].split()[2]).decode()
    assert message.startswith("n,a=bob=2C=3D@example.com,\1")


def test_a_bearer_login_is_never_made_with_a_password_mechanism(server, bearer, pool):
    server.extensions = ["AUTH PLAIN LOGIN"]
    with pytest.raises(SMTPNotSupportedError, match=r"offers only PLAIN LOGIN.*OAUTHBEARER"):
        pool.acquire(bearer)
    assert "AUTH" not in server.verbs()


def test_a_password_is_never_sent_as_a_token(server, bearer, pool):
    server.extensions = ["AUTH XOAUTH2 OAUTHBEARER"]
    password = replace(bearer, auth="password", grant="", access_token="", password="secret")
    with pytest.raises(SMTPNotSupportedError, match="PLAIN, LOGIN"):
        pool.acquire(password)
    assert "AUTH" not in server.verbs()


@pytest.mark.parametrize(
    ("mechanism", "answer", "status"),
    [("OAUTHBEARER", "AQ==", "invalid_token"), ("XOAUTH2", "", "401")],
)
def test_error_in_a_challenge_is_answered_and_named(
    server, bearer, pool, mechanism, answer, status
):
    server.extensions = [f"AUTH {mechanism}"]
    challenge = {"status": status, "schemes": "bearer", "scope": "https://mail.example.com/"}
    server.when("AUTH").says(f"334 {encoded(challenge)}")
    server.when(answer).says("535 5.7.8 Username and Password not accepted")
    error = refusal(pool, bearer)
    assert said(server)[1:2] == [answer]
    assert error.smtp_code == 535
    assert b"Username and Password not accepted" in error.smtp_error
    assert status.encode() in error.smtp_error


@pytest.mark.parametrize(
    "challenge",
    ["no base64!", encoded(b"no json"), encoded([1]), encoded({"status": None}), "/w=="],
)
def test_error_that_can_not_be_read_is_a_refusal_all_the_same(server, bearer, pool, challenge):
    server.when("AUTH").says(f"334 {challenge}")
    server.when("AQ==").says("535 5.7.8 no")
    assert refusal(pool, bearer).smtp_code == 535


def test_server_that_overlooks_the_initial_response(server, bearer, pool):
    server.when("AUTH").says("334 ")
    first = first_line(server)
    server.when(first.upper()).says("235 2.7.0 welcome")
    with pool.session(bearer):
        pass
    assert said(server)[1] == first


def test_server_that_never_comes_to_an_end(server, bearer, pool):
    server.when("AUTH").says("334 ")
    for line in (first_line(server).upper(), "AQ==", "*"):
        server.when(line).says("334 ")
    with pytest.raises(SMTPAuthenticationError) as caught:
        pool.acquire(bearer)
    assert caught.value.smtp_code == 334
    assert said(server)[2:] == ["AQ==", "*"]


@pytest.mark.parametrize("length", [None, 300])
def test_what_the_server_repeats_is_not_passed_on(server, bearer, pool, length):
    message = f"user=bob@example.com\1auth=Bearer {TOKEN}\1\1".encode()
    server.extensions = ["AUTH XOAUTH2"]
    echoes = [encoded(message), TOKEN, encoded(TOKEN.encode())]
    lines = "\r\n".join(f"535-5.7.8 refused {echo[:length]}" for echo in echoes)
    server.when("AUTH").says(f"{lines}\r\n535 5.7.8 that is all")
    text = refusal(pool, bearer).smtp_error
    assert b"(hidden)" in text
    assert b"that is all" in text


def test_token_in_the_error_itself_is_not_passed_on(server, bearer, pool):
    server.when("AUTH").says(f"334 {encoded({'status': 'no ' + TOKEN})}")
    server.when("AQ==").says("535 5.7.8 refused")
    assert b"(hidden)" in refusal(pool, bearer).smtp_error


@pytest.mark.parametrize("field", ["username", "access_token"])
def test_control_characters_are_not_sent(server, bearer, pool, field):
    with pytest.raises(ValueError, match="control character"):
        pool.acquire(replace(bearer, **{field: "bob\1auth=Bearer other"}))
    assert "AUTH" not in server.verbs()


def test_connection_that_ends_in_the_login_is_no_refusal(server, bearer, pool):
    server.when("AUTH").closes()
    with pytest.raises(SMTPServerDisconnected):
        pool.acquire(bearer)


def test_refused_token_is_not_tried_again_and_another_one_is(server, bearer, pool):
    server.when("AUTH", times=1).says("535 5.7.8 expired")
    refusal(pool, bearer)
    assert b"Not tried again" in refusal(pool, bearer).smtp_error
    assert server.connections == 1
    with pool.session(replace(bearer, access_token="refreshed")):
        pass
    assert server.connections == 2


def test_refreshed_token_is_what_a_reconnect_logs_in_with(server, bearer, pool):
    with pool.session(bearer):
        pass
    refreshed = replace(bearer, access_token="refreshed")
    with pool.session(refreshed) as session:
        assert session.reuses == 1
        session.close()
    with pool.session(refreshed):
        pass
    logins = [line for _, line in server.commands if line.startswith("AUTH")]
    assert [b"Bearer refreshed" in base64.b64decode(line.split()[2]) for line in logins] == [
        False,
        True,
    ]


def test_new_grant_takes_the_place_of_the_old_ones_sessions(server, bearer, pool):
    with pool.session(bearer):
        pass
    with pool.session(replace(bearer, grant="second")):
        pass
    assert [session.credential_id for session in pool.stats().sessions] == ["bob"]
    with pool.session(bearer):
        pass
    assert server.connections == 3
