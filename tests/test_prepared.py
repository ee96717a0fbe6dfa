"""A prepared query finds what the queryset finds, and always in the database."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailpool import routing
from mailpool.models import Credential, MailServer, OAuthClient, Tenant
from mailpool.prepared import prepare
from mailpool.routing import Router
from tests.factories import CredentialFactory, SenderFactory, TenantFactory

pytestmark = pytest.mark.django_db

SLUG = Tenant._meta.get_field("slug")


@pytest.fixture
def accounts():
    client = OAuthClient.objects.create(
        name="Provider", token_url="https://example.com/token", client_id="us", client_secret="s"
    )
    for slug in ("bob", "mary"):
        tenant = TenantFactory(slug=slug)
        made = [
            CredentialFactory(tenant=tenant),
            CredentialFactory(tenant=tenant, kind="authorization_code", oauth_client=client),
        ]
        for credential in made:
            for number in range(2):
                SenderFactory(credential=credential, address=f"{credential.pk}-{number}@a.example")
    CredentialFactory(tenant=None)
    MailServer.objects.update(generation=3, paused_until=timezone.now())


def everything(row):
    """All that was read, with the types of the values."""
    related = [row.server, row.tenant, row.oauth_client]
    return [
        (type(each), key, type(value), value)
        for each in [row, *(found for found in related if found)]
        for key, value in sorted(vars(each).items())
        if key != "_state"
    ]


@pytest.mark.parametrize("site", [None, "here"])
@pytest.mark.parametrize("slug", ["bob", "mary", "nobody", None])
def test_the_same_rows_as_the_queryset(accounts, settings, slug, site):
    settings.MAILPOOL = {**settings.MAILPOOL, "SITE": site}
    queryset = routing._query("slug", slug)
    statement = prepare(
        routing._query("slug", slug and "another"), slug and SLUG, slug and "another"
    )
    with CaptureQueriesContext(
        connection,
    ) as captured:
        found = statement.rows(slug)
        for row in found:
            everything(row)
    assert len(captured) == 1
    expected = list(queryset)
    assert len(expected) == {"bob": 4, "mary": 4, "nobody": 0, None: 1}[slug]

    def order(row):
        return str(row.sender_address)

    assert [everything(row) for row in sorted(found, key=order)] == [
        everything(row) for row in sorted(expected, key=order)
    ]
    assert all(row._state.db == "default" and not row._state.adding for row in found)


def test_each_execution_asks_the_database(accounts):
    """A change by anybody is seen, however it was made."""
    statement = prepare(routing._query("slug", "bob"), SLUG, "bob")
    assert all(row.is_active and row.server.is_active for row in statement.rows("bob"))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailpool_credential SET is_active = %s", [False])
    assert not any(row.is_active for row in statement.rows("bob"))


def test_the_sql_is_made_once(accounts, monkeypatch):
    for _ in range(2):
        Router()._named("bob", "slug", "bob")
    monkeypatch.setattr(routing, "_query", lambda *args: pytest.fail("made again"))
    found = Router()._named("mary", "slug", "mary").credentials
    assert {each.tenant.slug for each in found} == {"mary"}


def test_a_query_with_more_parameters_is_not_prepared(accounts):
    queryset = Credential.objects.filter(tenant__slug="bob", priority=3)
    assert prepare(queryset, SLUG, "bob") is None


def test_a_column_that_makes_its_own_sql_of_a_value_is_asked_as_it_is(accounts, monkeypatch):
    monkeypatch.setattr(routing, "_prepared", {})
    monkeypatch.setattr(routing, "prepare", lambda *args: None)
    found = Router()._named("bob", "slug", "bob").credentials
    assert {each.tenant.slug for each in found} == {"bob"}


def test_a_threads_connection_ends_with_the_thread():
    """What converts its rows belongs to it, and does not keep it."""
    used = []

    def look():
        routing._prepared_rows("slug", "bob")
        used.append(weakref.ref(connections["default"]))
        connection.close()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    gc.collect()
    assert [each() for each in used] == [None]
