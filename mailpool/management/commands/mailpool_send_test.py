"""``mailpool_send_test``: one real message."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

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
from mailpool.verification import describe_error, explain, send_test_message


class Command(MailpoolCommand):
    help = (
        "Send one short message with a tenant's credential (of several, the one with the lowest "
        "priority), or with the site's default one. " + EXIT_STATUS
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_choice(parser)
        parser.add_argument("--to", required=True, metavar="ADDRESS", help="Who gets it.")
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        credential = self._choose(options)
        result = send_test_message(credential, options["to"])
        if options["json"]:
            self.print_json(
                {
                    "credential": str(credential.pk),
                    "tenant": tenant_name(credential),
                    "status": result.status,
                    "code": result.code,
                    "reply": result.reply,
                    "session": result.session_id,
                    "reused": result.reused,
                    "error": describe_error(result.error) if result.error else "",
                }
            )
        else:
            self.stdout.write(f"{name_of(credential)}: {result.status}")
            if result.error:
                self.stdout.write(f"  {describe_error(result.error)}\n  {explain(result.error)}")
            else:
                self.stdout.write(f"  {result.code} {result.reply} (session {result.session_id})")
        self.exit_with(result.status != "sent")

    def _choose(self, options: dict[str, Any]) -> Credential:
        credentials = chosen_credentials(options)
        if options["credential"] is not None:
            return credentials.get()
        if options["tenant"] is None and options["server"] is None:
            credentials = credentials.filter(tenant=None)
        for credential in credentials.order_by("priority", "pk"):
            if is_usable(credential):
                return credential
        whose = f"Tenant {options['tenant']!r}" if options["tenant"] else "The site"
        raise CommandError(f"{whose} has no active credential at an active server.")
