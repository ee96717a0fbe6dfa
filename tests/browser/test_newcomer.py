"""What operators do with mailpool, from the first page on, and how many steps that takes them."""

from __future__ import annotations

from contextlib import suppress
from smtplib import SMTPException

import pytest
from django.core.cache import cache
from django.core.mail import EmailMessage

from mailpool.models import Credential, DeliveryRecord, MailServer, Tenant
from mailpool.smtp.tls import tls_context
from tests.scripted import ScriptedServer
from tests.smtpd import PASSWORD

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

DASHBOARD = "/admin/mailpool/"


class Steps:
    """Clicks, and fills in fields, as a person would; ``taken`` are those that count."""

    def __init__(self, page):
        self.page = page
        self.taken = []

    def on(self, page):
        """The same count, in another window."""
        steps = Steps(page)
        steps.taken = self.taken
        return steps

    def click(self, what):
        self.taken.append(f"click {what}")
        self.page.locator(what).click()

    def fill(self, what, value):
        self.taken.append(f"fill {what}")
        self.page.locator(what).fill(value)

    def fill_free(self, what, value):
        """Host, user and password, which nobody can do without."""
        self.page.locator(what).fill(value)


@pytest.fixture(autouse=True)
def _nothing_cached():
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def trusted(monkeypatch, authority, tmp_path):
    """The tests' authority is one of the system's."""
    path = tmp_path / "authorities.pem"
    path.write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.mark.parametrize("begin", ["server", "tenant"])
def test_from_nothing_to_a_test_message(page, log_in, mail_host, real_mail, trusted, begin):
    log_in(DASHBOARD)
    steps = Steps(page)
    by_server = {"host": "localhost", "port": str(mail_host.port)}

    def fill_server(steps):
        steps.fill("#id_name", "Relay")
        steps.fill_free("#id_host", by_server["host"])
        steps.fill("#id_port", by_server["port"])

    row = "#id_credentials-0" if begin == "server" else "#id_mailpool_credentials-0"
    if begin == "server":
        steps.click("text=Add a mail server")
        fill_server(steps)
    else:
        steps.click(".model-tenant .addlink")
        steps.fill("#id_name", "Bob")
    other = "tenant" if begin == "server" else "server"
    with page.expect_popup() as opened:
        steps.click(f"#add_{row.removeprefix('#')}-{other}")
    popup = steps.on(opened.value)
    if begin == "server":
        popup.fill("#id_name", "Bob")
    else:
        fill_server(popup)
    with opened.value.expect_event("close"):
        popup.click("[name=_save]")
    label = "Bob" if begin == "server" else "Relay"
    sync_api.expect(page.locator(f"{row}-{other} option:checked")).to_have_text(label)
    steps.fill_free(f"{row}-username", "bob@example.com")
    steps.fill_free(f"{row}-password", PASSWORD)
    steps.click("[name=_test]")
    sync_api.expect(page.locator("#id_recipient")).to_have_value("admin@example.com")
    steps.click(".submit-row [type=submit]")

    sync_api.expect(page.locator("[role=status]")).to_contain_text("Sent")
    assert len(steps.taken) <= 8, steps.taken
    (delivered,) = mail_host.delivered
    assert delivered.login == "bob@example.com"
    assert delivered.recipients == ["admin@example.com"]
    credential = Credential.objects.get()
    assert credential.tenant == Tenant.objects.get(slug="bob")
    assert credential.server.security == "starttls"
    assert credential.server.ca_certificate == ""


def test_without_an_account_there_is_nothing_to_test(page, log_in):
    log_in(f"{DASHBOARD}mailserver/add/")
    page.fill("#id_name", "Relay")
    page.fill("#id_host", "smtp.example.com")
    page.click("[name=_test]")
    body = sync_api.expect(page.locator("body"))
    body.to_contain_text("was added successfully")
    body.to_contain_text("There is no account to test yet")
    assert MailServer.objects.get().credentials.count() == 0


def send(tenant):
    message = EmailMessage("Hello", "Hello!", f"{tenant}@example.com", ["to@example.com"])
    message.tenant = tenant
    with suppress(SMTPException):
        message.send()
    return message.mailpool_result


@pytest.mark.parametrize("where", ["form", "list"])
def test_the_switch_closes_what_is_open(
    page, log_in, live_server, real_mail, make_credential, where
):
    connections = f"{live_server.url}{DASHBOARD}mailserver/connections/"
    with ScriptedServer() as host:
        server = make_credential(host, "bob").server
        server.idle_timeout = 3600  # which would close it as well, later
        server.save()
        assert not send("bob").reused
        assert send("bob").reused
        log_in(f"{DASHBOARD}mailserver/connections/")
        close = page.get_by_role("button", name="Close connection")
        sync_api.expect(close).to_have_count(1)
        assert "QUIT" not in host.verbs()

        page.goto(f"{live_server.url}{DASHBOARD}mailserver/")
        if where == "form":
            page.click(f"text={server.name}")
            page.uncheck("#id_maintain_connection")
        else:
            page.uncheck("#id_form-0-maintain_connection")
        page.click("[name=_save]")
        sync_api.expect(page.locator(".messagelist .success")).to_be_visible()
        host.catch_up(0)
        assert host.verbs(connection=1)[-1] == "QUIT"
        page.goto(connections)
        sync_api.expect(page.locator("body")).to_contain_text("There is no open connection in this")
        sync_api.expect(close).to_have_count(0)

        for connection in (2, 3):
            result = send("bob")
            assert (result.status, result.reused) == ("sent", False)
            host.catch_up(0)
            assert host.connections == connection
            assert host.verbs(connection=connection)[-1] == "QUIT"


def test_why_a_tenant_fails_is_two_clicks_away(page, log_in, mail_host, real_mail, make_credential):
    make_credential(mail_host, "mary")
    make_credential(mail_host, "bob", password="not the password")
    assert send("mary").status == "sent"
    for _ in range(2):
        assert send("bob").status == "failed"

    log_in("/admin/")
    steps = Steps(page)
    steps.click(".app-mailpool caption a")
    attention = page.locator("section[aria-labelledby=mailpool-attention] tbody tr")
    sync_api.expect(attention).to_contain_text("The latest message failed")
    steps.click("section[aria-labelledby=mailpool-attention] >> text=Delivery records")
    answers = sync_api.expect(page.locator("#result_list .field-answer"))
    answers.to_contain_text(["535 5.7.8 Authentication credentials invalid"] * 2)
    sync_api.expect(page.locator("#result_list")).not_to_contain_text("mary")
    assert len(steps.taken) <= 2, steps.taken


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_fit(page, log_in, live_server, mail_host, real_mail, make_credential, width):
    credential = make_credential(mail_host, "bob", password="not the password")
    assert send("bob").status == "failed"
    record = DeliveryRecord.objects.get()
    page.set_viewport_size({"width": width, "height": 844})
    log_in(f"{DASHBOARD}deliveryrecord/")
    for path in (
        "deliveryrecord/",
        f"deliveryrecord/{record.pk}/change/",
        "mailserver/connections/",
        f"mailserver/{credential.server_id}/reset/",
        f"mailserver/{credential.server_id}/pause/",
        "credential/transfer/",
    ):
        page.goto(f"{live_server.url}{DASHBOARD}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        if path == "deliveryrecord/" and width > 390:
            last = page.locator("#result_list .field-took").bounding_box()
            around = page.locator("#changelist .results").bounding_box()
            assert last["x"] + last["width"] <= around["x"] + around["width"]
