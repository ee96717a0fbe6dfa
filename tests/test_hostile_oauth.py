"""OAuth 2 with everybody against it: the provider, who can write the database, and some staff."""

from __future__ import annotations

import base64
import gzip
import html
import json
import pprint
import traceback
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection
from django.db.models.signals import pre_save
from django.test import Client
from django.urls import reverse

from mailpool import delivery
from mailpool.admin.credentials import attention
from mailpool.exceptions import (
    CredentialNeedsAttention,
    OAuthError,
    OAuthUnavailable,
    SecretError,
)
from mailpool.models import Credential, MailServer, OAuthClient
from mailpool.oauth import provider as oauth_provider
from mailpool.oauth import tokens, transport
from mailpool.oauth.words import quotable
from mailpool.relocation import relocate
from mailpool.secret import Secret
from mailpool.verification import verify_credential
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer
from tests.test_oauth import (  # noqa: F401
    BOB,
    _nobody_is_away,
    client,
    connect,
    host,
    let_expire,
    provider,
    send,
    stored,
)
from tests.test_oauth_admin import allow, come_back, connect_page, credential_form, errors, go
from tests.test_service_accounts import (  # noqa: F401
    BOSS,
    client_of,
    delegate,
    invalidity,
    key,
    key_file,
    pem,
    sql,
)

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = ("authorization_code", "client_credentials", "service_account")


@pytest.fixture
def log_in(connect, delegate):  # noqa: F811
    """Make a credential of any kind: ``log_in("service_account")``."""

    def log_in(kind):
        return delegate() if kind == "service_account" else connect(kind=kind)

    return log_in


def everything(error):
    """What error pages and error trackers may show of *error*: its words, and the variables of its
    frames and of those that it followed from."""
    shown, left = [], [error]
    while left:
        each = left.pop()
        shown += [str(each), repr(each), repr(each.args)]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                shown += [pprint.pformat(value) for value in list(frame.f_locals.values())]
        left += [other for other in (each.__cause__, each.__context__) if other]
    return "\n".join(shown)


def told(provider):  # noqa: F811
    """The secrets that *provider* was told, as they are and as they were sent."""
    names = {"client_secret", "refresh_token", "assertion", "code", "code_verifier"}
    secrets = {form[name] for form in provider.requests for name in names & form.keys()}
    assert secrets
    return secrets | {quote(secret, safe="") for secret in secrets}


def assert_silent(error, secrets):
    text = everything(error)
    for secret in secrets:
        assert secret not in text


# The address is changed while a token is got

REDIRECTED = {
    "host": "UPDATE mailpool_mailserver SET host = '127.0.0.1'",
    "port": "UPDATE mailpool_mailserver SET port = port + 1",
    "tenant": "UPDATE mailpool_credential SET tenant_id = NULL, scope = ''",
    "client ID": "UPDATE mailpool_oauthclient SET client_id = 'other'",
}
BACK = {
    "host": "UPDATE mailpool_mailserver SET host = 'localhost'",
    "port": "UPDATE mailpool_mailserver SET port = port - 1",
}


def at_the_provider(provider, work):  # noqa: F811
    """Do *work* while it is asked, once."""

    def during():
        provider.before_answer = lambda: None
        try:
            work()
        finally:
            connection.close()

    provider.before_answer = during


@pytest.mark.parametrize(
    ("what", "kind"),
    [*((what, KINDS[0]) for what in REDIRECTED), *(("host", kind) for kind in KINDS[1:])],
)
def test_a_token_that_comes_after_a_change_by_sql_is_good_for_nothing_new(
    log_in,
    host,  # noqa: F811
    provider,  # noqa: F811
    kind,
    what,
):
    credential = log_in(kind)
    at_the_provider(provider, lambda: sql(REDIRECTED[what]))
    (result,) = send()
    assert isinstance(result.error, SecretError)
    assert "Change it back" in str(result.error)
    row = stored(credential)
    for name in ("access_token", "refresh_token"):
        with pytest.raises(SecretError):
            getattr(row, name)
    with pytest.raises(SecretError):
        delivery.session_params(row)
    assert len(provider.requests) == 1
    assert host.connections == 0
    if what in BACK:  # and nothing was lost
        sql(BACK[what])
        assert send()[0].status == "sent"
        assert len(provider.requests) == 1
        if kind == "authorization_code":
            assert stored(credential).refresh_token == provider.grants[0].refresh_token


@pytest.mark.parametrize("kind", ["client_credentials", "service_account"])
def test_a_token_of_the_application_is_for_the_mailbox_that_it_was_got_for(
    log_in,
    host,  # noqa: F811
    provider,  # noqa: F811
    kind,
):
    log_in(kind)
    at_the_provider(provider, lambda: sql("UPDATE mailpool_credential SET username = %s", BOSS))
    assert isinstance(send()[0].error, SecretError)
    assert isinstance(send()[0].error, SecretError)
    assert host.connections == 0


def test_a_server_that_moves_at_the_last_moment_takes_the_tokens_along(
    connect,  # noqa: F811
    provider,  # noqa: F811
    monkeypatch,
):
    """Between the look at its address and the storing of what was sealed for that."""
    credential = connect()
    seal, server = tokens._seal, credential.server

    def late(*args):
        monkeypatch.setattr(tokens, "_seal", seal)
        relocate(server, host="127.0.0.1", port=server.port, security=server.security)
        return seal(*args)

    monkeypatch.setattr(tokens, "_seal", late)
    send()
    row = stored(credential)
    assert row.server.host == "127.0.0.1"
    assert row.refresh_token == provider.grants[0].refresh_token
    assert row.access_token == provider.grants[0].access_tokens[0]


# What a provider may answer


def good(**changes):
    answer = {"access_token": "abc", "token_type": "bearer", "expires_in": 3600, **changes}
    return "200 OK", json.dumps(answer).encode()


def bad(error, description=None):
    return "400 Bad", json.dumps({"error": error, "error_description": description}).encode()


ANSWERS = {
    "nested": ("200 OK", b"[" * 100_000),
    "nested objects": ("200 OK", b'{"a":' * 40_000),
    "nested refusal": ("400 Bad", b'{"error": ' + b"[" * 100_000),
    "list as error": bad(["invalid_grant"]),
    "object as error": bad({"code": "invalid_grant"}),
    "number as error": bad(5),
    "object as description": bad("invalid_request", {"a": [1]}),
    "nested description": (
        "400 Bad",
        b'{"error": "x", "error_description": ' + b"[" * 900 + b"]" * 900 + b"}",
    ),
    "surrogates as error": bad("\ud800", "\udfff"),
    "infinite": good(expires_in=float("inf")),
    "no number": good(expires_in=float("nan")),
    "negative": good(expires_in=-5),
    "negative infinity": good(expires_in=float("-inf")),
    "too large for a float": good(expires_in=10**400),
    "words as lifetime": good(expires_in="soon"),
    "infinity as text": good(expires_in="Infinity"),
    "list as lifetime": good(expires_in=[1]),
    "list as expiry": good(expires_at=[1]),
    "surrogates as token": good(access_token="a\ud800"),
    "object as token": good(access_token={"a": 1}),
    "object as refresh token": good(refresh_token={"token": "abc"}),
    "list as refresh token": good(refresh_token=["abc"]),
    "number as refresh token": good(refresh_token=5),
    "surrogates as refresh token": good(refresh_token="a\ud800"),
    "line breaks in a refresh token": good(refresh_token="a\nb"),
    "no text at all": ("200 OK", b"\xff\xfe\x00\xd8"),
    "many digits": ("200 OK", b'{"expires_in": ' + b"9" * 10_000 + b"}"),
}


def try_again():
    """The pause after a failure is over, and what a provider said of an account is forgotten."""
    tokens._away.clear()
    Credential.objects.update(token_lease_until=None, needs_attention="")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_provider_answers_is_an_error_in_plain_words(log_in, provider, kind):  # noqa: F811
    credential = log_in(kind)
    before = credential.refresh_token
    # All of them are read in the same place; signing for each takes its time.
    answers = dict(list(ANSWERS.items())[:: 1 if kind == "authorization_code" else 6])
    for name, answer in answers.items():
        provider.answers = lambda answer=answer: answer
        error = send()[0].error
        assert isinstance(error, OAuthError), name
        assert "gives no" in str(error), name
        assert "[" not in str(error), name
        assert str(error).isprintable(), name
        assert_silent(error, told(provider))
        row = stored(credential)
        assert (row.refresh_token, row.access_token, row.token_lease) == (before, "", ""), name
        try_again()
    assert len(provider.requests) == len(answers)


def test_lifetimes_that_are_odd_and_good(connect, provider):  # noqa: F811
    credential = connect()
    for seconds in ("3600", 1e300, 3600.5, 10**20):
        provider.answers = lambda seconds=seconds: good(expires_in=seconds)
        assert tokens.access_token(stored(credential)) == "abc"
        let_expire(credential)


def test_an_answer_is_so_long_and_no_longer(connect, provider):  # noqa: F811
    credential = connect()
    status, body = good()
    provider.answers = lambda: (status, body.ljust(transport.LONGEST + 1))
    (result,) = send()
    assert isinstance(result.error, OAuthUnavailable)
    assert "too long" in str(result.error)
    assert_silent(result.error, told(provider))
    Credential.objects.update(token_lease_until=None)
    provider.answers = lambda: (status, body.ljust(transport.LONGEST))
    assert tokens.access_token(stored(credential)) == "abc"


def test_an_answer_that_takes_too_long_is_given_up(connect, provider, monkeypatch):  # noqa: F811
    connect()
    monkeypatch.setattr(transport, "SECONDS", -1)
    (result,) = send()
    assert isinstance(result.error, OAuthUnavailable)
    assert "in time" in str(result.error)


def test_compression_is_not_asked_for_and_not_undone(connect, provider):  # noqa: F811
    connect()
    status, body = good()
    provider.answers = lambda: (status, gzip.compress(body))
    for encoding in ("gzip", "br", "x-unknown", "identity, gzip"):
        provider.headers = [("Content-Encoding", encoding)]
        error = send()[0].error
        assert isinstance(error, OAuthUnavailable), encoding
        assert "compressed" in str(error), encoding
        try_again()
    assert set(provider.accepted_encodings) == {"identity"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_redirect_is_followed(log_in, provider, kind):  # noqa: F811
    log_in(kind)
    with OAuthServer() as other:
        provider.redirects_to = f"{other.url}/token"
        for status in ("301 Moved", "302 Found", "303 Other", "307 Again", "308 Moved"):
            provider.redirect_status = status
            error = send()[0].error
            assert isinstance(error, OAuthUnavailable), status
            assert_silent(error, told(provider))
            try_again()
        assert other.requests == []
    assert len(provider.requests) == 5


def test_a_redirect_to_nowhere_is_an_error_in_plain_words(connect, provider):  # noqa: F811
    connect()
    provider.redirects_to = "http://[::1"
    (result,) = send()
    assert isinstance(result.error, OAuthUnavailable)
    assert_silent(result.error, told(provider))


def test_a_key_that_can_not_be_used_takes_no_frames_along(delegate, client_of):  # noqa: F811
    """Nor the exceptions of the libraries that try to read it, of which each has its own."""
    delegate()
    for secret in (
        "[" * 100_000 + "a-key-of-somebody",
        pem(ec.generate_private_key(ec.SECP256R1())),
    ):
        client_of.private_key = secret
        client_of.save()
        error = send()[0].error
        assert "Paste it again" in str(error)
        assert_silent(error, [secret.split("\n")[1][:40] if "\n" in secret else "of-somebody"])
        try_again()


# Secrets that a provider repeats


def some_quoted(secret):
    """As a sloppy provider may do it: by hand, in lower case, and some more than has to be."""
    return "".join(
        f"%{ord(c):02x}" if n % 3 == 0 else quote(c, safe="") for n, c in enumerate(secret)
    )


SPELLINGS = {
    "plain": str,
    "quoted": lambda secret: quote(secret, safe=""),
    "quoted with plus": quote_plus,
    "quoted in lower case": lambda secret: quote(secret, safe="").replace("%2B", "%2b"),
    "quoted in part": some_quoted,
    "quoted twice": lambda secret: quote(quote(secret, safe="")),
    "plus as blank": lambda secret: secret.replace("+", " "),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode().strip("="),
    "base64 with a name": lambda secret: base64.b64encode(f"client:{secret}".encode()).decode(),
    "base64 in a word": lambda secret: "x" + base64.b64encode(secret.encode()).decode(),
    "base64 in lines": lambda secret: base64.encodebytes(secret.encode() * 9).decode(),
    "base64, quoted": lambda secret: quote(base64.b64encode(secret.encode()).decode(), safe=""),
    "JSON": lambda secret: json.dumps(secret).replace("+", "\\u002b").replace("/", "\\/"),
    "JSON, all of it": lambda secret: "".join(f"\\u{ord(c):04X}" for c in secret),
    "HTML": lambda secret: html.escape(secret).replace("+", "&#43;").replace("/", "&#x2F;"),
    "upper case": str.upper,
    "in pieces": lambda secret: " ".join(secret),
    "with line breaks": "\r\n".join,
    "the first half": lambda secret: secret[: max(12, len(secret) // 2)] + "…",
}


def gives_away(text, secret):
    """Whether *text* has a part of *secret* that could be of use."""
    return any(secret[n : n + 10] in text for n in range(len(secret) - 9))


@pytest.mark.django_db
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_secret_is_shown(spelling):
    for secret in (CLIENT_SECRET, "refresh-T0k+en/" + "aB3_-" * 8, "T0/ab?cd>ef~" * 30):
        spelled = SPELLINGS[spelling](secret)
        shown = quotable(f"invalid_grant: see {spelled}, and so on", ["", "other", secret])
        assert not gives_away(shown, secret)
        assert not gives_away(shown, spelled)
        assert "hidden" in shown or "not shown" in shown


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_provider_repeats_is_not_shown(log_in, provider, kind):  # noqa: F811
    log_in(kind)
    names = ("client_secret", "refresh_token", "assertion")
    for spell in (SPELLINGS["plain"], SPELLINGS["base64"]):
        for where in ("error", "error_description"):

            def parrot(spell=spell, where=where):
                form = provider.requests[-1]
                said = " ".join(spell(form[name]) for name in names if name in form)
                return bad(said) if where == "error" else bad("invalid_grant", said)

            provider.answers = parrot
            error = send()[0].error
            # What its own word means is known all the same.
            withdrawn = where != "error"
            assert isinstance(error, CredentialNeedsAttention) == withdrawn
            for secret in told(provider):
                assert not gives_away(str(error), secret)
                assert not gives_away(str(error), spell(secret))
            assert_silent(error, told(provider))
            try_again()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "said",
    [
        "AADSTS7000215: Invalid client secret provided. Trace ID: 0f4c-11 Timestamp: 2026-01-02",
        "Token has been expired or revoked.",
        "Bad Request: dGhpcyBpcyBqdXN0IGEgdHJhY2UgaWQ=",
    ],
)
def test_other_words_are_shown(said):
    assert quotable(said, [CLIENT_SECRET, "refresh-" + "x" * 40]) == said


HOSTILE = "\x1b[31mred\x1b]0;title\x07\r\nnext\x00\u202eevil\u2066\u200b\u2028\ud800\x9b\N{BOM}"


def test_no_control_character_gets_to_a_terminal_or_a_page(connect, provider, admin_client, capsys):  # noqa: F811
    credential = connect()
    provider.answers = lambda: bad("invalid_grant", f"so it is {HOSTILE} end")
    (result,) = send()
    assert "so it is" in str(result.error)
    with pytest.raises(SystemExit):
        call_command("mailpool_check")
    page = admin_client.get(f"/admin/mailpool/credential/{credential.pk}/change/").content.decode()
    texts = [str(result.error), stored(credential).needs_attention, capsys.readouterr().out, page]
    for text in texts:
        assert "so it is" in text
        for character in set(HOSTILE) - set("\r\n") - {c for c in HOSTILE if c.isprintable()}:
            assert character not in text
    assert all(text.isprintable() for text in texts[:2])


# “Connect account”


@pytest.fixture
def account(provider):  # noqa: F811
    client = OAuthClient.objects.create(  # noqa: F811
        name="Provider",
        authorization_url=f"{provider.url}/authorize",
        token_url=f"{provider.url}/token",
        scopes="mail",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    return CredentialFactory(
        username=BOB, kind="authorization_code", oauth_client=client, password=""
    )


def other_tenant():
    mary = TenantFactory(slug="mary")
    row = Credential.objects.get()
    row.tenant = mary
    row.save()


def other_client():
    old = OAuthClient.objects.get()
    new = OAuthClient.objects.create(
        name="New",
        authorization_url=old.authorization_url,
        token_url=old.token_url,
        client_id="another",
        client_secret="other-secret",
    )
    Credential.objects.update(oauth_client=new)


def other_server():
    Credential.objects.update(server=MailServerFactory(host="evil.example.com"))


def given_meanwhile():
    """In another tab, or by somebody else."""
    row = Credential.objects.get()
    row.refresh_token = "given-meanwhile"
    row.save()


CHANGES = {
    "tenant": other_tenant,
    "host": lambda: MailServer.objects.update(host="evil.example.com"),
    "port": lambda: MailServer.objects.update(port=2525),
    "security": lambda: MailServer.objects.update(security="tls"),
    "server": other_server,
    "client": other_client,
    "token URL": lambda: OAuthClient.objects.update(token_url="https://evil.example.com/token"),
    "client ID": lambda: OAuthClient.objects.update(client_id="other"),
    "mailbox": lambda: Credential.objects.update(username=BOSS),
    "permission": given_meanwhile,
}


@pytest.mark.django_db
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_after_the_beginning_is_begun_again(admin_client, account, provider, what):  # noqa: F811
    back = allow(go(admin_client, account))
    CHANGES[what]()
    before = Credential.objects.get().refresh_token_ciphertext
    assert "Begin again" in come_back(admin_client, back)
    assert Credential.objects.get().refresh_token_ciphertext == before
    assert provider.requests == []


@pytest.mark.parametrize("what", ["tenant", "host", "client", "permission"])
def test_what_is_changed_while_the_code_is_exchanged(admin_client, account, provider, what):  # noqa: F811
    back = allow(go(admin_client, account))
    at_the_provider(provider, CHANGES[what])
    assert "Begin again" in come_back(admin_client, back)
    row = Credential.objects.select_related("server", "oauth_client").get()
    if what == "permission":
        assert row.refresh_token == "given-meanwhile"
    else:
        assert not row.is_connected
    assert not row.access_token_ciphertext


@pytest.mark.django_db
def test_a_code_is_not_taken_to_where_a_provider_redirects(admin_client, account, provider):  # noqa: F811
    back = allow(go(admin_client, account))
    with OAuthServer() as other:
        provider.redirects_to = f"{other.url}/token"
        assert "gives no access token" in come_back(admin_client, back)
        assert other.requests == []


@pytest.mark.django_db
def test_an_authorization_url_that_can_not_be_made(admin_client, account, monkeypatch):
    """Its state and verifier are in clear text in the frames of the library."""
    from authlib.integrations.requests_client import OAuth2Session

    def fail(self, url, **kwargs):
        raise ValueError(f"no URL of {kwargs}")

    monkeypatch.setattr(OAuth2Session, "create_authorization_url", fail)
    page = admin_client.post(connect_page(account)).content.decode()
    assert "authorization URL of Provider can" in page
    with pytest.raises(OAuthError) as caught:
        oauth_provider.authorization_url(
            account.oauth_client,
            redirect_uri="http://testserver/",
            state=Secret("the-state-of-it"),
            verifier=Secret("the-verifier-of-it"),
            username=BOB,
        )
    assert_silent(caught.value, ["the-state-of-it", "the-verifier-of-it"])


@pytest.mark.django_db
def test_what_the_provider_says_in_the_url_is_printable(admin_client, account, provider):  # noqa: F811
    state = parse_qs(urlsplit(go(admin_client, account)).query)["state"][0]
    said = HOSTILE.replace("\ud800", "")
    path = reverse("admin:mailpool_credential_connected")
    back = f"{path}?state={state}&error=odd&error_description={quote('so it is ' + said)}"
    page = come_back(admin_client, back)
    assert "so it is" in page
    for character in set(said) - set("\r\n") - {c for c in said if c.isprintable()}:
        assert character not in page


@pytest.mark.django_db
def test_the_session_has_neither_state_nor_verifier(admin_client, account, provider):  # noqa: F811
    url = go(admin_client, account)
    kept = json.dumps(dict(admin_client.session))
    back = allow(url)
    come_back(admin_client, back)
    (form,) = provider.requests
    assert form["code_verifier"] not in kept
    assert parse_qs(urlsplit(url).query)["state"][0] not in kept
    assert "mailpool_oauth" in kept


@pytest.fixture
def debug(settings, admin_user):
    """A browser that gets debug pages."""
    settings.DEBUG = True
    browser = Client(raise_request_exception=False)
    browser.force_login(admin_user)
    return browser


@pytest.mark.django_db
def test_debug_page_of_the_beginning(debug, account, monkeypatch):
    seen = []

    def fail(client, **kwargs):  # noqa: F811
        seen.extend(kwargs[name] for name in ("state", "verifier"))
        raise RuntimeError("something went wrong")

    monkeypatch.setattr(oauth_provider, "authorization_url", fail)
    response = debug.post(connect_page(account))
    assert response.status_code == 500
    page = response.content.decode()
    assert "something went wrong" in page
    assert len(seen) == 2
    for secret in seen:
        assert secret not in page


@pytest.mark.django_db
@pytest.mark.parametrize("moment", ["asking", "storing"])
def test_debug_page_of_the_way_back(debug, account, provider, monkeypatch, moment):  # noqa: F811
    seen = []
    url = go(debug, account)
    back = allow(url)
    query = parse_qs(urlsplit(back).query)
    real = oauth_provider.exchange_code

    def exchange(client, code, **kwargs):  # noqa: F811
        seen.extend([code, kwargs["verifier"]])
        if moment == "asking":
            raise RuntimeError("something went wrong")
        return real(client, code, **kwargs)

    def fail(**kwargs):
        raise RuntimeError("something went wrong")

    monkeypatch.setattr(oauth_provider, "exchange_code", exchange)
    if moment == "storing":
        pre_save.connect(fail, sender=Credential)
    try:
        response = debug.get(back, headers={"X-Original-URI": back}, RAW_URI=back)
    finally:
        pre_save.disconnect(fail, sender=Credential)
    assert response.status_code == 500
    page = response.content.decode()
    assert "something went wrong" in page
    assert query["code"][0] in seen
    seen += query["state"]
    if moment == "storing":
        (grant,) = provider.grants
        seen += [grant.refresh_token, *grant.access_tokens]
    assert len(seen) >= 3
    for secret in seen:
        assert secret not in page


# Staff who may change OAuth clients and credentials, and not where passwords go


ADD = "/admin/mailpool/credential/add/"

STAFF = [
    f"{verb}_{model}"
    for verb in ("view", "add", "change")
    for model in ("oauthclient", "credential", "mailserver")
]


@pytest.fixture
def staff(db):
    user = User.objects.create_user("somebody", is_staff=True)
    for codename in [*STAFF, "verify_credential"]:
        user.user_permissions.add(Permission.objects.get(codename=codename))
    browser = Client()
    browser.force_login(user)
    browser.user = user
    return browser


@pytest.fixture
def evil(db, authority):
    """A server of theirs, which they entered themselves."""
    return MailServerFactory(host="127.0.0.1", port=2525, ca_certificate=authority.pem, timeout=5)


def page_of(credential):
    return f"/admin/mailpool/credential/{credential.pk}/change/"


@pytest.mark.parametrize("kind", ["client_credentials", "service_account"])
def test_no_token_of_the_application_goes_to_another_host(
    staff,
    log_in,
    provider,  # noqa: F811
    evil,
    kind,
):
    credential = log_in(kind)
    form = credential_form(credential, oauth_client=str(credential.oauth_client_id))
    # An account that there is, and a new one,
    here = {name: getattr(credential.server, name) for name in ("host", "port", "security")}
    for other in ({}, {"host": "127.0.0.1"}, {"port": 2525}, {"security": "tls"}):
        server = MailServerFactory(**{**here, **other}) if other else evil
        elsewhere = {**form, "server": str(server.pk)}
        assert "addresses of mail servers" in errors(staff.post(page_of(credential), elsewhere))
        new = {**elsewhere, "username": BOSS}
        assert "addresses of mail servers" in errors(staff.post(ADD, new))
    # and one of another kind that is there already.
    own = CredentialFactory(server=evil, username=BOSS)
    turned = credential_form(own, kind=kind, oauth_client=str(credential.oauth_client_id))
    assert "addresses of mail servers" in errors(staff.post(page_of(own), turned))
    assert Credential.objects.filter(kind=kind).get().server == credential.server
    assert provider.requests == []

    # The address itself is not theirs to change,
    server = credential.server
    page = f"/admin/mailpool/mailserver/{server.pk}/change/"
    assert "host" not in staff.get(page).context["adminform"].form.fields
    # and what was changed by SQL is not made good by them.
    sql("UPDATE mailpool_mailserver SET host = '127.0.0.1' WHERE name = %s", server.name)
    assert staff.post(page_of(credential), {**form, "priority": "3"}).status_code == 302
    row = stored(credential)
    assert row.priority == 3
    assert attention(row)
    assert not verify_credential(row).ok
    assert provider.requests == []


@pytest.mark.parametrize("kind", ["client_credentials", "service_account"])
def test_the_next_mailbox_at_the_same_address_needs_no_more(staff, log_in, provider, kind):  # noqa: F811
    credential = log_in(kind)
    form = credential_form(credential, oauth_client=str(credential.oauth_client_id), username=BOSS)
    assert staff.post(ADD, form).status_code == 302
    boss = stored(Credential.objects.get(username=BOSS))
    assert verify_credential(boss).ok
    # What does not open there is no reason to tell more.
    sql("UPDATE mailpool_mailserver SET port = port + 1")
    other = {**form, "username": "third@example.com"}
    assert "addresses of mail servers" in errors(staff.post(ADD, other))


@pytest.mark.parametrize("kind", ["password", "authorization_code"])
def test_another_login_at_the_address_does_not_count(staff, log_in, evil, kind):
    """Anybody connects an account of their own at a server of their own."""
    credential = log_in("client_credentials")
    theirs = CredentialFactory(
        server=evil, kind=kind, oauth_client=credential.oauth_client, refresh_token="theirs"
    )
    form = credential_form(
        theirs, kind="client_credentials", oauth_client=str(credential.oauth_client_id)
    )
    assert "addresses of mail servers" in errors(staff.post(page_of(theirs), form))
    sql("UPDATE mailpool_credential SET kind = 'client_credentials' WHERE kind = %s", kind)
    new = {**form, "username": BOSS}
    assert "addresses of mail servers" in errors(staff.post(ADD, new))


def test_who_may_move_servers_decides_it(staff, log_in, evil, provider):  # noqa: F811
    credential = log_in("client_credentials")
    form = credential_form(
        credential, oauth_client=str(credential.oauth_client_id), server=str(evil.pk)
    )
    staff.user.user_permissions.add(Permission.objects.get(codename="move_mailserver"))
    assert staff.post(page_of(credential), form).status_code == 302
    row = stored(credential)
    assert (row.server, row.is_permitted) == (evil, True)
    # Which is not enough by itself.
    staff.user.user_permissions.remove(Permission.objects.get(codename="change_oauthclient"))
    boss = {**form, "username": BOSS}
    assert "those who may change OAuth clients" in errors(staff.post(page_of(credential), boss))


# A key file


@pytest.mark.django_db
@pytest.mark.parametrize(
    "email",
    ["\ud800@example.com", "a\x00@example.com", "a@b\n", "\x1b[31m@example.com", "a" * 400 + "@b"],
)
def test_a_key_file_with_an_address_that_is_none(db, key, email):  # noqa: F811
    text = key_file(key, "https://oauth2.googleapis.com", client_email=email)
    error = invalidity(OAuthClient(name="Workspace", provider="google_service", private_key=text))
    assert isinstance(error, ValidationError)
    assert "client_email" in str(error)
    assert email not in str(error)
