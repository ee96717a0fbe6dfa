"""What delivery records come to, by quarters of an hour: for figures of millions of them."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.models.records import loose_reference
from mailpool.models.servers import MailServer


class DeliverySummary(models.Model):
    """A quarter of an hour that is summed up, also where nothing was sent in it.

    The key is the first one that a record of that time can have. So none is summed up twice.
    """

    slot = models.BigIntegerField(primary_key=True)
    # Lists of: whether the connection was reused, the class of the sending time, how many messages.
    # Without a class: what was not sent.
    speeds = models.JSONField(default=list)

    class Meta:
        default_permissions = ()
        verbose_name = _("delivery summary")
        verbose_name_plural = _("delivery summaries")

    def __str__(self) -> str:
        return str(self.slot)


class Share(models.Model):
    """The messages of one server or tenant, under one name, in a quarter of an hour."""

    id = models.BigAutoField(primary_key=True)
    slot = models.BigIntegerField(db_index=True)
    newest = models.BigIntegerField()  # the latest record's key
    messages = models.PositiveIntegerField()
    sent = models.PositiveIntegerField()

    class Meta:
        abstract = True
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.slot}: {self.messages}"


class ServerSummary(Share):
    server = loose_reference(MailServer, _("mail server"))
    server_name = models.CharField(max_length=100, blank=True)

    class Meta(Share.Meta):
        verbose_name = _("mail server's summary")
        verbose_name_plural = _("mail servers' summaries")
        indexes: ClassVar = [
            models.Index(fields=["server", "slot"], name="mailpool_summary_server"),
        ]


class TenantSummary(Share):
    tenant = loose_reference(conf.tenant_model(), _("tenant"))
    tenant_name = models.CharField(max_length=200, blank=True)

    class Meta(Share.Meta):
        verbose_name = _("tenant's summary")
        verbose_name_plural = _("tenants' summaries")
        indexes: ClassVar = [
            models.Index(fields=["tenant", "slot"], name="mailpool_summary_tenant"),
        ]
