"""``mailpool_rotate_keys``: every secret under the newest key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from mailpool import rotation
from mailpool.management.base import EXIT_STATUS, MailpoolCommand


class Command(MailpoolCommand):
    help = (
        "Encrypt every secret with the newest key, while the site runs. Safe to interrupt and to "
        "run again. Afterwards mailpool_status says which keys may be removed. " + EXIT_STATUS
    )
    interrupted = "Interrupted. What was rewritten stays so, and the next run goes on from there."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        result = rotation.rotate(dry_run=options["dry_run"], progress=self._progress)
        self.progress("", done=True)
        if options["json"]:
            self.print_json({**asdict(result), "dry_run": options["dry_run"]})
        else:
            done = "would be rewritten" if options["dry_run"] else "rewritten"
            self.stdout.write(
                f"Newest key {result.newest}: {result.rewritten} {done}, {result.current} were "
                "under it already."
            )
            if result.changed_meanwhile:
                self.stdout.write(
                    f"{result.changed_meanwhile} were set by somebody else at the same time and "
                    "left as they are."
                )
            for place in result.unreadable:
                self.stdout.write(f"Does not open with any key: {place}")
        self.exit_with(bool(result.unreadable))

    def _progress(self, done: int, total: int) -> None:
        self.progress(f"{done} of {total} secrets")
