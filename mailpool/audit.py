"""The audit: who did what to which credential, server or OAuth client, and when. Entries are added
and never changed.

Changes of rows come here by themselves (``changes``); what changes no row is recorded by
whoever does it, with ``record`` or ``note``. Nothing secret is ever in an entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

from django.core.exceptions import ObjectDoesNotExist
from django.db import Error, models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.events import event
from mailpool.moments import plain_moment
from mailpool.text import one_line

logger = logging.getLogger("mailpool.audit")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and by what way. An empty name is a process: nobody is known to be behind it."""

    name: str = ""
    key: str = ""
    way: str = "code"


A_PROCESS = Actor()

_actor: ContextVar[Actor] = ContextVar("mailpool_actor", default=A_PROCESS)


@contextmanager
def acting(user: Any, way: str) -> Iterator[None]:
    """Whatever is recorded inside the block was done by *user*, by the *way* of that name.

    ``None`` as user stands for whoever acts already: a command that a page calls is still that
    person's doing. A user who is not logged in is nobody.
    """
    person = _actor.get()
    if user is not None:
        known = bool(user.is_authenticated)
        person = Actor(user.get_username(), str(user.pk)) if known else A_PROCESS
    token = _actor.set(Actor(person.name, person.key, way))
    try:
        yield
    finally:
        _actor.reset(token)


class Action(models.TextChoices):
    """What was done. The values are stable: they are in logs and other systems."""

    CREATED = "created", _("created")
    CHANGED = "changed", _("changed")
    PASSWORD_SET = "password_set", _("password set")
    PASSWORD_REMOVED = "password_removed", _("password removed")
    ENABLED = "enabled", _("enabled")
    DISABLED = "disabled", _("disabled")
    DELETED = "deleted", _("deleted")
    VERIFIED = "verified", _("verified")
    CONNECTED = "connected", _("connected by OAuth 2")
    TEST_SENT = "test_sent", _("test message sent")
    SENDER_CODE_SENT = "sender_code_sent", _("code sent to a sender")
    SENDER_PROVEN = "sender_proven", _("ownership of a sender proven")
    SENDER_WITHDRAWN = "sender_withdrawn", _("ownership of a sender withdrawn")
    RESET = "reset", _("connections reset")
    PAUSED = "paused", _("paused")
    RESUMED = "resumed", _("resumed")
    MOVED = "moved", _("moved with its server")
    EXPORTED = "exported", _("exported")
    ROTATED = "rotated", _("re-encrypted")
    SCRUBBED = "scrubbed", _("scrubbed")
    PRUNED = "pruned", _("audit pruned")


# What an account is called that logs in with nothing else.
CERTIFICATE = "client certificate"


class AuditQuerySet(models.QuerySet["AuditEntry"]):
    """Adds and reads. Only ``prune`` removes, and says so."""

    def update(self, **kwargs: Any) -> int:
        raise TypeError("An audit entry is never changed.")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise TypeError("Audit entries are not deleted, but pruned: see mailpool_audit.")

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]


class AuditEntry(models.Model):
    """One thing that was done. Its numbers ascend, so the newest entry has the highest one.

    Nothing in it is a foreign key: it outlives the credential and the user, stays as it was
    written when they go, and whoever wants may take UPDATE on the table away from the site.
    """

    when = models.DateTimeField(_("time"), default=timezone.now)
    action = models.CharField(_("action"), max_length=20, choices=Action.choices)
    actor = models.CharField(_("by"), max_length=255, blank=True)
    actor_key = models.CharField(_("user's key"), max_length=64, blank=True)
    way = models.CharField(_("way"), max_length=100)
    # One of these is set, and none where it is about many at once, as a rotation is.
    credential_id = models.UUIDField(_("credential"), null=True, blank=True)
    server_id = models.UUIDField(_("mail server's key"), null=True, blank=True)
    oauth_client_id = models.UUIDField(_("OAuth client's key"), null=True, blank=True)
    tenant = models.CharField(_("tenant"), max_length=200, blank=True)
    server = models.CharField(_("mail server"), max_length=100, blank=True)
    username = models.CharField(_("username"), max_length=255, blank=True)
    oauth_client = models.CharField(_("OAuth client"), max_length=100, blank=True)
    details = models.TextField(_("details"), blank=True)

    objects = AuditQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ("view",)
        ordering = ("-pk",)
        verbose_name = _("audit entry")
        verbose_name_plural = _("audit entries")
        indexes: ClassVar = [
            models.Index(fields=["credential_id", "-id"], name="mailpool_audit_credential"),
            models.Index(fields=["server_id", "-id"], name="mailpool_audit_server"),
            models.Index(fields=["oauth_client_id", "-id"], name="mailpool_audit_client"),
            models.Index(fields=["when"], name="mailpool_audit_when"),
        ]

    def __str__(self) -> str:
        whose = self.about or _("all credentials")
        return f"{self.local_time} {self.get_action_display()}: {whose}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("An audit entry is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("Audit entries are not deleted, but pruned: see mailpool_audit.")

    @property
    def local_time(self) -> str:
        """When it was, in the time zone that is active, which it names; as commands write it."""
        return plain_moment(self.when, seconds=True)

    @property
    def about(self) -> str:
        """What the credential, server or OAuth client was called; empty where it was many."""
        if self.credential_id is not None:
            names = {"": _("no login"), CERTIFICATE: _("client certificate")}
            return f"{names.get(self.username, self.username)} @ {self.server}"
        if self.server_id is not None:
            return str(_("mail server %(name)s") % {"name": self.server})
        if self.oauth_client_id is not None:
            return str(_("OAuth client %(name)s") % {"name": self.oauth_client})
        return ""

    @property
    def owner(self) -> str:
        """The tenant that it was of, ``(site)`` for the site itself; empty where that says nothing,
        as with OAuth clients, which are everybody's."""
        if self.credential_id is None and self.server_id is None:
            return ""
        return self.tenant or str(_("(site)"))


def entry(action: Action, row: Any, details: str = "") -> AuditEntry:
    """An entry about *row*, a credential, mail server or OAuth client, with the names that it has
    now; not written yet."""
    return AuditEntry(action=action, details=details, **row.audited_as())


def name_of(row: Any, relation: str) -> str:
    """What people call the tenant or server of *row*; its key if it is not there (any more)."""
    try:
        related = getattr(row, relation)
    except ObjectDoesNotExist:
        return str(getattr(row, f"{relation}_id"))
    if related is None:
        return ""
    return str(getattr(related, conf.get("TENANT_SLUG_FIELD"), related))


def record(action: Action, credential: Any = None, details: str = "") -> None:
    """Write an entry about *credential* (or another row that is audited), or about all of them.

    For whoever changes something: within the same transaction, an entry that can't be written
    undoes the change.
    """
    if credential is None:
        new, using = AuditEntry(action=action, details=details), router.db_for_write(AuditEntry)
    else:
        new = entry(action, credential, details)
        using = router.db_for_write(type(credential), instance=credential)
    write([new], using)


def note(action: Action, credential: Any, details: str, *, only_news: bool = False) -> None:
    """Write an entry about something that has happened already and changed no row.

    If that fails, it is logged as an error and nothing else: what was found out is still to be
    told. With *only_news*, a process (not a person) that finds what the credential's newest entry
    says writes nothing: a monitor would fill the table.
    """
    using = router.db_for_write(type(credential), instance=credential)
    new = entry(action, credential, details)
    try:
        with transaction.atomic(using=using):
            if only_news and not _actor.get().key:
                newest = AuditEntry.objects.using(using).filter(credential_id=credential.pk).first()
                if newest and (newest.action, newest.details) == (action, details):
                    return
            write([new], using)
    except Error as error:
        logger.error(
            "This could not be written to the audit (%s): %s",
            type(error).__name__,
            _line(new),
            extra=event("mailpool.audit_not_written", error=error) | _fields(new),
        )


def write(entries: Sequence[AuditEntry], using: str) -> None:
    """Write *entries*, as done by whoever acts now; log them once that stands."""
    actor = _actor.get()
    for new in entries:
        new.actor, new.actor_key, new.way = actor.name, actor.key, actor.way
        _tidy(new)
    if entries:
        AuditEntry.objects.using(using).bulk_create(entries, batch_size=500)
        if not logger.isEnabledFor(logging.INFO):
            return  # and nothing to keep until then, which may be tens of thousands of entries
        transaction.on_commit(partial(_log, entries), using=using, robust=True)


def prune(before: datetime) -> int:
    """Remove the entries from before that time, and record it. How many there were."""
    using = router.db_for_write(AuditEntry)
    with transaction.atomic(using=using):
        # In SQL and past the queryset: loading them all to delete them takes long.
        removed: int = older_than(before)._raw_delete(using)
        if removed:
            text = f"{removed} entries from before {before.isoformat(timespec='seconds')} removed"
            record(Action.PRUNED, details=text)
    return removed


def older_than(before: datetime) -> models.QuerySet[AuditEntry]:
    """What ``prune`` would remove."""
    return AuditEntry.objects.using(router.db_for_write(AuditEntry)).filter(when__lt=before)


def _tidy(new: AuditEntry) -> None:
    """One line of printable text in each column: it goes to terminals and into logs."""
    for field in AuditEntry._meta.concrete_fields:
        text = getattr(new, field.attname)
        if isinstance(field, (models.CharField, models.TextField)):
            setattr(new, field.attname, one_line(text)[: field.max_length])


def _log(entries: Sequence[AuditEntry]) -> None:
    for new in entries:
        logger.info("%s", _line(new), extra=event(f"mailpool.audit.{new.action}") | _fields(new))


def _line(new: AuditEntry) -> str:
    whose = ", ".join(filter(None, (new.owner, new.about))) or "all credentials"
    text = f"{new.action}: {whose} by {new.actor or 'a process'} ({new.way})"
    return f"{text}: {new.details}" if new.details else text


def _fields(new: AuditEntry) -> dict[str, Any]:
    """For ``extra``; prefixed, because some of the names are a log record's own."""
    return {f"audit_{name}": value for name, value in as_dict(new).items()}


def as_dict(new: AuditEntry) -> dict[str, Any]:
    """Plain values, for machines."""
    return {
        "id": new.pk,
        "when": new.when.isoformat(),
        "action": str(new.action),
        "actor": new.actor,
        "actor_key": new.actor_key,
        "way": new.way,
        "credential": str(new.credential_id) if new.credential_id else None,
        "tenant": new.tenant,
        "server": new.server,
        "username": new.username,
        "server_key": str(new.server_id) if new.server_id else None,
        "oauth_client_key": str(new.oauth_client_id) if new.oauth_client_id else None,
        "oauth_client": new.oauth_client,
        "details": new.details,
    }
