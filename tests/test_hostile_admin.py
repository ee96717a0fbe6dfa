"""Whatever is sent to a page of the admin: it answers in plain words, never with an error 500."""

from __future__ import annotations

import html
import re

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.urls import reverse

from mailpool import audit
from mailpool.models import Credential, OAuthClient
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory
from tests.records import add_records
from tests.scripted import ScriptedServer

pytestmark = pytest.mark.django_db

PAGES = [
    (model, pattern.name, "<" in str(pattern.pattern))
    for model in apps.get_app_config("mailpool").get_models()
    if admin.site.is_registered(model)
    for pattern in admin.site._registry[model].get_urls()
    if pattern.name
]

JUNK = ["", "\0", "x" * 400, "-1", "9" * 30, "1e400", "\u202e☃\r\n\x1b[2J", "%00%ff", "[{}]"]

# What the admin and its pages look at.
PARAMETERS = [
    "q",
    "o",
    "p",
    "e",
    "all",
    "action",
    "action_index",
    "index",
    "select_across",
    "_popup",
    "_to_field",
    "_changelist_filters",
    "_selected_action",
    "_save",
    "_saveasnew",
    "_continue",
    "_addanother",
    "post",
    "preset",
    "address",
    "session",
    "recipient",
    "is_active",
    "is_active__exact",
    "server__id__exact",
    "server__id",
    "tenant__id__exact",
    "proven",
    "outcome",
    "when",
    "before",
    "tenant",
    "span",
    "_facets",
    "when__gte",
    "when__year",
    "action__exact",
    "password__contains",
    "client_secret",
    "id__exact",
    "id__in",
    "pk",
    "credential",
    "server",
    "oauth_client",
    "about",
    "code",
    "state",
    "error",
    "error_description",
]


@pytest.fixture
def root(client, settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    client.raise_request_exception = False
    return client


@pytest.fixture
def rows():
    """One of each, at a server that does not answer."""
    server = MailServerFactory(host="127.0.0.1", port=1, security="plain", timeout=1)
    credential = CredentialFactory(server=server, username="bob")
    sender = SenderFactory(credential=credential)
    client = OAuthClient.objects.create(name="one", client_id="x", token_url="https://localhost/")
    made = [credential, server, credential.tenant, sender, client]
    made += [audit.AuditEntry.objects.first(), *add_records(credential)]
    return {type(row): row for row in made}


@pytest.fixture
def bob(settings):
    """One that can log in."""
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": False}
    with ScriptedServer() as server:
        place = MailServerFactory(host="127.0.0.1", port=server.port, security="plain", timeout=5)
        yield CredentialFactory(username="bob", server=place)


def forms(page):
    """What the page would submit as it is, and the names in it."""
    inputs = [
        dict(re.findall(r'(\w+)="([^"]*)"', tag)) for tag in re.findall("<input [^>]*>", page)
    ]
    filled = {
        found["name"]: html.unescape(found.get("value", ""))
        for found in inputs
        if "name" in found and found["name"] != "csrfmiddlewaretoken"
    }
    for name, body in re.findall(r'(?s)<select name="([^"]+)"[^>]*>(.*?)</select>', page):
        chosen = re.search(r'<option value="([^"]*)" selected', body)
        filled[name] = html.unescape(chosen[1]) if chosen else ""
    filled |= dict.fromkeys(re.findall(r'<textarea name="([^"]+)"', page), "")
    return filled


def test_each_page_is_tried():
    """So that the names below are those that there are."""
    assert len(PAGES) > 30
    assert {"mailpool_credential_verify", "mailpool_mailserver_move"} <= {each[1] for each in PAGES}


@pytest.mark.parametrize(("model", "name", "takes_key"), PAGES)
def test_junk_is_answered_in_plain_words(root, rows, model, name, takes_key):
    urls = [reverse(f"admin:{name}", args=[rows[model].pk] if takes_key else [])]
    requests = [("get", {})]
    for junk in JUNK[::3]:
        requests += [("get", dict.fromkeys(PARAMETERS, junk))]
    requests += [("get", {"_to_field": ""}), ("post", {"_to_field": ""}), ("post", {})]
    filled = forms(root.get(urls[0]).content.decode())
    for junk in JUNK[1:7:2]:
        requests += [("post", dict.fromkeys([*PARAMETERS, *filled], junk))]
    for flag in ("_saveasnew", "_popup"):
        requests += [("post", filled | {flag: "1"})]
    counts = dict.fromkeys([each for each in filled if each.endswith("_FORMS")], "-1")
    requests += [("post", filled | counts)]
    if "ca_certificate" in filled:
        requests += [("post", filled | {"ca_certificate": "☃"})]
    wrong = []
    for method, data in requests:
        if getattr(root, method)(urls[0], data).status_code >= 500:
            wrong.append((method, data))
    for key in ("junk", "_00", "0" * 32) if takes_key else ():
        url = reverse(f"admin:{name}", args=[key])
        if root.get(url).status_code >= 500 or root.post(url, filled).status_code >= 500:
            wrong.append(url)
    assert not wrong


@pytest.mark.parametrize("page", ["credential", "mailserver", "tenant", "oauthclient"])
@pytest.mark.parametrize("what", ["add", "change"])
def test_nothing_is_saved_as_a_new_one(root, rows, page, what):
    model = apps.get_model("mailpool", page)
    key = [rows[model].pk] if what == "change" else []
    url = reverse(f"admin:mailpool_{page}_{what}", args=key)
    data = forms(root.get(url).content.decode())
    before = model.objects.count()
    response = root.post(url, data | {"_saveasnew": "1"}, follow=True)
    assert response.redirect_chain == [(url, 302)]
    assert "Nothing was saved" in response.content.decode()
    assert model.objects.count() == before


@pytest.mark.parametrize("field", ["default_from", "bounce_address"])
@pytest.mark.parametrize("text", ["no address", "@", "a@b@c", "\x1b[2J"])
def test_what_is_stored_and_no_address_is_named_by_verify(root, bob, field, text):
    Credential.objects.filter(pk=bob.pk).update(**{field: text})
    for page in ("change", "verify", "send_test"):
        url = reverse(f"admin:mailpool_credential_{page}", args=[bob.pk])
        assert root.get(url).status_code == 200
    response = root.post(reverse("admin:mailpool_credential_verify", args=[bob.pk]))
    assert response.status_code == 200
    report = response.context["report"]
    assert report.failure.key == "mail"
    assert "is not a" in report.failure.detail
    assert report.failure.detail.isprintable()
    sent = reverse("admin:mailpool_credential_send_test", args=[bob.pk])
    response = root.post(sent, {"recipient": "a@example.com", "sender": "b@example.com"})
    assert response.status_code == 200
    assert response.context["result"].status == "failed"
    if field == "default_from":
        assert "not a mail address" in response.content.decode()
    assert root.get(reverse("admin:mailpool_credential_changelist")).status_code == 200


def test_a_sender_that_somebody_else_has_entered_meanwhile(root, rows):
    credential = rows[Credential]
    url = reverse("admin:mailpool_credential_change", args=[credential.pk])
    data = forms(root.get(url).content.decode())
    SenderFactory(credential=credential, address="shop@example.com")
    data |= {"senders-TOTAL_FORMS": "2", "senders-1-address": "Shop@Example.com"}
    data |= {"senders-1-credential": str(credential.pk), "senders-1-id": ""}
    response = root.post(url, data)
    assert response.status_code == 200
    assert "Entered by somebody else meanwhile: shop@example.com" in response.content.decode()
    data["senders-1-address"] = "other@example.com"
    assert root.post(url, data).status_code == 302
    assert credential.senders.count() == 3
