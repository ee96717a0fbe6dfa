"""Tenants enter, verify and revoke accounts of their own, and learn nothing of anybody else's."""

from __future__ import annotations

import re
import socket
import threading
import time
import uuid

import pytest
from django import forms
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.cache.backends.base import BaseCache
from django.core.mail import EmailMessage
from django.db import connection
from django.db.models.signals import pre_save
from django.test import Client
from django.urls import include, path, resolve

from mailpool import attempts, delivery, selfservice
from mailpool.backends import EmailBackend
from mailpool.checks import check_settings
from mailpool.forms import TenantCredentialForm
from mailpool.models import AuditEntry, Credential, MailServer, OAuthClient, Tenant
from mailpool.verification import Report, verify_credential
from mailpool.views import TenantCredentialMixin, credential_urls
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory
from tests.scripted import ScriptedServer
from tests.smtpd import PASSWORD

NEW = "another-password-Qz7x"


class Pages(TenantCredentialMixin):
    """The users of this product are called like their tenants."""

    verify_seconds = 5.0
    reach_seconds = 3.0

    def get_tenant(self, request):
        return Tenant.objects.filter(slug=request.user.get_username()).first()


urlpatterns = [
    path("mail/", include(credential_urls(Pages))),
    path("shops/<slug:shop>/", include((credential_urls(Pages), "shops"))),
]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


@pytest.fixture
def impatient(monkeypatch):
    """For tests with hosts that are not reached: each takes all of this time."""
    monkeypatch.setattr(Pages, "reach_seconds", 0.5)


@pytest.fixture(autouse=True)
def _no_attempts_yet(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_VERIFY_RATE": None}
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def bob():
    return TenantFactory(slug="bob")


@pytest.fixture
def mary():
    return TenantFactory(slug="mary")


def signed_in(name, **kwargs):
    client = Client(**kwargs)
    user, _ = get_user_model().objects.get_or_create(username=name)
    client.force_login(user)
    return client


@pytest.fixture
def as_bob(bob):
    return signed_in("bob")


@pytest.fixture
def allow(settings):
    def allow(*networks, ports=(25, 465, 587, 2525), **more):
        settings.MAILPOOL = {
            **settings.MAILPOOL,
            "TENANT_SERVER_NETWORKS": list(networks),
            "TENANT_SERVER_PORTS": list(ports),
            **more,
        }

    return allow


@pytest.fixture
def at_home(mail_host, allow, monkeypatch):
    """A mail host that tenants may name, with a certificate that is accepted."""
    allow("127.0.0.0/8", "::1", ports=[mail_host.port])
    monkeypatch.setattr(Pages, "server_defaults", {"ca_certificate": mail_host.authority.pem})
    return mail_host


def disk_is_full(*args, **kwargs):
    raise RuntimeError("the disk is full")


@pytest.fixture
def failing_credential():
    """No credential can be saved."""
    pre_save.connect(disk_is_full, sender=Credential)
    yield
    pre_save.disconnect(disk_is_full, sender=Credential)


def own(tenant, **kwargs):
    """An account at a server of the tenant's own."""
    return CredentialFactory(tenant=tenant, server=MailServerFactory(tenant=tenant), **kwargs)


def data(port=587, **changes):
    return {
        "host": "127.0.0.1" if port != 587 else "smtp.example.com",
        "port": port,
        "security": "starttls",
        "username": "bob",
        "password": PASSWORD,
        "default_from": "Bob <bob@example.com>",
        **changes,
    }


def url(credential, page=""):
    return f"/mail/{credential.pk}/{page}"


def body(response):
    """What it says, without the token, which is another one each time."""
    text = response.content.decode()
    return re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", text)


def stored_password(credential):
    with connection.cursor() as cursor:
        cursor.execute("SELECT password, username FROM mailpool_credential")
        rows = [password for password, username in cursor if username == credential.username]
    assert len(rows) == 1
    return rows[0]


def send(tenant):
    message = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
    message.tenant = tenant
    EmailBackend(fail_silently=True).send_messages([message])
    return message.mailpool_result


# From nothing to an account, and back


def test_entered_verified_used_and_revoked(as_bob, at_home):
    assert "No mail account" in body(as_bob.get("/mail/"))
    response = as_bob.post("/mail/new/", data(at_home.port))
    credential = Credential.objects.get()
    assert response.headers["Location"] == url(credential)
    assert (credential.tenant.slug, credential.server.tenant.slug) == ("bob", "bob")
    assert not credential.is_active
    assert send("bob").status == "failed"
    assert "Inactive until" in body(as_bob.get(url(credential)))
    assert "Inactive until" in body(as_bob.get("/mail/"))
    assert at_home.connections == 0

    page = body(as_bob.post(url(credential, "verify/")))
    assert "this account is in use" in page
    assert send("bob").status == "sent"
    assert len(at_home.sent_as("bob")) == 1
    assert stored_password(credential) != ""

    assert as_bob.post(url(credential, "revoke/")).status_code == 302
    assert stored_password(credential) == ""
    at_home.wait_until_closed()
    credential.refresh_from_db()
    assert (credential.is_active, credential.password_set_at) == (False, None)
    assert send("bob").status == "failed"
    page = body(as_bob.get(url(credential)))
    assert "Revoked" in page
    assert "verify/" not in page
    # Verifying does not bring it back; a password does, once it is verified.
    assert "login can&#x27;t be used" in body(as_bob.post(url(credential, "verify/")))
    assert send("bob").status == "failed"
    as_bob.post(url(credential, "edit/"), data(at_home.port))
    assert "this account is in use" in body(as_bob.post(url(credential, "verify/")))
    assert send("bob").status == "sent"
    assert MailServer.objects.count() == 1


def test_a_change_is_inactive_until_it_is_verified(as_bob, at_home):
    as_bob.post("/mail/new/", data(at_home.port))
    credential = Credential.objects.get()
    as_bob.post(url(credential, "verify/"))
    unchanged = data(at_home.port, password="")
    as_bob.post(url(credential, "edit/"), unchanged)
    credential.refresh_from_db()
    assert credential.is_active
    as_bob.post(url(credential, "edit/"), {**unchanged, "default_from": "x@example.com"})
    credential.refresh_from_db()
    assert (credential.is_active, credential.default_from) == (False, "x@example.com")
    assert credential.password == PASSWORD


def test_without_verification_it_is_active_at_once(as_bob, monkeypatch):
    monkeypatch.setattr(Pages, "require_verification", False)
    as_bob.post("/mail/new/", data())
    assert Credential.objects.get().is_active


def test_a_login_that_is_refused_is_not_activated(as_bob, at_home):
    as_bob.post("/mail/new/", data(at_home.port, password="wrong"))
    credential = Credential.objects.get()
    page = body(as_bob.post(url(credential, "verify/")))
    assert "Failed: Log in" in page
    assert "app password" in page
    credential.refresh_from_db()
    assert not credential.is_active


@pytest.mark.parametrize(
    "change",
    [
        {"password": NEW},
        {"password": ""},
        {"default_from": "y@example.com"},
        {"username": "mary"},
    ],
)
def test_what_was_changed_meanwhile_is_not_activated(bob, allow, authority, change):
    with ScriptedServer(security="plain") as server:
        allow("127.0.0.0/8", ports=[server.port])
        credential = own(bob, is_active=False)
        MailServer.objects.update(host="127.0.0.1", port=server.port, security="plain")
        credential = Credential.objects.get()
        credential.password = PASSWORD
        credential.save()
        reached, go_on = threading.Event(), threading.Event()
        server.when("MAIL").sets(reached).waits_for(go_on).behaves()
        reports: list[Report] = []

        def verify():
            reports.append(selfservice.verify(credential))
            connection.close()

        thread = threading.Thread(target=verify)
        thread.start()
        assert reached.wait(10)
        row = Credential.objects.get()
        for name, value in change.items():
            setattr(row, name, value)
        row.save()
        go_on.set()
        thread.join(10)
        assert reports[0].ok
        assert not Credential.objects.get().is_active
        # And without such a change it would be.
        if change.get("password") != "":
            assert selfservice.verify(Credential.objects.get()).ok
            assert Credential.objects.get().is_active


# Whose


PAGES = ["", "edit/", "verify/", "test/", "revoke/"]


def test_no_page_and_no_method_gets_at_another_credential(as_bob, mary, bob, monkeypatch):
    monkeypatch.setattr(Pages, "get_test_recipient", lambda self, request: "bob@example.com")
    shared = MailServerFactory(name="internal relay", host="relay.internal")
    others = [
        own(mary),
        CredentialFactory(tenant=mary, server=shared),
        CredentialFactory(tenant=None, server=shared),
        CredentialFactory(tenant=bob, server=shared),  # entered by the operator, not offered
    ]
    # What only update() could have made: a credential of Bob's at Mary's server.
    for tenant, server in ((bob, others[0].server), (mary, MailServerFactory(tenant=bob))):
        crossed = CredentialFactory(tenant=tenant, server=shared)
        Credential.objects.filter(pk=crossed.pk).update(server=server)
        others.append(crossed)
    before = list(Credential.objects.order_by("pk").values())
    nobody = Credential(pk=uuid.uuid4())
    for page in PAGES:
        for method in ("get", "head", "options", "post", "put", "patch", "delete"):
            call = getattr(as_bob, method)
            kwargs = {"data": data(password=NEW)} if method == "post" else {}
            expected = call(url(nobody, page), **kwargs)
            assert expected.status_code in (404, 405), (page, method)
            for other in others:
                response = call(url(other, page), **kwargs)
                assert response.status_code == expected.status_code, (page, method)
                shown = response.content.replace(str(other.pk).encode(), b"")
                assert shown == expected.content.replace(str(nobody.pk).encode(), b"")
    assert list(Credential.objects.order_by("pk").values()) == before
    listed = body(as_bob.get("/mail/"))
    assert "No mail account" in listed
    assert "relay" not in listed


def test_two_tenants_see_their_own(as_bob, bob, mary):
    bobs, marys = own(bob), own(mary)
    for client, shown, hidden in ((as_bob, bobs, marys), (signed_in("mary"), marys, bobs)):
        page = body(client.get("/mail/"))
        assert shown.username in page
        assert hidden.username not in page
        assert client.get(url(shown)).status_code == 200
        assert client.get(url(hidden)).status_code == 404


def every_request(client, credential):
    yield client.get("/mail/")
    yield client.get("/mail/new/")
    yield client.post("/mail/new/", data())
    for page in ("", "edit/"):
        yield client.get(url(credential, page))
    for page in PAGES[1:]:
        yield client.post(url(credential, page), data())


@pytest.mark.parametrize("owner", ["bob", None])
def test_nobody_without_a_tenant(bob, owner):
    """Above all not as the site itself, whose credentials have no tenant."""
    credential = own(bob) if owner else CredentialFactory(tenant=None)
    for client in (signed_in("stranger"), Client()):
        for response in every_request(client, credential):
            assert response.status_code == 404
    assert Credential.objects.get().password == PASSWORD


def test_an_inactive_tenant_does_nothing(bob, as_bob):
    credential = own(bob)
    Tenant.objects.update(is_active=False)
    for response in every_request(as_bob, credential):
        assert response.status_code == 403
    assert Credential.objects.get().password == PASSWORD


@pytest.mark.parametrize("wrong", ["bob", 1, Tenant(slug="x", pk=None), get_user_model()])
def test_what_is_no_tenant_finds_nothing(as_bob, monkeypatch, wrong):
    CredentialFactory(tenant=None)
    monkeypatch.setattr(Pages, "get_tenant", lambda self, request: wrong)
    with pytest.raises(TypeError, match="stored tenant"):
        as_bob.get("/mail/")
    with pytest.raises(TypeError):
        TenantCredentialForm(tenant=None)


def test_a_form_is_not_for_another_tenants_credential(bob, mary):
    with pytest.raises(ValueError, match="not that tenant's"):
        TenantCredentialForm(tenant=bob, instance=own(mary))


def test_get_tenant_has_to_be_written(rf):
    view = TenantCredentialMixin.as_view()
    with pytest.raises(NotImplementedError, match="get_tenant"):
        view(rf.get("/"))


def test_pages_below_an_address_of_the_products(as_bob, bob):
    credential = own(bob)
    page = body(as_bob.get(f"/shops/north/{credential.pk}/"))
    for name in ("edit", "verify", "revoke"):
        assert f'"/shops/north/{credential.pk}/{name}/"' in page
    response = as_bob.post(f"/shops/north/{credential.pk}/revoke/")
    assert response.headers["Location"] == f"/shops/north/{credential.pk}/"


# Acting needs POST and a token


def test_what_acts_is_not_done_by_a_link(as_bob, bob):
    credential = own(bob)
    for page in ("verify/", "revoke/"):
        assert as_bob.get(url(credential, page)).status_code == 405
    assert Credential.objects.get().is_active


@pytest.mark.parametrize("middleware", [True, False])
def test_a_form_of_another_site_does_nothing(bob, settings, middleware):
    if not middleware:
        settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if "csrf" not in each.lower()]
    credential = own(bob)
    client = signed_in("bob", enforce_csrf_checks=True)
    for page in ("edit/", "verify/", "revoke/"):
        assert client.post(url(credential, page), data()).status_code == 403
    assert client.post("/mail/new/", data()).status_code == 403
    assert Credential.objects.get().password == PASSWORD


def test_pages_are_not_cached_and_have_no_inline_script_or_style(as_bob, bob):
    credential = own(bob)
    pages = ["/mail/", "/mail/new/", url(credential), url(credential, "edit/")]
    responses = [as_bob.get(page) for page in pages]
    responses.append(as_bob.post("/mail/new/", data(host="no host")))
    for response in responses:
        assert "no-store" in response.headers["Cache-Control"]
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:", body(response))


def test_every_input_has_a_label(as_bob):
    page = body(as_bob.post("/mail/new/", {}))
    for name in ("host", "port", "security", "username", "password", "default_from"):
        assert f'<label for="id_{name}">' in page
        assert f'id="id_{name}"' in page
    for field in TenantCredentialForm(tenant=Tenant.objects.get()).fields.values():
        assert not re.search("[<>&]", str(field.help_text))  # shown as it is


def test_no_transaction_is_open_while_a_server_is_waited_for(bob):
    credential = own(bob)
    for page, waits in (("verify/", True), ("test/", True), ("revoke/", False), ("edit/", False)):
        view = resolve(url(credential, page)).func
        assert bool(getattr(view, "_non_atomic_requests", None)) is waits, page


# Where


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3", "::1", "169.254.169.254"])
def test_what_is_inside_is_refused_in_words_that_tell_nothing(as_bob, allow, host):
    page = body(as_bob.post("/mail/new/", data(host=host)))
    assert "Enter the public host name" in page
    assert not re.search(r"TENANT_SERVER|private|loopback|link-local|network", page)
    assert not MailServer.objects.exists()


def test_ports_that_are_no_mail_servers(as_bob):
    page = body(as_bob.post("/mail/new/", data(port=6379, host="smtp.example.com")))
    assert "Use one of these ports: 25, 465, 587, 2525." in page
    assert not MailServer.objects.exists()


def test_settings_that_can_not_be_read_let_nothing_in(as_bob, allow):
    allow("127.0.0.1/8")
    assert "Enter the public host name" in body(as_bob.post("/mail/new/", data()))
    assert not MailServer.objects.exists()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("host", "https://smtp.example.com/"),
        ("host", ""),
        ("port", "70000"),
        ("security", "plain"),
        ("username", ""),
        ("password", ""),
        ("default_from", "nonsense"),
    ],
)
def test_bad_input(as_bob, field, wrong):
    response = as_bob.post("/mail/new/", data(**{field: wrong}))
    assert response.status_code == 200
    assert field in response.context["form"].errors
    assert not MailServer.objects.exists()


def test_default_from_that_the_senders_leave_out(as_bob, bob):
    credential = own(bob)
    SenderFactory(credential=credential, address="bob@example.com")
    wrong = data(password=NEW, default_from="x@example.org")
    assert "not among the senders" in body(as_bob.post(url(credential, "edit/"), wrong))
    assert as_bob.post(url(credential, "edit/"), data(password=NEW)).status_code == 302


def test_names_of_servers_tell_nothing_of_others(as_bob, bob, mary):
    as_bob.post("/mail/new/", data())
    signed_in("mary").post("/mail/new/", data(username="mary"))
    names = [each.name for each in MailServer.objects.all()]
    assert len(set(names)) == 2
    for name in names:
        assert re.fullmatch(r"smtp\.example\.com \([0-9a-f]{12}\)", name)
    long = "a" * 63 + ".example.com"
    assert as_bob.post("/mail/new/", data(host=f"{long[:60]}.{long}")).status_code == 302


# No oracle


def why_not(monkeypatch, client, credential, *, host=None, **allowed):
    """The page of a verification that fails, and how long it took."""
    found = real = socket.getaddrinfo

    def answer(name, *args, **kwargs):
        # No real name server can be made to say that "mail.example" is here.
        return real(host if host and name == "mail.example" else name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    started = time.monotonic()
    response = client.post(url(credential, "verify/"))
    seconds = time.monotonic() - started
    monkeypatch.setattr(socket, "getaddrinfo", found)
    return response.status_code, body(response), seconds


@pytest.mark.usefixtures("impatient")
def test_refused_unknown_closed_and_silent_hosts_look_the_same(
    as_bob, bob, allow, mail_host, monkeypatch
):
    """And take the same time, although one of them would be known at once."""
    with socket.socket() as probe, socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
        fill = [socket.socket() for _ in range(4)]  # nobody accepts: further ones get no answer
        for each in fill:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        credential = own(bob)
        seen = {}
        for case, host, port, networks in (
            ("inside, a server", "127.0.0.1", mail_host.port, []),
            ("inside, nothing", "10.255.255.1", 587, []),
            ("not found", "no-such-host.invalid", 587, []),
            ("closed", "127.0.0.1", closed, ["127.0.0.0/8"]),
            ("silent", "127.0.0.1", full.getsockname()[1], ["127.0.0.0/8"]),
        ):
            allow(*networks, ports=[port])
            MailServer.objects.update(host="mail.example", port=port)
            credential = Credential.objects.get()
            credential.password = PASSWORD
            credential.save()
            reasons = verify_credential(credential)  # of the name as it is: not found
            assert reasons.failure.key == "resolve"
            status, page, seconds = why_not(monkeypatch, as_bob, credential, host=host)
            page = page.replace(f":{port}", ":port")
            # The time when the password was set is not part of it.
            seen[case] = (status, re.sub(r"Set on [^<]*", "", page))
            assert 0.5 <= seconds < 1.5, case
        for each in fill:
            each.close()
    assert "could not be reached" in seen["closed"][1]
    assert len(set(seen.values())) == 1
    assert mail_host.connections == 0


def test_what_the_other_side_says_is_not_told(as_bob, bob, allow):
    steps = {
        "greeting": "554 secret-banner go away",
        "EHLO": "550 secret-banner",
        "AUTH": "535 5.7.8 secret-banner",
        "MAIL": "550 5.7.1 secret-banner",
        "RCPT": "550 5.1.1 secret-banner",
    }
    for step, reply in steps.items():
        with ScriptedServer(security="plain") as server:
            allow("127.0.0.0/8", ports=[server.port])
            Credential.objects.all().delete()
            MailServer.objects.all().delete()
            credential = own(bob)
            MailServer.objects.update(host="127.0.0.1", port=server.port, security="plain")
            credential = Credential.objects.get()
            credential.password = PASSWORD
            credential.save()
            server.when(step).says(reply)
            page = body(as_bob.post(url(credential, "verify/")))
            assert "Failed: " in page, step
            assert "secret-banner" not in page
            assert not re.search(r"\b5[35][0-9]\b|mailpool_|\bms\b", page), page
            assert "secret-banner" in verify_credential(credential).failure.detail


@pytest.mark.parametrize("answer", [b"\x16\x03\x01\x02", b"HTTP/1.1 400 Bad Request\r\n", b""])
def test_what_is_no_mail_server(as_bob, bob, allow, answer):
    with ScriptedServer(security="plain") as server:
        allow("127.0.0.0/8", ports=[server.port])
        own(bob)
        MailServer.objects.update(host="127.0.0.1", port=server.port)
        credential = Credential.objects.get()
        credential.password = PASSWORD
        credential.save()
        server.when("greeting").sends(answer).closes()
        page = body(as_bob.post(url(credential, "verify/")))
    assert "Failed: Read the greeting" in page
    assert "Check port and security" in page
    assert "HTTP" not in page


def test_a_certificate_of_somebody_else(as_bob, at_home, monkeypatch):
    monkeypatch.setattr(Pages, "server_defaults", {})
    as_bob.post("/mail/new/", data(at_home.port))
    page = body(as_bob.post(url(Credential.objects.get(), "verify/")))
    assert "Failed: Encrypt (TLS)" in page
    assert "certificate is for that" in page
    assert "issuer" not in page


def test_a_server_that_hangs_takes_so_long_and_no_longer(as_bob, bob, allow, monkeypatch):
    monkeypatch.setattr(Pages, "verify_seconds", 1.0)
    for step in ("greeting", "RCPT"):
        Credential.objects.all().delete()
        MailServer.objects.all().delete()
        with ScriptedServer(security="plain") as server:
            allow("127.0.0.0/8", ports=[server.port])
            own(bob)
            MailServer.objects.update(host="127.0.0.1", port=server.port, security="plain")
            credential = Credential.objects.get()
            credential.password = PASSWORD
            credential.save()
            server.when(step).freezes()
            started = time.monotonic()
            assert "Failed: " in body(as_bob.post(url(credential, "verify/")))
            assert 0.9 < time.monotonic() - started < 3.5  # with a second for QUIT


@pytest.mark.usefixtures("impatient")
def test_a_name_server_that_hangs_takes_no_longer(as_bob, bob, monkeypatch):
    credential = own(bob)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(20) and [])
    started = time.monotonic()
    page = body(as_bob.post(url(credential, "verify/")))
    seconds = time.monotonic() - started
    over.set()
    assert "could not be reached" in page
    assert seconds < 2


@pytest.mark.usefixtures("impatient")
def test_operators_find_the_reason_in_the_log(as_bob, bob, caplog):
    credential = own(bob)
    MailServer.objects.update(host="no-such-host.invalid")
    credential = Credential.objects.get()
    credential.password = PASSWORD
    credential.save()
    with caplog.at_level("INFO", "mailpool"):
        as_bob.post(url(credential, "verify/"))
    assert f"verified credential {credential.pk}" in caplog.text
    assert "'no-such-host.invalid' could not be found" in caplog.text
    assert PASSWORD not in caplog.text


def test_a_login_that_does_not_open_is_described_for_tenants(as_bob, bob):
    credential = own(bob)
    MailServer.objects.update(host="elsewhere.example.com")  # not what it was entered for
    page = body(as_bob.post(url(credential, "verify/")))
    assert "Enter the password again" in page
    assert "mailpool.credential" not in page


# How often


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set."""
    times = [1_000_000_000.0]
    monkeypatch.setattr(attempts, "now", lambda: times[0])
    return times


def test_attempts_are_limited_for_each_tenant(as_bob, bob, mary, allow, clock):
    allow(TENANT_VERIFY_RATE="2/hour")
    credential, marys = own(bob), own(mary)
    verify = url(credential, "verify/")
    MailServer.objects.update(host="no-such-host.invalid")
    assert [as_bob.post(verify).status_code for _ in range(4)] == [200, 200, 429, 429]
    response = as_bob.post(verify)
    assert response.headers["Retry-After"] == str(3600 - 1_000_000_000 % 3600)
    assert "Too many attempts. Try again in 14 minutes." in body(response)
    # Saving counts, too, and is refused with nothing saved; revoking is not.
    response = as_bob.post("/mail/new/", data())
    assert (response.status_code, Credential.objects.count()) == (429, 2)
    assert "Too many attempts" in body(response)
    assert as_bob.post(url(credential, "revoke/")).status_code == 302
    # Neither are others.
    assert signed_in("mary").post(url(marys, "verify/")).status_code == 200
    # And then it goes on.
    clock[0] += 3600
    assert as_bob.post("/mail/new/", data()).status_code == 302
    assert [as_bob.post(verify).status_code for _ in range(2)] == [200, 429]


@pytest.mark.usefixtures("impatient")
def test_another_tenants_attempts_can_not_be_used_up(as_bob, bob, mary, allow, clock):
    allow(TENANT_VERIFY_RATE="1/hour")
    marys = own(mary)
    assert as_bob.post(url(marys, "verify/")).status_code == 404
    assert signed_in("mary").post(url(marys, "verify/")).status_code == 200


def test_input_that_is_not_saved_is_no_attempt(as_bob, allow, clock):
    allow(TENANT_VERIFY_RATE="1/hour")
    for _ in range(3):
        assert as_bob.post("/mail/new/", data(host="no host")).status_code == 200
    assert as_bob.post("/mail/new/", data()).status_code == 302


def test_no_connection_is_made_beyond_the_limit(as_bob, at_home, settings, clock):
    as_bob.post("/mail/new/", data(at_home.port))
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_VERIFY_RATE": "1/day"}
    for _ in range(3):
        as_bob.post(url(Credential.objects.get(), "verify/"))
    assert at_home.connections == 1


@pytest.mark.parametrize(
    "backend",
    [
        "django.core.cache.backends.dummy.DummyCache",  # takes everything and has nothing
        "tests.test_tenant_forms.BrokenCache",
    ],
)
def test_a_cache_that_does_not_count_lets_nothing_through(
    as_bob, bob, allow, settings, caplog, backend
):
    settings.CACHES = {"default": {"BACKEND": backend}}
    allow(TENANT_VERIFY_RATE="10/hour")
    credential = own(bob)
    response = as_bob.post(url(credential, "verify/"))
    assert response.status_code == 429
    assert "not possible right now" in body(response)
    assert as_bob.post("/mail/new/", data()).status_code == 429
    assert "can't be counted" in caplog.text
    assert "hunter2" not in caplog.text


class BrokenCache(BaseCache):
    """As one whose server is gone."""

    def __init__(self, location, params):
        super().__init__(params)

    def add(self, *args, **kwargs):
        raise ConnectionError("redis://:hunter2@cache:6379 does not answer")

    def clear(self):
        pass


@pytest.mark.parametrize("rate", ["10", "10/fortnight", "0/hour", "-1/hour", "x/hour", 10, ""])
def test_a_rate_that_can_not_be_read(settings, rate):
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_VERIFY_RATE": rate}
    assert [found.id for found in check_settings()] == ["mailpool.E017"]


@pytest.mark.parametrize("rate", ["1/minute", "10/hour", "500/day", None])
def test_a_rate_that_can_be_read(settings, rate):
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_VERIFY_RATE": rate}
    assert check_settings() == []


# The password


def test_the_password_is_write_only(as_bob, bob):
    credential = own(bob)
    stored = str(credential.password_ciphertext)
    pages = ["/mail/", url(credential), url(credential, "edit/")]
    responses = [as_bob.get(page) for page in pages]
    responses.append(as_bob.post(url(credential, "edit/"), data(password=NEW, port="x")))
    for response in responses:
        text = body(response)
        assert PASSWORD not in text
        assert NEW not in text
        assert stored not in text
    assert 'name="password" autocomplete="new-password"' in body(responses[2])
    assert "Stored. Leave empty to keep it" in body(responses[2])


def test_an_empty_password_keeps_the_stored_one(as_bob, bob):
    credential = own(bob)
    stored = stored_password(credential)
    change = data(username=credential.username, password="")
    assert as_bob.post(url(credential, "edit/"), change).status_code == 302
    assert stored_password(credential) == stored


@pytest.mark.parametrize(
    "change", [{"host": "smtp.example.org"}, {"port": 2525}, {"security": "tls"}]
)
def test_another_address_needs_the_password_again(as_bob, bob, change):
    credential = own(bob, username="bob")
    server = MailServer.objects.get()
    change = {"host": "smtp.example.com", **change}
    response = as_bob.post(url(credential, "edit/"), data(**{**change, "password": ""}))
    assert "Enter the password again" in body(response)
    assert MailServer.objects.values().get() == MailServer.objects.filter(pk=server.pk).values()[0]
    kept = Credential.objects.select_related("server").get()
    assert (kept.server.host, kept.server.port) == (server.host, server.port)
    assert kept.password == PASSWORD
    response = as_bob.post(url(credential, "edit/"), data(**{**change, "password": NEW}))
    assert response.status_code == 302
    changed = Credential.objects.select_related("server").get()
    assert changed.password == NEW
    assert changed.server_id == server.pk
    name, value = list(change.items())[-1]
    assert getattr(changed.server, name) == value


def test_a_new_host_does_not_inherit_the_old_ones_certificate(as_bob, bob, authority):
    credential = own(bob)
    MailServer.objects.update(ca_certificate=authority.pem, max_connections=7)
    as_bob.post(url(credential, "edit/"), data(password=NEW, port=2525, host="smtp.example.com"))
    assert MailServer.objects.get().ca_certificate == authority.pem
    as_bob.post(url(credential, "edit/"), data(password=NEW, host="smtp.example.org"))
    server = MailServer.objects.get()
    assert (server.ca_certificate, server.max_connections) == ("", 7)


def test_the_other_accounts_of_a_server_stay_where_they_are(as_bob, bob):
    one = own(bob, username="one")
    two = CredentialFactory(tenant=bob, server=one.server, username="two")
    moved = data(host="smtp.example.org", username="one", password=NEW)
    assert as_bob.post(url(one, "edit/"), moved).status_code == 302
    one, two = (Credential.objects.get(pk=each.pk) for each in (one, two))
    assert (one.server.host, two.server.host) == ("smtp.example.org", "smtp.example.com")
    assert (one.password, two.password) == (NEW, PASSWORD)
    # Back again: the server that is there already is used, and the other one is gone.
    as_bob.post(url(one, "edit/"), data(username="one", password=PASSWORD))
    one.refresh_from_db()
    assert one.server == two.server == MailServer.objects.get()


def test_the_same_account_is_not_entered_twice(as_bob):
    assert as_bob.post("/mail/new/", data()).status_code == 302
    page = body(as_bob.post("/mail/new/", data(password=NEW)))
    assert "You have entered this account at this server already. Change that one." in page
    assert "This tenant" not in page
    assert Credential.objects.get().password == PASSWORD


@pytest.mark.parametrize("new", ["plain-Qz7x", "a\\Qz7x", "it'sQz7x", "Ä &%+Qz7x"])
def test_debug_page_hides_a_submitted_password(bob, settings, failing_credential, new):
    settings.DEBUG = True
    client = signed_in("bob", raise_request_exception=False)
    response = client.post("/mail/new/", data(password=new))
    assert response.status_code == 500
    text = response.content.decode()
    assert "the disk is full" in text
    assert "Qz7x" not in text


# Both or neither


def test_no_server_without_its_credential(as_bob, failing_credential):
    with pytest.raises(RuntimeError, match="disk"):
        as_bob.post("/mail/new/", data())
    assert not MailServer.objects.exists()


def test_a_server_is_not_changed_without_its_credential(as_bob, bob, request):
    credential = own(bob)
    before = MailServer.objects.values().get()
    request.getfixturevalue("failing_credential")
    with pytest.raises(RuntimeError, match="disk"):
        as_bob.post(url(credential, "edit/"), data(host="smtp.example.org", password=NEW))
    assert MailServer.objects.values().get() == before
    assert Credential.objects.get().password == PASSWORD


def test_the_same_account_twice_at_the_same_moment(as_bob, bob, monkeypatch):
    server = MailServerFactory(tenant=bob)
    done = []

    def first(instance, **kwargs):
        if not done:
            done.append(True)
            CredentialFactory(tenant=bob, server=server, username="bob")

    pre_save.connect(first, sender=Credential)
    try:
        response = as_bob.post("/mail/new/", data(password=NEW))
    finally:
        pre_save.disconnect(first, sender=Credential)
    # Both in this test's one transaction, so both are undone; what counts is the answer.
    assert response.status_code == 200
    assert "entered already" in body(response)


def test_saved_without_commit(bob):
    form = TenantCredentialForm(data(), tenant=bob)
    credential = form.save(commit=False)
    assert not Credential.objects.exists()
    credential.server.save()
    credential.server = credential.server
    credential.save()
    assert Credential.objects.get().password == PASSWORD


def test_connections_of_a_changed_account_are_closed(as_bob, at_home):
    as_bob.post("/mail/new/", data(at_home.port))
    credential = Credential.objects.get()
    as_bob.post(url(credential, "verify/"))
    assert send("bob").status == "sent"
    assert delivery.stats().idle == 1
    as_bob.post(url(credential, "edit/"), data(at_home.port, default_from="x@example.com"))
    assert delivery.stats().idle == 0


# The operator's own servers, to choose from


@pytest.fixture
def relay(monkeypatch):
    relay = MailServerFactory(name="Our relay", host="relay.internal")
    MailServerFactory(name="Off", is_active=False)
    MailServerFactory(name="Secret")
    monkeypatch.setattr(Pages, "servers", MailServer.objects.exclude(name="Secret"))
    return relay


def test_one_of_the_operators_servers(as_bob, mary, relay, monkeypatch):
    marys = MailServerFactory(tenant=mary, name="Mary's")
    page = body(as_bob.get("/mail/new/"))
    assert "Our relay" in page
    for hidden in ("Secret", "Off<", "Mary", "relay.internal", "id_host"):
        assert hidden not in page
    login = {"username": "bob", "password": PASSWORD}
    for wrong in (marys.pk, MailServer.objects.get(name="Secret").pk, uuid.uuid4(), ""):
        response = as_bob.post("/mail/new/", {"server": wrong, **login})
        assert "server" in response.context["form"].errors
    assert as_bob.post("/mail/new/", {"server": relay.pk, **login}).status_code == 302
    credential = Credential.objects.get()
    assert (credential.server, credential.password) == (relay, PASSWORD)
    page = body(as_bob.get(url(credential)))
    assert "Our relay" in page
    assert "relay.internal" not in page
    # What was offered once and is no longer, is not theirs to see.
    monkeypatch.setattr(Pages, "servers", MailServer.objects.none())
    assert as_bob.get(url(credential)).status_code == 404


def test_a_server_that_all_may_choose_shows_each_its_own(as_bob, bob, mary, relay):
    bobs = CredentialFactory(tenant=bob, server=relay)
    others = [CredentialFactory(tenant=tenant, server=relay) for tenant in (mary, None)]
    page = body(as_bob.get("/mail/"))
    assert as_bob.get(url(bobs)).status_code == 200
    assert bobs.username in page
    for other in others:
        assert other.username not in page
        assert as_bob.get(url(other)).status_code == 404
        assert as_bob.post(url(other, "revoke/")).status_code == 404
        assert Credential.objects.get(pk=other.pk).password == PASSWORD


def test_from_a_server_of_ones_own_to_the_operators(as_bob, bob, relay):
    credential = own(bob, username="bob")
    change = {"server": relay.pk, "username": "bob", "password": ""}
    assert "Enter the password again" in body(as_bob.post(url(credential, "edit/"), change))
    as_bob.post(url(credential, "edit/"), {**change, "password": NEW})
    moved = Credential.objects.get()
    assert (moved.server, moved.password) == (relay, NEW)
    assert not MailServer.objects.filter(tenant=bob).exists()
    assert MailServer.objects.get(pk=relay.pk).host == "relay.internal"


def test_a_server_that_the_operator_switched_off_stays_off(as_bob, bob):
    credential = own(bob)
    MailServer.objects.update(is_active=False)
    as_bob.post(url(credential, "edit/"), data(host="smtp.example.org", password=NEW))
    assert not MailServer.objects.get().is_active
    assert "Suspended" in body(as_bob.get(url(credential)))


# Test messages


def test_a_test_message_goes_to_the_user_where_the_product_says_so(as_bob, at_home, monkeypatch):
    as_bob.post("/mail/new/", data(at_home.port))
    credential = Credential.objects.get()
    assert as_bob.post(url(credential, "test/")).status_code == 404
    recipients = ["bob@home.example"]
    monkeypatch.setattr(Pages, "get_test_recipient", lambda self, request: recipients[0])
    assert "Verify this account first" in body(as_bob.post(url(credential, "test/")))
    as_bob.post(url(credential, "verify/"))
    assert "Send a test message to bob@home.example" in body(as_bob.get(url(credential)))
    page = body(as_bob.post(url(credential, "test/"), {"recipient": "victim@example.com"}))
    assert "Sent to bob@home.example" in page
    assert [each.recipients for each in at_home.delivered] == [["bob@home.example"]]
    recipients[0] = "nonsense"
    assert "can be sent to your address" in body(as_bob.post(url(credential, "test/")))
    recipients[0] = "refused@home.example"
    page = body(as_bob.post(url(credential, "test/")))
    assert "did not take the message" in page
    assert "no such user" not in page
    assert len(at_home.delivered) == 1
    at_home.accounts["bob"] = "changed"
    assert "Failed: Log in" in body(as_bob.post(url(credential, "test/")))


def test_it_is_a_form_like_any_other(bob):
    assert issubclass(TenantCredentialForm, forms.ModelForm)
    form = TenantCredentialForm(tenant=bob, server_defaults={"timeout": 7}, data=data())
    assert form.save().server.timeout == 7


def test_what_tenants_do_is_in_the_audit(as_bob, at_home):
    as_bob.post("/mail/new/", data(at_home.port))
    credential = Credential.objects.get()
    as_bob.post(url(credential, "verify/"))
    as_bob.post(url(credential, "revoke/"))
    entries = AuditEntry.objects.order_by("pk")
    assert {(entry.actor, entry.way) for entry in entries} == {("bob", "tenant's pages")}
    done = [entry.action for entry in entries]
    assert done[0] == "created"
    assert {"verified", "enabled", "disabled", "password_removed"} <= {*done}


def test_an_oauth_login_is_shown_and_revoked_and_not_edited(as_bob, bob):
    client = OAuthClient.objects.create(
        name="Provider", token_url="https://auth.example.com/token", client_id="id"
    )
    credential = CredentialFactory(
        tenant=bob,
        server=MailServerFactory(tenant=bob),
        kind="authorization_code",
        oauth_client=client,
        password="",
        refresh_token="refresh",
    )
    page = body(as_bob.get(url(credential)))
    assert "edit/" not in page
    assert as_bob.get(url(credential, "edit/")).status_code == 404
    assert as_bob.post(url(credential, "edit/"), data()).status_code == 404
    assert as_bob.post(url(credential, "revoke/")).status_code == 302
    credential.refresh_from_db()
    assert (credential.is_active, credential.is_connected) == (False, False)


# The provider by the address


def test_a_tenant_need_not_name_a_known_providers_host(as_bob, bob):
    response = as_bob.post("/mail/new/", data(host="", username="bob@fastmail.com"))
    assert response.status_code == 302
    server = MailServer.objects.get(tenant=bob)
    assert (server.host, server.port, server.security) == ("smtp.fastmail.com", 465, "tls")


def test_a_tenant_names_the_host_of_any_other_provider(as_bob, bob):
    page = body(as_bob.post("/mail/new/", data(host="", username="bob@acme.example")))
    assert "Enter the host name that your mail provider names." in page
    assert not MailServer.objects.filter(tenant=bob).exists()
