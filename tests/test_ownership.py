"""Where ownership is asked for, a tenant sends only as addresses that were proven to be its own."""

from __future__ import annotations

import io
import json
import re
import time
from datetime import timedelta

import dns.rcode
import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import include, path
from django.utils import timezone

from mailpool import attempts, ownership, txt_records, use_tenant
from mailpool.checks import check_codes, check_settings
from mailpool.exceptions import (
    NoRoute,
    OwnershipError,
    RouteError,
    SenderNotAllowed,
    TooManyAttempts,
)
from mailpool.management.commands import mailpool_status
from mailpool.models import AuditEntry, Credential, Sender, Tenant
from mailpool.routing import Router
from mailpool.verification import send_test_message
from mailpool.views import TenantCredentialMixin, credential_urls
from tests.dns_server import NameServer
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory

SHOP = "shop@shop.example"


class Pages(TenantCredentialMixin):
    """The users of this product are called like their tenants."""

    def get_tenant(self, request):
        return Tenant.objects.filter(slug=request.user.get_username()).first()


urlpatterns = [
    path("mail/", include(credential_urls(Pages))),
    path("admin/", admin.site.urls),
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture(autouse=True)
def _asked_for(settings):
    settings.MAILPOOL = {
        **settings.MAILPOOL,
        "VERIFY_SENDERS": True,
        "TENANT_VERIFY_RATE": None,
    }
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def name_server(settings):
    with NameServer() as server:
        settings.MAILPOOL = {**settings.MAILPOOL, "SENDER_DNS_SERVERS": [server.address]}
        yield server


def entered(slug, address=SHOP, *, proven=False, **kwargs):
    """*address* as a sender of an account of the tenant's own."""
    tenant = Tenant.objects.filter(slug=slug).first() or TenantFactory(slug=slug)
    credential = CredentialFactory(
        tenant=tenant, server=MailServerFactory(tenant=tenant), username=slug, **kwargs
    )
    sender = SenderFactory(credential=credential, address=address)
    if proven:
        ownership.confirm([sender])
    return sender


def route(from_email=SHOP, tenant=None):
    message = EmailMessage("hello", "text", from_email, ["a@example.com"])
    if tenant:
        message.tenant = tenant
    return Router().resolve(message)


def sql(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def key(value):
    """A primary key as this database stores it."""
    return value.hex if not connection.features.has_native_uuid_field else value


def signed_in(name, *permissions, **kwargs):
    user, _ = get_user_model().objects.get_or_create(username=name, defaults=kwargs)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def url(sender, page=""):
    base = f"/mail/{sender.credential_id}/"
    return f"{base}senders/{sender.pk}/{page}/" if page else base


def code_in(delivered):
    return re.search(r"code is: (\d{4} \d{4})", delivered.message.get_content()).group(1)


def other(code):
    return f"{(int(code.replace(' ', '')) + 1) % 10**8:08}"


# What an unproven sender is worth


def test_off_by_default(settings):
    settings.MAILPOOL = {k: v for k, v in settings.MAILPOOL.items() if k != "VERIFY_SENDERS"}
    sender = entered("bob")
    assert route(tenant="bob") == sender.credential
    assert route() == sender.credential
    sender.delete()
    assert route("x@example.com", tenant="bob") == Credential.objects.get()


def test_nothing_is_sent_as_an_unproven_sender():
    sender = entered("bob")
    with pytest.raises(SenderNotAllowed, match=r"not proven.*prove it .* by DNS.*in the admin"):
        route(tenant="bob")
    ownership.confirm([sender])
    assert route(tenant="bob") == sender.credential
    with pytest.raises(SenderNotAllowed):
        route("else@shop.example", tenant="bob")


@pytest.mark.parametrize("listed", [True, False], ids=["none proven", "none listed"])
@pytest.mark.parametrize("policy", ["refuse", "rewrite"])
@pytest.mark.parametrize("from_email", [SHOP, "x@example.com", "webmaster@localhost"])
def test_without_a_proven_sender_it_sends_as_nobody(listed, policy, from_email):
    """Neither as anybody, as where nobody asks, nor as the default From that it names itself."""
    sender = entered("bob", sender_policy=policy, default_from=SHOP)
    if not listed:
        sender.delete()
    with pytest.raises(SenderNotAllowed):
        route(from_email, tenant="bob")


def test_a_default_from_has_to_be_proven_too():
    sender = entered("bob", "@proven.example", proven=True, default_from=SHOP)
    with pytest.raises(SenderNotAllowed):
        route("webmaster@localhost", tenant="bob")
    assert route("x@proven.example", tenant="bob") == sender.credential


def test_no_test_message_is_sent_as_an_unproven_sender(mail_host, make_credential):
    credential = make_credential(mail_host, "bob", default_from=SHOP)
    sender = SenderFactory(credential=credential, address=SHOP)
    result = send_test_message(Credential.objects.get(), "a@example.com")
    assert isinstance(result.error, RouteError)
    assert mail_host.connections == 0
    ownership.confirm([sender])
    assert send_test_message(Credential.objects.get(), "a@example.com").status == "sent"
    credential.default_from = "victim@example.com"
    credential.save()
    result = send_test_message(Credential.objects.get(), "a@example.com")
    assert isinstance(result.error, RouteError)
    assert len(mail_host.delivered) == 1


@pytest.mark.parametrize("address", [SHOP, "@shop.example"])
def test_an_unproven_sender_takes_over_nobodys_mail(address):
    owner = entered("mary", address, proven=True)
    entered("bob", SHOP)
    entered("eve", "@shop.example")
    assert route() == owner.credential


def test_nor_the_sites():
    own = CredentialFactory(tenant=None)
    entered("bob")
    assert route() == own
    SenderFactory(credential=own, address=SHOP)
    assert route() == own
    assert route(tenant=None) == own


def test_the_site_itself_needs_no_proof():
    own = CredentialFactory(tenant=None)
    assert route("x@example.com") == own
    sender = SenderFactory(credential=own, address=SHOP)
    assert route() == own
    assert sender.is_proven
    with pytest.raises(OwnershipError, match="need no proof"):
        ownership.confirm([sender])


def test_one_query_for_a_message(django_assert_num_queries):
    entered("bob", proven=True)
    message = EmailMessage("hello", "text", SHOP, ["a@example.com"])
    message.tenant = Tenant.objects.get()
    with django_assert_num_queries(1):
        Router().resolve(message)


# A proof is one tenant's, and of one address


def change_address(sender):
    sender.address = "victim@shop.example"
    sender.save()


def change_address_by_sql(sender):
    sql("UPDATE mailpool_sender SET address = 'victim@shop.example'")


def change_tenant(sender):
    credential = Credential.objects.get(pk=sender.credential_id)
    credential.tenant = TenantFactory(slug="eve")
    credential.save()


def change_tenant_by_sql(sender):
    sql("UPDATE mailpool_credential SET tenant_id = %s", key(TenantFactory(slug="eve").pk))


def change_credential(sender):
    sender.credential = CredentialFactory(tenant=TenantFactory(slug="eve"))
    sender.save()


def change_credential_by_sql(sender):
    eve = CredentialFactory(tenant=TenantFactory(slug="eve"))
    sql("UPDATE mailpool_sender SET credential_id = %s", key(eve.pk))


@pytest.mark.parametrize(
    "change",
    [
        change_address,
        change_address_by_sql,
        change_tenant,
        change_tenant_by_sql,
        change_credential,
        change_credential_by_sql,
    ],
)
def test_a_proof_does_not_go_along(change):
    sender = entered("bob", proven=True)
    change(sender)
    now = Sender.objects.get()
    assert not now.is_proven
    for from_email in (SHOP, "victim@shop.example"):
        with pytest.raises((SenderNotAllowed, NoRoute)):
            route(from_email)
        with pytest.raises((SenderNotAllowed, NoRoute)):
            route(from_email, tenant=now.credential.tenant.slug)


def test_a_change_that_is_undone_has_to_be_proven_again():
    sender = entered("bob", proven=True)
    bob = sender.credential.tenant
    change_tenant(sender)
    credential = Credential.objects.get()
    credential.tenant = bob
    credential.save()
    assert not Sender.objects.get().is_proven
    ownership.confirm(Sender.objects.all())
    sender = Sender.objects.get()
    change_address(sender)
    sender.address = SHOP
    sender.save()
    assert not Sender.objects.get().is_proven


def test_another_account_of_the_same_tenant_takes_it_along():
    sender = entered("bob", proven=True)
    sender.credential = CredentialFactory(tenant=sender.credential.tenant)
    sender.save()
    assert route() == sender.credential


def test_whoever_saves_an_old_instance_changes_nothing_of_the_proof():
    sender = entered("bob")
    old = Sender.objects.get()
    ownership.confirm([sender])
    old.save()
    assert Sender.objects.get().is_proven
    old = Sender.objects.get()
    ownership.withdraw([sender])
    old.save()
    assert not Sender.objects.get().is_proven


def test_only_ownership_writes_proofs():
    entered("bob")
    with pytest.raises(TypeError, match="ownership"):
        Sender.objects.update(proof="x")


# Emailed codes


@pytest.mark.django_db(transaction=True)
def test_entered_proven_by_code_and_used(mail_host, make_credential):
    make_credential(mail_host)
    bob = make_credential(mail_host, "bob")
    bob.server = MailServerFactory(tenant=bob.tenant)
    bob.save()
    client = signed_in("bob")
    response = client.post(f"/mail/{bob.pk}/senders/", {"address": "Shop@Shop.Example"})
    assert "Now show that it is yours" in response.content.decode()
    sender = Sender.objects.get()
    assert sender.address == SHOP

    # In a request of a tenant's: the site mails it all the same.
    with use_tenant("bob"):
        page = client.post(url(sender, "code")).content.decode()
    assert "A code was sent to" in page
    [delivered] = mail_host.delivered
    assert (delivered.login, delivered.recipients) == ("site", [SHOP])
    code = code_in(delivered)
    sender.refresh_from_db()
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM mailpool_sender")
        assert code.replace(" ", "") not in str(cursor.fetchall())
    assert code not in page

    page = client.post(url(sender, "enter"), {"code": other(code)}).content.decode()
    assert "not the code" in page
    with pytest.raises(SenderNotAllowed):
        route(tenant="bob")
    page = client.post(url(sender, "enter"), {"code": code}).content.decode()
    assert "is yours" in page
    assert route(tenant="bob") == bob
    # Once only.
    sender.refresh_from_db()
    ownership.withdraw([sender])
    with pytest.raises(OwnershipError):
        ownership.enter_code(sender, code)
    audit = AuditEntry.objects.filter(credential_id=bob.pk, action__startswith="sender_")
    assert [(e.action, e.details, e.actor) for e in audit.order_by("pk")] == [
        ("sender_code_sent", f"{SHOP}: sent", "bob"),
        ("sender_proven", f"{SHOP}: by code", "bob"),
        ("sender_withdrawn", SHOP, ""),
    ]


@pytest.fixture
def sent_code(mail_host, make_credential):
    """A sender of Bob's, and the code that was mailed to it."""
    make_credential(mail_host)
    sender = entered("bob")
    ownership.send_code(sender)
    sender.refresh_from_db()
    return sender, code_in(mail_host.delivered[0])


def test_a_code_is_tried_so_often_and_no_more(sent_code):
    sender, code = sent_code
    for _ in range(ownership.CODE_TRIES):
        with pytest.raises(OwnershipError, match="not the code"):
            ownership.enter_code(sender, other(code))
    with pytest.raises(OwnershipError, match="another one"):
        ownership.enter_code(sender, code)
    sender.refresh_from_db()
    assert (ownership.state(sender), sender.is_proven) == ("unproven", False)


def test_a_code_expires(sent_code):
    sender, code = sent_code
    assert ownership.state(sender) == "sent"
    Sender.objects.all().note(code_until=timezone.now() - timedelta(seconds=1))
    with pytest.raises(OwnershipError):
        ownership.enter_code(sender, code)
    sender.refresh_from_db()
    assert ownership.state(sender) == "unproven"


def test_a_new_code_makes_the_old_one_void(sent_code, mail_host):
    sender, code = sent_code
    ownership.send_code(sender)
    with pytest.raises(OwnershipError):
        ownership.enter_code(sender, code)
    ownership.enter_code(sender, code_in(mail_host.delivered[1]))
    assert Sender.objects.get().is_proven


@pytest.mark.parametrize("change", [change_address, change_tenant, change_credential])
def test_a_code_is_for_what_it_was_sent_to(sent_code, change):
    """Or else: have a code sent to an address of mine, then enter yours, and then the code."""
    sender, code = sent_code
    change(sender)
    with pytest.raises(OwnershipError):
        ownership.enter_code(Sender.objects.get(), code)
    assert not Sender.objects.get().is_proven


def test_a_code_is_not_for_a_sender_whose_digest_was_copied(sent_code):
    sender, code = sent_code
    theirs = entered("eve", "victim@shop.example")
    sql(
        "UPDATE mailpool_sender SET code_digest = %s, code_until = %s",
        sender.code_digest,
        timezone.now() + timedelta(hours=1),
    )
    with pytest.raises(OwnershipError):
        ownership.enter_code(theirs, code)


def test_mailings_are_limited_whatever_becomes_of_the_row(mail_host, make_credential, monkeypatch):
    monkeypatch.setattr(attempts, "now", lambda: 1_000_000.0)  # no midnight in between
    make_credential(mail_host)
    for _ in range(5):
        sender = entered("bob") if not Sender.objects.exists() else Sender.objects.get()
        ownership.send_code(sender)
        credential = sender.credential
        sender.delete()
        SenderFactory(credential=credential, address=SHOP)
    with pytest.raises(TooManyAttempts, match="Too many"):
        ownership.send_code(Sender.objects.get())
    ownership.send_code(entered("mary"))  # whose it may be
    assert len(mail_host.delivered) == 6


@pytest.mark.parametrize(
    "address", ["@shop.example", "a@x.example,b@shop.example", "a@x.example b@shop.example"]
)
def test_no_code_goes_to_a_domain_or_to_somebody_else(mail_host, make_credential, address):
    make_credential(mail_host)
    sender = entered("bob")
    sql("UPDATE mailpool_sender SET address = %s", address)
    sender = Sender.objects.get(pk=sender.pk)
    assert not ownership.takes_code(sender)
    with pytest.raises(OwnershipError, match="Prove it by DNS"):
        ownership.send_code(sender)
    assert mail_host.connections == 0


def test_a_code_that_could_not_be_sent_is_none(mail_host, make_credential):
    sender = entered("bob", "refused@shop.example")
    with pytest.raises(OwnershipError, match="could not be sent"):
        ownership.send_code(sender)  # there is no account of the site's own
    make_credential(mail_host)
    with pytest.raises(OwnershipError, match="could not be sent"):
        ownership.send_code(sender)
    sender.refresh_from_db()
    assert (sender.code_digest, ownership.state(sender)) == ("", "unproven")


# DNS


@pytest.mark.parametrize("address", [SHOP, "@shop.example"])
def test_proven_by_dns(name_server, address):
    sender = entered("bob", address)
    client = signed_in("bob")
    page = client.get(url(sender)).content.decode()
    name, value = ownership.dns_record(sender)
    assert name == "_mailpool.shop.example"
    assert f'value="{name}"' in page
    assert f'value="{value}"' in page
    assert "was not found" in client.post(url(sender, "dns")).content.decode()
    name_server.txt[name] = ['"v=something else"', f'"{value[:10]}" "{value[10:]}"']
    assert "is yours" in client.post(url(sender, "dns")).content.decode()
    assert route(tenant="bob") == sender.credential
    assert AuditEntry.objects.filter(details=f"{address}: by dns", actor="bob").exists()


def test_an_alias_in_dns_is_followed(name_server):
    sender = entered("bob")
    name, value = ownership.dns_record(sender)
    name_server.alias[name] = "proofs.hoster.example"
    name_server.txt["proofs.hoster.example"] = [f'"{value}"']
    ownership.check_dns(sender)
    assert sender.is_proven


def test_the_record_of_another_tenant_or_domain_proves_nothing(name_server):
    """Everybody can read it: it must be worth nothing to them."""
    mine, theirs = entered("bob"), entered("eve")
    elsewhere = entered("bob2", "a@other.example")
    name, value = ownership.dns_record(mine)
    name_server.txt[name] = [f'"{value}"', '"mailpool-verification="', f'"{value}x"']
    name_server.txt["_mailpool.other.example"] = [f'"{value}"']
    for sender in (theirs, elsewhere):
        with pytest.raises(OwnershipError, match="not found"):
            ownership.check_dns(sender)
    ownership.check_dns(mine)


def test_a_name_server_that_fails_proves_nothing(name_server, monkeypatch, caplog):
    monkeypatch.setattr(txt_records, "LIFETIME", 0.5)
    monkeypatch.setattr(txt_records, "EACH", 0.2)
    sender = entered("bob")
    name_server.rcode = dns.rcode.SERVFAIL
    with pytest.raises(OwnershipError, match="no answer"):
        ownership.check_dns(sender)
    name_server.rcode, name_server.answers = None, False
    started = time.monotonic()
    with pytest.raises(OwnershipError, match="no answer"):
        ownership.check_dns(sender)
    assert time.monotonic() - started < 5
    assert "_mailpool.shop.example" in caplog.text
    assert not Sender.objects.get().is_proven


def test_a_domain_that_can_not_be_looked_up(name_server):
    sender = entered("bob", f"@{'x' * 60}.example")
    sql("UPDATE mailpool_sender SET address = %s", "@" + "x" * 70 + ".example")
    with pytest.raises(OwnershipError, match="no answer"):
        ownership.check_dns(Sender.objects.get(pk=sender.pk))


def test_without_the_library(monkeypatch, caplog):
    monkeypatch.setattr(txt_records, "find_spec", lambda name: None)
    sender = entered("bob", "@shop.example")
    page = signed_in("bob").get(url(sender)).content.decode()
    assert "Check DNS" not in page
    assert "confirmed by the people who run this site" in page
    with pytest.raises(OwnershipError):
        ownership.check_dns(sender)
    assert "pip install mailpool[dns]" in caplog.text
    assert "mailpool.W040" in [found.id for found in check_settings()]


# The tenants' pages


def test_no_page_gets_at_anothers_sender_or_tells_of_it(name_server):
    theirs, mine = entered("eve", proven=True), entered("bob", "bob@bob.example")
    client = signed_in("bob")
    for page in ("code", "enter", "dns", "remove"):
        assert client.post(url(theirs, page)).status_code == 404
        crossed = url(mine, page).replace(str(mine.pk), str(theirs.pk))
        assert client.post(crossed).status_code == 404
    assert Sender.objects.get(pk=theirs.pk).is_proven
    # Another tenant has it, or nobody: it is the same.
    pages = [
        client.post(f"/mail/{mine.credential_id}/senders/", {"address": address})
        for address in (SHOP, "b@nobody.example")
    ]
    first, second = (re.sub("[0-9a-f-]{36}", "", page.content.decode()) for page in pages)
    assert first.count("Entered.") == second.count("Entered.") == 1
    assert Sender.objects.filter(address=SHOP).count() == 2
    assert route() == theirs.credential


def test_bad_addresses_and_the_same_twice_are_told_in_words():
    sender = entered("bob")
    client = signed_in("bob")
    for address, text in ((SHOP, "already"), ("nothing", "full address"), ("", "required")):
        page = client.post(f"/mail/{sender.credential_id}/senders/", {"address": address})
        assert text in page.content.decode()
    client.post(url(sender, "remove"))
    assert not Sender.objects.exists()


def test_where_nobody_asks_tenants_enter_no_senders(settings):
    sender = entered("bob")
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": False}
    client = signed_in("bob")
    assert "Senders" not in client.get(url(sender)).content.decode()
    assert client.post(url(sender, "remove")).status_code == 404
    page = client.post(f"/mail/{sender.credential_id}/senders/", {"address": "x@example.com"})
    assert page.status_code == 404
    assert Sender.objects.count() == 1


def test_attempts_are_limited(settings, monkeypatch):
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_VERIFY_RATE": "2/hour"}
    monkeypatch.setattr(attempts, "now", lambda: 1_000_000.0)
    sender = entered("bob")
    client = signed_in("bob")
    codes = [client.post(url(sender, "enter"), {"code": "1"}).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


# Operators


def test_operators_confirm_with_a_permission_of_its_own():
    sender = entered("bob")
    chosen = {"_selected_action": [str(sender.pk)], "action": "confirm"}
    looking = signed_in("looking", "view_sender", is_staff=True)
    assert "Not proven" in looking.get("/admin/mailpool/sender/").content.decode()
    looking.post("/admin/mailpool/sender/", chosen)
    assert not Sender.objects.get().is_proven
    confirming = signed_in("confirming", "view_sender", "confirm_sender", is_staff=True)
    confirming.post("/admin/mailpool/sender/", chosen)
    assert Sender.objects.get().is_proven
    assert confirming.get("/admin/mailpool/sender/?proven=no").context["cl"].result_count == 0
    assert confirming.get("/admin/mailpool/sender/?proven=yes").context["cl"].result_count == 1
    junk = confirming.get("/admin/mailpool/sender/?proven=junk")
    assert junk.context["cl"].result_count == 0
    assert "The filter by ownership does not know" in junk.content.decode()
    entry = AuditEntry.objects.get(action="sender_proven")
    assert (entry.actor, entry.way, entry.details) == (
        "confirming",
        "admin",
        f"{SHOP}: by operator",
    )
    confirming.post("/admin/mailpool/sender/", {**chosen, "action": "withdraw"})
    assert not Sender.objects.get().is_proven


def test_what_an_operator_enters_is_not_proven_by_that():
    sender = entered("bob", proven=True)
    root = signed_in("root", is_staff=True, is_superuser=True)
    page = f"/admin/mailpool/credential/{sender.credential_id}/change/"
    shown = root.get(page).content.decode()
    assert "Proven by operator" in shown
    response = root.post(
        page,
        {
            "tenant": str(sender.credential.tenant_id),
            "server": str(sender.credential.server_id),
            "username": "bob",
            "kind": "password",
            "mechanism": "",
            "sender_policy": "refuse",
            "priority": "10",
            "is_active": "on",
            "senders-TOTAL_FORMS": "2",
            "senders-INITIAL_FORMS": "1",
            "senders-0-id": str(sender.pk),
            "senders-0-credential": str(sender.credential_id),
            "senders-0-address": SHOP,
            "senders-1-credential": str(sender.credential_id),
            "senders-1-address": "new@shop.example",
        },
    )
    assert response.status_code == 302
    assert {s.address: s.is_proven for s in Sender.objects.all()} == {
        SHOP: True,
        "new@shop.example": False,
    }


def change_nothing(sender):
    pass


def switch_credential_off(sender):
    sender.credential.is_active = False
    sender.credential.save()


def switch_server_off(sender):
    sender.credential.server.is_active = False
    sender.credential.server.save()


def switch_tenant_off(sender):
    sender.credential.tenant.is_active = False
    sender.credential.tenant.save()


def prove(sender):
    ownership.confirm([sender])


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (change_nothing, 1),
        (switch_credential_off, 0),
        (switch_server_off, 0),
        (switch_tenant_off, 0),
        (prove, 0),
    ],
)
def test_which_senders_in_use_are_not_proven(change, count, settings):
    SenderFactory(credential=CredentialFactory(tenant=None))  # the site's own
    entered("mary", "mary@mary.example", proven=True)
    sender = entered("bob")
    change(sender)
    assert [found.pk for found in ownership.unproven()] == [sender.pk] * count
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": False}
    assert not ownership.unproven().exists()


def test_status_names_them(settings, monkeypatch):
    monkeypatch.setattr(mailpool_status, "MOST_SENDERS", 2)
    for number in range(4):
        entered("bob", f"{number}@shop.example")

    def status(*args):
        out = io.StringIO()
        call_command("mailpool_status", *args, stdout=out)
        return out.getvalue()

    text = status()
    assert "not proven, so that nothing is sent as them: 4" in text
    assert re.search(r"^0@shop.example +bob +bob @ ", text, re.MULTILINE)
    assert "2@shop.example" not in text
    assert "… and 2 more." in text
    assert "confirm in the admin under Senders" in text
    found = json.loads(status("--json"))["unproven_senders"]
    assert (found["count"], len(found["first"])) == (4, 2)
    ownership.confirm(Sender.objects.all())
    assert "not proven" not in status()
    ownership.withdraw(Sender.objects.all())
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": False}
    assert "not proven" not in status()


def test_the_list_is_not_there_where_nobody_asks(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": False}
    root = signed_in("root", is_staff=True, is_superuser=True)
    assert root.get("/admin/mailpool/sender/").status_code == 403
    assert "/admin/mailpool/sender/" not in root.get("/admin/").content.decode()


# Settings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("VERIFY_SENDERS", "yes", "E003"),
        ("SENDER_DNS_SERVERS", "127.0.0.1", "E018"),
        ("SENDER_DNS_SERVERS", ["ns.example.com"], "E018"),
        ("SENDER_DNS_SERVERS", ["127.0.0.1:0"], "E018"),
        ("SENDER_DNS_SERVERS", [], "E018"),
        ("SENDER_DNS_SERVERS", ["127.0.0.1", "192.0.2.1:5353", "::1", "[::1]:53"], None),
    ],
)
def test_settings_are_checked(settings, name, value, expected):
    settings.MAILPOOL = {**settings.MAILPOOL, name: value}
    found = [each.id for each in check_settings()]
    assert found == ([f"mailpool.{expected}"] if expected else [])


def test_a_mistake_in_the_switch_does_not_open_it(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": "yes"}
    entered("bob")
    with pytest.raises(SenderNotAllowed):
        route(tenant="bob")


def test_a_site_that_can_mail_no_codes_is_told():
    assert [found.id for found in check_codes(databases=["default"])] == ["mailpool.W041"]
    CredentialFactory(tenant=None)
    assert check_codes(databases=["default"]) == []


@pytest.mark.parametrize("verifies", [True, False])
def test_senders_are_deleted_with_their_credential_and_in_no_other_way(
    admin_client, settings, verifies
):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": verifies}
    sender = SenderFactory(address="me@example.com")
    own = f"/admin/mailpool/sender/{sender.pk}/delete/"
    assert admin_client.post(own, {"post": "yes"}).status_code == 403
    assert Sender.objects.exists()
    page = f"/admin/mailpool/credential/{sender.credential_id}/delete/"
    assert admin_client.post(page, {"post": "yes"}).status_code == 302
    assert not Sender.objects.exists()
