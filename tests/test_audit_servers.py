"""The audit of mail servers and OAuth clients: as of credentials, and no secret ever."""

from __future__ import annotations

import json

import pytest
from django.db import DatabaseError, transaction

from mailpool.audit import AuditEntry, acting
from mailpool.models import MailServer, OAuthClient
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtpd import PASSWORD
from tests.test_admin import SERVERS, admin, inline, server_data, staff  # noqa: F401
from tests.test_audit import TRAIL, everything, forget, no_table
from tests.test_commands import run

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = "/admin/mailpool/oauthclient/"
SECRET = "a client secret that nobody reads"


@pytest.fixture
def main(db):
    server = MailServerFactory(name="Main", tenant=TenantFactory(slug="bob"))
    forget()
    return server


@pytest.fixture
def google(db):
    client = OAuthClient(name="Google", provider="google", client_id="id", client_secret=SECRET)
    client.full_clean()
    client.save()
    forget()
    return client


def entries():
    found = AuditEntry.objects.order_by("pk")
    return [(entry.action, entry.about, entry.details) for entry in found]


SERVER, CLIENT = "mail server Main", "OAuth client Google"
SWITCH = "maintain connection to mail server"


# Servers


def test_a_server_is_created_changed_and_deleted(db):
    server = MailServerFactory(name="Main", host="smtp.example.com")
    ((action, about, details),) = entries()
    assert (action, about) == ("created", SERVER)
    assert "host: smtp.example.com; port: 587; security: starttls" in details
    forget()
    server.host, server.port, server.security = "new.example.com", 465, "tls"
    server.maintain_connection = False
    server.save()
    server.save()  # no change, no entry
    server.is_active = False
    server.save(update_fields=["is_active"])
    server.delete()
    address = "host: smtp.example.com → new.example.com; port: 587 → 465; security: starttls → tls"
    assert entries() == [
        ("changed", SERVER, f"{address}; {SWITCH}: yes → no"),
        ("disabled", SERVER, ""),
        ("deleted", SERVER, ""),
    ]


def test_a_server_has_its_tenants_name_and_outlives_it(main):
    MailServer.objects.update(port=2525)
    main.tenant.delete()
    found = list(AuditEntry.objects.order_by("pk"))
    assert [(each.action, each.tenant, each.server) for each in found] == [
        ("changed", "bob", "Main"),
        ("deleted", "bob", "Main"),
    ]
    assert {each.server_id for each in found} == {main.pk}
    assert {each.credential_id for each in found} == {None}


def test_update_is_recorded_row_by_row(main):
    MailServerFactory(name="Other")
    forget()
    assert (
        MailServer.objects.filter(maintain_connection=True).update(maintain_connection=False) == 2
    )
    assert AuditEntry.objects.filter(details=f"{SWITCH}: yes → no").count() == 2
    main.tenant.mailpool_servers.update(is_active=False)
    assert entries()[-1] == ("disabled", SERVER, "")


def test_a_certificate_is_told_by_its_digest(main, authority):
    main.ca_certificate = authority.pem
    main.save()
    ((_, _, details),) = entries()
    assert details.startswith("CA certificate: (empty) → SHA-256 ")
    assert len(details) < 100


def test_nothing_changes_that_can_not_be_recorded(main, google):
    with no_table():
        for change in (
            lambda: MailServer.objects.update(host="new.example.com"),
            lambda: main.delete(),
            lambda: google.save(),
            lambda: OAuthClient.objects.update(client_id="other"),
        ):
            google.client_id = "other"
            with pytest.raises(DatabaseError), transaction.atomic():
                change()
    assert MailServer.objects.get().host == "smtp.example.com"
    assert OAuthClient.objects.get().client_id == "id"


# OAuth clients


def test_a_client_is_created_changed_and_deleted(db):
    client = OAuthClient(name="Google", provider="google", client_id="id", client_secret=SECRET)
    client.full_clean()
    client.save()
    ((action, about, details),) = entries()
    assert (action, about) == ("created", CLIENT)
    assert "client ID: id; client secret: set" in details
    forget()
    client.token_url = "https://other.example.com/token"
    client.client_secret = SECRET
    client.save()
    client.client_secret = client.private_key = ""
    client.save()
    client.private_key = SECRET
    client.save()
    OAuthClient.objects.update(scopes="mail")
    client.delete()
    assert sorted(entries()[:2]) == [
        (
            "changed",
            CLIENT,
            "token URL: https://oauth2.googleapis.com/token → https://other.example.com/token",
        ),
        ("password_set", CLIENT, "client secret"),
    ]
    assert entries()[2:] == [
        ("password_removed", CLIENT, "client secret"),
        ("password_set", CLIENT, "service account's key"),
        ("changed", CLIENT, "scopes: https://mail.google.com/ → mail"),
        ("deleted", CLIENT, ""),
    ]
    assert SECRET not in everything()


def test_no_secret_is_in_the_log(google, caplog):
    caplog.set_level("INFO", logger="mailpool.audit")
    google.client_secret = "another secret"
    google.save()
    (line,) = caplog.records
    assert (
        line.getMessage() == "password_set: OAuth client Google by a process (code): client secret"
    )
    assert (line.audit_oauth_client, line.audit_oauth_client_key) == ("Google", str(google.pk))
    assert "another secret" not in str(line.__dict__) + everything()


# The admin


def test_whatever_the_list_of_servers_does_is_recorded_with_the_user(admin, main):  # noqa: F811
    other = MailServerFactory(name="Other")
    forget()
    selected = {"_selected_action": [main.pk, other.pk]}
    admin.post(SERVERS, {"action": "do_not_maintain", **selected})
    assert sorted(entries()) == [
        ("changed", SERVER, f"{SWITCH}: yes → no"),
        ("changed", "mail server Other", f"{SWITCH}: yes → no"),
    ]
    forget()
    rows = [{"id": main.pk, "maintain_connection": "on"}, {"id": other.pk}]
    admin.post(SERVERS, {**inline("form", *rows, initial=2), "_save": "Save"})
    assert entries() == [("changed", SERVER, f"{SWITCH}: no → yes")]
    admin.post(SERVERS, {"action": "delete_selected", "post": "yes", **selected})
    assert sorted(entries())[1:] == [("deleted", SERVER, ""), ("deleted", "mail server Other", "")]
    assert set(AuditEntry.objects.values_list("actor", "way")) == {("root", "admin")}


def test_pages_of_servers_are_recorded_with_the_user(admin, db):  # noqa: F811
    assert admin.post(f"{SERVERS}add/", server_data()).status_code == 302
    server = MailServer.objects.get()
    page = f"{SERVERS}{server.pk}/change/"
    data = server_data(host="new.example.com")
    assert admin.post(page, data).status_code == 302
    CredentialFactory(server=server)
    moved = {"host": "a.example.com", "port": 587, "security": "starttls", "confirmed": "yes"}
    with acting(None, "test"):
        assert admin.post(f"{SERVERS}{server.pk}/move/", moved).status_code == 302
    assert [entry[2] for entry in entries() if entry[:2] == ("changed", SERVER)] == [
        "host: smtp.example.com → new.example.com",
        "host: new.example.com → a.example.com",
    ]
    mine = AuditEntry.objects.filter(server_id=server.pk)
    assert set(mine.values_list("actor", "way")) == {("root", "admin")}


def test_pages_of_clients_are_recorded_with_the_user(admin, db):  # noqa: F811
    form = {"name": "Google", "provider": "google", "client_id": "id", "client_secret": SECRET}
    assert admin.post(f"{CLIENTS}add/", form).status_code == 302
    page = f"{CLIENTS}{OAuthClient.objects.get().pk}/"
    assert admin.post(f"{page}change/", {**form, "client_secret": "new one"}).status_code == 302
    assert admin.post(f"{page}delete/", {"post": "yes"}).status_code == 302
    actions = [entry[0] for entry in entries()]
    assert actions[0] == "created"
    assert "password_set" in actions
    assert actions[-1] == "deleted"
    assert set(AuditEntry.objects.values_list("actor", "way")) == {("root", "admin")}
    assert SECRET not in everything()
    assert PASSWORD not in everything()


@pytest.mark.parametrize(("path", "key"), [(SERVERS, "server_id"), (CLIENTS, "oauth_client_id")])
def test_row_and_trail_lead_to_each_other(admin, staff, main, google, path, key):  # noqa: F811
    MailServer.objects.update(port=2525)
    OAuthClient.objects.update(scopes="mail")
    row = main if path == SERVERS else google
    page = f"{path}{row.pk}/change/"
    url = f"{TRAIL}?{key}__exact={row.pk}"
    assert url in admin.get(page).content.decode()
    text = admin.get(url).content.decode()
    assert f'href="{page}"' in text
    assert ("port: 587 → 2525" in text) == (path == SERVERS)
    assert ("→ mail" in text) == (path == CLIENTS)
    viewer = staff("view_auditentry")
    assert page not in viewer.get(TRAIL).content.decode()
    row.delete()
    assert f'href="{page}"' not in admin.get(url).content.decode()


def test_the_command_shows_them(main, google):
    MailServer.objects.update(port=2525)
    OAuthClient.objects.update(scopes="mail")
    text, _ = run("audit")
    assert "bob     mail server Main" in text
    assert CLIENT in text
    assert "(all)" not in text
    client, server = json.loads(run("audit", "--json")[0])
    assert (server["server_key"], client["oauth_client_key"]) == (str(main.pk), str(google.pk))
    assert client["oauth_client"] == "Google"
    assert len(json.loads(run("audit", "--json", "--tenant", "bob")[0])) == 1
