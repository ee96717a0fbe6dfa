"""A credential's client certificate: stored, checked, shown to the server and to nobody else."""

from __future__ import annotations

import re

import pytest
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import IntegrityError, connection, transaction
from django.utils import timezone, translation

from mailpool import delivery, relocation, selfservice, verification
from mailpool.audit import AuditEntry
from mailpool.backends import EmailBackend
from mailpool.exceptions import ClientCertificateError, SecretError
from mailpool.forms import TenantCredentialForm
from mailpool.models import Credential, MailServer, OAuthClient
from mailpool.smtp.auth import MECHANISMS
from mailpool.vault import EncryptedTextField
from tests.clients import CertificateServer, ClientAuthority
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtp.test_client_certificates import encrypted
from tests.test_admin import CONNECTIONS, CREDENTIALS, credential_data, errors

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def clients():
    return ClientAuthority()


@pytest.fixture
def relay(authority, clients):
    with CertificateServer(authority, clients) as relay:
        yield relay
        delivery.get_pool().close()  # or the server would wait for its end


@pytest.fixture
def make(relay, clients, make_credential):
    """A tenant's credential at the relay, with a certificate for its slug and no username."""

    def make(slug, issued=None, **kwargs):
        issued = issued or clients.issue(slug)
        kwargs = {"username": "", "password": "", **issued.as_params, **kwargs}
        return make_credential(relay, slug, **kwargs)

    return make


def send(*slugs):
    for slug in slugs:
        made = EmailMessage("hello", "text", f"{slug}@example.com", ["a@example.com"])
        made.tenant = slug
        EmailBackend().send_messages([made])


@pytest.fixture
def admin(client, django_user_model):
    client.force_login(django_user_model.objects.create_superuser("root", password="x"))
    return client


def page_of(credential):
    return f"{CREDENTIALS}{credential.pk}/change/"


# From the database to the server


def test_each_tenant_shows_its_own_certificate(relay, make):
    make("bob"), make("mary")
    send("bob", "mary", "bob", "mary")
    assert relay.connections == 2
    assert relay.shown == [(slug, f"{slug}@example.com") for slug in ("bob", "mary", "bob", "mary")]


def test_a_new_certificate_is_shown_from_the_next_message_on(relay, make, clients):
    bob = make("bob")
    send("bob")
    renewed = clients.issue("bob.renewed")
    bob.client_certificate, bob.client_key = renewed
    bob.full_clean()
    bob.save()
    send("bob")
    assert [name for name, _ in relay.shown] == ["bob", "bob.renewed"]


def test_the_key_is_encrypted_and_bound(relay, make, monkeypatch):
    bob, mary = make("bob"), make("mary")
    with connection.cursor() as cursor:
        cursor.execute("SELECT client_key FROM mailpool_credential ORDER BY client_key")
        stored = [row[0] for row in cursor.fetchall()]
    assert len(set(stored)) == 2
    assert all(re.fullmatch(r"1\$[0-9a-f]{8}\$\S+", each) for each in stored)
    Credential.objects.filter(pk=mary.pk).update(client_key=bob.client_key_ciphertext)
    MailServer.objects.filter(pk=bob.server_id).update(host="127.0.0.1")
    for slug in ("bob", "mary"):
        with pytest.raises(SecretError):
            send(slug)
    assert relay.connections == 0


def test_change_address_takes_the_key_along(relay, make):
    bob = make("bob", username="bob", password="secret")
    mary = make("mary")
    stake = relocation.at_stake(bob.server)
    assert (stake.secrets, stake.tenants) == (3, 2)
    result = relocation.relocate(bob.server, host="127.0.0.1", port=relay.port, security="starttls")
    assert (result.moved, result.left) == (3, [])
    assert Credential.objects.get(pk=mary.pk).client_key == mary.client_key
    assert Credential.objects.get(pk=bob.pk).password == "secret"


def test_other_changes_do_not_write_the_secrets(make, clients):
    bob = make("bob")
    old = Credential.objects.get(pk=bob.pk)
    issued = clients.issue("bob")
    bob.client_certificate, bob.client_key = issued
    bob.save()
    old.priority = 3
    old.save(update_fields=["priority"])
    old.password, old.username = "secret", "bob"
    old.save()
    bob = Credential.objects.get(pk=bob.pk)
    assert (bob.priority, bob.password, bob.client_key) == (3, "secret", issued.key)


@pytest.mark.parametrize(
    "changes", [{"client_key": ""}, {"client_certificate": ""}], ids=["no key", "no certificate"]
)
def test_half_of_it_sends_nothing(relay, make, changes):
    bob = make("bob")
    Credential.objects.filter(pk=bob.pk).update(**changes)
    with pytest.raises(SecretError, match="only one is stored"):
        send("bob")
    assert relay.connections == 0


def test_external_without_a_certificate_sends_nothing(relay, make):
    bob = make("bob")
    Credential.objects.filter(pk=bob.pk).update(
        mechanism="EXTERNAL", client_key="", client_certificate=""
    )
    with pytest.raises(ValueError, match="EXTERNAL logs in by a client certificate"):
        send("bob")
    assert relay.connections == 0


def test_external_uses_no_password(relay, make):
    relay.extensions = ["AUTH PLAIN EXTERNAL"]
    bob = make("bob", username="shop", password="secret", mechanism="EXTERNAL")
    bob.full_clean()
    assert delivery.session_params(bob).password == ""
    send("bob")
    assert [line for _, line in relay.commands if line.startswith("AUTH")] == [
        "AUTH EXTERNAL c2hvcA=="
    ]


def test_mechanisms_are_those_that_sessions_know():
    assert set(Credential.Mechanism.values) == {"", *MECHANISMS}
    credential = CredentialFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.filter(pk=credential.pk).update(mechanism="XOAUTH2")


# Verify, in plain words


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("missing", "wants a client certificate and got none"),
        ("foreign", "it does not know the authority that issued it"),
        ("expired", "it says that it has expired"),
    ],
)
def test_verifying_tells_what_is_wrong_with_the_certificate(make, clients, which, said):
    if which == "missing":
        bob = make("bob", client_certificate="", client_key="")
    elif which == "foreign":
        bob = make("bob", ClientAuthority().issue("bob"))
    else:
        bob = make("bob", clients.issue("bob", days=-2))
    failure = verification.verify_credential(bob).failure
    assert failure.key == "ehlo-tls"  # with TLS 1.3 it is said there
    assert said in failure.detail
    assert "Enter the client certificate that the server's operator issued" in failure.advice


def test_verifying_shows_the_login(relay, make):
    relay.extensions = ["AUTH EXTERNAL"]
    report = verification.verify_credential(make("bob"))
    assert report.ok
    steps = {step.key: step for step in report.steps}
    assert steps["key"].title == "Decrypt the private key"
    assert "client certificate at hand" in steps["tls"].detail
    assert steps["auth"].detail == "logged in by EXTERNAL, the client certificate"


def test_verifying_a_mechanism_that_is_not_offered(relay, make):
    relay.extensions = ["AUTH LOGIN"]
    bob = make("bob", username="bob", password="secret", mechanism="CRAM-MD5")
    failure = verification.verify_credential(bob).failure
    assert failure.key == "auth"
    assert "offers only LOGIN here; this account may only log in by CRAM-MD5" in failure.detail
    assert "Check the login mechanism" in failure.advice


def test_the_mechanism_is_on_the_connections_page(relay, make, admin):
    relay.extensions = ["AUTH LOGIN EXTERNAL"]
    make("bob")
    make("mary", username="mary", password="secret", mechanism="LOGIN")
    send("bob", "mary")
    page = admin.get(CONNECTIONS).content.decode()
    assert "<td>EXTERNAL</td>" in page
    assert "<td>LOGIN</td>" in page
    assert "(client certificate)</a>" in page


# What is refused


def wrong(credential):
    with pytest.raises(ValidationError) as caught:
        credential.full_clean()
    return {name: " ".join(texts) for name, texts in caught.value.message_dict.items()}


def test_certificate_and_key_have_to_belong_together(make, clients):
    bob = make("bob")
    bob.full_clean()
    bob.client_key = clients.issue("mary").key
    assert "not the key of the certificate" in wrong(bob)["client_key"]
    bob.client_key = encrypted(bob.client_key)
    assert "protected by a passphrase" in wrong(bob)["client_key"]
    bob.client_key = "nonsense"
    assert "in PEM form" in wrong(bob)["client_key"]
    bob.client_key = ""
    assert "Enter the private key" in wrong(bob)["client_key"]


def test_the_chain_comes_after_the_certificate(make, clients):
    bob = make("bob")
    first, *rest = re.findall(
        r"-----BEGIN.*?-----END CERTIFICATE-----\n", bob.client_certificate, re.DOTALL
    )
    assert rest
    bob.client_certificate = "".join([*rest, first])
    assert "comes first" in wrong(bob)["client_certificate"]


def test_certificates_only(make, clients):
    bob = make("bob")
    bob.client_certificate += bob.client_key
    assert "a field of its own" in wrong(bob)["client_certificate"]
    bob.client_certificate = "nonsense"
    assert "in PEM form" in wrong(bob)["client_certificate"]
    bob.client_certificate = ""
    assert "Enter the certificate" in wrong(bob)["client_certificate"]


def test_a_key_that_does_not_open_blocks_no_other_change(make, settings):
    bob = make("bob")
    settings.MAILPOOL = {"ENCRYPTION_KEYS": ["QSBrZXkgdGhhdCBpc24ndCB3b3J0aCBhbnl0aGluZyE="]}
    Credential.objects.get(pk=bob.pk).full_clean()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mechanism": "EXTERNAL", "client_certificate": "", "client_key": ""}, "mechanism"),
        ({"mechanism": "PLAIN"}, "username"),
        ({"mechanism": "plain"}, "mechanism"),
        ({"username": "bob", "mechanism": "PLAIN"}, "password"),
    ],
)
def test_mechanisms_that_can_not_work(make, changes, field):
    bob = make("bob")
    for name, value in changes.items():
        setattr(bob, name, value)
    assert field in wrong(bob)


def test_a_certificate_needs_tls(make):
    bob = make("bob")
    plain = MailServerFactory(host="localhost", security="plain", port=25)
    bob.server.security = "plain"
    assert "over TLS only" in wrong(bob.server)["__all__"]
    bob.server = plain
    assert "over TLS only" in wrong(bob)["__all__"]


def test_the_audit_says_by_what_an_account_without_username_logs_in(make):
    bob = make("bob", username="")
    entry = AuditEntry.objects.filter(credential_id=bob.pk).first()
    assert entry.about == f"client certificate @ {bob.server.name}"
    with translation.override("de"):
        assert entry.about == f"Client-Zertifikat @ {bob.server.name}"
    assert CredentialFactory(username="", password="", server=bob.server).pk
    assert AuditEntry.objects.first().about == f"no login @ {bob.server.name}"


@pytest.mark.parametrize("field", ["client_certificate", "ca_certificate"])
@pytest.mark.parametrize("change", ["cut off", "changed"])
def test_a_certificate_that_was_pasted_incompletely(make, field, change):
    bob = make("bob")
    row = bob if field == "client_certificate" else bob.server
    lines = bob.client_certificate.splitlines()
    text = "\n".join(lines[:3] if change == "cut off" else [lines[0], "====", *lines[2:]])
    setattr(row, field, text)
    assert "Paste it anew, with its first and last line." in wrong(row)[field]
    setattr(row, field, "nonsense")
    assert "beginning with -----BEGIN CERTIFICATE-----" in wrong(row)[field]


# The admin


def test_the_key_is_entered_and_never_shown(admin, relay, make, clients):
    bob = make("bob", client_certificate="", client_key="")
    page = admin.get(page_of(bob)).content.decode()
    assert "Not set. PEM, without a passphrase" in page
    issued = clients.issue("bob")
    browser = {name: value.replace("\n", "\r\n") for name, value in issued.as_params.items()}
    assert admin.post(page_of(bob), credential_data(bob, **browser)).status_code == 302
    page = admin.get(page_of(bob)).content.decode()
    assert re.search(r'<textarea name="client_key"[^>]*>\s*</textarea>', page)
    assert 'spellcheck="false"' in page
    assert "Set. Leave empty to keep it" in page
    send("bob")
    assert [name for name, _ in relay.shown] == ["bob"]
    # An error elsewhere does not bring it back either.
    page = admin.post(page_of(bob), credential_data(bob, priority="x", **browser)).content.decode()
    assert re.search(r'<textarea name="client_key"[^>]*>\s*</textarea>', page)


def test_an_empty_input_keeps_the_key_and_no_certificate_removes_it(admin, make):
    bob = make("bob")
    key = bob.client_key
    data = credential_data(bob, client_certificate=bob.client_certificate, priority=3)
    assert admin.post(page_of(bob), data).status_code == 302
    bob = Credential.objects.get(pk=bob.pk)
    assert (bob.priority, bob.client_key) == (3, key)
    data = {**data, "client_certificate": ""}
    assert admin.post(page_of(bob), data).status_code == 302
    assert not Credential.objects.get(pk=bob.pk).has_client_key


def test_a_renewed_certificate_goes_with_the_stored_key_only_if_it_is_its_own(admin, make, clients):
    bob = make("bob")
    data = credential_data(bob, client_certificate=clients.issue("bob").certificate)
    assert "not the key of the certificate" in errors(admin.post(page_of(bob), data))


def test_moved_to_another_tenant_the_key_is_entered_again(admin, make):
    bob, other = make("bob"), TenantFactory()
    key = str(bob.client_key)
    data = credential_data(bob, client_certificate=bob.client_certificate, tenant=other.pk)
    assert "Enter the private key again" in errors(admin.post(page_of(bob), data))
    assert admin.post(page_of(bob), {**data, "client_key": key}).status_code == 302
    bob = Credential.objects.get(pk=bob.pk)
    assert (bob.tenant, bob.client_key) == (other, key)


def test_moved_on_another_page_it_is_not_either(admin, make):
    from tests.test_admin import inline

    bob = make("bob")
    elsewhere = MailServerFactory()
    row = {"id": bob.pk, "server": elsewhere.pk, "username": "", "priority": 1}
    data = {"name": "Bob", "slug": "bob", **inline("mailpool_credentials", row, initial=1)}
    url = f"/admin/mailpool/tenant/{bob.tenant_id}/change/"
    assert "Move it on its own page" in errors(admin.post(url, data))
    data["mailpool_credentials-0-server"] = bob.server_id
    assert admin.post(url, data).status_code == 302
    assert Credential.objects.get(pk=bob.pk).client_key == bob.client_key


@pytest.mark.parametrize(
    ("days", "said"),
    [(-1, "expired on"), (29.9, "expires on"), (30.1, "")],
)
def test_a_certificate_that_expires_needs_attention(admin, make, clients, days, said):
    bob = make("bob", clients.issue("bob", days=days))
    bob.full_clean()  # which is no reason to refuse it
    listed = admin.get(CREDENTIALS).content.decode()
    page = admin.get(page_of(bob)).content.decode()
    text = f"The client certificate {said}" if said else "The client certificate"
    assert (text in listed) is (text in page) is bool(said)


def test_a_missing_key_needs_attention(admin, make):
    bob = make("bob")
    Credential.objects.filter(pk=bob.pk).update(client_key="")
    assert "No private key of the client certificate" in admin.get(CREDENTIALS).content.decode()


def test_who_may_only_look_sees_whether_there_is_a_key(client, django_user_model, make):
    from django.contrib.auth.models import Permission

    user = django_user_model.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_credential"))
    client.force_login(user)
    bob = make("bob")
    page = client.get(page_of(bob)).content.decode()
    assert 'name="client_key"' not in page
    assert re.search(r'class="readonly">Set<', page)
    Credential.objects.filter(pk=bob.pk).update(client_key="")
    assert re.search(r'class="readonly">Not set<', client.get(page_of(bob)).content.decode())


def test_the_error_is_mailpools_and_smtps():
    from smtplib import SMTPException

    assert issubclass(ClientCertificateError, SMTPException)


# What tenants do with their own


def secrets_of(credential):
    """The encrypted columns of the row that hold anything, as the database has them."""
    names = [
        each.column for each in Credential._meta.fields if isinstance(each, EncryptedTextField)
    ]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT username, {', '.join(names)} FROM mailpool_credential")
        (row,) = [found[1:] for found in cursor.fetchall() if found[0] == credential.username]
    return {name for name, stored in zip(names, row, strict=True) if stored}


@pytest.mark.parametrize("kind", ["password", "authorization_code"])
def test_revoking_leaves_no_secret_of_any_kind(make, kind):
    """Of no login: neither of the one that it has, nor what is left from another."""
    client = OAuthClient.objects.create(
        name="Provider", token_url="https://a.example", client_id="i"
    )
    bob = make("bob", username="bob", password="secret", oauth_client=client, kind=kind)
    mary = make("mary", username="mary", password="secret")
    bob.refresh_token, bob.access_token = "refresh", "access"
    bob.access_token_expires_at = timezone.now()
    bob.save()
    assert secrets_of(bob) == {"password", "refresh_token", "access_token", "client_key"}
    selfservice.revoke(bob)
    assert secrets_of(bob) == set()
    assert secrets_of(mary) == {"password", "client_key"}
    row = Credential.objects.get(pk=bob.pk)
    assert selfservice.state(row) == "revoked"
    assert (row.is_active, row.connected_at, row.access_token_expires_at) == (False, None, None)


def test_a_certificate_that_was_revoked_is_not_in_the_way_of_a_password(make):
    bob = make("bob", mechanism="EXTERNAL")
    selfservice.revoke(bob)
    assert selfservice.state(Credential.objects.get()) == "revoked"
    page = TenantCredentialForm(
        {"server": str(bob.server_id), "username": "bob", "password": "new", "default_from": ""},
        instance=Credential.objects.get(),
        tenant=bob.tenant,
        servers=MailServer.objects.all(),
    )
    assert page.is_valid(), page.errors
    page.save()
    row = Credential.objects.get()
    assert (row.password, row.client_certificate, row.mechanism) == ("new", "", "")
    assert selfservice.state(row) == "unverified"
