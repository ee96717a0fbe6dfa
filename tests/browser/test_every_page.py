"""Every page, with data, in each look: nothing to scroll sideways, nothing that keeps people out.

``MAILPOOL_LOOK=folder pytest tests/browser/test_every_page.py`` keeps a picture of each page, to
be looked at.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from smtplib import SMTPException

import django
import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.core.mail import EmailMessage
from django.utils import timezone

from mailpool import ownership
from mailpool.models import (
    AuditEntry,
    Credential,
    DeliveryRecord,
    MailServer,
    OAuthClient,
    Sender,
    Tenant,
)
from tests.clients import ClientAuthority
from tests.factories import MailServerFactory
from tests.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer
from tests.records import add_records
from tests.smtpd import PASSWORD
from tests.test_ownership import Pages, code_in
from tests.test_ownership import urlpatterns as urlpatterns

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

ADMIN = "/admin/mailpool/"
# What fits a phone fits a wide window, mostly: the long way is once enough where time matters.
LOOKS = {"wide": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "dark")}

# What does not fit: wider than the window, and in nothing that scrolls by itself.
TOO_WIDE = """
() => {
    const width = document.documentElement.clientWidth;
    if (document.scrollingElement.scrollWidth <= width) return [];
    const scrolls = (each) => each && each !== document.body && each !== document.documentElement
        && (getComputedStyle(each).overflowX !== "visible" || scrolls(each.parentElement));
    return [...document.querySelectorAll("body *")]
        .filter((each) => each.getBoundingClientRect().right > width && !scrolls(each))
        .map((each) => each.outerHTML.slice(0, 120));
}
"""

# Controls that can be reached by keyboard and look the same with the focus as without.
NO_FOCUS = """
() => {
    const look = (each) => {
        const style = getComputedStyle(each);
        return ["outlineStyle", "outlineWidth", "borderTopColor", "boxShadow", "color",
            "backgroundColor", "textDecorationLine"].map((name) => style[name]).join();
    };
    const unseen = [];
    for (const each of document.querySelectorAll(
        ".mailpool a, .mailpool input, .mailpool button, .mailpool select, .mailpool summary, " +
        ".mailpool [tabindex='0']")) {
        if (each.type === "hidden" || !each.checkVisibility()) continue;
        each.blur();
        const before = look(each);
        each.focus({ focusVisible: true });
        if (document.activeElement === each && look(each) === before)
            unseen.push(each.outerHTML.slice(0, 120));
    }
    document.activeElement.blur();
    return unseen;
}
"""


class Walk:
    """Goes from page to page; each that it is :meth:`at` has to be as pages are."""

    def __init__(self, page, url, look, folder):
        self.page, self.url, self.look, self.folder = page, url, look, folder
        self.seen = []

    def go(self, path, name="", status=200):
        response = self.page.goto(self.url + path)
        assert response.status == status, (path, response.status)
        if django.VERSION >= (6, 0):
            assert response.header_value("content-security-policy") == "default-src 'self'"
        if name:
            self.at(name)

    def press(self, what, name=""):
        self.page.locator(what).first.click()
        self.page.wait_for_load_state()
        if name:
            self.at(name)

    def fill(self, **values):
        for name, value in values.items():
            self.page.locator(f"#id_{name}").fill(value)

    def at(self, name):
        self.page.wait_for_load_state()
        self.seen.append(name)
        if self.folder:
            path = Path(self.folder) / self.look / f"{name}.png"
            self.page.screenshot(path=path, full_page=True)
        found = {
            "too wide": self.page.evaluate(TOO_WIDE),
            "against the policy": self.page.evaluate("window.violations"),
            "without visible focus": self.page.evaluate(NO_FOCUS),
            "said by axe": self._axe(),
        }
        problems = {about: what for about, what in found.items() if what}
        assert not problems, (name, self.page.url, problems)

    def _axe(self):
        # The box to search lists with is Django's own: its label is a picture.
        found = axe_playwright.Axe().run(self.page, context={"exclude": ["#searchbar"]})
        return [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in found.response["violations"]
            if each["impact"] in ("serious", "critical")
        ]


@pytest.fixture(autouse=True)
def _strict(settings):
    settings.SECURE_CSP = {"default-src": ["'self'"]}
    settings.MAILPOOL = {
        **settings.MAILPOOL,
        "VERIFY_SENDERS": True,
        "TENANT_VERIFY_RATE": None,
        "RECORDS": "addresses",
        "TENANT_SERVER_NETWORKS": ["127.0.0.0/8", "::1/128"],
    }
    cache.clear()
    yield
    cache.clear()


@pytest.fixture(
    params=[pytest.param(look, marks=() if look == "phone" else pytest.mark.slow) for look in LOOKS]
)
def walk(request, browser, live_server):
    width, scheme = LOOKS[request.param]
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.add_init_script(
        """window.violations = []; document.addEventListener("securitypolicyviolation",
        (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));"""
    )
    return Walk(page, live_server.url, request.param, os.environ.get("MAILPOOL_LOOK"))


@pytest.fixture
def sign_in(walk, settings, client):
    def sign_in(user):
        client.force_login(user)
        value = client.cookies[settings.SESSION_COOKIE_NAME].value
        walk.page.context.add_cookies(
            [{"name": settings.SESSION_COOKIE_NAME, "value": value, "url": walk.url}]
        )

    return sign_in


@pytest.fixture
def provider():
    with OAuthServer() as provider:
        yield provider


def send(tenant, to="you@example.com"):
    message = EmailMessage("Your order", "Hello!", f"{tenant}@example.com", [to])
    message.tenant = tenant
    with suppress(SMTPException):
        message.send()


@pytest.fixture
def rows(mail_host, real_mail, make_credential, provider):
    """What an operator has after a while: Bob, Mary and the site, with accounts of each kind."""
    server = MailServerFactory(
        name="Demo mail host",
        host="localhost",
        port=mail_host.port,
        ca_certificate=mail_host.authority.pem,
    )
    bob = Tenant.objects.create(slug="bob", name="Bob's Bicycles")
    mary = Tenant.objects.create(slug="mary", name="Mary & Daughters, Flowers and Garden Design")
    rows = {
        "bob": make_credential(mail_host, tenant=bob, username="bob@example.com"),
        "mary": make_credential(
            mail_host, tenant=mary, username="mary@example.com", password="mistyped"
        ),
        "site": make_credential(mail_host, username="site@example.com"),
    }
    for slug in ("bob", "mary"):
        sender = Sender.objects.create(credential=rows[slug], address=f"{slug}@example.com")
        ownership.confirm([sender])
    Sender.objects.create(credential=rows["bob"], address="@bicycles.example")
    client = OAuthClient.objects.create(
        name="Microsoft 365 of the company",
        authorization_url=f"{provider.url}/authorize",
        token_url=f"{provider.url}/token",
        scopes="https://outlook.office.com/SMTP.Send offline_access",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    office = MailServer.objects.create(
        name="Microsoft 365",
        host="smtp.office365.com",
        paused_until=timezone.now() + timedelta(hours=2),
    )
    relay = MailServer.objects.create(name="Old relay", host="127.0.0.1", port=9, is_active=False)
    own = MailServer.objects.create(name="Bob's own", host="mail.bicycles.example", tenant=bob)
    oauth = {"server": office, "oauth_client": client}
    rows["connect"] = Credential.objects.create(
        tenant=bob, username="bob@bicycles.example", kind="authorization_code", **oauth
    )
    application = Credential(
        tenant=mary, username="mary@daughters.example", kind="client_credentials", **oauth
    )
    application.allow_app_only()
    application.save()
    certificate, key = ClientAuthority().issue("mary")
    rows["certificate"] = Credential.objects.create(
        tenant=mary, server=relay, client_certificate=certificate, client_key=key
    )
    rows["own"] = Credential.objects.create(
        tenant=bob, server=own, username="shop@bicycles.example", password=PASSWORD
    )
    rows |= {"client": client, "application": application, "server": server, "office": office}
    for _ in range(2):
        send("bob"), send("mary")
    for hours, number in zip(range(0, 24, 3), itertools.count(1)):
        ago = timedelta(hours=hours, minutes=7)
        add_records(rows["bob"], 3 + number, ago=ago, number=number, username="bob@example.com")
    add_records(
        rows["mary"],
        2,
        number=50,
        outcome="refused",
        code=550,
        enhanced="5.7.1",
        username="mary@example.com",
        reply="5.7.1 Message rejected because of its content, see https://example.net/help/"
        "why-was-this-refused?id=0123456789abcdef0123456789abcdef",
        refused=1,
    )
    return rows


LISTS = (
    "mailserver",
    "credential",
    "oauthclient",
    "sender",
    "tenant",
    "deliveryrecord",
    "auditentry",
)


def test_before_anything_is_entered(walk, sign_in, admin_user):
    sign_in(admin_user)
    walk.go("/admin/", "empty-index")
    walk.go(ADMIN, "empty-dashboard")
    for model in LISTS:
        walk.go(f"{ADMIN}{model}/", f"empty-{model}")
    walk.go(f"{ADMIN}mailserver/connections/", "empty-connections")


def test_lists(walk, sign_in, admin_user, rows):
    sign_in(admin_user)
    walk.go("/admin/", "index")
    walk.go(ADMIN, "dashboard")
    for model in LISTS:
        walk.go(f"{ADMIN}{model}/", f"list-{model}")
        if walk.page.locator("#searchbar").count():
            walk.go(f"{ADMIN}{model}/?q=nothing-like-it@example.org", f"list-{model}-no-result")
        if walk.page.locator("[name=action]").count() or model in ("mailserver", "credential"):
            walk.go(f"{ADMIN}{model}/")
            walk.page.locator(".action-select").first.check()
            walk.at(f"list-{model}-selected")
    walk.go(f"{ADMIN}deliveryrecord/?outcome__exact=refused&code=550", "list-records-filtered")
    walk.go(f"{ADMIN}deliveryrecord/?server={rows['office'].pk}", "list-records-filtered-none")
    url = f"{ADMIN}deliveryrecord/?tenant={rows['bob'].tenant_id}&credential={rows['bob'].pk}"
    walk.go(url, "list-records-of-credential")
    walk.go(f"{ADMIN}credential/?server__id__exact={rows['server'].pk}", "list-credentials-of")
    walk.go(f"{ADMIN}auditentry/?credential_id__exact={rows['bob'].pk}", "list-audit-of")


def test_forms(walk, sign_in, admin_user, rows):
    sign_in(admin_user)
    for model in ("mailserver", "credential", "oauthclient", "tenant"):
        walk.go(f"{ADMIN}{model}/add/", f"add-{model}")
        walk.press("[name=_save]", f"add-{model}-errors")
    walk.go(f"{ADMIN}mailserver/add/?preset=microsoft365", "add-mailserver-preset")
    walk.go(f"{ADMIN}mailserver/add/?address=someone@nobody.example", "add-mailserver-unknown")
    walk.go(f"{ADMIN}mailserver/add/?_popup=1", "add-mailserver-popup")
    walk.go(f"{ADMIN}oauthclient/add/?provider=google&name=Google", "add-oauthclient-google")
    for name in ("bob", "mary", "connect", "application", "certificate", "own"):
        walk.go(f"{ADMIN}credential/{rows[name].pk}/change/", f"change-credential-{name}")
    walk.press("details summary", "change-credential-opened")
    walk.go(f"{ADMIN}credential/{rows['mary'].pk}/change/")
    walk.page.locator("#id_tenant").select_option(label="Bob's Bicycles")
    walk.press("[name=_save]", "change-credential-errors")
    walk.go(f"{ADMIN}mailserver/{rows['server'].pk}/change/", "change-mailserver")
    for summary in walk.page.locator("details:not([open]) > summary").all():
        if summary.is_visible():
            summary.click()
    walk.at("change-mailserver-opened")
    walk.go(f"{ADMIN}mailserver/{rows['office'].pk}/change/", "change-mailserver-paused")
    walk.go(f"{ADMIN}oauthclient/{rows['client'].pk}/change/", "change-oauthclient")
    walk.go(f"{ADMIN}tenant/{rows['bob'].tenant_id}/change/", "change-tenant")
    record = DeliveryRecord.objects.filter(code=550).first()
    walk.go(f"{ADMIN}deliveryrecord/{record.pk}/change/", "record-refused")
    record = DeliveryRecord.objects.filter(outcome="sent").exclude(session_id="").first()
    walk.go(f"{ADMIN}deliveryrecord/{record.pk}/change/", "record-sent")
    walk.go(f"{ADMIN}auditentry/{AuditEntry.objects.first().pk}/change/", "audit-entry")
    sender = Sender.objects.first()
    walk.go(f"{ADMIN}sender/{sender.pk}/change/", "sender")


def test_what_is_done_with_servers(walk, sign_in, admin_user, rows):
    sign_in(admin_user)
    server, office = (f"{ADMIN}mailserver/{rows[name].pk}/" for name in ("server", "office"))
    walk.go(f"{server}verify/", "verify-server")
    walk.press(".submit-row input", "verify-server-ok")
    walk.go(f"{ADMIN}mailserver/connections/", "connections")
    walk.press("text=Close all of this process", "connections-closed")
    walk.go(f"{server}reset/", "reset")
    walk.press(".submit-row input", "reset-done")
    walk.go(f"{ADMIN}mailserver/connections/reset/", "reset-all")
    walk.go(f"{server}pause/", "pause")
    walk.press(".submit-row input", "pause-done")
    walk.go(f"{office}pause/", "paused")
    walk.press("text=Resume now", "resumed")
    walk.go(f"{server}move/", "move")
    walk.press(".submit-row input", "move-errors")
    walk.fill(host="127.0.0.1")
    walk.press(".submit-row input", "move-asks")
    walk.press(".submit-row input", "move-done")
    relay = MailServer.objects.get(name="Old relay")
    walk.go(f"{ADMIN}mailserver/{relay.pk}/verify/")
    walk.press(".submit-row input", "verify-server-failed")
    walk.go(f"{server}history/", "history-server")
    walk.go(f"{server}delete/", "delete-server-protected")
    walk.go(f"{ADMIN}mailserver/")
    walk.page.locator(".action-select").first.check()
    walk.page.locator("[name=action]").first.select_option("delete_selected")
    walk.press(".actions button", "delete-servers")


def test_what_is_done_with_credentials(walk, sign_in, admin_user, rows, provider, tmp_path):
    sign_in(admin_user)
    bob, mary, connect = (
        f"{ADMIN}credential/{rows[name].pk}/" for name in ("bob", "mary", "connect")
    )
    walk.go(f"{bob}verify/", "verify-credential")
    walk.press(".submit-row input", "verify-credential-ok")
    walk.fill(recipient="nobody at all")
    walk.press(".submit-row input", "verify-credential-errors")
    walk.go(f"{mary}verify/")
    walk.press(".submit-row input", "verify-credential-failed")
    walk.go(f"{bob}send-test/", "send-test")
    walk.fill(recipient="you@example.com")
    walk.press(".submit-row input", "send-test-sent")
    walk.go(f"{mary}send-test/")
    walk.fill(recipient="you@example.com")
    walk.press(".submit-row input", "send-test-failed")
    walk.go(f"{connect}connect/", "connect")
    provider.denies = "server_error"
    walk.press("text=Continue to the provider")
    walk.press("#allow", "connect-refused")
    provider.denies = ""
    walk.go(f"{connect}connect/")
    walk.press("text=Continue to the provider")
    walk.press("#allow", "connect-done")
    walk.go(f"{connect}connect/", "connect-again")
    walk.go(f"{ADMIN}credential/connected/?state=of-another-day&code=x", "connect-not-begun")
    walk.go(f"{bob}history/", "history-credential")
    walk.go(f"{bob}delete/", "delete-credential")
    walk.go(f"{ADMIN}oauthclient/{rows['client'].pk}/delete/", "delete-oauthclient")
    walk.go(f"{ADMIN}tenant/{rows['bob'].tenant_id}/delete/", "delete-tenant")
    walk.go(f"{ADMIN}tenant/{rows['bob'].tenant_id}/history/", "history-tenant")
    walk.go(f"{ADMIN}credential/")
    walk.page.locator("#action-toggle").check()
    walk.page.locator("[name=action]").first.select_option("delete_selected")
    walk.press(".actions button", "delete-credentials")
    walk.go(f"{ADMIN}credential/")
    walk.page.locator("#action-toggle").check()
    walk.page.locator("[name=action]").first.select_option("deactivate")
    walk.press(".actions button", "deactivated")
    walk.go(f"{ADMIN}sender/?proven=no")
    walk.page.locator("#action-toggle").check()
    walk.page.locator("[name=action]").first.select_option("confirm")
    walk.press(".actions button", "sender-confirmed")
    walk.go(f"{ADMIN}deliveryrecord/12345/change/", "record-gone")
    walk.go(f"{ADMIN}credential/{rows['client'].pk}/change/", "credential-gone")


ACCOUNTS = """\
tenant,tenant_name,preset,username,password,senders
bob,Bob's Bicycles and Tricycles,fastmail,bob@example.com,correct horse,@tricycles.example
anna,Anna's Flowers,fastmail,anna@flowers.example,battery staple,anna@flowers.example a@b.example
"""
WRONG = """\
tenant,preset,username,password,prioritty
bob,nowhere,bob@example.com,correct horse,high
,fastmail,nobody@example.com,x,
"""


def test_import_and_export(walk, sign_in, admin_user, rows, tmp_path):
    sign_in(admin_user)
    right, wrong = tmp_path / "accounts.csv", tmp_path / "wrong.csv"
    right.write_text(ACCOUNTS)
    wrong.write_text(WRONG)
    walk.go(f"{ADMIN}credential/transfer/", "transfer")
    walk.press("text=Look at the file", "transfer-no-file")
    walk.page.set_input_files("#id_file", wrong)
    walk.press("text=Look at the file", "transfer-problems")
    walk.page.set_input_files("#id_file", right)
    walk.press("text=Look at the file", "transfer-report")
    walk.page.set_input_files("#id_file", right)
    walk.press(".submit-row input", "transfer-done")
    walk.page.set_input_files("#id_file", right)
    walk.press("text=Look at the file", "transfer-nothing-to-do")


def staff(name, *permissions):
    user = get_user_model().objects.create_user(name, is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    return user


def test_what_support_sees(walk, sign_in, rows):
    models = (*LISTS, "connections")
    sign_in(staff("support", *(f"view_{model}" for model in models)))
    walk.go("/admin/", "support-index")
    walk.go(ADMIN, "support-dashboard")
    for model in LISTS:
        walk.go(f"{ADMIN}{model}/", f"support-list-{model}")
    for name, model in (
        ("server", "mailserver"),
        ("bob", "credential"),
        ("application", "credential"),
        ("certificate", "credential"),
        ("client", "oauthclient"),
    ):
        walk.go(f"{ADMIN}{model}/{rows[name].pk}/change/", f"support-{name}")
    walk.go(f"{ADMIN}tenant/{rows['bob'].tenant_id}/change/", "support-tenant")
    record = DeliveryRecord.objects.filter(code=550).first()
    walk.go(f"{ADMIN}deliveryrecord/{record.pk}/change/", "support-record")
    walk.go(f"{ADMIN}mailserver/connections/", "support-connections")
    walk.go(f"{ADMIN}credential/transfer/", "support-transfer")
    walk.go(f"{ADMIN}mailserver/{rows['server'].pk}/pause/", "support-forbidden", status=403)
    sign_in(staff("only-connections", "view_connections"))
    walk.go(f"{ADMIN}mailserver/connections/", "support-connections-only")
    sign_in(staff("nothing-at-all"))
    walk.go("/admin/", "nobody-index")


def test_what_tenants_see(walk, sign_in, settings, mail_host, rows, monkeypatch):
    monkeypatch.setattr(Pages, "get_test_recipient", lambda self, request: "bob@example.com")
    monkeypatch.setattr(Pages, "server_defaults", {"ca_certificate": mail_host.authority.pem})
    sign_in(get_user_model().objects.create_user("mary"))
    walk.go("/mail/", "tenant-empty")
    sign_in(get_user_model().objects.create_user("bob"))
    walk.go("/mail/", "tenant-list")
    walk.press("text=Enter a mail account", "tenant-add")
    walk.press("main button", "tenant-add-required")
    walk.fill(username="bob", password=PASSWORD, host="mail..example", port="70000")
    walk.page.locator("form").evaluate("(form) => form.noValidate = true")
    walk.press("main button", "tenant-add-errors")
    own = rows["own"].server
    MailServer.objects.filter(pk=own.pk).update(
        host="localhost", port=mail_host.port, ca_certificate=mail_host.authority.pem
    )
    Credential.objects.filter(pk=rows["own"].pk).delete()
    account = Credential.objects.create(
        tenant=rows["bob"].tenant,
        server=MailServer.objects.get(pk=own.pk),
        username="shop@bicycles.example",
        password=PASSWORD,
        default_from="Bob's Bicycles <shop@bicycles.example>",
    )
    walk.go(f"/mail/{account.pk}/", "tenant-account")
    walk.press("text=Change", "tenant-change")
    walk.go(f"/mail/{account.pk}/")
    walk.page.get_by_label("Address").fill("shop@bicycles.example")
    walk.press("text=Add sender", "tenant-sender-added")
    walk.press("text=Send code to", "tenant-code-sent")
    walk.page.get_by_label("Code from the message").fill("1234 5678")
    walk.press("text=Enter code", "tenant-code-wrong")
    walk.page.get_by_label("Code from the message").fill(code_in(mail_host.delivered[-1]))
    walk.press("text=Enter code", "tenant-code-right")
    walk.page.get_by_label("Address").fill("@cycling.example")
    walk.press("text=Add sender", "tenant-domain-added")
    walk.press("button:has-text('Check DNS')", "tenant-dns")
    walk.press("text=Verify", "tenant-verified")
    walk.press("text=Send a test message to", "tenant-tested")
    walk.press("button:text-is('Revoke')", "tenant-revoked")
