"""OAuth 2 in the admin: clients, and connecting an account."""

from __future__ import annotations

import logging
import re
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.urls import reverse

from mailpool.models import AuditEntry, Credential, OAuthClient
from mailpool.oauth import provider as oauth_provider
from tests.factories import CredentialFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer

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
        "sender_policy": "refuse",
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


def test_app_only_access_is_given_by_those_who_may_change_clients(client, google):
    """It is access to every mailbox that the application may send as."""
    user = User.objects.create_user("somebody", is_staff=True)
    for codename in ("view_credential", "change_credential", "add_credential"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client.force_login(user)
    credential = CredentialFactory()
    page = f"/admin/mailpool/credential/{credential.pk}/change/"
    form = credential_form(credential, kind="client_credentials", oauth_client=str(google.pk))
    assert "those who may change OAuth clients" in errors(client.post(page, form))

    for codename in ("change_oauthclient", "move_mailserver"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    assert client.post(page, form).status_code == 302
    row = Credential.objects.get()
    assert row.is_connected
    assert "By the application itself" in client.get(page).content.decode()

    user.user_permissions.remove(Permission.objects.get(codename="change_oauthclient"))
    assert client.post(page, {**form, "priority": "7"}).status_code == 302
    other = {**form, "username": "boss@example.com"}
    assert "those who may change OAuth clients" in errors(client.post(page, other))
    row = Credential.objects.get()
    assert (row.priority, row.username) == (7, credential.username)
    assert row.permission


def test_app_only_access_to_another_server(admin_client, google):
    credential = CredentialFactory(
        kind="client_credentials", oauth_client=google, password="", server__security="tls"
    )
    other = CredentialFactory().server
    page = f"/admin/mailpool/credential/{credential.pk}/change/"
    form = credential_form(credential, oauth_client=str(google.pk), server=str(other.pk))
    assert admin_client.post(page, form).status_code == 302
    row = Credential.objects.select_related("server", "oauth_client").get(pk=credential.pk)
    assert row.server == other
    assert row.permission


# Connecting an account

BOB = "bob@example.com"


@pytest.fixture
def provider():
    with OAuthServer() as provider:
        yield provider


@pytest.fixture
def credential(provider):
    client = OAuthClient.objects.create(
        name="Provider",
        authorization_url=f"{provider.url}/authorize?tenant=a",
        token_url=f"{provider.url}/token",
        scopes="mail offline_access",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    return CredentialFactory(
        username=BOB, kind="authorization_code", oauth_client=client, password=""
    )


def connect_page(credential) -> str:
    return reverse("admin:mailpool_credential_connect", args=[credential.pk])


def go(client, credential, **kwargs) -> str:
    """To the provider: the address that the browser is sent to."""
    response = client.post(connect_page(credential), **kwargs)
    assert response.status_code == 302
    return response["Location"]


def allow(url) -> str:
    """What the provider sends the browser back to, as a path of this site."""
    with urlopen(url) as answer:
        link = urlsplit(answer.headers["X-Link"])
    return f"{link.path}?{link.query}"


def come_back(client, path) -> str:
    """The page that is shown in the end."""
    response = client.get(path)
    assert response.status_code == 302
    assert "code" not in response["Location"]
    return client.get(response["Location"]).content.decode()


def test_an_account_is_connected(admin_client, credential, provider, caplog):
    caplog.set_level(logging.DEBUG)
    page = admin_client.get(f"/admin/mailpool/credential/{credential.pk}/change/")
    assert connect_page(credential) in page.content.decode()
    shown = admin_client.get(connect_page(credential)).content.decode()
    assert "http://testserver/admin/mailpool/credential/connected/" in shown
    url = go(admin_client, credential)
    asked = {name: value[0] for name, value in parse_qs(urlsplit(url).query).items()}
    assert asked["login_hint"] == BOB
    assert asked["scope"] == "mail offline_access"
    assert asked["tenant"] == "a"
    assert asked["code_challenge_method"] == "S256"
    back = allow(url)
    assert "The account is connected." in come_back(admin_client, back)
    row = Credential.objects.select_related("server", "oauth_client").get()
    (grant,) = provider.grants
    assert row.refresh_token == grant.refresh_token
    assert row.access_token == grant.access_tokens[0]
    assert row.access_token_expires_at
    assert row.connected_at
    assert row.grant != credential.grant
    history = [entry.get_change_message() for entry in LogEntry.objects.all()]
    assert history == ["Connected the account: Provider."]
    entry = AuditEntry.objects.get(action="connected")
    assert (entry.details, entry.actor) == ("OAuth client: Provider", "admin")
    code = parse_qs(urlsplit(back).query)["code"][0]
    for secret in (code, grant.refresh_token, grant.access_tokens[0], CLIENT_SECRET):
        assert secret not in str(history) + caplog.text


def test_connecting_again_heals_an_account_that_needs_attention(admin_client, credential):
    Credential.objects.update(needs_attention="Withdrawn.", refresh_token="")
    come_back(admin_client, allow(go(admin_client, credential)))
    assert Credential.objects.get().needs_attention == ""


def refuses(client, path, credential, text):
    before = Credential.objects.get().grant
    assert text in come_back(client, path)
    row = Credential.objects.get()
    assert (row.grant, row.is_connected) == (before, credential.is_connected)


def test_state_of_another_session_is_not_accepted(admin_client, admin_user, credential, client):
    back = allow(go(admin_client, credential))
    client.force_login(admin_user)
    refuses(client, back, credential, "not begun in this session")


@pytest.mark.parametrize("query", ["", "?code=abc", "?state=&code=abc", "?state=other&code=abc"])
def test_made_up_state_is_not_accepted(admin_client, credential, query):
    go(admin_client, credential)
    path = reverse("admin:mailpool_credential_connected") + query
    refuses(admin_client, path, credential, "not begun in this session")


def test_each_state_is_good_for_once(admin_client, credential, provider):
    back = allow(go(admin_client, credential))
    come_back(admin_client, back)
    credential.refresh_from_db()
    refuses(admin_client, back, credential, "not begun in this session")
    assert len(provider.requests) == 1


def test_what_was_begun_too_long_ago_is_over(admin_client, credential, monkeypatch):
    back = allow(go(admin_client, credential))
    monkeypatch.setattr("mailpool.admin.connect._SECONDS", 0)
    refuses(admin_client, back, credential, "too long ago")


def test_several_at_a_time(admin_client, credential):
    """As in several tabs; the oldest are given up."""
    backs = [allow(go(admin_client, credential)) for _ in range(6)]
    refuses(admin_client, backs[0], credential, "not begun in this session")
    assert "is connected" in come_back(admin_client, backs[1])


@pytest.mark.parametrize(
    ("error", "text"),
    [("access_denied", "permission was not given"), ("invalid_scope", "invalid_scope not today")],
)
def test_provider_says_no(admin_client, credential, provider, error, text):
    provider.denies = error
    back = allow(go(admin_client, credential))
    refuses(admin_client, back, credential, text)
    assert provider.requests == []


def test_verifier_of_another_attempt_is_refused_by_the_provider(admin_client, credential):
    """PKCE: a code that somebody else got hold of is worth nothing here."""
    first, second = (allow(go(admin_client, credential)) for _ in range(2))
    code = parse_qs(urlsplit(first).query)["code"][0]
    state = parse_qs(urlsplit(second).query)["state"][0]
    path = reverse("admin:mailpool_credential_connected") + f"?state={state}&code={code}"
    refuses(admin_client, path, credential, "PKCE verification failed")


def test_no_refresh_token_is_no_connection(admin_client, credential, provider):
    provider.omits_refresh_token = True
    back = allow(go(admin_client, credential))
    refuses(admin_client, back, credential, "no refresh token")


def test_provider_that_is_away(admin_client, credential, provider):
    back = allow(go(admin_client, credential))
    provider.answers = lambda: ("500 Oops", b"")
    refuses(admin_client, back, credential, "status 500")


def test_client_that_was_changed_meanwhile(admin_client, credential, google, provider):
    back = allow(go(admin_client, credential))
    Credential.objects.update(oauth_client=google)
    refuses(admin_client, back, credential, "another OAuth client")
    assert provider.requests == []


def test_behind_a_proxy_with_tls(admin_client, credential, settings):
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.USE_X_FORWARDED_HOST = True
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "mail.example.com"}
    url = go(admin_client, credential, headers=headers)
    uri = parse_qs(urlsplit(url).query)["redirect_uri"]
    assert uri == ["https://mail.example.com/admin/mailpool/credential/connected/"]


@pytest.mark.parametrize("codename", ["view_credential", "add_credential", "verify_credential"])
def test_only_who_may_change_the_credential_connects_it(
    client, admin_client, credential, provider, codename
):
    user = User.objects.create_user("somebody", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_credential"))
    user.user_permissions.add(Permission.objects.get(codename=codename))
    client.force_login(user)
    assert client.get(connect_page(credential)).status_code == 403
    assert client.post(connect_page(credential)).status_code == 403
    page = client.get(f"/admin/mailpool/credential/{credential.pk}/change/").content.decode()
    assert connect_page(credential) not in page

    user.user_permissions.add(Permission.objects.get(codename="change_credential"))
    client.force_login(User.objects.get(pk=user.pk))
    back = allow(go(client, credential))
    user.user_permissions.remove(Permission.objects.get(codename="change_credential"))
    assert client.get(back).status_code == 403  # taken away meanwhile
    assert provider.requests == []


def test_nobody_is_sent_away_without_a_csrf_token(admin_user, credential):
    from django.test import Client

    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    assert browser.post(connect_page(credential)).status_code == 403
    assert browser.get(connect_page(credential)).status_code == 200


@pytest.mark.parametrize("kind", ["password", "client_credentials"])
def test_only_accounts_that_are_connected_have_the_page(admin_client, credential, kind):
    Credential.objects.update(kind=kind)
    change = f"/admin/mailpool/credential/{credential.pk}/change/"
    assert admin_client.get(connect_page(credential))["Location"] == change


def test_the_redirect_uri_is_shown_where_the_client_is_entered(admin_client):
    uri = "http://testserver/admin/mailpool/credential/connected/"
    assert uri in admin_client.get(ADD).content.decode()


def test_missing_library_is_said_on_the_page(admin_client, credential, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "authlib.integrations.requests_client", None)
    response = admin_client.post(connect_page(credential))
    assert "pip install mailpool[oauth2]" in response.content.decode()
