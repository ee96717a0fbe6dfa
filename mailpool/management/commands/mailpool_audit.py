"""``mailpool_audit``: who did what to which credential, server or OAuth client, and when."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from mailpool import audit, conf
from mailpool.audit import AuditEntry
from mailpool.management.base import MailpoolCommand, find_tenant
from mailpool.moments import plain_moment

SHOWN = 100


class Command(MailpoolCommand):
    help = (
        "Show the audit trail, newest first, or remove what is older than "
        "your rules say. Exit status: 0, or 1 for what can't be done."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant",
            metavar="SLUG",
            help="About this tenant's credentials and servers, also deleted.",
        )
        parser.add_argument(
            "--credential", metavar="KEY", help="About the credential with this key, also deleted."
        )
        parser.add_argument(
            "--since", metavar="TIME", help="From this date or time on (2026-01-31T12:00+00:00)."
        )
        parser.add_argument(
            "--limit",
            type=int,
            metavar="NUMBER",
            help=f"At most so many. Without it: {SHOWN} in the table, all of them with --json.",
        )
        parser.add_argument("--json", action="store_true", help="All columns, for a machine.")
        parser.add_argument(
            "--prune-before", metavar="TIME", help="Remove all entries from before this time."
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say what --prune-before would remove."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] is not None and options["limit"] < 1:
            raise CommandError("--limit has to be 1 or more.")
        if options["prune_before"] is not None:
            self._prune(options)
        elif options["dry_run"]:
            raise CommandError("--dry-run goes with --prune-before.")
        elif options["json"]:
            self._print_json(_chosen(options), options["limit"])
        else:
            self._print(_chosen(options), options["limit"] or SHOWN)

    def _prune(self, options: dict[str, Any]) -> None:
        names = ("tenant", "credential", "since", "limit")
        if any(options[name] is not None for name in names):
            raise CommandError("--prune-before removes all entries before that time: no filters.")
        before = _time("--prune-before", options["prune_before"])
        if before > timezone.now():
            raise CommandError("--prune-before is in the future. Nothing was removed.")
        dry_run = options["dry_run"]
        removed = audit.older_than(before).count() if dry_run else audit.prune(before)
        if options["json"]:
            result = {"before": before.isoformat(), "removed": removed, "dry_run": dry_run}
            self.print_json(result)
        else:
            would = "would be removed" if dry_run else "removed"
            self.stdout.write(f"{removed} entries from before {plain_moment(before)} {would}.")

    def _print(self, entries: QuerySet[AuditEntry], limit: int) -> None:
        found = list(entries[: limit + 1])
        if not found:
            self.stdout.write("No entries.")
            return
        head = ("Time", "Action", "By", "Way", "Tenant", "About", "Details")
        self.print_table(head, [_row(entry) for entry in found[:limit]])
        if len(found) > limit:
            self.stdout.write(f"\nThere are older ones than these {limit}: see --limit.")

    def _print_json(self, entries: QuerySet[AuditEntry], limit: int | None) -> None:
        """A list with one entry a line; written as it is read, since it may be long."""
        before = "["
        for entry in entries[:limit].iterator():
            self.stdout.write(before + json.dumps(audit.as_dict(entry)), ending="")
            before = ",\n"
        self.stdout.write("[]" if before == "[" else "]")


def _chosen(options: dict[str, Any]) -> QuerySet[AuditEntry]:
    entries = AuditEntry.objects.all()
    if options["tenant"] is not None:
        entries = entries.filter(tenant=_slug(options["tenant"]))
    if options["credential"] is not None:
        try:
            entries = entries.filter(credential_id=UUID(options["credential"]))
        except ValueError:
            raise CommandError(f"{options['credential']!r} is not a credential's key.") from None
    if options["since"] is not None:
        entries = entries.filter(when__gte=_time("--since", options["since"]))
    return entries


def _slug(text: str) -> str:
    """The slug that was asked for, or that of the tenant with that key; it may be gone by now."""
    if not text.strip():
        raise CommandError("--tenant is empty: give a slug or a key, or leave the option out.")
    try:
        tenant = find_tenant(text)
    except CommandError:
        return text
    return str(getattr(tenant, conf.get("TENANT_SLUG_FIELD"), tenant))


def _time(option: str, text: str) -> datetime:
    """A date or a time; without a zone it is meant in the site's."""
    try:
        found = parse_datetime(text)
        if found is None and (day := parse_date(text)):
            found = datetime.combine(day, time.min)
    except ValueError:
        found = None
    if found is None:
        raise CommandError(f"{option} {text!r} is no date or time, such as 2026-01-31.")
    try:
        if settings.USE_TZ:
            found = timezone.make_aware(found) if timezone.is_naive(found) else found
            found = timezone.localtime(found.astimezone(UTC))  # databases want the one, people both
    except OverflowError:
        raise CommandError(f"{option} {text!r} is no time that a database can have.") from None
    return found


def _row(entry: AuditEntry) -> tuple[str, ...]:
    about = (entry.owner, entry.about or "(all)")
    actor = entry.actor or "(a process)"
    return (entry.local_time, entry.action, actor, entry.way, *about, entry.details)
