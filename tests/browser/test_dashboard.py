"""The dashboard and mailpool's other pages of the admin, in a real browser.

Everything here runs under a strict content security policy: nothing from anywhere but the site
itself, nothing inline, no eval.
"""

from __future__ import annotations

from datetime import timedelta

import django
import pytest
from django.core.cache import cache

from mailpool.models import DeliveryRecord
from tests.factories import CredentialFactory, MailServerFactory
from tests.records import add_records

sync_api = pytest.importorskip("playwright.sync_api")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(django.VERSION < (6, 0), reason="has no content security policy"),
]

DASHBOARD = "/admin/mailpool/"

# Whatever the browser has to say about the policy, from the first moment of each page on.
LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


@pytest.fixture(autouse=True)
def strict(settings):
    settings.SECURE_CSP = {"default-src": ["'self'"]}
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.add_init_script(LISTEN)
    return page


@pytest.fixture
def credential(transactional_db):
    """One of a few that have sent, with failures."""
    server = MailServerFactory(name="Relay")
    for number in range(12):
        credential = CredentialFactory(server=server, tenant__name=f"Tenant {number}")
        for hours in range(0, 20, 3):
            add_records(credential, 3 + number, ago=timedelta(hours=hours), number=number)
    add_records(credential, 2, number=50, outcome="failed", code=535)
    return credential


def serious(page):
    """What axe has found that keeps people out, with the place."""
    # The box to search lists with is Django's own: its label is a picture.
    found = axe_playwright.Axe().run(page, context={"exclude": ["#searchbar"]})
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found.response["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def fine(page):
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.violations") == [], page.url
    assert serious(page) == [], page.url


def pixels(page):
    """The colours of the first plot, once what has changed is drawn."""
    return page.evaluate(
        """async () => {
        for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame);
        const canvas = document.querySelector(".mailpool-plot canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Set();
        for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 4).join());
        return [...seen].sort().join(" "); }"""
    )


def test_the_policy_would_be_seen_to_be_broken(page, log_in, credential):
    log_in(DASHBOARD)
    page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", () => resolve());
            document.body.append(Object.assign(document.createElement("script"), {text: "1"}));
        })"""
    )
    assert "inline" in page.evaluate("window.violations").pop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_dashboard(page, log_in, credential, scheme, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    log_in(DASHBOARD)
    plots = page.locator(".mailpool-plot canvas")
    sync_api.expect(plots.first).to_be_visible()
    assert plots.count() == page.locator(".mailpool-plot").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for each in page.locator(".mailpool-panel summary").all():
        each.press("Enter")  # by keyboard
    assert page.locator(".mailpool-panel details[open] table").count() == plots.count()
    fine(page)


def test_plots_follow_the_theme(page, log_in, credential):
    page.emulate_media(color_scheme="light")
    log_in(DASHBOARD)
    sync_api.expect(page.locator(".mailpool-plot canvas").first).to_be_visible()
    light = pixels(page)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    dark = pixels(page)
    assert dark != light
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert pixels(page) == light
    page.evaluate("document.documentElement.dataset.theme = 'auto'")
    page.emulate_media(color_scheme="dark")
    assert pixels(page) == dark


def test_without_scripts_the_figures_are_there(
    browser, live_server, client, admin_user, credential
):
    client.force_login(admin_user)
    context = browser.new_context(java_script_enabled=False)
    context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    page = context.new_page()
    page.goto(live_server.url + DASHBOARD)
    page.locator("summary").first.click()
    sync_api.expect(page.locator("details table").first).to_be_visible()
    sync_api.expect(page.locator(".mailpool-plot").first).to_be_hidden()


OTHERS = (
    "mailserver/",
    "mailserver/add/",
    "mailserver/add/?preset=microsoft365",
    "mailserver/connections/",
    "mailserver/{server}/change/",
    "mailserver/{server}/verify/",
    "mailserver/{server}/move/",
    "credential/",
    "credential/add/",
    "credential/{credential}/change/",
    "credential/{credential}/verify/",
    "credential/{credential}/send-test/",
    "deliveryrecord/",
    "deliveryrecord/{record}/change/",
    "auditentry/",
    "oauthclient/add/",
    "tenant/",
)


@pytest.mark.parametrize("part", range(3))
def test_the_other_pages(page, log_in, live_server, credential, part):
    keys = {
        "server": credential.server_id,
        "credential": credential.pk,
        "record": DeliveryRecord.objects.first().pk,
    }
    paths = [DASHBOARD + path.format(**keys) for path in OTHERS[part::3]]
    log_in(paths[0])
    for path in paths:
        response = page.goto(live_server.url + path)
        assert response.status == 200, path
        assert response.header_value("content-security-policy") == "default-src 'self'"
        fine(page)
