"""Connecting an account with a real browser: to the provider and back."""

from __future__ import annotations

import shutil

import pytest

from mailpool.models import Credential, OAuthClient
from tests.factories import CredentialFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def provider():
    with OAuthServer() as provider:
        yield provider


@pytest.fixture
def page(monkeypatch):
    # Playwright has an event loop in this thread, in which Django would refuse to work.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser.new_page()
        browser.close()


def test_an_account_is_connected(page, live_server, admin_user, provider):
    client = OAuthClient.objects.create(
        name="Provider",
        authorization_url=f"{provider.url}/authorize",
        token_url=f"{provider.url}/token",
        scopes="mail",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    credential = CredentialFactory(
        username="bob@example.com", kind="authorization_code", oauth_client=client, password=""
    )
    page.goto(f"{live_server.url}/admin/mailpool/credential/{credential.pk}/change/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", "password")
    page.click("[type=submit]")
    shown = sync_api.expect(page.locator("body"))
    shown.to_contain_text("Not connected")
    page.click("text=Connect account")
    page.click("text=Continue to the provider")
    sync_api.expect(page).to_have_title("Provider")
    page.click("#allow")
    shown.to_contain_text("The account is connected.")
    shown.to_contain_text("Connected on")
    assert Credential.objects.get().refresh_token == provider.grants[0].refresh_token
