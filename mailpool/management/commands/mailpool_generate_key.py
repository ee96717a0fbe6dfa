"""``mailpool_generate_key``: a new encryption key, or a pair for secrets that travel."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from mailpool.conf import KEYS_VARIABLE
from mailpool.exceptions import SecretError
from mailpool.management.terminal import TerminalCommand
from mailpool.vault import generate_key


class Command(TerminalCommand):
    help = (
        "Print a new encryption key. The key alone goes to standard output, so it can be piped "
        "into a file or a secret manager."
    )
    requires_system_checks: list[str] = []  # the missing key is what the checks would report

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--transfer",
            metavar="FILE",
            help="Instead, a pair of keys for mailpool_export --with-secrets: the private key into "
            "FILE, for its owner alone, and the public one into FILE.pub.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["transfer"]:
            self._make_pair(options["transfer"])
            return
        self.stdout.write(generate_key())
        if sys.stderr is not None and sys.stderr.isatty():
            self.stderr.write(
                f"Put it in front of the keys in {KEYS_VARIABLE} (or ENCRYPTION_KEYS), keep the "
                "older ones, and run mailpool_rotate_keys. Whoever has it can read all passwords: "
                "keep it apart from the database's backups."
            )

    def _make_pair(self, path: str) -> None:
        from mailpool.transfer.sealing import make_pair  # needs the models; a lone key does not

        try:
            public = make_pair(path)
        except SecretError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(
            f"Give {public} to the site that exports. {path} opens what is sealed with it: keep it "
            "here, and delete it after the import."
        )
