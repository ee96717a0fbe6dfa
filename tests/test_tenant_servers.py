"""Servers that tenants name themselves: whose mail goes there, and where they may be."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db.models import RestrictedError

from mailpool import delivery
from mailpool.backends import EmailBackend
from mailpool.exceptions import NoRoute, ServerNotAllowed
from mailpool.models import Credential, MailServer, Tenant
from mailpool.verification import send_test_message, verify_credential, verify_server
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtpd import PASSWORD
from tests.test_admin import (
    CREDENTIALS,
    SERVERS,
    admin,  # noqa: F401  (a fixture)
    credential_data,
    errors,
    inline,
    server_data,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bob():
    return TenantFactory(slug="bob")


@pytest.fixture
def mary():
    return TenantFactory(slug="mary")


@pytest.fixture
def allow(settings):
    """Let tenants' servers be at these networks and ports."""

    def allow(*networks, ports=(25, 465, 587, 2525)):
        settings.MAILPOOL = {
            **settings.MAILPOOL,
            "TENANT_SERVER_NETWORKS": list(networks),
            "TENANT_SERVER_PORTS": list(ports),
        }

    return allow


@pytest.fixture
def at_home(mail_host, make_credential, bob):
    """Bob's credential at a server that he named and that is on this machine, where it answers."""
    credential = make_credential(mail_host, "bob")
    MailServer.objects.update(tenant=bob, host="127.0.0.1")
    return entered_again(credential)


def entered_again(credential):
    """Its password, for the address that its server has now."""
    credential = Credential.objects.select_related("server", "tenant").get(pk=credential.pk)
    credential.password = PASSWORD
    credential.save()
    return credential


def send(tenant):
    message = EmailMessage("hello", "text", "x@example.com", ["a@example.com"])
    message.tenant = tenant
    EmailBackend(fail_silently=True).send_messages([message])
    return message.mailpool_result


# Whose mail goes there


def test_who_may_use_a_server(bob, mary):
    for owner, allowed in ((None, [None, bob, mary]), (bob, [bob]), (mary, [mary])):
        server = MailServerFactory(tenant=owner)
        for tenant in (None, bob, mary):
            credential = Credential(tenant=tenant, server=server, username="x", password="x")
            if tenant in allowed:
                credential.full_clean()
            else:
                with pytest.raises(ValidationError, match="belongs to another tenant"):
                    credential.full_clean()


def test_a_credential_does_not_move_away_from_its_own_tenants_server(bob, mary):
    credential = CredentialFactory(tenant=bob, server=MailServerFactory(tenant=bob))
    credential.tenant = mary
    with pytest.raises(ValidationError, match="belongs to another tenant"):
        credential.full_clean()
    credential.tenant_id = str(bob.pk)  # another spelling of the same
    assert credential.server.is_open_to(credential)
    credential.full_clean()


def test_a_server_that_others_use_does_not_become_a_tenants_own(bob, mary):
    for tenant in (mary, None):
        server = MailServerFactory()
        CredentialFactory(tenant=bob, server=server)
        server.tenant = bob
        server.full_clean()
        CredentialFactory(tenant=tenant, server=server)
        with pytest.raises(ValidationError, match="Credentials of others"):
            server.full_clean()


@pytest.mark.parametrize("owner", ["mary", None])
def test_what_went_around_the_forms_sends_nothing(
    at_home, mail_host, make_credential, bob, mary, allow, owner
):
    """And no other credential of the tenant, nor a kept connection, steps in."""
    allow("127.0.0.0/8", ports=[mail_host.port])
    tenant = mary if owner else None
    other = make_credential(mail_host, owner, server=MailServerFactory(tenant=bob), priority=1)
    make_credential(mail_host, owner, server=MailServerFactory(), username="spare", priority=2)
    where = {"host": "127.0.0.1", "port": mail_host.port}
    MailServer.objects.filter(pk=other.server_id).update(
        tenant=None, ca_certificate=mail_host.authority.pem, **where
    )
    entered_again(other)
    assert send(tenant).status == "sent"
    assert delivery.stats().idle == 1
    MailServer.objects.filter(pk=other.server_id).update(tenant=bob)
    result = send(tenant)
    assert isinstance(result.error, NoRoute)
    assert "belongs to another tenant" in str(result.error)
    assert (result.status, result.credential_id) == ("failed", str(other.pk))
    other = Credential.objects.get(pk=other.pk)
    with pytest.raises(NoRoute):
        delivery.session_params(other)
    report = verify_credential(other)
    assert report.failure == report.steps[0]
    assert report.failure.title == "Check whose server it is"
    assert isinstance(
        send_test_message(other, "a@example.com", sender="b@example.com").error, NoRoute
    )
    assert len(mail_host.delivered) == mail_host.connections == 1


def test_deleted_tenants_server_goes_with_its_credentials(bob, mary):
    own = CredentialFactory(tenant=bob, server=MailServerFactory(tenant=bob)).server
    CredentialFactory(tenant=bob)
    kept = CredentialFactory(tenant=mary)
    with pytest.raises(RestrictedError):
        own.delete()
    bob.delete()
    assert not MailServer.objects.filter(pk=own.pk).exists()
    assert [*Credential.objects.all()] == [kept]
    # One that a credential of others uses stays, and all of the tenant with it.
    own = MailServerFactory(tenant=mary)
    CredentialFactory(tenant=None, server=own)
    with pytest.raises(RestrictedError):
        mary.delete()
    assert MailServer.objects.get(pk=own.pk).tenant == mary


# Where they may be


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "10.0.0.1", "::1", "fe80::1%eth0", "169.254.1.1"],
)
def test_what_is_inside_is_not_entered(bob, allow, host):
    server = MailServer(name="x", host=host, tenant=bob)
    with pytest.raises(ValidationError, match="is not connected to"):
        server.full_clean()
    server.tenant = None
    server.full_clean()
    server.tenant = bob
    allow("127.0.0.0/8", "10.0.0.0/8", "::1", "fe80::/10", "169.254.0.0/16")
    server.full_clean()


def test_ports_that_are_no_mail_servers_are_not_entered(bob, allow):
    server = MailServer(name="x", host="smtp.example.com", port=6379, tenant=bob)
    with pytest.raises(ValidationError, match="on port 6379"):
        server.full_clean()
    allow(ports=[6379])
    server.full_clean()


def test_a_tenants_server_inside_is_not_connected_to(at_home, mail_host, allow):
    allow(ports=[mail_host.port])
    result = send("bob")
    assert isinstance(result.error, ServerNotAllowed)
    assert "127.0.0.1" in str(result.error)
    assert result.status == "failed"
    for report in (verify_server(at_home.server), verify_credential(at_home)):
        assert report.failure.key == "resolve"
        assert "allow it in the settings" in report.failure.advice
    result = send_test_message(at_home, "a@example.com", sender="b@example.com")
    assert isinstance(result.error, ServerNotAllowed)
    assert mail_host.connections == 0
    # The very same as the operator's is no concern of the guard's.
    MailServer.objects.update(tenant=None)
    assert send("bob").status == "sent"


def test_networks_and_ports_that_are_allowed(at_home, mail_host, allow):
    allow("127.0.0.0/8")
    assert "on port" in str(send("bob").error)
    allow("127.0.0.0/8", ports=[mail_host.port])
    assert send("bob").status == "sent"
    assert verify_server(at_home.server).ok
    assert verify_credential(at_home).ok


def test_what_is_no_longer_allowed_is_not_sent_over_a_kept_connection(at_home, mail_host, allow):
    allow("127.0.0.0/8", ports=[mail_host.port])
    assert send("bob").status == "sent"
    assert delivery.stats().idle == 1
    allow(ports=[mail_host.port])
    assert isinstance(send("bob").error, ServerNotAllowed)
    assert len(mail_host.delivered) == 1


def test_a_server_that_is_given_to_a_tenant_leaves_its_connections_behind(mail_host, at_home):
    MailServer.objects.update(tenant=None)
    assert send("bob").status == "sent"
    MailServer.objects.update(tenant=at_home.tenant)
    assert isinstance(send("bob").error, ServerNotAllowed)
    assert len(mail_host.delivered) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"TENANT_SERVER_NETWORKS": "127.0.0.0/8"},
        {"TENANT_SERVER_NETWORKS": ["127.0.0.1/8"]},
        {"TENANT_SERVER_NETWORKS": None},
        {"TENANT_SERVER_PORTS": "587"},
        {"TENANT_SERVER_PORTS": 587},
    ],
)
def test_settings_that_can_not_be_read_let_nothing_through(at_home, mail_host, settings, wrong):
    settings.MAILPOOL = {**settings.MAILPOOL, **wrong}
    error = send("bob").error
    assert isinstance(error, ImproperlyConfigured)
    assert "TENANT_SERVER" in str(error)
    with pytest.raises(ValidationError, match="TENANT_SERVER"):
        at_home.server.full_clean()
    assert mail_host.connections == 0


def test_where_a_server_may_be_is_part_of_the_key(at_home, allow):
    keys = [delivery.session_params(at_home)]
    for networks, ports in ((["127.0.0.0/8"], [25]), (["10.0.0.0/8"], [25]), ([], [587])):
        allow(*networks, ports=ports)
        keys.append(delivery.session_params(at_home))
    at_home.server.tenant = None
    keys.append(delivery.session_params(at_home))
    assert len(set(keys)) == 5
    assert keys[-1].guard is None


# Operators


def test_a_tenants_server_is_entered_and_shown(admin, bob, mary):  # noqa: F811
    data = server_data(tenant=bob.pk, host="10.0.0.1")
    assert "is not connected to" in errors(admin.post(f"{SERVERS}add/", data))
    data = server_data(tenant=bob.pk)
    row = {"tenant": mary.pk, "username": "m", "password": "secret", "priority": 10}
    inside = {**data, **inline("credentials", row)}
    assert "belongs to another tenant" in errors(admin.post(f"{SERVERS}add/", inside))
    assert admin.post(f"{SERVERS}add/", data).status_code == 302
    server = MailServer.objects.get()
    assert server.tenant == bob
    assert "field-tenant" in admin.get(SERVERS).content.decode()
    MailServerFactory()
    assert [*admin.get(SERVERS, {"q": "bob"}).context["cl"].queryset] == [server]
    data = credential_data(tenant=mary.pk, server=server.pk, password="secret")
    assert "belongs to another tenant" in errors(admin.post(f"{CREDENTIALS}add/", data))
    data["tenant"] = bob.pk
    assert admin.post(f"{CREDENTIALS}add/", data).status_code == 302
    data = server_data(tenant=mary.pk, host=server.host)
    page = admin.post(f"{SERVERS}{server.pk}/change/", data)
    assert "Credentials of others" in errors(page)
    url = f"/admin/mailpool/tenant/{bob.pk}/delete/"
    assert admin.post(url, {"post": "yes"}).status_code == 302
    assert not MailServer.objects.filter(tenant__isnull=False).exists()


def test_a_server_is_given_to_one_of_many_tenants_by_typing(admin):  # noqa: F811
    server = MailServerFactory()
    for _ in range(60):
        TenantFactory()
    page = admin.get(f"{SERVERS}{server.pk}/change/").content.decode()
    assert "admin-autocomplete" in page
    assert page.count("<option") < 20
    found = admin.get(
        "/admin/autocomplete/",
        {"term": Tenant.objects.first().slug, "app_label": "mailpool"}
        | {"model_name": "mailserver", "field_name": "tenant"},
    )
    assert found.json()["results"]


def test_the_list_asks_no_more_for_more_owners(admin, django_assert_max_num_queries):  # noqa: F811
    for _ in range(30):
        MailServerFactory(tenant=TenantFactory())
    with django_assert_max_num_queries(12):
        admin.get(SERVERS)


def test_an_account_is_not_imported_into_another_tenants_server(monkeypatch, bob, mary):
    monkeypatch.setenv("EMAIL_URL", f"smtp+tls://x:{PASSWORD}@smtp.example.com:587")
    marys = MailServerFactory(tenant=mary, host="smtp.example.com", name="Mary's")
    bobs = MailServerFactory(tenant=bob, host="smtp.example.com", name="Bob's")
    for options, expected in ((["--tenant", "bob"], bobs), (["--tenant", "mary"], marys)):
        output = StringIO()
        call_command("mailpool_import_env", *options, "--json", stdout=output)
        assert json.loads(output.getvalue())["server"] == expected.name
    call_command("mailpool_import_env", stdout=StringIO())
    assert Credential.objects.get(tenant=None).server.tenant is None
