"""``mailpool_import``: many tenants, servers and accounts at once, out of a CSV or JSON file."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from mailpool import transfer
from mailpool.management.base import MailpoolCommand
from mailpool.transfer import Plan, UnusableFile
from mailpool.transfer.columns import RECORDS, columns
from mailpool.transfer.files import FORMATS, MAX_BYTES
from mailpool.transfer.sealing import read_private_key


class Command(MailpoolCommand):
    help = (
        "Store the tenants, mail servers, accounts and senders of a CSV or JSON file; those that "
        "exist already are updated, and nothing is removed. All that is wrong is reported, by "
        "line. Try it with --dry-run, and delete a file with passwords afterwards. Exit status: 0 "
        "if the whole file is right, 1 if something is wrong with it."
    )
    paths = ("file", "private_key")
    interrupted = "Interrupted. Run it with --dry-run to see what is not imported."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", nargs="?", help="The file, or - for standard input.")
        parser.add_argument(
            "--columns", action="store_true", help="List the columns that a file may have, and end."
        )
        parser.add_argument("--format", choices=FORMATS, help="Without it: by the name, else csv.")
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say what would be created and changed."
        )
        way = parser.add_mutually_exclusive_group()
        way.add_argument(
            "--atomic",
            action="store_true",
            help="Everything, or nothing if anything is wrong (the default).",
        )
        way.add_argument(
            "--keep-going", action="store_true", help="Leave out what is wrong and import the rest."
        )
        only = parser.add_mutually_exclusive_group()
        only.add_argument(
            "--create-only", action="store_true", help="It is an error to change what exists."
        )
        only.add_argument(
            "--update-only", action="store_true", help="It is an error to create anything."
        )
        parser.add_argument(
            "--private-key", metavar="FILE", help="Opens the secrets of an export that has them."
        )
        parser.add_argument("--json", action="store_true", help="The report, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["columns"]:
            listed = [(each.name, each.record or "any", each.takes) for each in columns().values()]
            self.print_table(("column", "about", "says"), listed)
            return
        if options["file"] is None:
            raise CommandError("Give the file, or - for standard input.")
        key = options["private_key"] and read_private_key(options["private_key"])
        format = options["format"] or ("json" if options["file"].endswith(".json") else "csv")
        try:
            rows, problems = transfer.read(_bytes(options["file"]), format)
        except UnusableFile as error:
            self._report_unusable(error, options)
            self.exit_with(True)
            return
        plan = transfer.make_plan(
            rows,
            problems,
            private_key=key or None,
            create_only=options["create_only"],
            update_only=options["update_only"],
            progress=lambda done, total: self.progress(f"{done} of {total} accounts compared"),
        )
        written = []
        if not options["dry_run"]:
            written = transfer.apply(
                plan,
                atomic=not options["keep_going"],
                progress=lambda done, total: self.progress(f"{done} of {total} rows written"),
            )
        self.progress("", done=True)
        self._report(plan, written, options)
        self.exit_with(bool(plan.problems))

    def _report_unusable(self, error: UnusableFile, options: dict[str, Any]) -> None:
        if options["json"]:
            self.print_json(_as_dict(Plan([], error.problems), [], options))
            return
        for problem in error.problems:
            self.stdout.write(str(problem))
        self.stdout.write(
            "The file was not compared with what is stored, for it can't be read as it is. "
            "Nothing was imported."
        )

    def _report(self, plan: Plan, written: list[Any], options: dict[str, Any]) -> None:
        stands = not plan.problems or options["keep_going"]
        shown = plan.usable if options["dry_run"] else written
        if options["json"]:
            self.print_json(_as_dict(plan, shown, options))
            return
        if options["dry_run"] or options["verbosity"] > 1:
            for item in shown:
                self.stdout.write(f"{'+' if item.is_new else '~'} {item.title}")
                for difference in item.differences:
                    self.stdout.write(f"    {difference}")
        for problem in plan.problems:
            self.stdout.write(str(problem))
        if plan.held_up:
            self.stdout.write(
                f"{plan.held_up} accounts more are right themselves and wait for a tenant or "
                "server above."
            )
        done = "Would be created" if options["dry_run"] else "Created"
        if options["dry_run"] and not stands:
            done = "Once that is corrected, at least this would be created"
        self.stdout.write(
            f"{done}: {_counts(shown, True)}; changed: "
            f"{_counts(shown, False)}; as they were: {plan.unchanged}."
        )
        if plan.problems:
            end = "The rest was left out." if stands else "Nothing was imported."
            if options["dry_run"]:
                end = ""
            count = len(plan.problems)
            self.stdout.write(f"{count} problem{'s' * (count != 1)}. {end}".strip())


def _bytes(path: str) -> bytes:
    try:
        if path == "-":
            if sys.stdin is None:
                raise CommandError("Standard input is closed.")
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}.") from None


_PLURAL = {"tenant": "tenants", "server": "servers", "account": "accounts"}


def _count(items: list[Any], record: str, new: bool) -> int:
    return sum(item.record == record and item.is_new is new for item in items)


def _counts(items: list[Any], new: bool) -> str:
    found = [(_count(items, record, new), record) for record in RECORDS]
    named = [f"{n} {record if n == 1 else _PLURAL[record]}" for n, record in found if n]
    return ", ".join(named) or "nothing"


def _as_dict(plan: Plan, items: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    return {
        "dry_run": options["dry_run"],
        "created": {record: _count(items, record, True) for record in RECORDS},
        "changed": {record: _count(items, record, False) for record in RECORDS},
        "unchanged": plan.unchanged,
        "held_up": plan.held_up,
        "rows": [
            {
                "line": item.said.line,
                "about": item.title,
                "new": item.is_new,
                "differences": [
                    {"column": each.column, "old": each.old, "new": each.new}
                    for each in item.differences
                ],
            }
            for item in items
        ],
        "problems": [
            {"line": problem.line, "column": problem.column, "text": problem.text}
            for problem in plan.problems
        ],
    }
