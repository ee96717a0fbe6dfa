"""``mailpool_send_test``: one real message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError, CommandParser

from mailpool import conf
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
from mailpool.text import one_line
from mailpool.verification import (
    describe_error,
    explain,
    no_address,
    send_test_message,
    sender_of_test,
    switched_off,
)


class Command(MailpoolCommand):
    help = (
        "Send one short message with a tenant's credential (of several, the one with the lowest "
        "priority), or with the site's default one. " + EXIT_STATUS
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_choice(parser)
        parser.add_argument("--to", required=True, metavar="ADDRESS", help="Who gets it.")
        parser.add_argument(
            "--from",
            dest="sender",
            default="",
            metavar="ADDRESS",
            help="As whom; without it, as the account's default From, first sender or username.",
        )
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        credential = self._choose(options)
        if not (options["sender"] or sender_of_test(credential) or switched_off(credential)):
            raise CommandError(f"{no_address()} Or add --from ADDRESS.")
        with _told_once():
            result = send_test_message(credential, options["to"], sender=options["sender"])
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
        hint = ""
        if options["tenant"]:
            whose = f"Tenant {options['tenant']!r}"
        elif options["server"]:
            whose = f"The mail server {options['server']!r}"
        else:
            whose, hint = "The site itself", f" {_tenants()}"
        raise CommandError(f"{whose} has no active credential at an active server.{hint}")


def _tenants() -> str:
    """Whose credential may have been meant."""
    tenants = apps.get_model(conf.tenant_model())._default_manager
    slugs = tenants.filter(mailpool_credentials__isnull=False).distinct()
    count = slugs.count()
    if not count:
        return "No tenant has one, either: add a credential in the admin first."
    name = conf.get("TENANT_SLUG_FIELD")
    first = [one_line(str(each)) for each in slugs.order_by(name).values_list(name, flat=True)[:5]]
    more = " …" if count > len(first) else ""
    has = "1 tenant has" if count == 1 else f"{count} tenants have"
    return f"{has} credentials; name one with --tenant: {', '.join(first)}{more}"


@contextmanager
def _told_once() -> Iterator[None]:
    """Without handlers of the project's, a warning would go to the terminal as well."""
    logger, silent = logging.getLogger("mailpool"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)
