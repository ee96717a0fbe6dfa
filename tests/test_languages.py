"""Pages in the language, the time zone and the formats of whoever looks."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.urls import include, path, reverse
from django.utils import timezone, translation
from django.utils.html import conditional_escape
from django.utils.translation import trans_real

from mailpool import ownership
from mailpool.audit import Action, AuditEntry, acting, note
from mailpool.models import (
    Credential,
    DeliveryRecord,
    MailServer,
    OAuthClient,
    Sender,
    SendingProcess,
    Tenant,
)
from mailpool.moments import moment
from mailpool.server_presets import SERVER_PRESETS
from mailpool.views import TenantCredentialMixin, credential_urls
from tests.scripted import ScriptedServer
from tests.test_catalog import catalog, texts


class Pages(TenantCredentialMixin):
    def get_tenant(self, request):
        return Tenant.objects.get()

    def get_test_recipient(self, request):
        return "λ@ε"


urlpatterns = [path("admin/", admin.site.urls), path("mail/", include(credential_urls(Pages)))]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

OPEN, CLOSE = "⟦", "⟧"


class Marked(trans_real.DjangoTranslation):
    """A language in which each text that is marked for translation is in brackets."""

    def gettext(self, message):
        text = message.rpartition(trans_real.CONTEXT_SEPARATOR)[2]
        return f"{OPEN}{text}{CLOSE}" if text.strip() else text

    def ngettext(self, singular, plural, number):
        return self.gettext(singular if number == 1 else plural)


@pytest.fixture
def brackets(monkeypatch):
    monkeypatch.setitem(trans_real._translations, "en-gb", Marked("en-gb"))
    with translation.override("en-gb"):
        yield


class Shown(HTMLParser):
    """What somebody sees or hears of a page."""

    HIDDEN = {"script", "style"}

    def __init__(self, html):
        super().__init__()
        self.texts, self.hidden = [], 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in self.HIDDEN
        given = dict(attributes)
        names = ["title", "aria-label", "alt", "placeholder"]
        names += ["value"] if given.get("type") in ("submit", "button") else []
        self.texts += [given[name] for name in names if given.get(name)]

    def handle_endtag(self, tag):
        self.hidden -= tag in self.HIDDEN

    def handle_data(self, data):
        if not self.hidden:
            self.texts.append(data)


# What is the same in each language: names, words of the protocol, and what Django leaves as it is.
NAMES = sorted((preset.name for preset in SERVER_PRESETS.values()), key=len, reverse=True)
NAMES += ["STARTTLS", "OAuth", "SMTP", "PLAIN", "LOGIN", "CRAM-MD5", "csv", "json", "ms"]
NAMES += ["Search", "True", "False", "CST", "CDT"]  # the last two: time zones
ADDRESS_OR_KEY = re.compile(r"https?://\S+|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


def shown(html):
    """All texts of a page but the audit's. That has one language: other systems read it as well."""
    text = "\n".join(Shown(html).texts)
    for details in AuditEntry.objects.exclude(details="").values_list("details", flat=True):
        text = text.replace(details, " ")
    return text


def unmarked(html):
    """The words of a page that no translation could reach."""
    text = ADDRESS_OR_KEY.sub(" ", shown(html))
    for name in NAMES:
        text = text.replace(name, " ")
    before = ""
    while text != before:
        before, text = text, re.sub(f"{OPEN}[^{OPEN}{CLOSE}]*{CLOSE}", " ", text)
    return sorted(set(re.findall(r"[A-Za-z]{2,}.*", text)))


@pytest.fixture
def root(client):
    client.force_login(get_user_model().objects.create_superuser("δ"))
    return client


@pytest.fixture
def rows(settings):
    """One of each. All that people have entered is Greek, so that Latin words are mailpool's."""
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True, "RECORDS": "subjects"}
    with acting(None, "ω"):
        make_rows()


def make_rows():
    tenant = Tenant.objects.create(slug="β", name="Ψ")
    server = MailServer.objects.create(name="Σ", host="192.0.2.1", tenant=tenant)
    ours = MailServer.objects.create(name="Φ", host="192.0.2.2")
    client = OAuthClient.objects.create(
        name="Ω", provider="google", client_id="ζ", client_secret="ξ",
        authorization_url="https://π.example", token_url="https://π.example",
    )  # fmt: skip
    credential = Credential.objects.create(
        tenant=tenant, server=server, username="λ", password="ξ", default_from="λ@ε"
    )
    Credential.objects.create(
        server=ours, username="ω@ε", kind=Credential.Kind.AUTHORIZATION_CODE, oauth_client=client
    )
    Sender.objects.create(credential=credential, address="λ@5.6")
    DeliveryRecord.objects.create(
        outcome="refused", tenant=tenant, credential=credential, server=server, tenant_name="Ψ",
        server_name="Σ", username="λ", message_id="<1@ε>", sender="λ@ε", recipients=2, refused=1,
        recipient="τ@ε", subject="Θ", size=1234, code=550, reply="Λ", queue_id="1",
        session_id="1", reused=True, retried=True,
    )  # fmt: skip
    DeliveryRecord.objects.create(outcome="sent", message_id="<1@ε>", recipients=1)
    note(Action.EXPORTED, credential, "ψ")
    SendingProcess.objects.create(
        host="η", pid=1, command="κ", started_at=timezone.now(), seen_at=timezone.now()
    )


# Pages that show nothing to a GET, or that nobody may open.
OTHERWISE = {
    "jsi18n",
    "mailpool_auditentry_add",
    "mailpool_auditentry_delete",
    "mailpool_credential_connected",
    "mailpool_deliveryrecord_add",
    "mailpool_deliveryrecord_delete",
    "mailpool_mailserver_resume",
    "mailpool_sender_add",
    "mailpool_sender_delete",
}


def pages():
    """The addresses of each page, by its name; of those about a row, for each row."""
    found = {"app_list": [reverse("admin:app_list", args=["mailpool"])]}
    for model, page in admin.site._registry.items():
        if model._meta.app_label != "mailpool":
            continue
        rows = [[row.pk] for row in model._base_manager.all()[:2]]
        for pattern in page.get_urls():
            if pattern.name and pattern.name not in OTHERWISE:
                each = rows if "object_id" in str(pattern.pattern) else [[]]
                found[pattern.name] = [
                    reverse(f"admin:{pattern.name}", args=arguments) for arguments in each
                ]
    servers = reverse("admin:mailpool_mailserver_add")
    found["presets"] = [f"{servers}?preset={key}" for key in SERVER_PRESETS]
    pk = Credential.objects.get(tenant__isnull=False).pk
    for name, arguments in (("list", []), ("create", []), ("detail", [pk]), ("update", [pk])):
        found[f"tenants_{name}"] = [reverse(f"mailpool_credential_{name}", args=arguments)]
    return found


def opened(client):
    for name, urls in pages().items():
        answers = {url: client.get(url) for url in urls}
        shown = [(url, each) for url, each in answers.items() if each.status_code == 200]
        assert shown, name
        for url, response in shown:
            yield url, response.content.decode()


def test_every_text_of_every_page_can_be_translated(root, rows, brackets):
    found = {url: unmarked(html) for url, html in opened(root)}
    assert {url: words for url, words in found.items() if words} == {}


def test_every_page_in_german_has_no_english_left(root, rows):
    english = {
        source
        for message in catalog("de")
        if message.id
        for source, translated in zip(texts(message.id), texts(message.string), strict=True)
        if source != translated and len(source.split()) > 2 and "%" not in source
    }  # of several lines is only what is mailed
    assert len(english) > 400
    with translation.override("de"):
        for url, html in opened(root):
            words = " ".join(shown(html).split())
            assert [text for text in english if text in words] == [], url


def test_a_missing_mark_is_noticed(brackets):
    """The tests above would see it."""
    assert unmarked("<p>Not marked</p>") == ["Not marked"]
    assert unmarked(f'<p title="Not marked">{OPEN}Marked{CLOSE}</p>') == ["Not marked"]
    assert unmarked(f"<p>{OPEN}Marked, with {OPEN}one{CLOSE} in it{CLOSE} · 12</p>") == []
    assert translation.gettext("Close") == f"{OPEN}Close{CLOSE}"
    assert translation.pgettext("state", "connecting") == f"{OPEN}connecting{CLOSE}"


# Times and numbers

WHEN = datetime(2026, 3, 1, 22, 5, 7, tzinfo=UTC)


def test_a_time_is_in_the_zone_and_the_format_of_whoever_looks():
    with translation.override("de"), timezone.override("Europe/Berlin"):
        assert moment(WHEN) == "1. März 2026 23:05 CET"
        assert moment(WHEN, seconds=True) == "1. März 2026 23:05:07 CET"
    with translation.override("en"), timezone.override("America/New_York"):
        assert moment(WHEN) == "March 1, 2026, 5:05 p.m. EST"
        assert moment(WHEN.replace(tzinfo=None)) == "March 1, 2026, 10:05 p.m."  # USE_TZ off
    assert moment(None) == "-"


def test_pages_show_such_times(root, rows):
    MailServer.objects.update(paused_until=WHEN.replace(year=2126))
    Credential.objects.filter(username="λ").update(password_set_at=WHEN)
    OAuthClient.objects.update(client_secret_set_at=WHEN)
    Sender.objects.all().note(proven_at=WHEN, proven_by="dns")
    SendingProcess.objects.update(started_at=WHEN)
    DeliveryRecord.objects.update(when=WHEN)
    short, full, paused = (
        f"1. März {when} CET" for when in ("2026 23:05", "2026 23:05:07", "2126 23:05")
    )
    found = pages()
    with translation.override("de"), timezone.override("Europe/Berlin"):
        for name, expected in (
            ("mailpool_connections", f"pausiert bis {paused}"),
            ("mailpool_connections", f"Seit {short}: "),
            ("mailpool_mailserver_verify", f"pausiert bis {paused}"),
            ("mailpool_mailserver_pause", f"pausiert bis {paused}"),
            ("mailpool_credential_verify", f"pausiert bis {paused}"),
            ("mailpool_credential_change", f"Gesetzt am {short}"),
            ("mailpool_oauthclient_change", f"Gesetzt am {short}"),
            ("mailpool_deliveryrecord_changelist", full),
            ("mailpool_deliveryrecord_change", full),
            ("tenants_detail", f"Gesetzt am {short}"),
        ):
            html = " ".join(root.get(url).content.decode() for url in found[name])
            assert expected in html, name


def test_what_a_verification_took_is_a_number_of_the_language(root, make_credential):
    with ScriptedServer() as server:
        credential = make_credential(server, "bob")
    page = reverse("admin:mailpool_credential_verify", args=[credential.pk])
    with translation.override("de"):
        html = root.post(page).content.decode()
    assert re.search(r">\d+,\d ms<", html)
    # Whatever was found, what to do about it is said in the reader's words.
    assert "An diesem Port lauscht nichts. Prüfen Sie den Port, und dass der Server läuft." in html
    [entry] = LogEntry.objects.filter(object_id=str(credential.pk))
    assert entry.change_message == "Verified the connection: failed at 'connect'."


# Mail


def test_the_code_is_mailed_in_the_language_of_whoever_asks(rows, mail_host, make_credential):
    site = make_credential(mail_host, default_from="site@example.com", priority=1)
    assert site.tenant is None
    sender = Sender.objects.create(credential=Credential.objects.get(username="λ"), address="a@b.c")
    with translation.override("de"):
        ownership.send_code(sender)
    [received] = mail_host.delivered
    assert received.message["Subject"] == "Ihr Code"


# Lists with nothing in them


@pytest.mark.parametrize(
    "model", [Tenant, MailServer, Credential, Sender, OAuthClient, AuditEntry, DeliveryRecord]
)
def test_a_list_with_no_rows_says_what_to_do(root, settings, model):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    url = reverse(f"admin:mailpool_{model._meta.model_name}_changelist")
    text = conditional_escape(admin.site._registry[model].empty_text)
    assert text in root.get(url).content.decode()
    # Where nothing was found, there may be rows.
    assert text not in root.get(url, {"q": "x"}).content.decode()
    with acting(None, "ω"):
        make_rows()
    assert text not in root.get(url).content.decode()
