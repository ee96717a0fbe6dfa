"""``mailpool_check``: does every account work?"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mailpool import marker
from mailpool.management.base import (
    EXIT_STATUS,
    MailpoolCommand,
    add_choice,
    chosen_credentials,
    name_of,
    tenant_name,
)
from mailpool.models import Credential
from mailpool.routing import is_usable
from mailpool.verification import Report, verify_credential


class Command(MailpoolCommand):
    help = (
        "Verify credentials the way that mail goes: connect, TLS, login, sender and recipient. "
        "Nothing is sent. All active ones, unless some are chosen. " + EXIT_STATUS
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_choice(parser)
        parser.add_argument("--json", action="store_true", help="Every step, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        marker.require_own()  # not even a login as another site's customers
        credentials = list(chosen_credentials(options))
        was_chosen = any(options[name] is not None for name in ("tenant", "server", "credential"))
        if options["credential"] is None:
            credentials = [credential for credential in credentials if is_usable(credential)]
        reports: list[tuple[Credential, Report]] = []
        for number, credential in enumerate(credentials, start=1):
            self.progress(f"{number} of {len(credentials)}: {credential}")
            reports.append((credential, verify_credential(credential)))
        self.progress("", done=True)
        failed = [report for _, report in reports if not report.ok]
        if options["json"]:
            self.print_json([_as_dict(credential, report) for credential, report in reports])
        else:
            self._print(reports)
            self.stdout.write(f"\n{len(reports)} checked, {len(failed)} failed.")
            if was_chosen and not reports:
                self.stdout.write("None of those is active, with an active server and tenant.")
            elif not reports:
                self.stdout.write("There is no active credential with an active server and tenant.")
        # Whoever asks for somebody's accounts and has none checked has not got what was asked for.
        self.exit_with(bool(failed) or (was_chosen and not reports))

    def _print(self, reports: list[tuple[Credential, Report]]) -> None:
        rows = []
        for credential, report in reports:
            seconds = sum(step.seconds for step in report.steps)
            failure = report.failure
            result = f"failed: {failure.title}" if failure else "ok"
            rows.append((tenant_name(credential), credential, f"{seconds * 1000:.0f} ms", result))
        if rows:
            self.print_table(("Tenant", "Account", "Time", "Result"), rows)
        for credential, report in reports:
            if failure := report.failure:
                self.stdout.write(f"\n{name_of(credential)}:")
                self.stdout.write(f"  {failure.detail}\n  {failure.advice}")


def _as_dict(credential: Credential, report: Report) -> dict[str, Any]:
    return {
        "credential": str(credential.pk),
        "tenant": tenant_name(credential),
        "username": credential.username,
        **report.as_dict(),
    }
