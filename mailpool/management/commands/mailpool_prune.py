"""``mailpool_prune``: delivery records that are older than they have to be."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from mailpool import conf, recording
from mailpool.management.base import MailpoolCommand

MOST_DAYS = 36500


class Command(MailpoolCommand):
    help = (
        "Remove delivery records that are older than MAILPOOL['RECORDS_KEEP_DAYS'], in short "
        "transactions, while the site runs; interrupted, it may be run again. Exit status: 0, or "
        "1 for what can't be done."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than", type=int, metavar="DAYS", help="Instead of RECORDS_KEEP_DAYS."
        )
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["older_than"]
        if days is None:
            days = conf.get("RECORDS_KEEP_DAYS")
        if days is None:
            raise CommandError(
                "Say how old: set MAILPOOL['RECORDS_KEEP_DAYS'], or add --older-than DAYS."
            )
        if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= MOST_DAYS:
            raise CommandError(f"{days!r} is no number of days from 1 on. Nothing was removed.")
        before = timezone.now() - timedelta(days=days)
        if options["dry_run"]:
            removed = recording.older_than(before).count()
        else:
            removed = recording.prune(before, progress=self._progress)
            self.progress("", done=True)
        if options["json"]:
            self.print_json(
                {
                    "before": before.isoformat(),
                    "removed": removed,
                    "dry_run": options["dry_run"],
                }
            )
            return
        would = "would be removed" if options["dry_run"] else "removed"
        self.stdout.write(f"{removed} records from before {before:%Y-%m-%d %H:%M} {would}.")

    def _progress(self, removed: int) -> None:
        self.progress(f"{removed} records removed")
