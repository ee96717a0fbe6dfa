"""``mailpool_status``: keys, accounts and this process's connections."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import CommandParser

from mailpool import conf, delivery, marker, ownership, rotation
from mailpool.management.base import EXIT_STATUS, MailpoolCommand, tenant_name
from mailpool.models import Credential, MailServer
from mailpool.vault import get_keyring

MOST_SENDERS = 20  # that are named


class Command(MailpoolCommand):
    help = (
        "Show which encryption keys are in use, how many accounts there are, and what does not "
        "open. " + EXIT_STATUS
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="The same, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        status = _status()
        if options["json"]:
            self.print_json(status)
        else:
            self._print(status)
        self.exit_with(
            bool(status["unreadable"] or not status["keys"])
            or marker.is_foreign(status["site"]["database_belongs_to"])
        )

    def _print(self, status: dict[str, Any]) -> None:
        self.stdout.write("Encryption keys, newest first")
        self.print_table(
            ("Key", "Secrets", ""),
            [(key["id"], key["secrets"], _advice(key)) for key in status["keys"]],
        )
        if not status["keys"]:
            self.stdout.write("None: make one with mailpool_generate_key.")
        self.stdout.write("")
        self.print_table(
            ("", "Active", "All"),
            [(name, count["active"], count["all"]) for name, count in status["rows"].items()],
        )
        for place in status["unreadable"]:
            self.stdout.write(f"\nDoes not open: {place}. Enter it again, or put its key back.")
        self._print_senders(**status["unproven_senders"])
        found = status["site"]["database_belongs_to"]
        if marker.is_foreign(found):
            self.stdout.write(f"\n{marker.describe(found)}\n{marker.advice()}")
        elif status["site"]["name"]:
            self.stdout.write(
                f"\nThis site is “{status['site']['name']}”, and the database "
                + ("is its own." if found else "has no marker: run migrate.")
            )

    def _print_senders(self, count: int, first: list[dict[str, str]]) -> None:
        if not count:
            return
        self.stdout.write(
            f"\nSenders that are not proven, so that nothing is sent as them: {count}"
        )
        self.print_table(
            ("Sender", "Tenant", "Account"),
            [(each["address"], each["tenant"], each["account"]) for each in first],
        )
        if count > len(first):
            self.stdout.write(f"… and {count - len(first)} more.")
        self.stdout.write(
            "Their tenants prove them on their own pages, by an emailed code or by DNS. Those that "
            "you know to be right, confirm in the admin under Senders."
        )


def _status() -> dict[str, Any]:
    usage = rotation.key_usage()
    keyring = get_keyring(*usage)
    tenants = apps.get_model(conf.tenant_model())
    return {
        "keys": [
            {
                "id": key,
                "secrets": usage.pop(key, 0),
                "newest": number == 0,
                "configured": True,
            }
            for number, key in enumerate(keyring.key_ids)
        ]
        + [
            {"id": key or "(none)", "secrets": count, "newest": False, "configured": False}
            for key, count in sorted(usage.items())
        ],
        "rows": {
            "tenants": _count(tenants),
            "mail servers": _count(MailServer),
            "credentials": _count(Credential),
        },
        "unreadable": rotation.unreadable(),
        "unproven_senders": _unproven_senders(),
        "site": {"name": marker.own(), "database_belongs_to": marker.read()},
        "pool": delivery.stats().as_dict(),
    }


def _unproven_senders() -> dict[str, Any]:
    found = ownership.unproven()
    accounts = found.select_related("credential__server", "credential__tenant")
    return {
        "count": found.count(),
        "first": [
            {
                "address": sender.address,
                "tenant": tenant_name(sender.credential),
                "account": str(sender.credential),
            }
            for sender in accounts[:MOST_SENDERS]
        ],
    }


def _count(model: Any) -> dict[str, int]:
    rows = model._default_manager
    has_switch = any(found.name == "is_active" for found in model._meta.concrete_fields)
    active = rows.filter(is_active=True) if has_switch else rows.all()
    return {"active": active.count(), "all": rows.count()}


def _advice(key: dict[str, Any]) -> str:
    if not key["configured"]:
        return "not configured: put it back"
    if key["newest"]:
        return "encrypts"
    return "may be removed" if not key["secrets"] else "run mailpool_rotate_keys"
