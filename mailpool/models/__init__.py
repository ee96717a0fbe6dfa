"""What the database keeps, one file per table. Nothing here opens a connection."""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from mailpool.audit import AuditEntry
from mailpool.models.credentials import Credential
from mailpool.models.oauth import OAuthClient
from mailpool.models.processes import SendingProcess
from mailpool.models.records import DeliveryRecipient, DeliveryRecord
from mailpool.models.senders import Sender
from mailpool.models.servers import SERVER_BOUNDS, MailServer
from mailpool.models.sites import SiteMarker
from mailpool.models.summaries import DeliverySummary, ServerSummary, TenantSummary
from mailpool.models.tenants import Tenant

if apps.apps_ready and not apps.is_installed("mailpool"):
    raise ImproperlyConfigured("mailpool is used but not installed: add it to INSTALLED_APPS.")

__all__ = [
    "SERVER_BOUNDS",
    "AuditEntry",
    "Credential",
    "DeliveryRecipient",
    "DeliveryRecord",
    "DeliverySummary",
    "MailServer",
    "OAuthClient",
    "Sender",
    "SendingProcess",
    "ServerSummary",
    "SiteMarker",
    "Tenant",
    "TenantSummary",
]
