"""OAuth 2 logins, with a provider and a mail host that both run here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager
from datetime import timedelta
from smtplib import SMTPAuthenticationError
from urllib.parse import quote

import pytest
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from mailpool import delivery, scrub, selfservice, signals, testing
from mailpool.admin.credentials import attention
from mailpool.exceptions import (
    CredentialNeedsAttention,
    OAuthError,
    OAuthUnavailable,
    SecretError,
)
from mailpool.forms import TenantCredentialForm
from mailpool.models import AuditEntry, Credential, OAuthClient
from mailpool.oauth import tokens
from mailpool.relocation import relocate
from mailpool.routing import Router
from mailpool.vault import Sealed
from mailpool.verification import verify_credential
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, BearerMailHost, OAuthServer

pytestmark = pytest.mark.django_db(transaction=True)

BOB = "bob@example.com"


@pytest.fixture
def provider():
    with OAuthServer() as provider:
        yield provider


@pytest.fixture(autouse=True)
def _nobody_is_away():
    yield
    tokens._away.clear()


@pytest.fixture
def host(authority, provider):
    with BearerMailHost(authority, provider) as host:
        yield host


@pytest.fixture
def client(db, provider):
    return OAuthClient.objects.create(
        name="Provider",
        authorization_url=f"{provider.url}/authorize",
        token_url=f"{provider.url}/token",
        scopes="mail",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )


@pytest.fixture
def connect(client, host, provider, make_credential):
    """Make a credential whose account is connected: ``connect("bob@example.com")``."""

    def connect(username=BOB, **kwargs):
        kind = kwargs.setdefault("kind", "authorization_code")
        if kind == "authorization_code":
            kwargs.setdefault("refresh_token", provider.grant(username).refresh_token)
        credential = make_credential(
            host,
            username.partition("@")[0],
            username=username,
            password="",
            oauth_client=client,
            **kwargs,
        )
        credential.full_clean()
        return credential

    return connect


def message(number=0, tenant="bob"):
    mail = EmailMessage(f"number {number}", "hello", BOB, ["a@example.com"])
    mail.tenant = tenant
    return mail


def send(count=1, **kwargs):
    return delivery.deliver([message(n) for n in range(count)], Router().resolve, **kwargs)


def age(credential, seconds=1000):
    """As if its access token had been got *seconds* ago."""
    Credential.objects.filter(pk=credential.pk).update(
        access_token_set_at=timezone.now() - timedelta(seconds=seconds)
    )


def let_expire(credential):
    now = timezone.now()
    Credential.objects.filter(pk=credential.pk).update(
        access_token_set_at=now - timedelta(hours=1), access_token_expires_at=now
    )


def stored(credential):
    return Credential.objects.select_related("server", "oauth_client").get(pk=credential.pk)


@contextmanager
def heard():
    reasons = []

    def listen(sender, credential, reason, **kwargs):
        reasons.append((credential.pk, reason))

    signals.credential_needs_attention.connect(listen)
    try:
        yield reasons
    finally:
        signals.credential_needs_attention.disconnect(listen)


# Sending


def test_a_message_goes_out_with_an_access_token(connect, host, provider):
    connect()
    (result,) = send()
    assert result.status == "sent"
    assert [each.login for each in host.delivered] == [BOB]
    assert provider.refreshes == 1
    send(3)
    assert provider.refreshes == 1
    assert len(host.delivered) == 4
    assert host.connections == 1


def test_the_rotated_refresh_token_is_stored_and_nothing_in_clear_text(connect, provider):
    credential = connect()
    first = credential.refresh_token
    send()
    row = stored(credential)
    assert row.refresh_token == provider.grants[0].refresh_token != first
    assert row.access_token == provider.grants[0].access_tokens[0]
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM mailpool_credential")
        text = repr(cursor.fetchall())
        cursor.execute("SELECT * FROM mailpool_oauthclient")
        text += repr(cursor.fetchall())
    for secret in (first, row.refresh_token, row.access_token, CLIENT_SECRET):
        assert secret not in text


def test_refresh_before_expiry_keeps_the_sessions_open(connect, host, provider):
    credential = connect()
    send()
    age(credential)
    Credential.objects.update(access_token_expires_at=timezone.now() + timedelta(seconds=90))
    send()
    assert provider.refreshes == 2
    assert host.connections == 1
    assert stored(credential).access_token_expires_at > timezone.now() + timedelta(minutes=50)


def test_a_refresh_token_that_stays_the_same_is_kept(connect, provider):
    provider.rotates = False
    provider.omits_refresh_token = True
    credential = connect()
    send()
    let_expire(credential)
    assert send()[0].status == "sent"
    assert stored(credential).refresh_token == provider.grants[0].refresh_token


def test_app_only_access(connect, host, provider):
    connect(kind="client_credentials")
    assert [result.status for result in send(2)] == ["sent", "sent"]
    assert [request["grant_type"] for request in provider.requests] == ["client_credentials"]
    assert provider.requests[0]["scope"] == "mail"
    assert host.logins == [BOB]


def test_app_only_access_is_not_redirected(connect, host, provider, make_credential):
    """By SQL, say: no token is even asked for."""
    credential = connect(kind="client_credentials")
    type(credential.server).objects.update(host="127.0.0.1")
    (result,) = send()
    assert isinstance(result.error, SecretError)
    assert attention(stored(credential))
    assert provider.requests == []
    assert host.connections == 0
    row = stored(credential)
    row.allow_app_only()  # meant to be so
    row.save()
    assert send()[0].status == "sent"


def test_a_login_becomes_app_only_by_no_update(connect, provider, client):
    credential = connect(refresh_token="")
    Credential.objects.filter(pk=credential.pk).update(kind="client_credentials")
    assert isinstance(send()[0].error, CredentialNeedsAttention)
    assert provider.requests == []


def test_app_only_access_moves_with_its_server(connect, provider):
    credential = connect(kind="client_credentials")
    server = credential.server
    result = relocate(server, host="127.0.0.1", port=server.port, security=server.security)
    assert (result.moved, result.left) == (1, [])
    assert send()[0].status == "sent"


def test_a_password_is_never_tried(connect, host, provider):
    """Not even one that is stored, and would be right."""
    credential = connect()
    credential.password = "correct-horse-battery"
    credential.save()
    provider.revoke(provider.grants[0])
    (result,) = send()
    assert isinstance(result.error, CredentialNeedsAttention)
    assert host.connections == 0


def test_a_new_grant_takes_new_sessions(connect, host, provider):
    credential = connect()
    send()
    credential.refresh_token = provider.grant(BOB).refresh_token
    credential.save()
    send()
    assert host.connections == 2


# Refused tokens


def test_a_token_revoked_early_is_refreshed_once_and_the_message_sent(connect, host, provider):
    credential = connect()
    send()
    age(credential)
    provider.expire_access_tokens()
    host.drop_connections()
    results = send(3)
    assert [result.status for result in results] == ["sent"] * 3
    assert provider.refreshes == 2
    assert host.refused_logins == 1
    assert [each.message["Subject"] for each in host.delivered[1:]] == [
        "number 0",
        "number 1",
        "number 2",
    ]


def test_expiry_in_mid_batch(connect, host, provider):
    """The connection is replaced after a few messages, when the token is over."""
    credential = connect()
    type(credential.server).objects.update(max_messages=3)
    send()
    delivery.close_connections()
    age(credential)
    host.at_message[1 + 3] = provider.expire_access_tokens
    results = send(8)
    assert [result.status for result in results] == ["sent"] * 8
    subjects = [each.message["Subject"] for each in host.delivered[1:]]
    assert subjects == [f"number {n}" for n in range(8)]
    assert provider.refreshes == 2
    assert host.refused_logins == 1


def test_a_token_that_is_refused_though_it_is_fresh_is_not_refreshed(connect, host, provider):
    connect()
    host.provider = OAuthServer()  # which knows none of them
    results = send(2)
    assert [type(result.error) for result in results] == [SMTPAuthenticationError] * 2
    assert provider.refreshes == 1
    assert "invalid_token" in results[0].reply
    assert host.refused_logins == 1
    send()
    assert provider.refreshes == 1


@pytest.mark.parametrize("young", [tokens.YOUNG, 0])
def test_after_a_refresh_nothing_is_tried_a_third_time(connect, host, provider, monkeypatch, young):
    """Not even with tokens that are old at once."""
    monkeypatch.setattr(tokens, "YOUNG", young)
    credential = connect()
    send()
    age(credential)
    host.drop_connections()
    host.provider = OAuthServer()
    assert [type(result.error) for result in send(3)] == [SMTPAuthenticationError] * 3
    assert provider.refreshes == 2
    assert host.refused_logins == 2
    assert not host.sent_as(BOB)[1:]


# The provider's no


def test_a_revoked_grant_is_said_once_and_not_asked_for_again(connect, host, provider, capsys):
    credential = connect()
    send()
    provider.revoke(provider.grants[0])
    let_expire(credential)
    with heard() as reasons:
        first, second = send(2)
        third = send()[0]
    for result in (first, second, third):
        assert isinstance(result.error, CredentialNeedsAttention)
        assert "connected again" in str(result.error)
        assert "refresh-" not in str(result.error)  # which the provider repeats
    assert provider.refreshes == 2
    ((pk, reason),) = reasons
    assert pk == credential.pk
    assert "connected again" in reason
    row = stored(credential)
    assert "connected again" in attention(row)
    assert row.needs_attention_since
    with pytest.raises(SystemExit):
        call_command("mailpool_check")
    assert "connected again" in capsys.readouterr().out
    assert provider.refreshes == 2

    row.refresh_token = provider.grant(BOB).refresh_token  # connected anew
    row.save()
    assert attention(stored(credential)) == ""
    assert send()[0].status == "sent"


def test_a_provider_that_is_away_is_another_matter(connect, provider, client):
    credential = connect()
    OAuthClient.objects.filter(pk=client.pk).update(token_url="http://127.0.0.1:9/token")
    row = stored(credential)
    row.oauth_client.client_secret = CLIENT_SECRET  # for the new address
    row.oauth_client.save()
    row.refresh_token = "refresh"
    row.save()
    with heard() as reasons:
        (result,) = send()
        assert isinstance(result.error, OAuthUnavailable)
        assert "no connection" in str(result.error)
        (again,) = send()
        assert isinstance(again.error, OAuthUnavailable)
    assert reasons == []
    assert stored(credential).needs_attention == ""


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("500 Oops", b"<html>", "status 500"),
        ("200 OK", b"<html>", "no access token"),
        ("200 OK", b"[]", "no access token"),
        ("200 OK", b'"access_token"', "no access token"),
        ("200 OK", b'{"access_token": "abc", "token_type": null}', "no access token"),
        ("200 OK", b'{"access_token": 1, "token_type": "bearer"}', "no access token"),
        ("200 OK", b'{"token_type": "bearer"}', "no access token"),
        ("200 OK", b'{"access_token": "a\\u0001b", "token_type": "bearer"}', "no access token"),
        ("200 OK", b'{"access_token": "abc", "token_type": "mac"}', "no access token"),
        ("302 Found", b"", "no access token"),
        ("503 Busy", b'{"error": "temporarily_unavailable"}', "status 503"),
        ("400 Bad", b'{"error": "temporarily_unavailable"}', "temporarily_unavailable"),
    ],
)
def test_answers_that_are_none(connect, provider, status, body, expected):
    credential = connect()
    provider.answers = lambda: (status, body)
    (result,) = send()
    assert isinstance(result.error, OAuthUnavailable)
    assert expected in str(result.error)
    asked = len(provider.requests)
    assert isinstance(send()[0].error, OAuthUnavailable)
    assert len(provider.requests) == asked  # so soon
    provider.answers = None
    Credential.objects.update(token_lease_until=None)  # the pause is over
    tokens._away.clear()
    assert send()[0].status == "sent"
    assert credential.pk


def test_many_accounts_do_not_wait_for_the_same_provider_in_turn(connect, host, provider):
    for name in ("bob", "mary", "sue"):
        connect(f"{name}@example.com")
    provider.answers = lambda: ("503 Busy", b"")
    mails = [message(tenant=name) for name in ("bob", "mary", "sue")]
    results = delivery.deliver(mails, Router().resolve)
    assert [type(result.error).__name__ for result in results] == ["ProviderAway"] * 3
    assert len(provider.requests) == 1


def test_trouble_of_one_account_is_not_anothers(connect, host, provider):
    connect()
    provider.revoke(provider.grants[0])
    connect("mary@example.com")
    mails = [message(), message(tenant="mary")]
    first, second = delivery.deliver(mails, Router().resolve)
    assert isinstance(first.error, CredentialNeedsAttention)
    assert second.status == "sent"


def test_a_token_in_its_last_minute_is_used_while_the_provider_is_away(connect, provider):
    connect()
    send()
    Credential.objects.update(
        access_token_set_at=timezone.now() - timedelta(hours=1),
        access_token_expires_at=timezone.now() + timedelta(seconds=50),
    )
    provider.answers = lambda: ("500 Oops", b"")
    assert send()[0].status == "sent"
    assert len(provider.requests) == 2


def test_wrong_client_secret_is_said_and_tried_again_once_it_is_put_right(
    connect, provider, client
):
    connect()
    client.client_secret = "wrong"
    client.save()
    (result,) = send()
    assert type(result.error) is OAuthError
    assert "invalid_client" in str(result.error)
    assert isinstance(send()[0].error, OAuthUnavailable)  # not asked again so soon
    assert len(provider.requests) == 1
    client.client_secret = CLIENT_SECRET
    client.save()
    assert send()[0].status == "sent"


@pytest.mark.parametrize("url", ["http://login.example.com/token", "ftp://127.0.0.1/", ""])
def test_tokens_come_over_https_only(connect, client, url):
    credential = connect()
    OAuthClient.objects.filter(pk=client.pk).update(token_url=url)
    row = stored(credential)
    row.oauth_client.client_secret = CLIENT_SECRET
    row.oauth_client.save()
    row.refresh_token = "refresh"
    row.save()
    (result,) = send()
    assert type(result.error) is OAuthError
    assert "address" in str(result.error)


def test_a_redirected_client_is_told_no_secret(connect, provider, client):
    """By SQL, say: another token URL gets neither the client secret nor a refresh token."""
    connect()
    with OAuthServer() as other:
        OAuthClient.objects.filter(pk=client.pk).update(token_url=f"{other.url}/token")
        (result,) = send()
        assert isinstance(result.error, SecretError)
        assert other.requests == []


def test_not_connected_yet(connect, provider):
    credential = connect(refresh_token="")
    (result,) = send()
    assert isinstance(result.error, CredentialNeedsAttention)
    assert "not connected" in attention(stored(credential))
    assert provider.requests == []


def test_missing_library(connect, monkeypatch):
    connect()
    monkeypatch.setitem(sys.modules, "authlib.integrations.requests_client", None)
    (result,) = send()
    assert "pip install mailpool[oauth2]" in str(result.error)


# Once, however many need it


def test_twenty_threads_and_two_processes_cause_one_refresh(connect, host, provider, tmp_path):
    if connection.vendor == "sqlite":
        name = connection.settings_dict["NAME"]
        url = f"sqlite:///{name}"
    else:
        config = connection.settings_dict
        scheme = {"postgresql": "postgres"}.get(connection.vendor, "mysql")
        login = f"{quote(config['USER'])}:{quote(config['PASSWORD'])}@" if config["USER"] else ""
        place = f"{config['HOST']}:{config['PORT']}".rstrip(":")
        url = f"{scheme}://{login}{place}/{config['NAME']}"
    credential = connect()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.oauth_children", str(credential.pk)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DATABASE_URL": url},
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    everybody = threading.Barrier(21)
    found, errors = [], []

    def work():
        try:
            row = stored(credential)
            everybody.wait(30)
            found.append(str(tokens.access_token(row)))
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    everybody.wait(30)
    for thread in threads:
        thread.join(60)
    for child in children:
        out, _ = child.communicate(timeout=60)
        found += out.split()
    assert errors == []
    assert len(found) == 20 + 2 * 5
    assert set(found) == {provider.grants[0].access_tokens[0]}
    assert provider.refreshes == 1


def test_whoever_read_the_row_too_early_gets_no_lease(connect, provider):
    """It had been read before somebody else took the lease, got a token and was done."""
    early = stored(connect())
    send()
    assert stored(early).token_lease == early.token_lease == ""
    assert not tokens._take_lease(early)


def test_whoever_dies_in_the_middle_holds_nobody_up_for_good(connect, provider):
    credential = connect()
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.update(token_lease="somebody", token_lease_until=past)
    assert send()[0].status == "sent"
    assert stored(credential).token_lease == ""


def test_waiting_for_somebody_else_has_an_end(connect, provider, monkeypatch):
    connect()
    later = timezone.now() + timedelta(seconds=50)
    Credential.objects.update(token_lease="somebody", token_lease_until=later)
    (result,) = send(deadline=0.2)
    assert isinstance(result.error, OAuthUnavailable)
    assert "Another process" in str(result.error)
    monkeypatch.setattr(tokens, "WAIT", 0.2)
    (result,) = send()
    assert "Another process" in str(result.error)
    assert provider.requests == []


def test_an_account_connected_anew_meanwhile_keeps_its_new_grant(connect, provider):
    credential = connect()
    fresh = provider.grant(BOB)

    def reconnect():
        provider.before_answer = lambda: None
        row = stored(credential)
        row.refresh_token = fresh.refresh_token
        row.save()
        connection.close()

    provider.before_answer = reconnect
    assert send()[0].status == "sent"
    row = stored(credential)
    assert row.refresh_token == fresh.refresh_token
    assert row.access_token == fresh.access_tokens[-1]


def test_a_server_that_moves_meanwhile_takes_the_new_tokens_along(connect, provider):
    credential = connect()
    server = credential.server

    def move():
        provider.before_answer = lambda: None
        relocate(server, host="127.0.0.1", port=server.port, security=server.security)
        connection.close()

    provider.before_answer = move
    assert send()[0].status in {"sent", "failed"}
    row = stored(credential)
    assert row.server.host == "127.0.0.1"
    assert row.refresh_token == provider.grants[0].refresh_token
    assert row.access_token == provider.grants[0].access_tokens[0]


def test_a_transaction_that_is_rolled_back_loses_no_refresh_token(connect, provider):
    credential = connect()
    if connection.vendor == "sqlite":
        pytest.skip("there is one writer at a time")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        type(credential.tenant).objects.update(name="changed")
        assert send()[0].status == "sent"
        1 / 0  # noqa: B018
    assert stored(credential).refresh_token == provider.grants[0].refresh_token
    assert send()[0].status == "sent"
    assert provider.refreshes == 1


def test_on_sqlite_a_transaction_that_writes_is_an_error_before_the_provider_is_asked(
    connect, provider, monkeypatch
):
    if connection.vendor != "sqlite":
        pytest.skip("others write at the same time")
    credential = connect()
    monkeypatch.setattr(tokens, "WAIT", 0.5)
    with transaction.atomic():
        (result,) = send()
        assert isinstance(result.error, OAuthUnavailable)
        assert "on_commit" in str(result.error)
    threads = [each for each in threading.enumerate() if each.name == "mailpool-oauth"]
    for thread in threads:  # it goes on once the transaction is over
        thread.join(40)
    assert stored(credential).refresh_token == provider.grants[0].refresh_token
    assert send()[0].status == "sent"


def test_a_credential_made_in_the_same_transaction(connect, provider):
    with transaction.atomic():
        connect()
        assert send()[0].status == "sent"


# The model


def test_a_stale_instance_puts_nothing_back(connect, provider):
    credential = connect()
    stale = stored(credential)
    send()
    before = stored(credential)
    stale.priority = 3
    stale.save()
    row = stored(credential)
    assert row.priority == 3
    for name in ("refresh_token", "access_token", "access_token_expires_at", "grant"):
        assert getattr(row, name) == getattr(before, name)
    assert send()[0].status == "sent"
    assert provider.refreshes == 1


def test_secrets_are_bound(connect, provider):
    credential = connect()
    send()
    row = stored(credential)
    row.server.host = "evil.example.com"
    for name in ("refresh_token", "access_token"):
        with pytest.raises(SecretError):
            getattr(row, name)
    row = stored(credential)
    row.oauth_client.token_url = "https://evil.example.com"
    with pytest.raises(SecretError):
        row.refresh_token  # noqa: B018
    with pytest.raises(SecretError):
        row.oauth_client.client_secret  # noqa: B018


def test_relocation_takes_the_tokens_along(connect, provider):
    credential = connect()
    send()
    result = relocate(credential.server, host="127.0.0.1", port=2525, security="starttls")
    assert (result.moved, result.left) == (2, [])
    assert stored(credential).refresh_token == provider.grants[0].refresh_token


def test_scrub_leaves_no_token(connect, provider):
    credential = connect()
    send()
    remains = scrub.find()
    assert remains.secrets["mailpool.Credential.refresh_token"] == 1
    assert remains.secrets["mailpool.OAuthClient.client_secret"] == 1
    assert not scrub.scrub()
    row = stored(credential)
    assert row.access_token == row.refresh_token == row.oauth_client.client_secret == ""
    assert row.connected_at is None


def test_key_rotation_meets_every_secret(connect, provider, settings):
    from mailpool.rotation import rotate

    credential = connect()
    send()
    old = settings.MAILPOOL["ENCRYPTION_KEYS"]
    new = "YW5vdGhlciB0ZXN0IGtleSwgbm90IGEgc2VjcmV0ISE="
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [new, *old]}
    assert rotate().rewritten == 3
    assert stored(credential).refresh_token == provider.grants[0].refresh_token
    assert send()[0].status == "sent"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"oauth_client": None}, "oauth_client"),
        ({"username": ""}, "username"),
        ({"password": "secret"}, "__all__"),
    ],
)
def test_what_an_oauth_login_needs(connect, change, field):
    credential = connect()
    for name, value in change.items():
        setattr(credential, name, value)
    with pytest.raises(ValidationError) as caught:
        credential.full_clean()
    assert field in caught.value.message_dict


def test_no_oauth_login_without_a_client_gets_past_the_database(connect):
    credential = connect()
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.filter(pk=credential.pk).update(oauth_client=None)


def test_presets_fill_in_what_is_left_empty(db):
    client = OAuthClient(name="Google", provider="google", client_id="id")
    client.full_clean()
    assert client.token_url == "https://oauth2.googleapis.com/token"
    assert client.scopes == "https://mail.google.com/"
    client = OAuthClient(name="App", provider="microsoft_app", client_id="id")
    with pytest.raises(ValidationError, match="token URL"):
        client.full_clean()


def test_nothing_of_it_shows_in_dumpdata(connect, provider, capsys):
    credential = connect()
    send()
    call_command("dumpdata", "mailpool")
    out = capsys.readouterr().out
    row = stored(credential)
    for secret in (row.refresh_token, row.access_token, CLIENT_SECRET):
        assert secret not in out


def test_captured_mail_asks_no_provider(connect, provider):
    connect()
    connect("mary@example.com", refresh_token="")
    with testing.capture() as outbox:
        message().send()
        with pytest.raises(CredentialNeedsAttention):
            message(tenant="mary").send()
    assert [captured.username for captured in outbox] == [BOB]
    assert provider.requests == []


def test_captures_that_overlap_leave_nothing_behind():
    real = tokens.access_token
    first, second = testing.capture(), testing.capture()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert tokens.access_token is not real
    second.__exit__(None, None, None)
    assert tokens.access_token is real


# Verification


def test_no_secret_in_tracebacks_with_their_variables(connect, host, provider, client):
    """As error pages and error trackers show them."""
    credential = connect()
    send()
    secrets = [CLIENT_SECRET, *provider.grants[0].access_tokens, provider.grants[0].refresh_token]
    secrets.append(quote(CLIENT_SECRET))

    def shown(error):
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        return "".join(trace.format())

    age(credential)
    host.drop_connections()
    host.provider = OAuthServer()
    errors = [send()[0].error]  # refused by the mail server
    secrets += provider.grants[0].access_tokens
    secrets.append(provider.grants[0].refresh_token)
    for answer in (("500 Oops", b""), ("200 OK", b"[]"), ("400 Bad", b'{"error": "x"}')):
        let_expire(credential)
        Credential.objects.update(token_lease_until=None)
        tokens._away.clear()
        provider.answers = lambda answer=answer: answer
        errors.append(send()[0].error)
    provider.answers = None
    Credential.objects.update(token_lease_until=None)
    provider.revoke(provider.grants[0])
    errors.append(send()[0].error)
    assert len({type(error) for error in errors}) == 5
    for error in errors:
        for secret in secrets:
            assert secret not in shown(error)


def test_verification_gets_a_token(connect, host):
    report = verify_credential(connect())
    assert report.ok
    assert report.steps[0].title == "Get an access token"
    assert "OAUTHBEARER" in next(step.detail for step in report.steps if step.key == "auth")


def test_verification_goes_on_with_a_new_token_as_mail_does(connect, provider):
    credential = connect()
    send()
    age(credential)
    provider.expire_access_tokens()
    assert verify_credential(stored(credential)).ok
    assert provider.refreshes == 2


def test_verification_of_a_revoked_grant(connect, provider):
    credential = connect()
    provider.revoke(provider.grants[0])
    report = verify_credential(credential)
    assert report.failure.key == "token"
    assert "connect the account" in report.failure.advice


def test_ciphertexts_are_what_is_compared(connect):
    credential = connect()
    assert Credential.objects.filter(access_token=Sealed("")).get() == credential


def test_the_audit_has_a_withdrawn_permission_and_no_renewed_token(connect, provider):
    credential = connect()
    made = AuditEntry.objects.count()
    assert send()[0].status == "sent"
    let_expire(credential)
    assert send()[0].status == "sent"
    assert provider.refreshes == 2
    assert AuditEntry.objects.count() == made
    provider.revoke(provider.grants[0])
    let_expire(credential)
    send()
    entry = AuditEntry.objects.first()
    assert (entry.action, entry.details) == (
        "changed",
        "OAuth 2 permission withdrawn by the provider",
    )


def test_tenants_revoke_a_permission_and_do_not_redirect_it(connect, provider):
    credential = connect()
    with pytest.raises(ValueError, match="OAuth 2"):
        TenantCredentialForm(instance=credential, tenant=credential.tenant)
    assert selfservice.state(credential) == "active"
    assert send()[0].status == "sent"
    selfservice.revoke(credential)
    row = stored(credential)
    assert (row.is_active, row.is_connected, bool(row.access_token)) == (False, False, False)
    assert selfservice.state(row) == "revoked"
