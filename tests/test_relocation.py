"""A stored password is presented to the address that it was entered for, and to no other one."""

from __future__ import annotations

from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import connection
from django.utils.html import strip_tags

from mailpool import relocation, rotation
from mailpool.backends import EmailBackend
from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer
from mailpool.vault import Keyring, generate_key
from tests.smtpd import PASSWORD, MailHost

SERVERS = "/admin/mailpool/mailserver/"


@pytest.fixture
def new_host(authority):
    with MailHost(authority) as host:
        yield host


@pytest.fixture
def bob(make_credential, mail_host):
    return make_credential(mail_host, "bob")


@pytest.fixture
def mary(make_credential, mail_host):
    return make_credential(mail_host, "mary")


@pytest.fixture
def server(bob, mary):
    assert bob.server_id == mary.server_id
    return bob.server


def send_as(slug):
    message = EmailMessage("hello", "text", f"{slug}@example.com", ["a@example.com"])
    message.tenant = slug
    EmailBackend().send_messages([message])


def address(at, **changes):
    return {"host": "localhost", "port": at.port, "security": at.security, **changes}


@pytest.mark.parametrize("how", ["save", "SQL"])
def test_a_server_that_is_redirected_gets_no_password(server, mail_host, new_host, how):
    send_as("bob")
    if how == "save":
        server.port = new_host.port
        server.save()
    else:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE mailpool_mailserver SET port = %s", [new_host.port])
    with pytest.raises(SecretError, match="another tenant or host or port or security"):
        send_as("bob")
    assert new_host.connections == 0
    assert len(mail_host.delivered) == 1


def test_relocated_passwords_are_presented_to_the_new_address(server, mail_host, new_host):
    send_as("bob")
    result = relocation.relocate(server, **address(new_host))
    assert (result.moved, result.left) == (2, [])
    assert server.port == new_host.port
    for slug in ("bob", "mary"):
        send_as(slug)
    assert sorted(new_host.by_login()) == ["bob", "mary"]
    assert len(mail_host.delivered) == 1


def test_other_servers_are_not_touched(server, make_credential, new_host):
    other = make_credential(new_host, "zoe")
    before = Credential.objects.get(pk=other.pk).password_ciphertext
    relocation.relocate(server, **address(new_host, host="127.0.0.1"))
    assert Credential.objects.get(pk=other.pk).password_ciphertext == before


def test_all_or_nothing(server, new_host, monkeypatch):
    monkeypatch.setattr(rotation, "BATCH", 1)
    own, calls = rotation.swap, []

    def swap(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(rotation, "swap", swap)
    with pytest.raises(KeyboardInterrupt):
        relocation.relocate(server, **address(new_host))
    assert MailServer.objects.get().port == server.port != new_host.port
    assert {row.password for row in Credential.objects.all()} == {PASSWORD}


def test_what_does_not_open_is_left_and_named(server, bob, new_host, settings):
    own = settings.MAILPOOL["ENCRYPTION_KEYS"]
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [generate_key()]}
    bob.password = "under a key that is lost"
    bob.save()
    settings.MAILPOOL = {"ENCRYPTION_KEYS": own}
    result = relocation.relocate(server, **address(new_host))
    assert result.moved == 1
    assert result.left == [f"mailpool.credential.password:{bob.pk}"]


def test_a_password_entered_in_the_same_moment_is_kept(server, bob, new_host, monkeypatch):
    """It was entered for the old address, so it does not open at the new one."""
    own = Keyring.open

    def open_and_change(self, sealed, place, *args, **kwargs):
        monkeypatch.setattr(Keyring, "open", own)
        plain = own(self, sealed, place, *args, **kwargs)
        row = Credential.objects.get(pk=place.split(":")[1])
        row.password = "set meanwhile"
        row.save()
        return plain

    monkeypatch.setattr(Keyring, "open", open_and_change)
    result = relocation.relocate(server, **address(new_host))
    assert (result.moved, len(result.left)) == (1, 1)
    changed = Credential.objects.get(pk=result.left[0].split(":")[1])
    with pytest.raises(SecretError):
        changed.password  # noqa: B018


@pytest.mark.parametrize(
    "wrong", [{"security": "plain", "host": "smtp.example.com"}, {"host": "no host"}, {"port": 0}]
)
def test_an_address_that_can_not_be(server, mail_host, wrong):
    with pytest.raises(ValidationError):
        relocation.relocate(server, **address(mail_host, **wrong))
    assert Credential.objects.first().password == PASSWORD


# In the admin


@pytest.fixture
def staff(client):
    def log_in(*codenames):
        user = get_user_model().objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def test_the_form_of_a_server_with_passwords_does_not_move_it(server, staff, new_host):
    client = staff("view_mailserver", "change_mailserver", "view_credential")
    page = client.get(f"{SERVERS}{server.pk}/change/")
    assert not {"host", "port", "security"} & page.context["adminform"].form.fields.keys()
    assert "/move/" not in page.content.decode()
    client.post(
        f"{SERVERS}{server.pk}/change/", {"name": "renamed", "port": new_host.port, "timeout": 10}
    )
    assert MailServer.objects.get().port == server.port


def test_a_server_without_passwords_is_edited_as_ever(staff, make_credential, mail_host):
    server = make_credential(mail_host, username="", password="").server
    page = staff("view_mailserver", "change_mailserver").get(f"{SERVERS}{server.pk}/change/")
    assert {"host", "port", "security"} <= page.context["adminform"].form.fields.keys()


def test_change_address(server, staff, new_host):
    client = staff("view_mailserver", "change_mailserver", "move_mailserver")
    assert f"{server.pk}/move/" in client.get(f"{SERVERS}{server.pk}/change/").content.decode()
    url = f"{SERVERS}{server.pk}/move/"
    assert "2 stored passwords and keys, of 2 tenants" in client.get(url).content.decode()
    secure = {"host": server.host, "port": server.port, "security": "tls"}
    asked = unescape(strip_tags(client.post(url, secure).content.decode()))
    assert f"{server.host}:{server.port}, STARTTLS (usually port 587), to" in asked
    assert f"{server.host}:{server.port}, Implicit TLS (usually port 465)." in asked
    asked = client.post(url, address(new_host)).content.decode()
    assert "Are you sure" in asked
    assert "2 stored passwords and keys, of 2 tenants, go along" in asked
    assert MailServer.objects.get().port == server.port
    done = client.post(url, address(new_host, confirmed="yes"), follow=True).content.decode()
    assert "2 stored passwords and keys are presented to" in done
    send_as("bob")
    assert len(new_host.delivered) == 1
    entry = LogEntry.objects.get().change_message
    assert str(new_host.port) in entry
    assert PASSWORD not in entry


@pytest.mark.parametrize("missing", ["view_mailserver", "change_mailserver", "move_mailserver"])
def test_change_address_needs_its_own_permission(server, staff, new_host, missing):
    permissions = {"view_mailserver", "change_mailserver", "move_mailserver"} - {missing}
    if missing == "view_mailserver":
        permissions -= {"change_mailserver"}  # which lets one view as well
    client = staff(*permissions)
    url = f"{SERVERS}{server.pk}/move/"
    assert client.get(url).status_code == 403
    assert client.post(url, address(new_host, confirmed="yes")).status_code == 403
    assert MailServer.objects.get().port == server.port


def test_change_address_to_nonsense(server, staff):
    client = staff("view_mailserver", "change_mailserver", "move_mailserver")
    url = f"{SERVERS}{server.pk}/move/"
    wrong = {"host": "https://x/", "port": 99999, "security": "maybe", "confirmed": "yes"}
    page = client.post(url, wrong).content.decode()
    assert "host name alone" in page
    assert "less than or equal to 65535" in page
    same = {"host": server.host, "port": server.port, "security": server.security}
    assert "Host, port and security are these already" in client.post(url, same).content.decode()
    assert client.get(f"{SERVERS}{generate_key()}/move/")["Location"] == "/admin/"


@pytest.mark.parametrize("page", ["verify", "send-test"])
def test_a_stored_password_is_not_tried_out_at_another_host(bob, staff, new_host, page):
    MailServer.objects.update(port=new_host.port)
    client = staff("view_credential", "change_credential", "verify_credential")
    addresses = {"recipient": "me@example.com", "sender": "bob@example.com"}
    shown = client.post(f"/admin/mailpool/credential/{bob.pk}/{page}/", addresses).content.decode()
    assert "does not open" in shown
    assert PASSWORD not in shown
    assert new_host.connections == 0


def test_moved_to_another_tenant_it_is_entered_again(bob, mary, staff):
    client = staff("view_credential", "change_credential")
    data = {
        "tenant": mary.tenant_id,
        "server": bob.server_id,
        "username": "bob",
        "password": "",
        "default_from": "",
        "sender_policy": "refuse",
        "priority": 10,
        "is_active": "on",
        "senders-TOTAL_FORMS": 0,
        "senders-INITIAL_FORMS": 0,
    }
    page = client.post(f"/admin/mailpool/credential/{bob.pk}/change/", data)
    assert "Enter the password again" in page.content.decode()
    assert Credential.objects.get(pk=bob.pk).tenant == bob.tenant
