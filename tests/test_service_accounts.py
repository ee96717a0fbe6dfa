"""Access tokens for what a service account signs (RFC 7523), at a provider that checks it."""

from __future__ import annotations

import json
import traceback

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection, transaction

from mailpool import delivery, scrub, secrecy
from mailpool.admin.credentials import attention
from mailpool.exceptions import (
    CredentialNeedsAttention,
    OAuthError,
    OAuthUnavailable,
    SecretError,
)
from mailpool.models import Credential, MailServer, OAuthClient
from mailpool.oauth import tokens
from mailpool.relocation import relocate
from mailpool.rotation import rotate
from mailpool.verification import verify_credential
from tests.factories import CredentialFactory, TenantFactory
from tests.oauth_server import JWT_BEARER, SERVICE_ACCOUNT, OAuthServer
from tests.test_oauth import (  # noqa: F401
    BOB,
    _nobody_is_away,
    age,
    heard,
    host,
    let_expire,
    provider,
    send,
    stored,
)
from tests.test_oauth_admin import ADD, credential_form, errors, form_of

pytestmark = pytest.mark.django_db(transaction=True)

BOSS = "boss@example.com"


def pem(key, password=None):
    protection = serialization.NoEncryption()
    if password:
        protection = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, protection).decode()


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def other_key():
    return rsa.generate_private_key(65537, 2048)


def key_file(key, url, **changes):
    """As a provider hands it out, with what nobody needs as well."""
    content = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "0123456789abcdef",
        "private_key": pem(key),
        "client_email": SERVICE_ACCOUNT,
        "client_id": "103456789",
        "token_uri": f"{url}/token",
        **changes,
    }
    return json.dumps({name: value for name, value in content.items() if value is not None})


@pytest.fixture
def client_of(provider, key):  # noqa: F811
    provider.keys[SERVICE_ACCOUNT] = key.public_key()
    provider.delegated |= {BOB, BOSS}
    client = OAuthClient(
        name="Workspace",
        provider="google_service",
        token_url=f"{provider.url}/token",
        private_key=key_file(key, provider.url),
    )
    client.full_clean()
    client.save()
    return client


@pytest.fixture
def delegate(client_of, host, make_credential):  # noqa: F811
    """Make a credential that a service account acts for: ``delegate("bob@example.com")``."""

    def delegate(username=BOB, **kwargs):
        credential = make_credential(
            host,
            username.partition("@")[0],
            username=username,
            password="",
            kind="service_account",
            oauth_client=client_of,
            **kwargs,
        )
        credential.full_clean()
        return credential

    return delegate


def invalidity(client):
    try:
        client.full_clean()
    except ValidationError as error:
        return error


def sql(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.rowcount


# Sending


def test_a_message_goes_out_with_a_token_for_its_mailbox(delegate, host, provider):  # noqa: F811
    delegate()
    assert [result.status for result in send(2)] == ["sent", "sent"]
    assert host.logins == [BOB]
    (asked,) = provider.requests
    assert set(asked) == {"grant_type", "assertion", "scope"}  # no client ID, nothing of the key
    assert asked["grant_type"] == JWT_BEARER
    assert provider.grants[0].user == BOB


def test_a_private_key_alone_will_do_with_the_address(delegate, client_of, key):
    client_of.private_key = pem(key)
    client_of.full_clean()
    client_of.save()
    delegate()
    assert send()[0].status == "sent"


def test_what_is_stored_is_encrypted_and_no_more_than_is_needed(client_of, key):
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM mailpool_oauthclient")
        text = repr(cursor.fetchall())
    assert "BEGIN" not in text
    assert "0123456789abcdef" not in text
    row = OAuthClient.objects.get()
    assert row.private_key.strip() == pem(key).strip()
    assert (row.client_id, row.scopes) == (SERVICE_ACCOUNT, "https://mail.google.com/")


def test_a_token_that_expires_is_replaced_and_the_session_stays(delegate, host, provider):  # noqa: F811
    credential = delegate()
    send()
    let_expire(credential)
    assert send()[0].status == "sent"
    assert len(provider.requests) == 2
    assert host.connections == 1
    age(credential)
    provider.expire_access_tokens()
    host.drop_connections()
    assert send()[0].status == "sent"  # refused early: replaced once
    assert len(provider.requests) == 3


def test_verification_gets_a_token(delegate):
    assert verify_credential(delegate()).ok


def test_one_of_several_threads_asks(delegate, provider):  # noqa: F811
    """By the same lease as other logins; of those there are tests with processes."""
    credential = delegate()
    early = stored(credential)
    send()
    assert not tokens._take_lease(early)
    assert len(provider.requests) == 1


def test_it_moves_with_its_server_and_with_a_new_key(delegate, provider, settings):  # noqa: F811
    credential = delegate()
    server = credential.server
    relocate(server, host="127.0.0.1", port=server.port, security=server.security)
    old = settings.MAILPOOL["ENCRYPTION_KEYS"]
    new = "YW5vdGhlciB0ZXN0IGtleSwgbm90IGEgc2VjcmV0ISE="
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [new, *old]}
    assert rotate().rewritten == 2  # the key and the mark
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [new]}
    assert send()[0].status == "sent"


def test_scrub_leaves_no_key(delegate):
    delegate()
    assert scrub.find().secrets["mailpool.OAuthClient.private_key"] == 1
    assert not scrub.scrub()
    row = OAuthClient.objects.get()
    assert (row.private_key, row.private_key_set_at) == ("", None)


# The provider's no


def nothing_is_delegated(provider):  # noqa: F811
    provider.delegated.clear()


def the_key_is_deleted(provider):  # noqa: F811
    provider.keys.clear()


def the_scope_is_another(provider):  # noqa: F811
    provider.scope = "https://www.googleapis.com/auth/drive"


@pytest.mark.parametrize("change", [nothing_is_delegated, the_key_is_deleted, the_scope_is_another])
def test_what_is_forbidden_is_said_once_until_the_client_is_saved(
    delegate,
    client_of,
    provider,  # noqa: F811
    key,
    change,
):
    credential = delegate()
    send()
    let_expire(credential)
    was = set(provider.delegated), dict(provider.keys), provider.scope
    change(provider)
    with heard() as reasons:
        for _ in range(2):
            (result,) = send()
            assert isinstance(result.error, CredentialNeedsAttention)
            assert "domain-wide delegation" in str(result.error)
            assert BOB in str(result.error)
    assert len(reasons) == 1
    assert len(provider.requests) == 2
    assert "domain-wide delegation" in attention(stored(credential))
    with pytest.raises(SystemExit):
        call_command("mailpool_check")

    provider.delegated, provider.keys, provider.scope = was
    OAuthClient.objects.get().save()
    assert attention(stored(credential)) == ""
    assert send()[0].status == "sent"


def test_a_mailbox_that_is_not_delegated_is_that_ones_trouble(delegate, provider):  # noqa: F811
    delegate()
    delegate("mary@example.com")
    assert send()[0].status == "sent"
    message = send_as("mary")
    assert isinstance(message.error, CredentialNeedsAttention)


def send_as(tenant):
    from tests.test_oauth import Router, message

    return delivery.deliver([message(tenant=tenant)], Router().resolve)[0]


def test_a_provider_that_is_away_is_another_matter(delegate, provider):  # noqa: F811
    credential = delegate()
    provider.answers = lambda: ("500 Oops", b"")
    assert isinstance(send()[0].error, OAuthUnavailable)
    assert stored(credential).needs_attention == ""


def test_a_key_that_got_past_the_forms_is_an_error_in_plain_words(delegate, client_of, provider):  # noqa: F811
    delegate()
    client_of.private_key = "no key at all"
    client_of.save()
    (result,) = send()
    assert type(result.error) is OAuthError
    assert "Paste it again" in str(result.error)
    assert provider.requests == []


def test_a_redirect_is_not_followed(delegate, provider):  # noqa: F811
    """It would take the assertion along."""
    delegate()
    with OAuthServer() as other:
        provider.redirects_to = f"{other.url}/token"
        assert isinstance(send()[0].error, OAuthUnavailable)
        assert other.requests == []


def test_no_secret_in_tracebacks_with_their_variables(
    delegate,
    client_of,
    provider,  # noqa: F811
    key,
    other_key,
):
    credential = delegate()
    send()
    lines = pem(key).splitlines()[1:-1] + pem(other_key).splitlines()[1:-1]
    client_of.private_key = key_file(other_key, provider.url)  # and the provider repeats it all
    client_of.full_clean()
    client_of.save()
    let_expire(credential)
    shown = [send()[0].error]
    client_of.private_key = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(lines[:3])
    client_of.save()
    shown.append(send()[0].error)
    client_of.private_key = client_of.private_key
    shown.append(invalidity(client_of))
    assertions = [request["assertion"][:60] for request in provider.requests]
    for error in shown:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        text = "".join(trace.format())
        for secret in [*lines, *assertions]:
            assert secret not in text


# With write access to the database and no key


ATTACKS = {
    "another mailbox": "UPDATE mailpool_credential SET username = 'boss@example.com'",
    "another tenant": "UPDATE mailpool_credential SET tenant_id = {mary}",
    "another host": "UPDATE mailpool_mailserver SET host = '127.0.0.1'",
    "another port": "UPDATE mailpool_mailserver SET port = 2525",
    "another service account": "UPDATE mailpool_oauthclient SET client_id = 'a@b.example'",
    "another token URL": "UPDATE mailpool_oauthclient SET token_url = '{other}/token'",
    "another kind of login": "UPDATE mailpool_credential SET kind = 'client_credentials'",
}


@pytest.mark.parametrize("has_token", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_redirected_by_sql_it_gets_no_token(delegate, host, provider, name, has_token):  # noqa: F811
    """Neither a new one, nor is the one that there is used."""
    credential = delegate()
    mary = TenantFactory(slug="mary")
    if has_token:
        send()
        delivery.close_connections()
    asked, logins = len(provider.requests), list(host.logins)
    with OAuthServer() as other:
        mary_key = mary._meta.pk.get_db_prep_value(mary.pk, connection)
        statement = ATTACKS[name].format(other=other.url, mary="%s")
        assert sql(statement, *([mary_key] if "%s" in statement else [])) == 1
        result = send_as("mary" if name == "another tenant" else "bob")
        assert isinstance(result.error, SecretError)
        assert other.requests == []
    assert len(provider.requests) == asked
    assert host.logins == logins
    assert attention(stored(credential))


@pytest.mark.parametrize("kind", ["service_account", "client_credentials"])
def test_no_login_of_somebodys_becomes_one_of_the_application_by_sql(
    delegate,
    client_of,
    provider,  # noqa: F811
    kind,
):
    """With a refresh token, which opens, there would be no need of a mark."""
    credential = delegate()
    sql("UPDATE mailpool_credential SET kind = 'authorization_code'")
    row = stored(credential)
    row.refresh_token = provider.grant(BOB).refresh_token
    row.save()
    sql("UPDATE mailpool_credential SET kind = %s", kind)
    assert isinstance(send()[0].error, SecretError)
    assert provider.requests == []


def test_neither_mark_nor_key_opens_in_another_row(delegate, client_of, provider):  # noqa: F811
    bob, mary = delegate(), delegate("mary@example.com")
    provider.delegated.add("mary@example.com")
    sql(
        "UPDATE mailpool_credential SET refresh_token = %s WHERE username = 'mary@example.com'",
        bob.refresh_token_ciphertext,
    )
    assert isinstance(send_as("mary").error, SecretError)
    other = OAuthClient.objects.create(
        name="Other", token_url=client_of.token_url, client_id=client_of.client_id
    )
    sql(
        "UPDATE mailpool_oauthclient SET private_key = %s WHERE name = 'Other'",
        client_of.private_key_ciphertext,
    )
    other.refresh_from_db()
    with pytest.raises(SecretError):
        other.private_key  # noqa: B018
    sql("UPDATE mailpool_oauthclient SET token_url = 'https://evil.example/token'")
    client_of.refresh_from_db()
    with pytest.raises(SecretError):
        client_of.private_key  # noqa: B018
    assert provider.requests == []
    assert mary.pk


def test_what_an_operator_redirects_is_given_anew(delegate, host, provider):  # noqa: F811
    credential = delegate()
    Credential.objects.filter(pk=credential.pk).update(username=BOSS)
    assert isinstance(send()[0].error, SecretError)
    row = stored(credential)
    row.allow_app_only()
    row.save()
    assert send()[0].status == "sent"
    assert host.logins == [BOSS]
    assert provider.grants[-1].user == BOSS


def test_the_mark_is_for_what_is_saved(delegate, host):  # noqa: F811
    """Not for what there was when it was asked for."""
    row = delegate()
    row.allow_app_only()
    row.username = BOSS
    row.save()
    assert send()[0].status == "sent"
    assert host.logins == [BOSS]


# What is entered


@pytest.mark.parametrize(
    ("make", "field", "text"),
    [
        (lambda key: "hello", "private_key", "whole JSON key file"),
        (lambda key: "[" * 32_768, "private_key", "whole JSON key file"),
        (lambda key: "[1]", "private_key", "whole JSON key file"),
        (lambda key: key_file(key, "x")[:-9], "private_key", "whole JSON key file"),
        (lambda key: '{"web": {"client_id": "a"}}', "private_key", "not the key of a service"),
        (lambda key: key_file(key, "x", type="authorized_user"), "private_key", "not the key of"),
        (lambda key: key_file(key, "x", client_email=None), "private_key", "client_email"),
        (lambda key: key_file(key, "x", private_key=None), "private_key", "lacks: private_key"),
        (lambda key: key_file(key, "x", private_key=5), "private_key", "lacks: private_key"),
        (lambda key: key_file(key, "x", token_uri=""), "private_key", "lacks: token_uri"),
        (lambda key: key_file(key, "x", private_key="-----"), "private_key", "can't be read"),
        (lambda key: pem(key)[:-200], "private_key", "can't be read"),
        (lambda key: pem(key, b"phrase"), "private_key", "protected by a passphrase"),
        (lambda key: pem(ec.generate_private_key(ec.SECP256R1())), "private_key", "RSA key"),
        (lambda key: key_file(key, "https://evil.example"), "private_key", "another provider"),
        (lambda key: key_file(key, "http://127.0.0.1:1"), "private_key", "another provider"),
        (lambda key: pem(key), "client_id", "Enter the client ID"),
    ],
)
def test_what_is_no_key_is_said_in_plain_words(db, key, make, field, text):
    client = OAuthClient(name="Workspace", provider="google_service", private_key=make(key))
    with pytest.raises(ValidationError) as caught:
        client.full_clean()
    assert set(caught.value.message_dict) == {field}
    assert text in str(caught.value)
    for line in pem(key).splitlines()[1:-1]:
        assert line not in str(caught.value)


def test_a_key_of_another_account_does_not_slip_in(client_of, key, provider):  # noqa: F811
    client_of.private_key = key_file(key, provider.url, client_email="other@iam.example.com")
    with pytest.raises(ValidationError, match=r"other@iam\.example\.com"):
        client_of.full_clean()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"username": "bob"}, "username"), ({"private_key": ""}, "oauth_client")],
)
def test_what_such_a_login_needs(delegate, change, field):
    credential = delegate()
    for name, value in change.items():
        setattr(credential.oauth_client if name == "private_key" else credential, name, value)
    with pytest.raises(ValidationError) as caught:
        credential.full_clean()
    assert field in caught.value.message_dict


def test_no_login_without_a_client_gets_past_the_database(delegate):
    from django.db import IntegrityError

    credential = delegate()
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.filter(pk=credential.pk).update(oauth_client=None)


# The admin


def test_the_key_file_is_pasted_and_never_shown(admin_client, key):
    form = {
        "name": "Workspace",
        "provider": "google_service",
        "private_key": key_file(key, "https://oauth2.googleapis.com"),
    }
    assert admin_client.post(ADD, form).status_code == 302
    client = OAuthClient.objects.get()
    assert client.client_id == SERVICE_ACCOUNT
    assert client.token_url == "https://oauth2.googleapis.com/token"
    page = f"/admin/mailpool/oauthclient/{client.pk}/change/"
    text = admin_client.get(page).content.decode()
    assert "Set on" in text
    form = form_of(client, name="New name")
    assert admin_client.post(page, form).status_code == 302
    client.refresh_from_db()
    assert (client.name, client.private_key) == ("New name", pem(key))
    response = admin_client.post(page, {**form, "private_key": pem(key)[:300]})
    text += errors(response) + response.content.decode()
    other = form_of(client, token_url="https://other.example.com/token")
    response = admin_client.post(page, other)
    assert "Paste the key again" in errors(response)
    for line in pem(key).splitlines()[1:-1]:
        assert line not in text + response.content.decode()


def test_a_service_account_is_used_by_those_who_may_change_clients(client, client_of):
    user = User.objects.create_user("somebody", is_staff=True)
    for codename in ("view_credential", "change_credential"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client.force_login(user)
    credential = CredentialFactory()
    page = f"/admin/mailpool/credential/{credential.pk}/change/"
    form = credential_form(
        credential, kind="service_account", oauth_client=str(client_of.pk), username=BOB
    )
    assert "those who may change OAuth clients" in errors(client.post(page, form))

    for codename in ("change_oauthclient", "move_mailserver"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    assert client.post(page, form).status_code == 302
    row = stored(credential)
    assert row.permission
    assert "By the application itself" in client.get(page).content.decode()

    user.user_permissions.remove(Permission.objects.get(codename="change_oauthclient"))
    boss = {**form, "username": BOSS}
    assert "those who may change OAuth clients" in errors(client.post(page, boss))
    sql("UPDATE mailpool_credential SET username = %s", BOSS)
    assert client.post(page, {**boss, "priority": "7"}).status_code == 302
    assert attention(stored(credential))  # saved by somebody who may not give it

    user.user_permissions.add(Permission.objects.get(codename="change_oauthclient"))
    assert client.post(page, boss).status_code == 302
    assert attention(stored(credential)) == ""
    assert MailServer.objects.count() == 1


def test_error_pages_do_not_show_a_key_that_is_just_pasted(rf, key, provider):  # noqa: F811
    """Neither as it was sent, nor with the line ends that it has once the JSON is read."""
    request = rf.post("/", {"private_key": key_file(key, provider.url)})
    secrecy.hide_submitted(request)
    shown = request.exception_reporter_filter.get_post_parameters(request)
    assert shown["private_key"] == request.exception_reporter_filter.cleansed_substitute
    assert secrecy._contains(pem(key), secrecy._submitted(request))
