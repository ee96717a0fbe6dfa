"""How many queries the admin's pages take, whatever there is to show."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mailpool.admin.cached import cached
from mailpool.models import Credential, MailServer, OAuthClient, Sender, Tenant
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory
from tests.records import add_records

pytestmark = pytest.mark.django_db

RECORDS = "/admin/mailpool/deliveryrecord/"
MANY = 200


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def superuser():
    return client_of(get_user_model().objects.create_superuser("root", password="x"))


@pytest.fixture
def support():
    """Staff that may look at everything of mailpool's, by their group."""
    group = Group.objects.create(name="Support")
    group.permissions.set(
        Permission.objects.filter(content_type__app_label="mailpool", codename__startswith="view")
    )
    user = get_user_model().objects.create_user("support", password="x", is_staff=True)
    user.groups.add(group)
    return client_of(user)


def queries(client, url):
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    return [each["sql"] for each in captured]


# Every list


def fill(number):
    """So many rows of everything, each with others of its own."""
    for _ in range(number):
        server = MailServerFactory(tenant=TenantFactory())
        credential = CredentialFactory(tenant=server.tenant, server=server)
        SenderFactory(credential=credential)
        add_records(credential, outcome="failed")
    for each in range(number):
        OAuthClient.objects.create(
            name=f"Provider {each}",
            authorization_url="https://provider.example/authorize",
            token_url="https://provider.example/token",
            client_id=f"id-{each}",
            client_secret="secret",
        )
    User = get_user_model()
    User.objects.bulk_create(User(username=f"user-{each}") for each in range(number))
    Group.objects.bulk_create(Group(name=f"group-{each}") for each in range(number))


def test_every_list_takes_less_than_twenty_queries_whatever_its_length(
    superuser, support, settings
):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    fill(MANY)
    for model in admin.site._registry:
        assert model._default_manager.count() >= MANY, model
    assert {Tenant, MailServer, Credential, Sender} <= set(admin.site._registry)
    for model in admin.site._registry:
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        assert len(queries(superuser, url)) < 20, url
        if model._meta.app_label == "mailpool":
            assert len(queries(support, f"{url}?q=a")) < 20, url
    for url in ("/admin/", "/admin/mailpool/", "/admin/mailpool/mailserver/connections/"):
        assert len(queries(superuser, url)) < 20, url


# Delivery records: five for each list, filter and search

FILTERS = [
    "",
    "?before={record}",
    "?tenant={tenant}",
    "?tenant=site",
    "?tenant={tenant}&credential={credential}",
    "?server={server}",
    "?outcome__exact=failed",
    "?code=550",
    "?when=hour",
    "?when=2020-01-31",
    "?tenant={tenant}&server={elsewhere}",
    "?tenant={tenant}&server={server}&outcome__exact=failed&when=week&code=550",
    "?q=%3Cone@x.example%3E",
    "?q=r@a.example",
    "?q=Q1",
]
# Whose session it is, who that is, and what they may by themselves and by their groups.
DJANGOS = re.compile(r'FROM [`"](django_session|auth_user|auth_permission)[`"]')


def test_records_take_five_queries_for_each_list_filter_and_search(superuser, support):
    credential = SenderFactory().credential
    values = {"message_id": "<one@x.example>", "recipient": "r@a.example", "queue_id": "Q1"}
    records = add_records(credential, 60, outcome="failed", code=550, **values)
    names = {
        "record": records[30].pk,
        "tenant": credential.tenant_id,
        "credential": credential.pk,
        "server": credential.server_id,
        "elsewhere": MailServerFactory().pk,  # where the tenant has no account
    }
    # What filters offer is read once in a minute; the rows are all that is read each time.
    first = queries(support, RECORDS)
    assert sum(bool(DJANGOS.search(sql)) for sql in first) == 4
    assert len(first) == 4 + 3
    for query in FILTERS:
        url = RECORDS + query.format(**names)
        support.get(url)  # of a chosen tenant, filters offer other servers
        assert len(queries(support, url)) <= 5, query
        assert len(queries(superuser, url)) <= 3, query


def test_what_is_new_can_be_chosen_at_once(superuser):
    superuser.get(RECORDS)
    credential = CredentialFactory()
    assert f">{credential.server}</a>" not in superuser.get(RECORDS).content.decode()
    page = superuser.get(f"{RECORDS}?tenant={credential.tenant_id}").content.decode()
    assert f">{credential.tenant}</a>" in page
    page = superuser.get(f"{RECORDS}?server={credential.server_id}").content.decode()
    assert f">{credential.server}</a>" in page


@pytest.mark.parametrize("part", ["NAME", "HOST", "schema_name"])
def test_no_other_database_s_names_are_offered(superuser, part, monkeypatch):
    """Sites may share a cache; and one may have a database or schema for each customer."""
    credential = CredentialFactory()
    cache.clear()
    offered = f">{credential.tenant}</a>"
    assert offered in superuser.get(RECORDS).content.decode()
    with monkeypatch.context() as patch:
        if part == "schema_name":  # django-tenants has this
            patch.setattr(connection, part, "another", raising=False)
        else:
            patch.setitem(connection.settings_dict, part, "another")
        type(credential.tenant).objects.filter(pk=credential.tenant_id).update(name="Renamed")
        page = superuser.get(RECORDS).content.decode()
        assert ">Renamed</a>" in page
        assert offered not in page
    assert offered in superuser.get(RECORDS).content.decode()


@pytest.mark.filterwarnings("error")
def test_any_name_makes_a_key_that_caches_take():
    for name in ("a b\n\0", "ä" * 300):
        cached(name, lambda name=name: name * 2)
        assert cached(name, lambda: None) == name * 2


@pytest.fixture
def broken_cache(settings):
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.Broken"}}


class Broken:
    def __init__(self, *args, **kwargs):
        pass

    def close(self, **kwargs):
        pass

    def __getattr__(self, name):
        raise ConnectionError("no cache today")


def test_a_cache_that_is_down_keeps_nobody_from_the_pages(superuser, broken_cache):
    credential = CredentialFactory()
    assert f">{credential.tenant}</a>" in superuser.get(RECORDS).content.decode()
    assert superuser.get("/admin/mailpool/").status_code == 200
