"""Of one thing that is wrong, one error: no further one that is not even true."""

from __future__ import annotations

import io

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command

from mailpool.forms import TenantCredentialForm
from mailpool.models import Credential
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtpd import PASSWORD
from tests.test_admin import CREDENTIALS, credential_data, inline, server_data

pytestmark = pytest.mark.django_db

TOO_LONG = "b" * 256
UNUSABLE = [TOO_LONG, "b\0b"]


@pytest.fixture
def admin(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    return client


def errors_of(response):
    return response.context["adminform"].form.errors


@pytest.mark.parametrize("username", UNUSABLE)
@pytest.mark.parametrize("password", [PASSWORD, ""])
def test_username_in_the_admin(admin, username, password):
    # An account without a login, whose twin one without a username would be.
    other = CredentialFactory(tenant=None, username="", password="")
    data = credential_data(server=other.server_id, username=username, password=password)
    errors = errors_of(admin.post(f"{CREDENTIALS}add/", data))
    assert list(errors) == ["username"]
    assert len(errors["username"]) == 1


@pytest.mark.parametrize("username", UNUSABLE)
def test_username_of_an_account_that_is_there(admin, username):
    bob = CredentialFactory()
    response = admin.post(f"{CREDENTIALS}{bob.pk}/change/", credential_data(bob, username=username))
    errors = errors_of(response)
    assert list(errors) == ["username"]
    assert len(errors["username"]) == 1


def test_username_on_the_page_of_its_server(admin):
    account = {"tenant": "", "username": TOO_LONG, "password": PASSWORD, "priority": 10}
    data = server_data(**inline("credentials", account))
    response = admin.post("/admin/mailpool/mailserver/add/", data)
    (formset,) = response.context["inline_admin_formsets"]
    (errors,) = formset.formset.errors
    assert list(errors) == ["username"]
    assert len(errors["username"]) == 1


@pytest.mark.parametrize("username", UNUSABLE)
def test_username_on_a_tenants_own_page(username):
    data = {"host": "93.184.216.34", "port": 587, "security": "starttls"}
    data |= {"username": username, "password": PASSWORD}
    form = TenantCredentialForm(data, tenant=TenantFactory())
    assert list(form.errors) == ["username"]
    assert len(form.errors["username"]) == 1


@pytest.mark.parametrize(
    ("column", "cell"),
    [("username", TOO_LONG), ("username", "b\x07b"), ("tenant", "b\x07b"), ("server", "b\x07b")],
)
def test_cell_of_a_file(tmp_path, column, cell):
    row = {"tenant": "bob", "server": "Main", "host": "smtp.example.com", "username": "bob"}
    row |= {"password": PASSWORD, column: cell}
    path = tmp_path / "file.csv"
    path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("mailpool_import", str(path), stdout=out)
    assert "1 problem. Nothing was imported." in out.getvalue()
    assert f"Line 2, {column}: " in out.getvalue()
    assert not Credential.objects.exists()


def test_server_that_is_not_chosen_says_so_once(admin):
    MailServerFactory()
    errors = errors_of(admin.post(f"{CREDENTIALS}add/", credential_data(password=PASSWORD)))
    assert list(errors) == ["server"]
