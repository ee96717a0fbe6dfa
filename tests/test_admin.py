"""What operators do in the admin, and what they may not."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission

import mailpool
from mailpool.backends import EmailBackend
from mailpool.models import Credential, MailServer, Tenant
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory
from tests.smtpd import PASSWORD
from tests.test_backend import message

pytestmark = pytest.mark.django_db(transaction=True)

SERVERS = "/admin/mailpool/mailserver/"
CREDENTIALS = "/admin/mailpool/credential/"
CONNECTIONS = f"{SERVERS}connections/"


@pytest.fixture
def admin(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def staff(client):
    """A client with exactly these permissions: ``staff("view_credential", ...)``."""

    def log_in(*codenames):
        user = get_user_model().objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def inline(prefix, *rows, initial=0):
    data = {f"{prefix}-TOTAL_FORMS": len(rows), f"{prefix}-INITIAL_FORMS": initial}
    for number, row in enumerate(rows):
        data |= {f"{prefix}-{number}-{name}": value for name, value in row.items()}
    return data


def credential_data(credential=None, **changes):
    data = {
        "tenant": (credential.tenant_id or "") if credential else "",
        "server": credential.server_id if credential else "",
        "username": credential.username if credential else "bob",
        "password": "",
        "default_from": "",
        "sender_policy": "refuse",
        "priority": 10,
        "is_active": "on",
        **inline("senders"),
    }
    return {**data, **changes}


def server_data(**changes):
    return {
        "name": "Main",
        "host": "smtp.example.com",
        "port": 587,
        "security": "starttls",
        "timeout": 30,
        "ca_certificate": "",
        "is_active": "on",
        "maintain_connection": "on",
        "max_connections": 3,
        "idle_timeout": 30,
        "max_lifetime": 300,
        "max_messages": 100,
        **inline("credentials"),
        **changes,
    }


def errors(response):
    assert response.status_code == 200, "it was saved"
    context = response.context
    found = list(context["adminform"].form.errors.values())
    for formset in context["inline_admin_formsets"]:
        found += [formset.formset.non_form_errors()]
        found += [error for form in formset.formset.forms for error in form.errors.values()]
    return " ".join(str(message) for group in found for message in group)


# From nothing to an account


def test_server_tenant_and_credential_are_entered(admin):
    tenant = TenantFactory(slug="bob")
    assert admin.post(f"{SERVERS}add/", server_data()).status_code == 302
    server = MailServer.objects.get()
    data = credential_data(
        tenant=tenant.pk,
        server=server.pk,
        password="secret",
        **inline("senders", {"address": "Shop@Example.com"}, {"address": "@bücher.example"}),
    )
    assert admin.post(f"{CREDENTIALS}add/", data).status_code == 302
    credential = Credential.objects.get()
    assert credential.password == "secret"
    assert credential.password_set_at is not None
    addresses = set(credential.senders.values_list("address", flat=True))
    assert addresses == {"shop@example.com", "@xn--bcher-kva.example"}
    assert set(credential.senders.values_list("scope", flat=True)) == {str(tenant.pk)}


def test_credentials_are_entered_inline(admin):
    tenant = TenantFactory()
    row = {"tenant": tenant.pk, "username": "bob", "password": "secret", "priority": 10}
    data = server_data(**inline("credentials", {**row, "is_active": "on"}))
    assert admin.post(f"{SERVERS}add/", data).status_code == 302
    assert Credential.objects.get().password == "secret"
    row = {"server": MailServer.objects.get().pk, "username": "b", "password": "2", "priority": 1}
    data = {"name": "T", "slug": "t", **inline("mailpool_credentials", row)}
    assert admin.post("/admin/mailpool/tenant/add/", data).status_code == 302
    assert Credential.objects.get(username="b").password == "2"


# The password


def test_password_field_is_empty_and_an_empty_one_keeps_what_is_stored(admin):
    credential = CredentialFactory(password="long-secret-password")
    url = f"{CREDENTIALS}{credential.pk}/change/"
    page = admin.get(url).content.decode()
    assert "long-secret" not in page
    field = page[page.index('name="password"') - 60 :][:300]
    assert "value=" not in field
    assert "Set on" in page
    assert admin.post(url, credential_data(credential, priority=3)).status_code == 302
    credential.refresh_from_db()
    assert credential.password == "long-secret-password"
    assert credential.priority == 3


def test_new_password_is_taken_as_it_is(admin):
    credential = CredentialFactory()
    url = f"{CREDENTIALS}{credential.pk}/change/"
    admin.post(url, credential_data(credential, password="  with blanks "))
    credential.refresh_from_db()
    assert credential.password == "  with blanks "
    entry = LogEntry.objects.get()
    assert "Password" in entry.get_change_message()
    assert "blanks" not in entry.change_message


def test_without_a_username_the_password_goes(admin):
    credential = CredentialFactory()
    url = f"{CREDENTIALS}{credential.pk}/change/"
    assert admin.post(url, credential_data(credential, username="")).status_code == 302
    credential.refresh_from_db()
    assert not credential.has_password


def test_row_that_no_key_opens_is_shown_and_can_be_repaired(admin, settings):
    credential = CredentialFactory()
    keys = ["YW5vdGhlciBrZXkgZm9yIHRlc3RzLCAzMiBieXRlcyE="]
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": keys}
    assert "not among the configured keys" in admin.get(CREDENTIALS).content.decode()
    url = f"{CREDENTIALS}{credential.pk}/change/"
    assert admin.get(url).status_code == 200
    assert admin.post(url, credential_data(credential, password="again")).status_code == 302
    assert Credential.objects.get().password == "again"


# The switch


def test_switch_is_changed_in_the_list_and_in_the_history(admin, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    EmailBackend().send_messages([message()])
    data = {
        "form-TOTAL_FORMS": 1,
        "form-INITIAL_FORMS": 1,
        "form-0-id": credential.server.pk,
        "_save": "Save",
    }
    assert admin.post(SERVERS, data).status_code == 302
    assert not MailServer.objects.get().maintain_connection
    assert LogEntry.objects.filter(object_id=str(credential.server.pk)).exists()
    mail_host.wait_until_closed()


@pytest.mark.parametrize(("action", "value"), [("maintain", True), ("do_not_maintain", False)])
def test_switch_is_changed_for_many(admin, action, value):
    servers = [MailServerFactory(maintain_connection=not value) for _ in range(3)]
    data = {"action": action, "_selected_action": [server.pk for server in servers[:2]]}
    assert admin.post(SERVERS, data).status_code == 302
    states = [MailServer.objects.get(pk=server.pk).maintain_connection for server in servers]
    assert states == [value, value, not value]
    assert LogEntry.objects.count() == 2


def test_credentials_are_switched_off_for_many(admin):
    credentials = [CredentialFactory() for _ in range(2)]
    data = {"action": "deactivate", "_selected_action": [c.pk for c in credentials]}
    assert admin.post(CREDENTIALS, data).status_code == 302
    assert not Credential.objects.filter(is_active=True).exists()


# Verify and test


def test_verify_credential_goes_all_the_way_and_sends_nothing(admin, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    url = f"{CREDENTIALS}{credential.pk}/verify/"
    assert mail_host.connections == 0
    assert admin.get(url).status_code == 200
    response = admin.post(url, {"recipient": ""})
    report = response.context["report"]
    assert report.ok
    assert [step.key for step in report.steps] == [
        "secret",
        "resolve",
        "connect",
        "greeting",
        "ehlo",
        "starttls",
        "tls",
        "ehlo-tls",
        "auth",
        "mail",
        "rcpt",
    ]
    assert "TLSv1.3" in response.content.decode()
    assert mail_host.delivered == []
    mail_host.wait_until_closed()
    assert "Verified the connection: ok" in LogEntry.objects.get().get_change_message()


def test_verify_is_not_held_back_by_the_pause_and_ends_it(admin, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    mail_host.accounts["bob"] = "another"
    for _ in range(2):
        EmailBackend(fail_silently=True).send_messages([message()])
    assert mail_host.refused_logins == 1
    url = f"{CREDENTIALS}{credential.pk}/verify/"
    report = admin.post(url).context["report"]
    assert (report.failure.key, mail_host.refused_logins) == ("auth", 2)
    assert "app password" in report.failure.advice
    mail_host.accounts["bob"] = PASSWORD
    assert admin.post(url).context["report"].ok
    assert EmailBackend().send_messages([message()]) == 1


def test_verify_tells_a_refused_recipient(admin, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    url = f"{CREDENTIALS}{credential.pk}/verify/"
    report = admin.post(url, {"recipient": "refused@example.com"}).context["report"]
    assert report.failure.key == "rcpt"
    assert "550 5.1.1 no such user" in report.failure.detail
    assert admin.post(url, {"recipient": "nonsense"}).context["report"] is None


def test_verify_server(admin, mail_host, make_credential):
    server = make_credential(mail_host, "bob").server
    report = admin.post(f"{SERVERS}{server.pk}/verify/").context["report"]
    assert report.ok
    assert report.steps[-1].key == "ehlo-tls"
    server.security = "tls"
    server.save()
    page = admin.post(f"{SERVERS}{server.pk}/verify/").content.decode()
    assert "speaks clear text on this port" in page
    assert "587 goes with STARTTLS" in page


def test_send_test_message(admin, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    url = f"{CREDENTIALS}{credential.pk}/send-test/"
    # Nothing of the account is an address, so it is asked for.
    assert 'name="sender"' in admin.get(url).content.decode()
    page = admin.post(url, {"recipient": "you@example.com"}).content.decode()
    assert "This field is required" in page
    assert mail_host.delivered == []
    admin.post(url, {"recipient": "you@example.com", "sender": "bob@example.com"})
    assert mail_host.delivered.pop().sender == "bob@example.com"
    Credential.objects.update(default_from="shop@example.com")
    assert 'name="sender"' not in admin.get(url).content.decode()
    assert mail_host.delivered == []
    page = admin.post(url, {"recipient": "you@example.com"}).content.decode()
    assert "Sent: the server took the message over" in page
    assert mail_host.delivered[0].login == "bob"
    assert mail_host.delivered[0].recipients == ["you@example.com"]
    page = admin.post(url, {"recipient": "refused@example.com"}).content.decode()
    assert "Refused" in page
    assert "no such user" in page


def test_a_test_message_tells_its_time_in_utc(admin, mail_host, make_credential, settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "Pacific/Apia"
    url = f"{CREDENTIALS}{make_credential(mail_host, 'bob').pk}/send-test/"
    admin.post(url, {"recipient": "you@example.com", "sender": "bob@example.com"})
    (text,) = re.findall(r"on (.*) UTC", mail_host.delivered[0].content.decode())
    told = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=2)


def test_server_texts_are_shown_as_text(admin):
    from tests.scripted import ScriptedServer

    with ScriptedServer() as server:
        server.when("greeting").says("554 <script>alert(1)</script>")
        row = MailServerFactory(host="127.0.0.1", port=server.port, security="plain")
        page = admin.post(f"{SERVERS}{row.pk}/verify/").content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# Connections


def test_connections_are_shown_and_closed(admin, mail_host, make_credential):
    assert "There is no open connection" in admin.get(CONNECTIONS).content.decode()
    make_credential(mail_host, "bob")
    make_credential(mail_host, "mary")
    EmailBackend().send_messages([message("bob"), message("mary"), message("mary")])
    page = admin.get(CONNECTIONS).content.decode()
    for text in (">bob<", ">mary<", "TLSv1.3", "idle"):
        assert text in page
    session = next(info for info in mailpool.stats().sessions if info.username == "bob")
    assert admin.post(CONNECTIONS, {"session": session.id}).status_code == 302
    assert [info.username for info in mailpool.stats().sessions] == ["mary"]
    admin.post(CONNECTIONS)
    assert mailpool.stats().open == 0


@pytest.mark.parametrize("further", [[], ["view_credential"], ["view_mailserver"]])
def test_breadcrumbs_lead_where_one_may_go(staff, further):
    client = staff("view_connections", *further)
    crumbs = client.get(CONNECTIONS).content.decode().partition("breadcrumbs")[2]
    links = re.findall(r'<a href="([^"]+)"', crumbs.partition("</ol>")[0])
    assert (SERVERS in links) is ("view_mailserver" in further)
    assert [client.get(link).status_code for link in links] == [200] * len(links)


# Bad input: a sentence, never a crash


def test_the_same_account_twice(admin):
    credential = CredentialFactory()
    response = admin.post(f"{CREDENTIALS}add/", credential_data(credential, password="x"))
    assert "has this account at this server already" in errors(response)
    site = CredentialFactory(tenant=None)
    response = admin.post(f"{CREDENTIALS}add/", credential_data(site, password="x"))
    assert "has this account at this server already" in errors(response)
    row = {"tenant": "", "username": "twice", "password": "x", "priority": 1}
    response = admin.post(f"{SERVERS}add/", server_data(**inline("credentials", row, row)))
    assert "The same account is entered more than once" in errors(response)


def test_the_same_sender_twice(admin):
    sender = SenderFactory(address="shop@example.com")
    other = CredentialFactory(tenant=sender.credential.tenant)
    url = f"{CREDENTIALS}{other.pk}/change/"
    rows = inline("senders", {"credential": other.pk, "address": "SHOP@example.com"})
    assert "has this sender already" in errors(admin.post(url, credential_data(other, **rows)))
    rows = inline("senders", {"address": "a@example.com"}, {"address": "A@Example.com"})
    assert "Entered more than once" in errors(admin.post(url, credential_data(other, **rows)))
    rows = inline("senders", {"address": "no address"})
    assert "Enter a full address" in errors(admin.post(url, credential_data(other, **rows)))


def test_moving_to_a_tenant_that_has_a_sender_already(admin):
    mine, theirs = (SenderFactory(address="shop@example.com") for _ in range(2))
    url = f"{CREDENTIALS}{mine.credential.pk}/change/"
    data = credential_data(mine.credential, tenant=theirs.credential.tenant.pk)
    data |= inline(
        "senders",
        {"id": mine.pk, "credential": mine.credential.pk, "address": mine.address},
        initial=1,
    )
    assert "has one of this credential" in errors(admin.post(url, data))


def test_password_over_clear_text(admin):
    server = MailServerFactory(host="smtp.example.com", security="plain")
    data = credential_data(server=server.pk, password="x")
    assert "in clear text" in errors(admin.post(f"{CREDENTIALS}add/", data))
    row = {"tenant": "", "username": "bob", "password": "x", "priority": 1}
    data = server_data(security="plain", **inline("credentials", row))
    assert "in clear text" in errors(admin.post(f"{SERVERS}add/", data))
    used = CredentialFactory().server
    data = {"host": used.host, "port": used.port, "security": "plain"}
    assert "in clear text" in admin.post(f"{SERVERS}{used.pk}/move/", data).content.decode()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"host": "https://smtp.example.com/"}, "host name alone"),
        ({"host": "smtp.example.com:587"}, "port has a field of its own"),
        ({"host": "not a host"}, "Enter a host name"),
        ({"port": 70000}, "less than or equal to 65535"),
        ({"port": 0}, "greater than or equal to 1"),
        ({"max_connections": 0}, "greater than or equal to 1"),
        ({"ca_certificate": "nonsense"}, "PEM"),
        ({"security": "maybe"}, "not one of the available choices"),
    ],
)
def test_bad_servers(admin, change, expected):
    assert expected in errors(admin.post(f"{SERVERS}add/", server_data(**change)))


def test_account_without_a_password(admin):
    server = MailServerFactory()
    response = admin.post(f"{CREDENTIALS}add/", credential_data(server=server.pk))
    assert "Enter the password" in errors(response)


def test_server_in_use_is_not_deleted(admin):
    credential = CredentialFactory()
    admin.post(f"{SERVERS}{credential.server.pk}/delete/", {"post": "yes"})
    assert MailServer.objects.count() == 1


def test_entry_that_is_gone(admin):
    gone = CredentialFactory()
    pk = gone.pk
    gone.delete()
    assert admin.post(f"{CREDENTIALS}{pk}/verify/")["Location"] == "/admin/"
    assert admin.get(f"{CREDENTIALS}nonsense/verify/")["Location"] == "/admin/"


# Permissions


def test_who_may_only_look_sees_no_password_input(staff):
    credential = CredentialFactory()
    client = staff("view_credential", "view_mailserver", "view_tenant")
    for url in (
        f"{CREDENTIALS}{credential.pk}/change/",
        f"{SERVERS}{credential.server.pk}/change/",
        f"/admin/mailpool/tenant/{credential.tenant.pk}/change/",
    ):
        page = client.get(url)
        assert page.status_code == 200
        text = page.content.decode()
        assert 'type="password"' not in text
        assert "$" not in text  # as in a ciphertext
        assert "Verify connection" not in text
        assert PASSWORD not in text
    url = f"{CREDENTIALS}{credential.pk}/change/"
    assert client.post(url, credential_data(credential, password="x")).status_code == 403
    assert Credential.objects.get().password == PASSWORD


def test_changing_is_not_verifying(staff, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    client = staff("change_credential", "change_mailserver")
    for url in (
        f"{CREDENTIALS}{credential.pk}/verify/",
        f"{CREDENTIALS}{credential.pk}/send-test/",
        f"{SERVERS}{credential.server.pk}/verify/",
    ):
        assert client.post(url, {"recipient": "a@example.com"}).status_code == 403
    assert client.get(CONNECTIONS).status_code == 403
    assert client.post(CONNECTIONS).status_code == 403
    assert mail_host.connections == 0


def test_verifying_is_not_changing(staff, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    client = staff("view_credential", "verify_credential")
    assert client.post(f"{CREDENTIALS}{credential.pk}/verify/").context["report"].ok
    assert (
        "Verify connection" in client.get(f"{CREDENTIALS}{credential.pk}/change/").content.decode()
    )
    url = f"{CREDENTIALS}{credential.pk}/change/"
    assert client.post(url, credential_data(credential, password="x")).status_code == 403


def test_verify_permission_alone_shows_no_row(staff, mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    client = staff("verify_credential")
    assert client.post(f"{CREDENTIALS}{credential.pk}/verify/").status_code == 403
    assert mail_host.connections == 0


def test_looking_at_connections_is_not_closing_them(staff, mail_host, make_credential):
    make_credential(mail_host, "bob")
    EmailBackend().send_messages([message()])
    client = staff("view_mailserver", "view_connections")
    page = client.get(CONNECTIONS).content.decode()
    assert "TLSv1.3" in page
    assert "Close" not in page.split("Open connections")[1].split("</table>")[0]
    assert client.post(CONNECTIONS).status_code == 403
    assert mailpool.stats().open == 1


def test_only_those_who_may_change_switch_in_the_list(staff):
    server = MailServerFactory()
    client = staff("view_mailserver")
    data = {"form-TOTAL_FORMS": 1, "form-INITIAL_FORMS": 1, "form-0-id": server.pk, "_save": "Save"}
    client.post(SERVERS, data)
    client.post(SERVERS, {"action": "do_not_maintain", "_selected_action": [server.pk]})
    assert MailServer.objects.get().maintain_connection


# Length


@pytest.mark.parametrize("url", [SERVERS, CREDENTIALS, "/admin/mailpool/tenant/"])
def test_lists_need_the_same_few_queries_whatever_their_length(
    admin, url, django_assert_max_num_queries
):
    for _ in range(30):
        SenderFactory()
    with django_assert_max_num_queries(12):
        response = admin.get(url)
    assert response.status_code == 200
    assert Tenant.objects.count() == 30


# Many accounts


def test_server_with_many_accounts_can_still_be_changed(admin, django_assert_max_num_queries):
    server = MailServerFactory()
    for _ in range(130):
        CredentialFactory(server=server)
    url = f"{SERVERS}{server.pk}/change/"
    with django_assert_max_num_queries(12):
        page = admin.get(url).content.decode()
    assert "130 credentials" in page
    data = server_data(name="Renamed", host=server.host)
    assert admin.post(url, data).status_code == 302
    assert MailServer.objects.get().name == "Renamed"
    assert Credential.objects.count() == 130
    # Nobody wants to choose from a list of 130 tenants.
    credential = Credential.objects.first()
    page = admin.get(f"{CREDENTIALS}{credential.pk}/change/").content.decode()
    assert "admin-autocomplete" in page
    assert page.count("<option") < 20


def test_accounts_are_found_by_tenant_and_server(admin):
    found = CredentialFactory(tenant__slug="acme", server__name="Relay")
    CredentialFactory()
    for text in ("acme", "Relay", found.username):
        assert [*admin.get(CREDENTIALS, {"q": text}).context["cl"].queryset] == [found]


def test_an_impossible_server_is_an_error_in_the_list(admin):
    """One that was made past the forms: a login in clear text to another machine."""
    server = MailServerFactory(security="plain")
    CredentialFactory(server=server)
    data = {
        "form-TOTAL_FORMS": 1,
        "form-INITIAL_FORMS": 1,
        "form-0-id": server.pk,
        "_save": "Save",
    }
    response = admin.post(SERVERS, data)
    assert response.status_code == 200
    assert "would travel in clear text" in response.content.decode()
    assert MailServer.objects.get().maintain_connection


# Passwords and where they go


def test_stored_password_is_not_taken_to_another_server(admin):
    credential, other = CredentialFactory(), MailServerFactory()
    url = f"{CREDENTIALS}{credential.pk}/change/"
    response = admin.post(url, credential_data(credential, server=other.pk))
    assert "Enter the password again" in errors(response)
    assert (
        admin.post(url, credential_data(credential, server=other.pk, password="again")).status_code
        == 302
    )
    credential.refresh_from_db()
    assert (credential.server, credential.password) == (other, "again")


def test_password_can_not_be_stored_without_a_key(admin, settings):
    credential = CredentialFactory()
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": []}
    url = f"{CREDENTIALS}{credential.pk}/change/"
    assert "No encryption key" in errors(
        admin.post(url, credential_data(credential, password="new"))
    )


def test_who_may_only_add_does_so_on_the_credentials_own_page(staff):
    credential = CredentialFactory()
    client = staff("view_tenant", "change_tenant", "add_credential", "view_mailserver")
    url = f"/admin/mailpool/tenant/{credential.tenant.pk}/change/"
    page = client.get(url).content.decode()
    assert "Add another" not in page
    assert PASSWORD not in page
    data = credential_data(credential, username="second", password="x")
    assert client.post(f"{CREDENTIALS}add/", data).status_code == 302
    assert Credential.objects.get(username="second").password == "x"


# What is switched off


@pytest.mark.parametrize("what", ["credential", "server", "tenant"])
def test_nothing_is_sent_with_what_is_switched_off(admin, mail_host, make_credential, what):
    credential = make_credential(mail_host, "bob", default_from="bob@example.com")
    row = credential if what == "credential" else getattr(credential, what)
    row.is_active = False
    row.save()
    url = f"{CREDENTIALS}{credential.pk}/"
    page = admin.post(f"{url}verify/")
    assert page.context["report"].ok
    assert "inactive" in page.content.decode()
    addresses = {"recipient": "a@example.com", "sender": "bob@example.com"}
    page = admin.post(f"{url}send-test/", addresses)
    assert page.context["result"].status == "failed"
    assert "inactive" in page.content.decode()
    assert mail_host.delivered == []


def test_who_may_not_see_credentials_sees_no_usernames(staff, mail_host, make_credential):
    make_credential(mail_host, "bob")
    EmailBackend().send_messages([message()])
    page = staff("view_connections").get(CONNECTIONS).content.decode()
    assert "(hidden)" in page
    assert ">bob<" not in page


def test_default_from_that_the_senders_leave_out(admin):
    """Found when it is entered, and told where it was entered before."""
    tenant = TenantFactory(slug="bob")
    data = credential_data(
        tenant=tenant.pk,
        server=MailServerFactory().pk,
        password="secret",
        default_from="boss@elsewhere.example",
        **inline("senders", {"address": "@shop.example"}),
    )
    data.pop("senders-0-id", None)
    assert "is not among the senders" in errors(admin.post(f"{CREDENTIALS}add/", data))
    data["default_from"] = "Boss <boss@SHOP.example>"
    assert admin.post(f"{CREDENTIALS}add/", data).status_code == 302
    Credential.objects.update(default_from="boss@elsewhere.example")
    url = f"{CREDENTIALS}{Credential.objects.get().pk}"
    page = admin.post(f"{url}/send-test/", {"recipient": "me@example.com"}).content.decode()
    assert "is not among the senders" in page
    assert "Sent:" not in page
