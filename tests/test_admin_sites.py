"""An admin site of the project's own: its pages lead to its pages, whatever is registered there."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import urljoin, urlsplit

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.urls import path

from mailpool.models import Credential, DeliveryRecord, MailServer, Tenant
from tests.test_languages import make_rows

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


def site(name, *models):
    made = admin.AdminSite(name=name)
    for model in models:
        made.register(model, type(admin.site.get_model_admin(model)))
    return made


OURS = [each for each in admin.site._registry if each._meta.app_label == "mailpool"]
default = admin.AdminSite()  # which has other things, and none of mailpool's
default.register(get_user_model(), UserAdmin)
urlpatterns = [
    path("admin/", default.urls),
    path("operators/", site("operators", *OURS).urls),
    path("few/", site("few", Credential, MailServer, Tenant).urls),
    path("servers/", site("servers", MailServer).urls),
    path("records/", site("records", DeliveryRecord).urls),
]
LINK = re.compile(r'(?:href|action)="([^"#]*)"')
LEAVES = re.compile(r"/(logout|password_change|autocomplete|jsi18n)/|\.(csv|json)")


@pytest.fixture
def root(client):
    client.force_login(get_user_model().objects.create_superuser("root"))
    return client


def linked(response, url):
    for found in LINK.findall(response.content.decode()):
        target = urljoin(url, unescape(found))
        if not urlsplit(target).netloc:
            yield target


@pytest.mark.parametrize("name", ["operators", "few", "servers", "records"])
def test_every_link_leads_to_a_page_of_the_same_site(root, settings, name):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    make_rows()
    seen, todo, shapes = set(), [f"/{name}/"], {}
    while todo:
        url = todo.pop()
        response = root.get(url)
        assert response.status_code in (200, 302, 405), url
        for target in linked(response, url):
            folder = urlsplit(target).path
            if folder in ("/", "") or folder.startswith("/static/") or LEAVES.search(target):
                continue
            assert folder.startswith(f"/{name}/"), f"{url} leads to {target}"
            # Not each combination of filters: a few addresses of each page.
            if target not in seen and shapes.get(folder, 0) < 8:
                seen.add(target)
                shapes[folder] = shapes.get(folder, 0) + 1
                todo.append(target)
    assert len(shapes) > 3


def test_save_and_test_stays_within_the_site(root):
    make_rows()
    server = MailServer.objects.get(name="Φ")
    form = root.get(f"/operators/mailpool/mailserver/{server.pk}/change/").context["adminform"].form
    data = {name: "" if field is None else field for name, field in form.initial.items()}
    data |= {"_test": "1", "credentials-TOTAL_FORMS": "0", "credentials-INITIAL_FORMS": "0"}
    answer = root.post(f"/operators/mailpool/mailserver/{server.pk}/change/", data)
    assert answer.status_code == 302, answer.context["errors"]
    assert answer["Location"].startswith("/operators/mailpool/credential/")
