"""Connecting an account with a real browser: to the provider and back."""

from __future__ import annotations

import pytest

from mailpool.models import Credential, OAuthClient
from tests.factories import CredentialFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def provider():
    with OAuthServer() as provider:
        yield provider


def fits(page):
    """Nothing has to be scrolled sideways, once the style sheets are there."""
    page.wait_for_function("document.readyState == 'complete'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, page.url


def test_an_account_is_connected(page, log_in, provider):
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
    page.set_viewport_size({"width": 390, "height": 844})  # a phone's
    log_in(f"/admin/mailpool/credential/{credential.pk}/change/")
    fits(page)
    shown = sync_api.expect(page.locator("body"))
    shown.to_contain_text("Not connected")
    page.click("text=Connect account")
    page.wait_for_url("**/connect/")
    fits(page)
    page.click("text=Continue to the provider")
    sync_api.expect(page).to_have_title("Provider")
    page.click("#allow")
    shown.to_contain_text("The account is connected.")
    shown.to_contain_text("Connected on")
    assert Credential.objects.get().refresh_token == provider.grants[0].refresh_token
    page.goto(f"{page.url.partition('/admin/')[0]}/admin/mailpool/oauthclient/add/")
    fits(page)
