"""What the database itself refuses, and what forms say before it comes to that."""

from __future__ import annotations

import random
import uuid
from email.headerregistry import Address

import pytest
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import IntegrityError, connection, transaction
from django.db.models import RestrictedError

from mailpool import addresses
from mailpool.backends import EmailBackend
from mailpool.exceptions import InvalidMessage, NoRoute
from mailpool.models import SERVER_BOUNDS, Credential, MailServer, OAuthClient, Sender, Tenant
from mailpool.routing import Router
from mailpool.validators import is_loopback, normalize_sender, validate_host
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory

pytestmark = pytest.mark.django_db


def refused_by_database(make):
    with pytest.raises(IntegrityError), transaction.atomic():
        make()


@pytest.mark.parametrize("field", SERVER_BOUNDS)
def test_bounds(field):
    for wrong in (0, SERVER_BOUNDS[field] + 1):
        refused_by_database(lambda wrong=wrong: MailServerFactory(**{field: wrong}))
        with pytest.raises(ValidationError):
            MailServer(name="x", host="smtp.example.com", **{field: wrong}).full_clean()
    for right in (1, SERVER_BOUNDS[field]):
        MailServerFactory(**{field: right}).full_clean()


@pytest.mark.parametrize("wrong", [{"security": "none"}, {"host": ""}])
def test_other_impossible_servers(wrong):
    refused_by_database(lambda: MailServerFactory(**wrong))


def test_same_account_not_twice_for_one_tenant():
    credential = CredentialFactory()
    same = {"server": credential.server, "username": credential.username}
    refused_by_database(lambda: CredentialFactory(tenant=credential.tenant, **same))
    CredentialFactory(tenant=TenantFactory(), **same)
    CredentialFactory(tenant=None, **same)
    refused_by_database(lambda: CredentialFactory(tenant=None, **same))  # the site is one, too
    with pytest.raises(ValidationError, match="has this account"):
        Credential(tenant=credential.tenant, password="x", **same).full_clean()


def test_same_sender_not_twice_within_a_tenant():
    sender = SenderFactory(address="Shop@Example.com")
    assert sender.address == "shop@example.com"
    other = CredentialFactory(tenant=sender.credential.tenant)
    refused_by_database(lambda: SenderFactory(credential=other, address="SHOP@example.com"))
    SenderFactory(address="shop@example.com")  # another tenant's
    for_site = SenderFactory(credential__tenant=None, address="shop@example.com")
    assert for_site.scope == ""
    refused_by_database(lambda: SenderFactory(credential__tenant=None, address="shop@example.com"))


def test_senders_follow_their_credential_to_another_tenant():
    sender = SenderFactory(address="shop@example.com")
    credential = sender.credential
    credential.tenant = TenantFactory()
    credential.save()
    sender.refresh_from_db()
    assert sender.scope == str(credential.tenant.pk)
    taken = SenderFactory(address="shop@example.com")
    credential.tenant = taken.credential.tenant
    with pytest.raises(ValidationError, match="one of this credential"):
        credential.full_clean()
    refused_by_database(credential.save)
    sender.refresh_from_db()
    assert sender.scope != taken.scope


def test_tenant_is_not_changed_behind_the_senders_back():
    CredentialFactory()
    with pytest.raises(TypeError, match="save"):
        Credential.objects.update(tenant=None)


def test_deleted_tenants_login_never_becomes_the_sites():
    credential = SenderFactory().credential
    credential.tenant.delete()
    assert not Credential.objects.exists()
    assert not Sender.objects.exists()


def test_server_in_use_is_not_deleted():
    credential = CredentialFactory()
    with pytest.raises(RestrictedError):
        credential.server.delete()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "127.9.9.9"])
def test_login_in_clear_text_to_this_machine_is_allowed(host):
    server = MailServerFactory(host=host, security="plain")
    Credential(server=server, username="x", password="x").full_clean()
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["smtp.example.com", "10.0.0.1", "localhost.example.com"])
def test_login_in_clear_text_to_another_machine_is_not(host):
    server = MailServerFactory(host=host, security="plain")
    with pytest.raises(ValidationError, match="in clear text"):
        Credential(server=server, username="x", password="x").full_clean()
    Credential(server=server).full_clean()  # without a login there is nothing to protect


def test_server_with_logins_is_not_made_a_clear_text_one():
    server = CredentialFactory().server
    server.security = "plain"
    with pytest.raises(ValidationError, match="in clear text"):
        server.full_clean()


@pytest.mark.parametrize(
    ("fields", "where"),
    [({"username": "x"}, "password"), ({"password": "x"}, "username")],
)
def test_username_and_password_go_together(fields, where):
    with pytest.raises(ValidationError) as caught:
        Credential(server=MailServerFactory(), **fields).full_clean()
    assert set(caught.value.message_dict) == {where}


def test_a_password_has_a_longest_length_that_none_comes_near():
    row = Credential(server=MailServerFactory(), username="x", password="x" * 4096)
    row.full_clean()
    row.password = long = "x" * 4097
    with pytest.raises(ValidationError) as caught:
        row.full_clean()
    assert caught.value.message_dict == {
        "password": ["This is too long: it may have up to 4096 characters. Copy it again."]
    }
    assert long not in str(caught.value)


@pytest.mark.parametrize(("name", "most"), [("client_secret", 4096), ("private_key", 32768)])
def test_secrets_of_an_oauth_client_have_one_as_well(name, most):
    client = OAuthClient(name="x", client_id="x", token_url="https://x.example/token")
    setattr(client, name, "x" * (most + 1))
    with pytest.raises(ValidationError) as caught:
        client.full_clean()
    assert set(caught.value.message_dict) == {name}
    assert f"up to {most} characters" in str(caught.value)


def test_a_key_of_a_client_certificate_has_one_as_well():
    row = Credential(server=MailServerFactory(), client_certificate="x", client_key="x" * 32769)
    with pytest.raises(ValidationError) as caught:
        row.full_clean()
    assert "up to 32768 characters" in str(caught.value.message_dict["client_key"])


def test_plain_addresses_are_read_as_the_standard_library_reads_them():
    """They take a short cut, which must lead to the same place."""
    rng, plain = random.Random(7), 0
    for _ in range(5000):
        text = "".join(rng.choices("aZ9_+-.=?", k=rng.randint(1, 6)))
        text += "@" + "".join(rng.choices("aZ9-.", k=rng.randint(1, 9)))
        if rng.random() < 0.5:
            text = "".join(rng.choices("aZ9 ", k=rng.randint(1, 5))) + f" <{text}>"
        if addresses._PLAIN.fullmatch(text):
            plain += 1
            assert found(addresses._parse, text) == found(addresses._parse_any, text), text
    assert plain > 500
    for host in ("b" * 63, "b" * 64, "xn--bcher-kva.example", "xn--zz--.x"):
        assert found(addresses._parse, f"a@{host}") == found(addresses._parse_any, f"a@{host}")


def found(parse, text):
    try:
        return parse(text)
    except InvalidMessage as error:
        return str(error)


def test_plain_addresses_do_not_take_the_long_way(monkeypatch):
    monkeypatch.setattr(addresses, "_parse_any", None)
    for text in ("long.way+1@way.example", "Long Way <long@way.example>"):
        assert addresses.parse_mailbox(text).domain == "way.example"


@pytest.mark.parametrize(
    "host", ["smtp.example.com", "localhost", "10.0.0.1", "::1", "bücher.example", "a_b.example."]
)
def test_hosts(host):
    validate_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("http://x", "x:25", "a b", "-x", "x..y", "a" * 64, "x/y", "user@host"),
        # What resolvers take for addresses: all of them are this machine.
        *(
            "2130706433",
            "0x7f.1",
            "017700000001",
            "127.1",
            "0x7f000001.",
            "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        ),
    ],
)
def test_what_is_no_host(host):
    with pytest.raises(ValidationError):
        validate_host(host)


def test_private_keys_are_not_taken_for_certificates(authority):
    MailServerFactory.build(ca_certificate=authority.pem).full_clean()
    key = "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"
    with pytest.raises(ValidationError, match="private key"):
        MailServerFactory.build(ca_certificate=key).full_clean()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Shop@Example.COM", "shop@example.com"),
        ("@Bücher.example", "@xn--bcher-kva.example"),
        (" a@b.example ", "a@b.example"),
        ('"A b"@example.com', '"a b"@example.com'),
        ('"needless"@example.com', "needless@example.com"),
        ('"a..b"@example.com', '"a..b"@example.com'),
        (r'"a\"\\b"@example.com', r'"a\"\\b"@example.com'),
        ('"@b"@example.com', '"@b"@example.com'),
    ],
)
def test_senders_are_kept_in_one_form(text, normal):
    assert normalize_sender(text) == normal
    assert normalize_sender(normal) == normal


def test_a_sender_that_needs_quotes_is_entered_found_and_sent_as(mail_host, make_credential):
    address = '"A b"@example.com'
    bob = make_credential(mail_host, "bob")
    sender = Sender(credential=bob, address=address)
    sender.full_clean()
    sender.save()
    assert Sender.objects.get().address == '"a b"@example.com'
    mail = EmailMessage("hello", "text", f"Bob <{address}>", ["c d <you@example.com>"])
    EmailBackend().send_messages([mail])
    sent = mail_host.delivered[0]
    assert (sent.login, sent.sender) == ("bob", address)
    assert sent.message["From"].addresses[0] == Address("Bob", "A b", "example.com")


@pytest.mark.parametrize("text", ["", "@", "a", "a@", "A <a@b.example>", "a@b, c@d", "a@b\n"])
def test_what_is_no_sender(text):
    if text.strip() != text and text.strip():
        text = f"{text}x@y"
    with pytest.raises(ValidationError):
        normalize_sender(text)


def test_names():
    assert str(Tenant(name="Bob")) == "Bob"
    assert str(Credential(server=MailServer(name="Main"), username="bob")) == "bob @ Main"
    assert str(Credential(server=MailServer(name="Main"))) == "no login @ Main"
    assert str(Sender(address="@x.example")) == "@x.example"


# The way around save()


def owner_of_mail_from(address):
    message = EmailMessage("hello", "text", address, ["a@example.com"])
    return Router().resolve(message).tenant


def test_relations_do_not_move_a_credential_past_its_senders():
    site, tenant = CredentialFactory(tenant=None), TenantFactory()
    with pytest.raises(TypeError, match="save"):
        tenant.mailpool_credentials.add(site)
    tenant.mailpool_credentials.add(site, bulk=False)
    assert Credential.objects.get().scope == str(tenant.pk)


def test_relations_do_not_move_a_sender_past_its_owner():
    sender, other = SenderFactory(address="shop@example.com"), CredentialFactory()
    for way in (
        lambda: other.senders.add(sender),
        lambda: Sender.objects.update(credential=other),
        lambda: Sender.objects.update(address="x@example.com"),
    ):
        with pytest.raises(TypeError, match="save"):
            way()
    sender.refresh_from_db()
    assert owner_of_mail_from("shop@example.com") == sender.credential.tenant != other.tenant


def test_an_old_instance_does_not_bring_back_what_was_changed_meanwhile():
    sender = SenderFactory(address="shop@example.com")
    old = Credential.objects.get()
    moved = Credential.objects.get()
    moved.tenant = TenantFactory()
    moved.save()
    old.priority = 1
    old.save(update_fields=["priority"])
    assert owner_of_mail_from("shop@example.com") == moved.tenant
    Sender.objects.create(credential=old, address="other@example.com")
    assert owner_of_mail_from("other@example.com") == moved.tenant
    scopes = set(Sender.objects.values_list("scope", flat=True))
    assert scopes == {str(moved.tenant.pk)}
    sender.refresh_from_db()


def test_a_scope_that_is_wrong_in_the_database_moves_no_mail():
    """It is for unique constraints; whose mail it is, foreign keys tell."""
    mine, other = SenderFactory(address="shop@example.com"), CredentialFactory()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailpool_sender SET scope = %s", [str(other.tenant_id)])
        cursor.execute("UPDATE mailpool_credential SET scope = ''")
    assert owner_of_mail_from("shop@example.com") == mine.credential.tenant
    with pytest.raises(NoRoute):
        owner_of_mail_from("nobody@example.com")


def test_a_tenant_has_one_scope_however_its_key_is_spelled():
    credential = CredentialFactory(username="bob")
    again = Credential(
        tenant_id=credential.tenant_id.hex, server=credential.server, username="bob", password="x"
    )
    refused_by_database(again.save)


def test_senders_made_in_bulk_are_in_their_one_form():
    credential = CredentialFactory()
    Sender.objects.bulk_create([Sender(credential=credential, address="Shop@EXAMPLE.com")])
    assert owner_of_mail_from("shop@example.com") == credential.tenant


def test_missing_relations_are_reported_as_such():
    with pytest.raises(ValidationError):
        Credential(server_id=uuid.uuid4(), username="bob", password="x").full_clean()
    with pytest.raises(ValidationError):
        Sender(address="shop@example.com").full_clean()
