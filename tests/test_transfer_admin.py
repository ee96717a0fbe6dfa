"""The admin's page of imports and exports."""

from __future__ import annotations

import tempfile

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from mailpool.admin import transfer as page
from mailpool.audit import AuditEntry
from mailpool.models import Credential, OAuthClient, Tenant
from tests.factories import CredentialFactory, TenantFactory
from tests.test_transfer import BOB, MARY, SECRET, table

pytestmark = pytest.mark.django_db

URL = "/admin/mailpool/credential/transfer/"
IMPORT = [
    f"{verb}_{name}"
    for verb in ("add", "change")
    for name in ("tenant", "mailserver", "credential", "sender")
]


@pytest.fixture
def staff(client):
    def log_in(*codenames):
        user = get_user_model().objects.create_user("alice", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def upload(client, text, seen=None, name="f.csv"):
    data = {"file": SimpleUploadedFile(name, text.encode())} | ({"seen": seen} if seen else {})
    response = client.post(URL, data)
    assert SECRET not in response.content.decode()
    return response


def test_a_file_is_looked_at_and_then_imported(staff):
    client = staff(*IMPORT)
    response = upload(client, table(BOB, MARY))
    text = response.content.decode()
    assert "create account bob of bob at Main" in text
    assert "password: set" in text
    assert not Tenant.objects.exists()
    response = upload(client, table(BOB, MARY), response.context["token"])
    assert response.status_code == 302
    assert Credential.objects.get(tenant__slug="bob").password == SECRET
    assert set(AuditEntry.objects.values_list("actor", "way")) == {("alice", "admin")}
    known = [(*row[:4], "", *row[5:]) for row in (BOB, MARY)]
    assert "nothing to import" in upload(client, table(*known)).content.decode()


def test_only_what_was_reported_on_is_imported(staff):
    client = staff(*IMPORT)
    token = upload(client, table(BOB)).context["token"]
    for content, seen in ((table(BOB, MARY), token), (table(BOB), "0" * 64)):
        response = upload(client, content, seen)
        assert "this is not what the report was about" in response.content.decode()
        assert not Credential.objects.exists()
    TenantFactory(slug="bob", name="Meanwhile")
    response = upload(client, table(BOB), token)
    assert "this is not what the report was about" in response.content.decode()
    assert not Credential.objects.exists()


def test_every_error_is_on_the_page_and_nothing_is_imported(staff):
    client = staff(*IMPORT)
    content = table(BOB, ("", "<b>", "", "", SECRET, "x"), (*BOB[:3], "bob2", "", ""))
    response = upload(client, content)
    text = response.content.decode()
    assert [problem.line for problem in response.context["plan"].problems] == [3, 4]
    assert "Write the tenant&#x27;s slug" in text
    assert "Enter the password of this account" in text
    upload(client, content, response.context["token"])
    assert not Tenant.objects.exists()
    assert "This is not UTF-8" not in text
    assert "There is no such column" in upload(client, "tenant,b\n1,2\n").content.decode()


def test_the_file_is_neither_on_the_disk_nor_in_the_session(staff, monkeypatch, settings):
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 10

    def refuse(*args, **kwargs):
        raise AssertionError("a file on the disk")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr("django.core.files.uploadedfile.TemporaryUploadedFile.__init__", refuse)
    client = staff(*IMPORT)
    assert "create account" in upload(client, table(BOB)).content.decode()
    assert SECRET not in str([row.get_decoded() for row in Session.objects.all()])
    monkeypatch.setattr(page, "MAX_BYTES", 100)
    assert "at most 10 MB" in upload(client, table(BOB)).content.decode()


def test_who_may_not(staff, client):
    assert client.post(URL).status_code == 302  # to the login
    client = staff(*IMPORT[1:])
    assert client.get(URL).status_code == 403
    assert upload(client, table(BOB)).status_code == 403
    assert client.post(URL, {"export": "csv"}).status_code == 403


def test_who_may_look_exports_and_imports_nothing(staff):
    client = staff(*(f"view_{n}" for n in ("tenant", "mailserver", "credential", "sender")))
    CredentialFactory(tenant__slug="bob", username="=bob", password=SECRET)
    assert "Import and export" in client.get("/admin/mailpool/credential/").content.decode()
    response = client.post(URL, {"export": "csv"})
    text = response.content.decode("utf-8-sig")
    assert "'=bob" in text
    assert SECRET not in text
    assert "sealed" not in text
    entry = AuditEntry.objects.get(action="exported")
    assert (entry.actor, entry.way) == ("alice", "admin")
    assert client.post(URL, {"export": "json"}).json()[0] == {
        "record": "tenant", "tenant": "bob", "tenant_name": "Bob", "tenant_active": True
    }  # fmt: skip
    assert upload(client, table(BOB)).status_code == 403
    assert 'type="file"' not in client.get(URL).content.decode()


def test_an_oauth_client_needs_its_permission(staff):
    OAuthClient.objects.create(
        name="Microsoft", provider="other", client_id="x", token_url="https://login.test/token",
        client_secret="secret",
    )  # fmt: skip
    head = "tenant,server,host,username,kind,oauth_client"
    row = ("bob", "Main", "smtp.example.com", "bob", "client_credentials", "Microsoft")
    client = staff(*IMPORT)
    assert "you need the permission" in upload(client, table(row, head=head)).content.decode()
    user = get_user_model().objects.get()
    user.user_permissions.add(Permission.objects.get(codename="change_oauthclient"))
    user.user_permissions.add(Permission.objects.get(codename="move_mailserver"))
    response = upload(client, table(row, head=head))
    assert upload(client, table(row, head=head), response.context["token"]).status_code == 302
    assert Credential.objects.get().permission


def test_tokens_of_an_application_are_not_taken_elsewhere(staff):
    """As in the form of an account: to another mail host by who may move servers."""
    microsoft = OAuthClient.objects.create(
        name="Microsoft", provider="other", client_id="x", token_url="https://login.test/token",
        client_secret="secret",
    )  # fmt: skip
    head = "tenant,server,host,username,kind,oauth_client"
    login = ("client_credentials", "Microsoft")
    bob = table(("bob", "Main", "smtp.example.com", "bob", *login), head=head)
    mary = table(("mary", "Other", "evil.example.com", "mary", *login), head=head)
    client = staff(*IMPORT, "change_oauthclient")
    for file in (bob, mary):
        response = upload(client, file)
        assert "addresses of mail servers" in response.content.decode()
        assert upload(client, file, response.context["token"]).status_code == 200
    assert not Credential.objects.exists()

    CredentialFactory(kind=login[0], oauth_client=microsoft, password="")  # at smtp.example.com
    response = upload(client, mary)
    assert "addresses of mail servers" in response.content.decode()
    response = upload(client, bob)
    assert upload(client, bob, response.context["token"]).status_code == 302
    assert Credential.objects.get(username="bob").permission


def test_a_forged_request_is_refused(staff):
    staff(*IMPORT)
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.get())
    assert upload(client, table(BOB)).status_code == 403
    assert client.get(URL).status_code == 200
    token = client.cookies["csrftoken"].value
    data = {"file": SimpleUploadedFile("f.csv", table(BOB).encode()), "csrfmiddlewaretoken": token}
    assert "create account" in client.post(URL, data).content.decode()


def test_a_file_that_would_take_too_long_is_for_the_command(staff, monkeypatch):
    """A server ends a request that takes long, gunicorn after 30 seconds."""
    client = staff(*IMPORT)
    monkeypatch.setattr(page, "MAX_ROWS", 1)
    text = upload(client, table(BOB, MARY)).content.decode()
    assert "There are more than 1 rows. Use the command mailpool_import." in text
    assert upload(client, table(BOB)).context["token"]


def test_of_many_errors_it_is_said_how_many_are_not_shown(staff, monkeypatch):
    client = staff(*IMPORT)
    monkeypatch.setattr(page, "MAX_PROBLEMS", 2)
    text = upload(client, table(*[("", *BOB[1:])] * 5)).content.decode()
    assert "5 problems. Nothing was imported" in text
    assert text.count("Write the tenant&#x27;s slug") == 2
    assert "And 3 more." in text


def test_whatever_is_in_the_file_there_is_a_page(staff):
    for column in ("x\\ud800", "senders"):
        content = f'[{{"tenant": "bob", "server": "Main", "{column}": "\\ud800"}}]'
        assert upload(staff(*IMPORT), content, name="f.json").context["plan"].problems
        get_user_model().objects.all().delete()
