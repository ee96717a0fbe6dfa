"""A tenant proves an address of its own on a phone, on the pages as they come."""

from __future__ import annotations

import re

import pytest

from mailpool.models import MailServer, Sender
from tests.test_ownership import SHOP, code_in, signed_in
from tests.test_ownership import urlpatterns as urlpatterns

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]


def fits(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, page.url


def test_an_address_is_proven(page, live_server, settings, mail_host, make_credential):
    settings.MAILPOOL = {
        **settings.MAILPOOL,
        "VERIFY_SENDERS": True,
        "TENANT_VERIFY_RATE": None,
    }
    make_credential(mail_host)
    bob = make_credential(mail_host, "bob")
    bob.server = MailServer.objects.create(name="Bob's", host="smtp.bob.example", tenant=bob.tenant)
    bob.save()
    session = signed_in("bob").cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies(
        [{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}]
    )
    page.set_viewport_size({"width": 390, "height": 844})
    shown = sync_api.expect(page.locator("body"))

    page.goto(f"{live_server.url}/mail/{bob.pk}/")
    shown.to_contain_text("nothing is sent with this account")
    page.get_by_label("Address").fill(SHOP)
    page.click("text=Add sender")
    shown.to_contain_text("Now show that it is yours")
    value = page.get_by_label("Its value")
    sync_api.expect(value).to_have_value(re.compile("mailpool-verification="))
    fits(page)
    page.click(f"text=Send code to {SHOP}")
    shown.to_contain_text("A code was sent")
    page.get_by_label("Code from the message").fill(code_in(mail_host.delivered[0]))
    fits(page)
    page.click("text=Enter code")
    shown.to_contain_text(f"{SHOP} is yours")
    fits(page)
    assert Sender.objects.get().is_proven
