"""Delivery records for tests, at chosen times."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from mailpool.models import DeliveryRecord
from mailpool.models.records import first_key


def add_records(credential, count=1, *, ago=timedelta(), at=None, number=0, **values):
    """*count* records of a credential's messages, so long ago or *at* a time.

    *number* tells those of one moment apart.
    """
    when = at or timezone.now() - ago
    values = {"outcome": "sent", "recipients": 1, "sending": 100, **values}
    if credential is not None:
        values = {
            "tenant": credential.tenant,
            "tenant_name": str(credential.tenant or ""),
            "credential": credential,
            "server": credential.server,
            "server_name": credential.server.name,
            **values,
        }
    first = first_key(when) + number * 100
    return DeliveryRecord.objects.bulk_create(
        DeliveryRecord(pk=first + each, when=when, **values) for each in range(count)
    )
