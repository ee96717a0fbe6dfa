"""Delivery records: one row for each message and each time that it was tried."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.core.checks import CheckMessage
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.models.credentials import Credential
from mailpool.models.servers import MailServer
from mailpool.moments import plain_moment

# A key is the microseconds since 1970 and so many random bits. 63 bits last until the year 2112.
RANDOM_BITS = 11
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_key(microseconds: int | None = None) -> int:
    """A key for what happens at that time, now if it is left out."""
    if microseconds is None:
        microseconds = time.time_ns() // 1000
    return microseconds << RANDOM_BITS | random.getrandbits(RANDOM_BITS)


def first_key(when: datetime) -> int:
    """The lowest key that belongs to that time: later records have higher ones."""
    aware = when
    if timezone.is_naive(when):
        # Without USE_TZ all times are the site's own, whatever zone is active.
        zone = None if settings.USE_TZ else timezone.get_default_timezone()
        aware = timezone.make_aware(when, zone)
    return max(0, (aware - EPOCH) // timedelta(microseconds=1)) << RANDOM_BITS


class Outcome(models.TextChoices):
    """What became of a message; the values are those of ``MailpoolResult.status``."""

    SENT = "sent", _("sent")
    REFUSED = "refused", _("refused")
    FAILED = "failed", _("failed")
    UNKNOWN = "unknown", _("unknown")


def loose_reference(to: Any, verbose_name: Any) -> Any:
    """A reference that may lead nowhere: what it names can be deleted, and nobody has to look
    through millions of records for that. What it was called stays beside it."""
    return models.ForeignKey(
        to,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=verbose_name,
    )


def keys_of(union: models.QuerySet[Any, Any]) -> models.Subquery:
    """What ``pk__in`` compares with a *union* of keys.

    MariaDB and MySQL would ask a union itself once for each row of the table. Within FROM it is
    asked once, and leads to the rows by their keys; others make no difference between the two.
    """
    return models.Subquery(union.order_by(), template="(SELECT * FROM (%(subquery)s) AS found)")


class DeliveryRecordQuerySet(models.QuerySet["DeliveryRecord"]):
    """By time through the key, so that no column of times needs an index."""

    def since(self, when: datetime) -> DeliveryRecordQuerySet:
        """Those of that time and later."""
        return self.filter(pk__gte=first_key(when))

    def before(self, when: datetime) -> DeliveryRecordQuerySet:
        """Those of earlier times."""
        return self.filter(pk__lt=first_key(when))

    def of_credential(self, credential: Credential) -> DeliveryRecordQuerySet:
        """Those of *credential*, since it belongs to its tenant."""
        return self.filter(tenant=credential.tenant_id, credential=credential.pk)

    def keys_to(self, address: str) -> models.QuerySet[Any, Any]:
        """The keys of those with *address* among the recipients, where these are recorded."""
        key = address.strip().lower()
        first = self.filter(recipient=key).order_by().values("pk")
        others = DeliveryRecipient.objects.using(self.db).filter(address=key).order_by()
        return first.union(others.values("record"), all=True).order_by()

    def to(self, address: str) -> DeliveryRecordQuerySet:
        """Those with *address* among the recipients, where these are recorded."""
        return self.filter(pk__in=keys_of(self.keys_to(address)))


class DeliveryRecord(models.Model):
    """What became of one message, once it was tried.

    Its key is made from the time. So rows of a tenant, a server or an outcome are read in the
    order of time, from any time on, by one index each; a retry of the same INSERT can't write a
    row twice; and old ones are a range of keys.
    """

    id = models.BigIntegerField(primary_key=True, default=make_key, editable=False)
    when = models.DateTimeField(_("time"), default=timezone.now)
    outcome = models.CharField(_("outcome"), max_length=10, choices=Outcome.choices)
    tenant = loose_reference(conf.tenant_model(), _("tenant"))
    credential = loose_reference(Credential, _("credential"))
    server = loose_reference(MailServer, _("mail server"))
    tenant_name = models.CharField(_("tenant's name"), max_length=200, blank=True)
    server_name = models.CharField(_("mail server's name"), max_length=100, blank=True)
    username = models.CharField(_("username"), max_length=255, blank=True)
    message_id = models.CharField(_("Message-ID"), max_length=255, blank=True)
    sender = models.CharField(_("envelope sender"), max_length=320, blank=True)
    recipients = models.PositiveIntegerField(_("recipients"), default=0)
    refused = models.PositiveIntegerField(_("refused recipients"), default=0)
    # Nearly every message has one recipient. Further ones have a table of their own.
    recipient = models.CharField(_("first recipient"), max_length=320, null=True, blank=True)
    subject = models.CharField(_("subject"), max_length=255, blank=True)
    size = models.PositiveIntegerField(_("size"), default=0, help_text=_("Bytes."))
    code = models.PositiveSmallIntegerField(_("reply code"), null=True, blank=True)
    enhanced = models.CharField(_("enhanced status code"), max_length=11, blank=True)
    reply = models.TextField(_("reply"), blank=True)
    queue_id = models.CharField(_("queue id"), max_length=100, null=True, blank=True)
    session_id = models.CharField(_("session"), max_length=32, blank=True)
    reused = models.BooleanField(_("reused"), default=False)
    retried = models.BooleanField(_("retried"), default=False)
    tls = models.CharField(_("TLS version"), max_length=10, blank=True)
    waiting = models.PositiveIntegerField(_("waiting"), default=0, help_text=_("Milliseconds."))
    connecting = models.PositiveIntegerField(
        _("connecting"), default=0, help_text=_("Milliseconds.")
    )
    sending = models.PositiveIntegerField(_("sending"), default=0, help_text=_("Milliseconds."))
    error = models.CharField(_("error"), max_length=100, blank=True)

    objects = DeliveryRecordQuerySet.as_manager()

    class Meta:
        default_permissions = ("view",)
        ordering = ("-pk",)
        verbose_name = _("delivery record")
        verbose_name_plural = _("delivery records")
        indexes: ClassVar = [
            models.Index(fields=["tenant", "id"], name="mailpool_record_tenant"),
            models.Index(fields=["server", "id"], name="mailpool_record_server"),
            # A tenant may have millions of rows, and few of them by its second account.
            models.Index(fields=["credential", "id"], name="mailpool_record_account"),
            models.Index(fields=["message_id"], name="mailpool_record_message"),
            # What most rows don't have, or what most rows are, is not worth its place in an index.
            models.Index(
                fields=["queue_id"],
                condition=Q(queue_id__isnull=False),
                name="mailpool_record_queue",
            ),
            models.Index(
                fields=["recipient", "id"],
                condition=Q(recipient__isnull=False),
                name="mailpool_record_recipient",
            ),
            models.Index(
                fields=["outcome", "id"],
                condition=~Q(outcome="sent"),
                name="mailpool_record_outcome",
            ),
            models.Index(
                fields=["code", "id"],
                condition=Q(code__lt=250) | Q(code__gt=250),
                name="mailpool_record_code",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.local_time} {self.get_outcome_display()}: {self.message_id or self.sender}"

    @classmethod
    def check(cls, **kwargs: Any) -> list[CheckMessage]:
        """What Django checks, without that MariaDB and MySQL have no partial indexes: there these
        are whole ones, and nobody has to do anything about it."""
        return [found for found in super().check(**kwargs) if found.id != "models.W037"]

    @property
    def local_time(self) -> str:
        """When it was, in the time zone that is active, which it names; as commands write it."""
        return plain_moment(self.when, seconds=True)


class DeliveryRecipient(models.Model):
    """A recipient after the first one of a message, where addresses are recorded."""

    id = models.BigAutoField(primary_key=True)
    record = models.ForeignKey(
        DeliveryRecord,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="others",
        verbose_name=_("delivery record"),
    )
    address = models.CharField(_("address"), max_length=320, db_index=True)

    class Meta:
        default_permissions = ()
        verbose_name = _("further recipient")
        verbose_name_plural = _("further recipients")

    def __str__(self) -> str:
        return self.address
