"""Presets of the providers' servers: the table, the admin's form, the tenants' form."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.urls import reverse

from mailpool.models import MailServer, OAuthClient
from mailpool.server_presets import SERVER_PRESETS, preset_for_address
from tests.factories import MailServerFactory

ADD = "/admin/mailpool/mailserver/add/"
DOCS = (Path(__file__).resolve().parent.parent / "docs" / "providers.md").read_text()
EACH = pytest.mark.parametrize("preset", SERVER_PRESETS.values(), ids=lambda preset: preset.key)


@EACH
def test_a_preset_makes_a_valid_server(preset, db):
    values = {**preset.initial(), "host": preset.host or "mail.example.com"}
    MailServer(name=preset.name, **values).full_clean()
    assert preset.security in ("starttls", "tls")  # never in clear text


@EACH
def test_each_figure_has_its_source(preset):
    figures = [figure for _name, figure in preset.figures]
    noted = [note.source for note in preset.notes if note.source]
    for source in (preset.source, *(figure.source for figure in figures), *noted):
        assert urlsplit(source).scheme == "https"
        assert source in DOCS
    for figure in figures:
        assert str(figure.why)


@EACH
def test_a_number_that_the_page_does_not_have_is_called_a_choice(preset):
    """The reason gives what the page says; the value is in it, or is said to be ours."""
    for _name, figure in preset.figures:
        numbers = re.findall(r"\d+", str(figure.why).replace(",", "").partition(";")[0])
        assert figure.cautious is (str(figure.value) not in numbers)


@EACH
def test_users_reports_are_linked(preset):
    for note in preset.notes:
        assert note.source or "Users report" not in str(note.text)


@EACH
def test_the_documented_notes_are_the_code(preset):
    line = next(line for line in DOCS.splitlines() if line.startswith(f"- **{preset.name}** "))
    assert str(preset.login) in line
    for note in preset.notes:
        link = f" ([source]({note.source}))" if note.source else ""
        assert f" {note.text}{link}" in line
    for _name, figure in preset.figures:
        assert f": {figure.why}" in line


@EACH
def test_the_documented_table_is_the_code(preset):
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{preset.key}` |"))
    _, key, name, address, idle, messages, connections, login, _ = map(str.strip, row.split("|"))
    assert (key, name) == (f"`{preset.key}`", preset.name)
    security = {"starttls": "STARTTLS", "tls": "TLS"}[preset.security]
    assert address == f"{preset.host or '(yours)'}:{preset.port}, {security}"
    for text, field in (
        (idle, "idle_timeout"),
        (messages, "max_messages"),
        (connections, "max_connections"),
    ):
        figure = getattr(preset, field)
        chosen = " (chosen)" if figure and figure.cautious else ""
        shown = f"[{figure.value}]({figure.source}){chosen}" if figure else "\N{EN DASH}"
        assert text == shown, field
    assert login == ("OAuth 2" if preset.oauth_provider else "password")


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("bob@gmail.com", "gmail"),
        ("Bob@GoogleMail.com ", "gmail"),
        ("gmail.com", "gmail"),
        ("shop@acme.onmicrosoft.com", "microsoft365"),
        ("mary@fastmail.fm", "fastmail"),
        ("mary@zohomail.com", "zoho_personal"),
        ("bob@notgmail.com", None),
        ("bob@gmail.com.example.org", None),
        ("bob@acme.example", None),
        ("", None),
        ("bob@", None),
        ("<script>", None),
    ],
)
def test_the_domain_of_an_address_suggests_a_preset(address, key):
    found = preset_for_address(address)
    assert (found.key if found else None) == key


# Add mail server


def page(admin_client, query=""):
    response = admin_client.get(ADD + query)
    assert response.status_code == 200
    return response.content.decode()


def values(html):
    """What the form's inputs hold, as a browser would send it."""
    return {
        name: re.search(rf'name="{name}"[^>]*value="([^"]*)"', html).group(1)
        for name in ("host", "port", "idle_timeout", "max_messages", "max_connections")
    }


def test_add_server_begins_with_the_choice(admin_client):
    html = page(admin_client)
    for key, preset in SERVER_PRESETS.items():
        assert f'href="?preset={key}"' in html
        assert preset.name in html
    assert not re.search(r'name="host"[^>]*value=', html)


def test_a_choice_fills_the_form(admin_client):
    html = page(admin_client, "?preset=sparkpost")
    assert values(html) == {
        "host": "smtp.sparkpostmail.com",
        "port": "587",
        "idle_timeout": "50",
        "max_messages": "100",
        "max_connections": "10",
    }
    assert 'value="SparkPost"' in html
    assert SERVER_PRESETS["sparkpost"].idle_timeout.source in html
    assert "Set up the OAuth client" not in html


def test_the_form_says_which_figures_are_choices(admin_client):
    choice = "a cautious choice, not a documented limit"
    assert page(admin_client, "?preset=sendgrid").count(choice) == 2
    assert page(admin_client, "?preset=sparkpost").count(choice) == 1
    assert choice not in page(admin_client, "?preset=microsoft365")


def test_the_form_links_what_users_report(admin_client):
    html = page(admin_client, "?preset=ses")
    for note in SERVER_PRESETS["ses"].notes:
        assert not note.source or f'href="{note.source}"' in html


def test_an_unpublished_figure_keeps_the_default(admin_client):
    found = values(page(admin_client, "?preset=gmail"))
    assert (found["idle_timeout"], found["max_connections"]) == ("30", "3")


def test_an_address_suggests(admin_client):
    html = page(admin_client, "?address=bob@gmail.com")
    assert values(html)["host"] == "smtp.gmail.com"
    assert "No provider is known" in page(admin_client, "?address=bob@acme.example")
    assert "&lt;script&gt;" in page(admin_client, "?address=<script>")


def test_what_is_no_preset_is_no_error(admin_client):
    html = page(admin_client, "?preset=<nobody>")
    assert "Filled in" not in html
    assert "No provider is known as “&lt;nobody&gt;”. Choose one above" in html
    assert "No provider is known" not in page(admin_client, "?preset=")


def test_a_popup_stays_one(admin_client):
    html = page(admin_client, "?_popup=1&preset=ses")
    assert 'href="?_popup=1&amp;preset=gmail"' in html
    assert '<input type="hidden" name="_popup" value="1">' in html


def test_the_name_is_a_free_one(admin_client):
    MailServerFactory(name="sendgrid", host="smtp.sendgrid.net")
    html = page(admin_client, "?preset=sendgrid")
    assert 'value="SendGrid 2"' in html
    assert "There is a server at that host already" in html


def test_oauth_is_said_and_linked(admin_client):
    add = reverse("admin:mailpool_oauthclient_add")
    html = page(admin_client, "?preset=microsoft365")
    link = re.search(rf'href="({add}\?[^"]*)"', html).group(1).replace("&amp;", "&")
    assert '<option value="microsoft" selected>' in admin_client.get(link).content.decode()
    OAuthClient.objects.create(name="M", provider="microsoft", client_id="x", token_url="https://x")
    assert reverse("admin:mailpool_oauthclient_changelist") + '"' in page(
        admin_client, "?preset=microsoft365"
    )


def test_nothing_inline_for_a_strict_policy(admin_client):
    html = page(admin_client, "?preset=gmail")
    start = html[html.index("mailpool-start") : html.index('id="mailserver_form"')]
    assert not re.search(r"<script|<style| style=| on\w+=", start)
