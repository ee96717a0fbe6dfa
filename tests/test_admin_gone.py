"""What is gone by the time that its page is asked for: told on the admin's first page."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages

from mailpool.models import DeliveryRecord
from tests.factories import CredentialFactory

pytestmark = pytest.mark.django_db

PAGES = [
    "credential/{}/verify/",
    "credential/{}/send-test/",
    "credential/{}/connect/",
    "mailserver/{}/verify/",
    "mailserver/{}/move/",
    "mailserver/{}/reset/",
    "mailserver/{}/pause/",
    "mailserver/{}/resume/",
]
KEYS = ["11111111-2222-3333-4444-555555555555", "nonsense", "_3Cb_3E"]


@pytest.fixture
def support(client):
    user = get_user_model().objects.create_user("support", is_staff=True)
    names = ("view_credential", "view_mailserver")
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    return client


def said(response):
    return [(found.level_tag, found.message) for found in get_messages(response.wsgi_request)]


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("page", PAGES)
def test_as_django_does_it(admin_client, page, key, method):
    """The same answer as that of its own change form."""
    model, _slash, _rest = page.partition("/")
    djangos = said(admin_client.get(f"/admin/mailpool/{model}/{key}/change/"))
    response = getattr(admin_client, method)(f"/admin/mailpool/{page.format(key)}")
    assert (response.status_code, response["Location"]) == (302, "/admin/")
    assert [level for level, _text in djangos] == ["warning"]
    assert said(response) == djangos * 2  # nobody has looked at the first one yet


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("key", ["there", "gone"])
def test_who_may_not_see_it_is_not_told_whether_it_is_there(support, page, key):
    row = CredentialFactory()
    pk = row.pk if page.startswith("credential") else row.server_id
    url = f"/admin/mailpool/{page.format(pk if key == 'there' else uuid.uuid4())}"
    assert support.get(url).status_code == 403


@pytest.mark.parametrize("key", ["123", "nonsense"])
def test_record(admin_client, key):
    response = admin_client.get(f"/admin/mailpool/deliveryrecord/{key}/change/")
    assert (response.status_code, response["Location"]) == (302, "/admin/")
    ((level, text),) = said(response)
    assert level == "warning"
    assert text == "There is no such record. Perhaps it was removed by its age."


def test_record_that_one_may_not_see(support):
    there = DeliveryRecord.objects.create(outcome="sent")
    for key in (there.pk, 123):
        url = f"/admin/mailpool/deliveryrecord/{key}/change/"
        assert support.get(url).status_code == 403


@pytest.mark.parametrize("method", ["get", "post"])
def test_account_that_is_not_connected_any_more(admin_client, method):
    """Somebody has given it a password meanwhile: it is there, and is not to be connected."""
    row = CredentialFactory()
    change = f"/admin/mailpool/credential/{row.pk}/change/"
    response = getattr(admin_client, method)(change.replace("change", "connect"))
    assert (response.status_code, response["Location"]) == (302, change)
    assert said(response) == [("warning", "This account is not one that is connected.")]
