"""``mailpool_scrub``: no secret stays in the copy of a database."""

from __future__ import annotations

import os
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections, router

from mailpool import marker, scrub
from mailpool.management.base import MailpoolCommand
from mailpool.models import Credential


class Command(MailpoolCommand):
    help = (
        "For the copy of a database, such as production's on a staging site: switch off every "
        "credential, remove every encrypted secret of every app, and make the database this "
        "site's (MAILPOOL['SITE']). It can't be undone; interrupted, it may be run again. "
        "Exit status: 0 if it is done, or was a dry run; 1 if it was refused, not confirmed or "
        "not finished."
    )
    interrupted = "Interrupted, and perhaps not finished: run it again."
    # A copy has to be scrubbed before the site is set up, when there may be no key yet.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
        parser.add_argument(
            "--no-input",
            "--noinput",
            action="store_false",
            dest="interactive",
            help="Do not ask for confirmation.",
        )
        parser.add_argument(
            "--this-site",
            action="store_true",
            help="Also if the database belongs to this very site, and is no copy.",
        )
        parser.add_argument(
            "--mark-only",
            action="store_true",
            help="Remove nothing, only make the database this site's: after a change of its name.",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="The result, for a machine; with --no-input or --dry-run.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        found, own = marker.read(), marker.own()
        asks = options["interactive"] and not options["dry_run"]
        if options["json"] and asks:
            raise CommandError("--json can't ask for confirmation: add --no-input or --dry-run.")
        if options["mark_only"] and own is None:
            raise CommandError("This site has no name: set MAILPOOL['SITE'] first.")
        if found is not None and found == own and not options["this_site"]:
            raise CommandError(
                f"This database belongs to “{found}”, which is this very site: it is no copy, and "
                "nothing was changed. To remove all of this site's own passwords for good, add "
                "--this-site."
            )
        harm = scrub.Remains(0, {}) if options["mark_only"] else scrub.find()
        result = {
            "database": _database(),
            "belonged_to": found,
            "site": own,
            "credentials": harm.active,
            "secrets": harm.secrets,
            "records": harm.records,
            "left": 0,
            "dry_run": options["dry_run"],
            "mark_only": options["mark_only"],
        }
        if not options["json"]:
            self._announce(result)
        if asks:
            self._confirm(found or _database())
        if options["mark_only"] and not options["dry_run"]:
            marker.write(own)
        elif not options["dry_run"]:
            left = scrub.scrub(progress=lambda n: self.progress(f"{n} of {harm.total} secrets"))
            self.progress("", done=True)
            result["left"] = left.active + left.total
        if options["json"]:
            self.print_json(result)
        elif result["left"]:
            self.stdout.write(
                f"Not finished: {left.total} secrets and {left.active} active credentials were "
                "entered meanwhile. Run it again; until then the database is not this site's."
            )
        elif not options["dry_run"]:
            self.stdout.write(f"\nDone: {_belongs(own)}")
        self.exit_with(bool(result["left"]))

    def _announce(self, result: dict[str, Any]) -> None:
        own = result["site"]
        this = f"This site is “{own}”." if own else "This site has no name (MAILPOOL['SITE'])."
        self.stdout.write(
            f"Database {result['database']}: {_belongs(result['belonged_to'])} {this}"
        )
        if result["mark_only"]:
            self.stdout.write("It becomes this site's, with all its secrets.")
            return
        rows = [("credentials to switch off", result["credentials"])]
        rows += [(f"secrets in {place}", count) for place, count in result["secrets"].items()]
        rows.append(("delivery records", result["records"]))
        self.stdout.write("")
        self.print_table(("To remove", "Number"), rows)

    def _confirm(self, word: str) -> None:
        try:
            answer = input(f"\nThere is no way back. Type {word} to go on: ")
        except (EOFError, RuntimeError):  # the latter if standard input is closed
            self.stdout.write("")  # the question's line ends here
            raise CommandError(
                "Nobody is there to confirm it, and nothing was changed. Add --no-input."
            ) from None
        if answer.strip() != word:
            raise CommandError("Not confirmed. Nothing was changed.")


def _database() -> str:
    """What people call the database; of a file, without its folder."""
    alias = router.db_for_write(Credential)
    return os.path.basename(str(connections[alias].settings_dict["NAME"] or "")) or alias


def _belongs(name: str | None) -> str:
    return f"it belongs to “{name}”." if name else "it has no marker of a site."
