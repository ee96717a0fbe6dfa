"""``mailpool_prune``: removes old delivery records, and sums the others up for the dashboard."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from mailpool import conf, recording, summaries
from mailpool.management.base import MailpoolCommand
from mailpool.moments import plain_moment

MOST_DAYS = 36500


class Command(MailpoolCommand):
    help = (
        "Remove delivery records that are older than MAILPOOL['RECORDS_KEEP_DAYS'], and sum up "
        "those of the last month where they are many, for the dashboard; in short transactions, "
        "while the site runs. Interrupted, it may be run again. Exit status: 0, or 1 for what "
        "can't be done."
    )
    interrupted = (
        "Interrupted. What was removed stays removed, and the next run goes on from there."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than", type=int, metavar="DAYS", help="Instead of RECORDS_KEEP_DAYS."
        )
        parser.add_argument("--sum-up-only", action="store_true", help="Remove nothing.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["sum_up_only"] and (options["dry_run"] or options["older_than"] is not None):
            raise CommandError(
                "--sum-up-only removes nothing: leave out --older-than and --dry-run, or "
                "--sum-up-only."
            )
        before = None if options["sum_up_only"] else self._before(options["older_than"])
        removed = summed = 0
        if before and options["dry_run"]:
            removed = recording.older_than(before).count()
        elif before:
            removed = recording.prune(before, progress=self._progress)
            self.progress("", done=True)
        if not options["dry_run"]:
            summed = summaries.sum_up(progress=self._summed_up)
            self.progress("", done=True)
        if options["json"]:
            self.print_json(
                {
                    "before": before and before.isoformat(),
                    "removed": removed,
                    "summed_up": summed,
                    "dry_run": options["dry_run"],
                }
            )
            return
        if before:
            would = "would be removed" if options["dry_run"] else "removed"
            self.stdout.write(f"{removed} records from before {plain_moment(before)} {would}.")
        if summed or not before:
            self.stdout.write(f"{summed} records summed up.")

    def _before(self, days: Any) -> datetime:
        if days is None:
            days = conf.get("RECORDS_KEEP_DAYS")
        if days is None:
            raise CommandError(
                "Say how old: set MAILPOOL['RECORDS_KEEP_DAYS'], or add --older-than DAYS. To "
                "remove nothing, add --sum-up-only."
            )
        if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= MOST_DAYS:
            raise CommandError(
                f"{days!r} is no number of days from 1 to {MOST_DAYS}. Nothing was removed."
            )
        return timezone.now() - timedelta(days=days)

    def _progress(self, removed: int) -> None:
        self.progress(f"{removed} records removed")

    def _summed_up(self, done: int) -> None:
        self.progress(f"{done} records summed up")
