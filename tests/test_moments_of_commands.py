"""Commands name the zone of each time that they print."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from django.core.management import call_command
from django.utils import timezone

from mailpool.audit import AuditEntry
from mailpool.models import DeliveryRecord, MailServer
from mailpool.moments import plain_moment
from tests.factories import MailServerFactory

pytestmark = pytest.mark.django_db

WHEN = datetime(2026, 3, 1, 22, 5, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _in_kathmandu():
    with timezone.override("Asia/Kathmandu"):
        yield


def run(name, *args):
    out = io.StringIO()
    call_command(f"mailpool_{name}", *args, stdout=out)
    return out.getvalue()


def test_what_it_says():
    assert plain_moment(WHEN, seconds=True) == "2026-03-02 03:50:07 +0545"
    assert plain_moment(WHEN) == "2026-03-02 03:50 +0545"
    assert plain_moment(WHEN.replace(tzinfo=None)) == "2026-03-01 22:05"  # USE_TZ off
    with timezone.override("Europe/Berlin"):
        assert plain_moment(WHEN) == "2026-03-01 23:05 CET"


def test_audit():
    AuditEntry.objects.create(when=WHEN, action="created", way="x")
    assert all("2026-03-02 03:50:07 +0545  " in line for line in run("audit").splitlines()[2:])
    assert str(AuditEntry.objects.first()).startswith("2026-03-02 03:50:07 +0545 created")
    text = run("audit", "--prune-before", "2020-05-01", "--dry-run")
    assert text == "0 entries from before 2020-05-01 00:00 +0545 would be removed.\n"


def test_prune(monkeypatch):
    monkeypatch.setattr(timezone, "now", lambda: WHEN)
    text = run("prune", "--older-than", "1", "--dry-run")
    assert text.startswith("0 records from before 2026-03-01 03:50 +0545 would be removed.")
    assert str(DeliveryRecord(when=WHEN)).startswith("2026-03-02 03:50:07 +0545 ")


def test_status():
    MailServerFactory(paused_until=WHEN.replace(year=2126))
    assert MailServer.objects.get().paused_text == "2126-03-02 03:50 +0545"
