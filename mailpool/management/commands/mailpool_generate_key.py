"""``mailpool_generate_key``: a new encryption key."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from mailpool.conf import KEYS_VARIABLE
from mailpool.vault import generate_key


class Command(BaseCommand):
    help = (
        "Print a new encryption key. The key alone goes to standard output, so it can be piped "
        "into a file or a secret manager."
    )
    requires_system_checks: list[str] = []  # the missing key is what the checks would report

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(generate_key())
        if sys.stderr.isatty():
            self.stderr.write(
                f"Put it in front of the keys in {KEYS_VARIABLE} (or ENCRYPTION_KEYS), keep the "
                "older ones, and run mailpool_rotate_keys. Whoever has it can read all passwords: "
                "keep it apart from the database's backups."
            )
