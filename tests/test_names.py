"""What tenants, mail servers and OAuth clients may be called: no name looks like another line."""

from __future__ import annotations

import io
import json

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from mailpool.models import MailServer, OAuthClient, Tenant
from tests.test_admin import credential_data, inline, server_data

pytestmark = pytest.mark.django_db

REFUSED = {
    "NUL": "Ac\0me",
    "bell": "Ac\x07me",
    "escape": "Ac\x1b[31mme",
    "line end": "Ac\nme",
    "carriage return": "Ac\rme",
    "next line": "Ac\x85me",
    "line separator": "Ac\u2028me",
    "paragraph separator": "Ac\u2029me",
    "override": "Ac\u202eme",
    "isolate": "Ac\u2066me",
    "zero width": "Ac\u200bme",
    "half a character": "Ac\ud800me",
}
# No-break space, both joiners (Persian, emoji), marks of direction (Hebrew), an emoji of a family.
ALLOWED = [
    "Société\u00a0: X",
    "\u0645\u06cc\u200c\u062e",
    "\u05d0\u200f1",
    "\U0001f468\u200d\U0001f469",
]
refused = pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)

TEXT = "There is a line break or a character that can't be seen"


@pytest.fixture
def admin(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    return client


def named(model, name):
    if model is Tenant:
        return Tenant(slug="acme", name=name)
    if model is MailServer:
        return MailServer(host="smtp.example.com", name=name)
    return OAuthClient(
        name=name, provider="google", client_id="x", token_url="https://accounts.example/token"
    )


@refused
@pytest.mark.parametrize("model", [Tenant, MailServer, OAuthClient])
def test_the_model_refuses(model, name):
    with pytest.raises(ValidationError) as caught:
        named(model, name).clean_fields()
    assert list(caught.value.message_dict) == ["name"]
    assert caught.value.message_dict["name"][0].startswith(TEXT)


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("model", [Tenant, MailServer, OAuthClient])
def test_what_people_write_is_a_name(model, name):
    named(model, name).clean_fields()


@refused
def test_the_admin_refuses(admin, name):
    if "\ud800" in name:
        pytest.skip("no browser can send it")
    tenant = {"name": name, "slug": "acme", **inline("mailpool_credentials")}
    pages = {
        "tenant": tenant,
        "mailserver": server_data(name=name),
        "oauthclient": credential_data(name=name),
    }
    for page, data in pages.items():
        form = admin.post(f"/admin/mailpool/{page}/add/", data).context["adminform"].form
        assert len(form.errors["name"]) == 1
        assert "\0" in name or form.errors["name"][0].startswith(TEXT)


@refused
@pytest.mark.parametrize("column", ["tenant_name", "server"])
def test_an_import_refuses(tmp_path, name, column):
    row = {"tenant": "bob", "server": "Main", "host": "smtp.example.com", "username": ""}
    path = tmp_path / "file.json"
    path.write_text(json.dumps([row | {column: name}]))
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("mailpool_import", str(path), stdout=out)
    assert f"{column}: {TEXT}" in out.getvalue()
    assert not Tenant.objects.exists()
    assert not MailServer.objects.exists()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_exported_can_be_imported(tmp_path, name):
    row = {"tenant": "bob", "tenant_name": name, "server": name, "host": "smtp.example.com"}
    path = tmp_path / "file.json"
    path.write_text(json.dumps([row]))
    call_command("mailpool_import", str(path), stdout=io.StringIO())
    assert Tenant.objects.get().name == name
    assert MailServer.objects.get().name == name


@refused
def test_the_command_refuses(monkeypatch, name):
    told = "--name is no text" if "\ud800" in name else f"--name: {TEXT}"
    monkeypatch.setenv("EMAIL_URL", "smtp+tls://bob:pw@smtp.example.com:587")
    with pytest.raises(CommandError, match=told):
        call_command("mailpool_import_env", "--name", name)
    assert not MailServer.objects.exists()
