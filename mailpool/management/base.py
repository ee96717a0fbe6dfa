"""What mailpool's commands share: choosing credentials, tables, JSON, exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError
from django.db.models import QuerySet

from mailpool import audit, conf
from mailpool.exceptions import MailpoolError
from mailpool.management.terminal import TerminalCommand
from mailpool.models import Credential, MailServer
from mailpool.text import is_unicode, one_line

EXIT_STATUS = "Exit status: 0 if all is well, 1 if something needs attention."


class MailpoolCommand(TerminalCommand):
    """A command whose expected errors are one line in plain words, never a traceback."""

    paths: tuple[str, ...] = ()
    """Options that name files, which may be called anything."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        name = type(self).__module__.rpartition(".")[2]
        self._refuse_what_is_no_text(options)
        try:
            with audit.acting(None, name):
                return super().execute(*args, **options)
        except MailpoolError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(
                "The database does not answer as expected. Does its server run, and is DATABASES "
                f"right? Has 'migrate' been run? It said: {one_line(str(error)).strip()}"
            ) from error

    def _refuse_what_is_no_text(self, options: dict[str, Any]) -> None:
        """No database takes it: bytes of the command line that are not in its encoding."""
        for name, value in options.items():
            texts = value if isinstance(value, list) else [value]
            if name not in self.paths and any(
                isinstance(text, str) and not is_unicode(text) for text in texts
            ):
                option = f"--{name.replace('_', '-')}"
                raise CommandError(f"{option} is no text: it has bytes that are not UTF-8.")

    def print_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value, indent=2, default=str))

    def print_table(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Columns as wide as their widest cell."""
        cells = [[one_line(str(cell)) for cell in row] for row in (head, *rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        for number, row in enumerate(cells):
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            self.stdout.write("  ".join(padded).rstrip())
            if number == 0:
                self.stdout.write("  ".join("-" * width for width in widths))

    def progress(self, text: str, *, done: bool = False) -> None:
        """One line that is written over, where somebody looks at it."""
        if sys.stderr is not None and sys.stderr.isatty():
            self.stderr.write(f"\r{one_line(text)}\033[K", ending="\n" if done else "")

    def exit_with(self, problems: bool) -> None:
        if problems:
            sys.exit(1)


def add_choice(parser: CommandParser) -> None:
    """Options that choose credentials."""
    parser.add_argument("--tenant", metavar="SLUG", help="By its tenant (slug or key).")
    parser.add_argument("--server", metavar="NAME", help="By its server (name or key).")
    parser.add_argument(
        "--credential", metavar="KEY", help="By its own key, see mailpool_check --json."
    )


def chosen_credentials(options: dict[str, Any]) -> QuerySet[Credential]:
    """The credentials that the options choose, with server, tenant and senders."""
    credentials = Credential.objects.select_related(
        "server", "tenant", "oauth_client"
    ).prefetch_related("senders")
    if options.get("tenant") is not None:
        credentials = credentials.filter(tenant=find_tenant(options["tenant"]))
    if options.get("server") is not None:
        text = options["server"]
        if not text.strip():
            raise CommandError("--server is empty: give a name or a key, or leave the option out.")
        by_key = {"server__pk": text} if _is_uuid(text) else {"server__name": text}
        credentials = credentials.filter(**by_key)
        if not MailServer.objects.filter(**{"pk" if _is_uuid(text) else "name": text}).exists():
            raise CommandError(f"There is no mail server {text!r}: give its name or its key.")
    if options.get("credential") is not None:
        text = options["credential"]
        if not _is_uuid(text) or not Credential.objects.filter(pk=text).exists():
            raise CommandError(
                f"There is no credential with the key {text!r}. A credential's key is in the "
                "address of its page in the admin, and in what mailpool_check --json prints."
            )
        if not credentials.filter(pk=text).exists():
            raise CommandError(
                f"The credential {text!r} is not among those that --tenant and --server choose."
            )
        credentials = credentials.filter(pk=text)
    return credentials


def find_tenant(text: str) -> Any:
    """A tenant by its slug or primary key; ``CommandError`` where there is none.

    An empty text is an error, not the site: it may come from a variable that is not set.
    """
    if not text.strip():
        raise CommandError("--tenant is empty: give a slug or a key, or leave the option out.")
    manager = apps.get_model(conf.tenant_model())._default_manager
    for lookup in ({conf.get("TENANT_SLUG_FIELD"): text}, {"pk": text}):
        try:
            found = manager.filter(**lookup).first()
        except (ValidationError, ValueError, TypeError):
            continue
        if found is not None:
            return found
    raise CommandError(f"There is no tenant {text!r}: give its slug or its key.")


def name_of(credential: Credential) -> str:
    """The credential with its tenant, as a text for terminals."""
    return one_line(f"{tenant_name(credential)}, {credential}")


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def tenant_name(credential: Credential) -> str:
    """The tenant for a table: its slug, or ``(site)``."""
    if credential.tenant is None:
        return "(site)"
    return str(getattr(credential.tenant, conf.get("TENANT_SLUG_FIELD"), credential.tenant))
