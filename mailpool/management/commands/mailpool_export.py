"""``mailpool_export``: tenants, servers and accounts as a CSV or JSON file."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from mailpool import transfer
from mailpool.management.base import EXIT_STATUS, MailpoolCommand
from mailpool.transfer.files import FORMATS
from mailpool.transfer.sealing import read_public_key, write_new


class Command(MailpoolCommand):
    help = (
        "Write all tenants, mail servers, accounts and senders as CSV or JSON, for "
        "mailpool_import. Without secrets, unless there is a public key to seal them for: the "
        "receiving site makes it with mailpool_generate_key --transfer. " + EXIT_STATUS
    )

    paths = ("output", "public_key")
    escapes = False  # another file would read the escape as a name

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=FORMATS, help="Without it: by the name, else csv.")
        parser.add_argument(
            "--output",
            default="-",
            metavar="FILE",
            help="A new file, which its owner alone may read; - is standard output (the default).",
        )
        parser.add_argument(
            "--with-secrets",
            action="store_true",
            help="With passwords and private keys, sealed. Needs --public-key.",
        )
        parser.add_argument("--public-key", metavar="FILE", help="Whom they are sealed for.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["with_secrets"] != bool(options["public_key"]):
            raise CommandError(
                "--with-secrets and --public-key go together: secrets are never written in clear "
                "text. The receiving site makes the key: mailpool_generate_key --transfer FILE."
            )
        key = read_public_key(options["public_key"]) if options["public_key"] else None
        output = options["output"]
        format = options["format"] or ("json" if output.endswith(".json") else "csv")
        unreadable: list[str] = []
        rows = transfer.export_rows(
            key,
            unreadable=unreadable,
            progress=lambda done, total: self.progress(f"{done} of {total} accounts"),
        )
        self.progress("", done=True)
        text = transfer.write(rows, format)
        if output == "-":
            self.stdout.write(text, ending="")
        else:
            try:
                write_new(output, text.encode())
            except FileExistsError:
                raise CommandError(f"{output} exists already. Choose another name.") from None
            except OSError as error:
                raise CommandError(f"{output} can't be written: {error.strerror}.") from None
            self.stdout.write(f"{len(rows)} rows written to {output}.")
        for place in unreadable:
            self.stderr.write(f"Left out, since it does not open: {place}")
        self.exit_with(bool(unreadable))
