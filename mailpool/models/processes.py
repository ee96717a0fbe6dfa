"""The processes that send, as each of them last told of itself."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _


class SendingProcess(models.Model):
    """One process and its pool at the time of ``seen_at``. It knows ids and numbers, no names.

    ``machine`` and ``birth`` tell a process from another one that has its number: on another
    machine, in another container, or later. Empty where the system does not say.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.CharField(_("host"), max_length=253)
    pid = models.PositiveIntegerField(_("process"))
    command = models.CharField(_("command"), max_length=100, blank=True)
    machine = models.CharField(max_length=100, blank=True)
    birth = models.CharField(max_length=40, blank=True)
    started_at = models.DateTimeField(_("started"))
    seen_at = models.DateTimeField(_("last seen"))
    waiting = models.PositiveIntegerField(_("waiting"), default=0)
    opened = models.PositiveBigIntegerField(_("opened"), default=0)
    reused = models.PositiveBigIntegerField(_("reused"), default=0)
    closed = models.PositiveBigIntegerField(_("closed"), default=0)
    failed = models.PositiveBigIntegerField(_("failed"), default=0)
    # By account: see ``reporting.accounts_of``.
    accounts = models.JSONField(_("accounts"), default=list)

    class Meta:
        default_permissions = ()  # the processes write it, and the Connections page shows it
        ordering = ("-seen_at", "pk")
        verbose_name = _("sending process")
        verbose_name_plural = _("sending processes")
        indexes: ClassVar = [models.Index(fields=["seen_at"], name="mailpool_process_seen")]

    def __str__(self) -> str:
        return f"{self.command} {self.pid} @ {self.host}"
