"""OAuth 2 in the admin: clients, and connecting an account."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.urls import reverse

from mailpool.models import Credential, OAuthClient
from mailpool.oauth import provider as oauth_provider
from tests.factories import CredentialFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET

pytestmark = pytest.mark.django_db

ADD = "/admin/mailpool/oauthclient/add/"


@pytest.fixture
def google(db):
    client = OAuthClient(
        name="Google", provider="google", client_id=CLIENT_ID, client_secret=CLIENT_SECRET
    )
    client.full_clean()
    client.save()
    return client


def form_of(client, **changes):
    names = ("name", "provider", "client_id", "authorization_url", "token_url", "scopes")
    return {**{name: getattr(client, name) for name in names}, "client_secret": "", **changes}


def errors(response) -> str:
    return str(response.context["adminform"].form.errors)


@pytest.mark.parametrize("provider", ["google", "microsoft"])
def test_a_preset_leaves_little_to_enter(admin_client, provider):
    form = {"name": "ours", "provider": provider, "client_id": "id", "client_secret": "secret"}
    response = admin_client.post(ADD, form)
    assert response.status_code == 302
    client = OAuthClient.objects.get()
    assert client.client_secret == "secret"
    assert client.token_url.startswith("https://")
    assert client.authorization_url
    assert client.scopes


def test_the_client_secret_is_write_only(admin_client, google):
    page = f"/admin/mailpool/oauthclient/{google.pk}/change/"
    assert CLIENT_SECRET not in admin_client.get(page).content.decode()
    assert admin_client.post(page, form_of(google, name="New name")).status_code == 302
    google.refresh_from_db()
    assert google.name == "New name"
    assert google.client_secret == CLIENT_SECRET


def test_whoever_may_only_look_sees_no_secret(client, google):
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_oauthclient"))
    client.force_login(user)
    text = client.get(f"/admin/mailpool/oauthclient/{google.pk}/change/").content.decode()
    assert CLIENT_ID in text
    assert CLIENT_SECRET not in text
    assert "secret" not in text.lower()


def test_another_token_url_needs_the_secret_again(admin_client, google):
    page = f"/admin/mailpool/oauthclient/{google.pk}/change/"
    other = "https://other.example.com/token"
    response = admin_client.post(page, form_of(google, token_url=other))
    assert "Enter the client secret again" in errors(response)
    form = form_of(google, token_url=other, client_secret="new")
    assert admin_client.post(page, form).status_code == 302
    assert OAuthClient.objects.get().client_secret == "new"


def test_an_address_without_tls_is_refused(admin_client, google):
    page = f"/admin/mailpool/oauthclient/{google.pk}/change/"
    form = form_of(google, token_url="http://login.example.com/token", client_secret="x")
    assert "https://" in errors(admin_client.post(page, form))


def credential_form(credential, **changes):
    return {
        "tenant": str(credential.tenant_id),
        "server": str(credential.server_id),
        "username": credential.username,
        "kind": credential.kind,
        "oauth_client": "",
        "password": "",
        "priority": "10",
        "is_active": "on",
        "default_from": "",
        "senders-TOTAL_FORMS": "0",
        "senders-INITIAL_FORMS": "0",
        **changes,
    }


def test_a_password_login_becomes_an_oauth_login_and_back(admin_client, google):
    credential = CredentialFactory()
    page = f"/admin/mailpool/credential/{credential.pk}/change/"
    form = credential_form(credential, kind="authorization_code")
    assert "Choose the OAuth client" in errors(admin_client.post(page, form))
    form["oauth_client"] = str(google.pk)
    assert admin_client.post(page, form).status_code == 302
    row = Credential.objects.get()
    assert (row.kind, row.has_password) == ("authorization_code", False)
    assert "Not connected" in admin_client.get(page).content.decode()
    listed = admin_client.get("/admin/mailpool/credential/").content.decode()
    assert "not connected" in listed

    row.refresh_token = "refresh"
    row.save()
    text = admin_client.get(page).content.decode()
    assert "Connected on" in text
    assert "refresh" not in re.sub(r"refresh_token", "", text)

    form = credential_form(row, kind="password", password="secret")
    assert admin_client.post(page, form).status_code == 302
    row = Credential.objects.get()
    assert (row.kind, row.password, row.is_connected) == ("password", "secret", False)


def test_an_oauth_login_takes_no_password(admin_client, google):
    credential = CredentialFactory(
        kind="authorization_code", oauth_client=google, password="", refresh_token="refresh"
    )
    page = f"/admin/mailpool/credential/{credential.pk}/change/"
    form = credential_form(credential, oauth_client=str(google.pk), password="secret")
    assert "has no password" in errors(admin_client.post(page, form))


def test_the_list_says_which_accounts_are_to_be_connected_again(admin_client, google):
    CredentialFactory(
        kind="authorization_code",
        oauth_client=google,
        password="",
        refresh_token="refresh",
        needs_attention="The permission was withdrawn.",
    )
    # A new grant has no troubles of the last one's.
    assert Credential.objects.get().needs_attention == ""
    Credential.objects.update(needs_attention="The permission was withdrawn.")
    text = admin_client.get("/admin/mailpool/credential/").content.decode()
    assert "connect again" in text
    assert "The permission was withdrawn." in text


def test_missing_library_is_found_by_a_check(google, monkeypatch):
    monkeypatch.setattr(oauth_provider, "is_installed", lambda: False)
    call_command("check", databases=["default"])
    CredentialFactory(kind="authorization_code", oauth_client=google, password="")
    with pytest.raises(SystemCheckError, match=r"mailpool\.E040"):
        call_command("check", databases=["default"])


def test_urls_are_there():
    assert reverse("admin:mailpool_oauthclient_changelist")
