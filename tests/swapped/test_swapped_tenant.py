"""A project with its own tenant model: run with ``--ds=tests.settings_swapped``."""

from __future__ import annotations

import json

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage, send_mail
from django.core.management import CommandError, call_command
from django.db import connection

import mailpool
import mailpool.testing
from mailpool import ownership
from mailpool.delivery import session_params
from mailpool.exceptions import NoRoute
from mailpool.guard import Guard
from mailpool.models import Credential, DeliveryRecord, MailServer, Sender

if settings.MAILPOOL_TENANT_MODEL == "mailpool.Tenant":
    pytest.skip("needs --ds=tests.settings_swapped", allow_module_level=True)

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop():
    return apps.get_model("swapped.Shop").objects.create(code="acme")


@pytest.fixture
def credential(shop):
    server = MailServer.objects.create(name="Main", host="smtp.example.com")
    return Credential.objects.create(tenant=shop, server=server, username="a", password="secret")


def test_migrations_are_complete_and_the_own_model_is_not_made():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    assert "mailpool_tenant" not in connection.introspection.table_names()
    assert [m for m in checks.run_checks() if (m.id or "").startswith("mailpool.E")] == []


def test_shops_are_tenants(shop, credential, mailpool_outbox):
    for tenant in ("acme", shop, shop.pk):
        message = EmailMessage("hello", "text", "x@example.com", ["a@example.com"])
        message.tenant = tenant
        message.send()
    with mailpool.use_tenant("acme"):
        send_mail("hello", "text", "x@example.com", ["a@example.com"])
    assert [captured.tenant for captured in mailpool_outbox] == [shop] * 4
    assert credential.scope == str(shop.pk)


def test_records_are_of_shops(shop, credential, mailpool_outbox, client):
    with mailpool.use_tenant("acme"):
        send_mail("hello", "text", "x@example.com", ["a@example.com"])
    record = DeliveryRecord.objects.get()
    assert (record.tenant, record.tenant_name) == (shop, "acme")
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    page = client.get(f"/admin/mailpool/deliveryrecord/?tenant={shop.pk}")
    assert page.context["cl"].result_list == [record]
    assert (
        f"?tenant={shop.pk}"
        in client.get(f"/admin/swapped/shop/{shop.pk}/change/").content.decode()
    )
    shop.delete()
    assert DeliveryRecord.objects.get() == record


def test_a_key_that_no_shop_can_have_is_no_route(shop, credential, mailpool_outbox):
    message = EmailMessage("hello", "text", "x@example.com", ["a@example.com"])
    for tenant in (10**30, "0", 0):
        message.tenant = tenant
        with pytest.raises(NoRoute, match="no tenant"):
            message.send()


def test_shops_have_servers_of_their_own(shop, credential):
    other = apps.get_model("swapped.Shop").objects.create(code="other")
    MailServer.objects.update(tenant=other)
    message = EmailMessage("hello", "text", "x@example.com", ["a@example.com"])
    message.tenant = shop
    with mailpool.testing.capture(), pytest.raises(NoRoute, match="belongs to another tenant"):
        message.send()
    credential.server.tenant = other
    with pytest.raises(ValidationError, match="belongs to another tenant"):
        credential.full_clean()
    credential.server.tenant = shop
    credential.tenant_id = str(shop.pk)  # as a form may have it
    credential.full_clean()
    credential.server.full_clean()
    credential.server.save()
    assert session_params(Credential.objects.get()).guard == Guard()
    shop.delete()
    assert not MailServer.objects.exists()


def test_inactive_shop_sends_nothing(shop, credential, mailpool_outbox):
    shop.is_active = False
    shop.save()
    with mailpool.use_tenant("acme"), pytest.raises(NoRoute, match=r"'acme' .*inactive"):
        send_mail("hello", "text", "x@example.com", ["a@example.com"])


def test_credentials_stand_on_the_shops_own_admin_page(shop, credential, client):
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    url = f"/admin/swapped/shop/{shop.pk}/change/"
    assert 'name="mailpool_credentials-0-username"' in client.get(url).content.decode()
    data = {
        "code": "acme",
        "is_active": "on",
        "mailpool_credentials-TOTAL_FORMS": 1,
        "mailpool_credentials-INITIAL_FORMS": 1,
        "mailpool_credentials-0-id": credential.pk,
        "mailpool_credentials-0-tenant": shop.pk,
        "mailpool_credentials-0-server": credential.server.pk,
        "mailpool_credentials-0-username": "a",
        "mailpool_credentials-0-password": "new",
        "mailpool_credentials-0-priority": 1,
    }
    assert client.post(url, data).status_code == 302
    assert Credential.objects.get().password == "new"
    assert client.get("/admin/mailpool/credential/").status_code == 200


def test_commands_find_shops_by_code_and_key(credential, shop, capsys):
    call_command("mailpool_status")
    with pytest.raises(CommandError, match="no tenant"):
        call_command("mailpool_check", "--tenant", "nobody")
    Credential.objects.all().delete()
    for text in ("acme", str(shop.pk)):
        with pytest.raises(SystemExit):  # found, and has nothing to check
            call_command("mailpool_check", "--tenant", text)
        assert "0 checked" in capsys.readouterr().out


def test_an_import_refers_to_the_projects_tenants_and_makes_none(shop, tmp_path, capsys):
    path = tmp_path / "accounts.json"
    row = {"server": "Main", "host": "smtp.example.com", "username": "a", "password": "secret"}
    path.write_text(json.dumps([row | {"tenant": "acme"}, row | {"tenant": "nobody"}]))
    with pytest.raises(SystemExit):
        call_command("mailpool_import", str(path), "--keep-going")
    out = capsys.readouterr().out
    assert "There is no tenant nobody. Yours are made by your project" in out
    credential = Credential.objects.get()
    assert (credential.tenant, credential.password) == (shop, "secret")
    assert credential.scope == str(shop.pk)
    assert type(shop).objects.count() == 1
    path.write_text(json.dumps([{"tenant": "acme", "tenant_name": "Acme"}]))
    with pytest.raises(SystemExit):
        call_command("mailpool_import", str(path))
    assert "tenant_name: There is no such column" in capsys.readouterr().out
    call_command("mailpool_export", "--format", "json")
    records = [row["record"] for row in json.loads(capsys.readouterr().out)]
    assert records == ["server", "account"]


def test_unproven_senders_of_shops_are_told(credential, settings, capsys):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    sender = Sender.objects.create(credential=credential, address="a@acme.example")
    call_command("mailpool_status")
    assert "a@acme.example  acme" in capsys.readouterr().out
    ownership.confirm([sender])
    assert not ownership.unproven().exists()
