"""``mailpool_status``: keys, accounts and the connections of all processes."""

from __future__ import annotations

import json
import time
from argparse import ArgumentTypeError
from typing import Any

from django.apps import apps
from django.core.management.base import CommandParser
from django.db import close_old_connections
from django.utils import timezone

from mailpool import conf, delivery, marker, overview, ownership, rotation
from mailpool.management.base import EXIT_STATUS, MailpoolCommand, tenant_name
from mailpool.management.terminal import write_nowhere
from mailpool.models import Credential, MailServer
from mailpool.moments import plain_moment
from mailpool.vault import get_keyring

MOST_SENDERS = 20  # that are named


class Command(MailpoolCommand):
    help = (
        "Show which encryption keys are in use, how many accounts there are, what does not open, "
        "and the connections of all processes. " + EXIT_STATUS
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="The same, for a machine.")
        parser.add_argument(
            "--watch",
            nargs="?",
            const=2.0,
            type=_seconds,
            metavar="SECONDS",
            help="The connections alone, again and again (every 2 seconds), until Ctrl-C.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["watch"] is not None:
            self._watch(options["watch"], as_json=options["json"])
            return
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
        self.stdout.write("")
        self._print_connections(overview.processes())

    def _print_connections(self, processes: list[overview.Process]) -> None:
        owners = overview.owners(processes)
        shown = [each for each in processes if each.state != "own" or each.open]
        rows: list[tuple[Any, ...]] = []
        for each in shown:
            who = f"{each.command or 'python'} {each.pid} @ {each.host}"
            for account in each.accounts:
                credential = owners.get(account.credential_id)
                rows.append(
                    (
                        who,
                        _state(each),
                        tenant_name(credential) if credential else "(deleted)",
                        credential.login_name if credential else "",
                        account.address,
                        account.idle,
                        account.busy,
                        account.waiting,
                        account.reused,
                        f"{account.age:.0f} s",
                    )
                )
            if not each.accounts:
                rows.append((who, _state(each), *["-"] * 8))
        self.stdout.write("Connections of all processes")
        head = ("Process", "State", "Tenant", "Account", "Server")
        self.print_table((*head, "Idle", "In use", "Waiting", "Reused", "Age"), rows)
        if not rows:
            self.stdout.write("None: no process has sent within the last hour.")
        for use in overview.servers(processes):
            if use.server.is_paused:
                self.stdout.write(f"\n“{use.server}” is paused until {use.server.paused_text}.")
            if use.outdated:
                self.stdout.write(
                    f"\n“{use.server}”: {use.outdated} of them were reset, and close when their "
                    "process next uses it."
                )

    def _watch(self, seconds: float, *, as_json: bool) -> None:
        """Until Ctrl-C, or until nobody reads it any more. On a terminal in its place."""
        try:
            while True:
                if as_json:
                    self.stdout.write(json.dumps(_connections(), default=str))
                else:
                    if self.stdout.isatty():
                        self.stdout.write("\033[H\033[2J", ending="")
                    self.stdout.write(plain_moment(timezone.now(), seconds=True))
                    self._print_connections(overview.processes())
                    self.stdout.write("")
                self.stdout.flush()
                close_old_connections()
                time.sleep(seconds)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            write_nowhere()

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
        **_connections(),
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


def _connections() -> dict[str, Any]:
    processes = overview.processes()
    return {
        "processes": [each.as_dict() for each in processes],
        "servers": [
            {
                "server": str(use.server.pk),
                "name": use.server.name,
                "paused_until": use.server.paused_until if use.server.is_paused else None,
                "idle": use.idle,
                "busy": use.busy,
                "waiting": use.waiting,
                "outdated": use.outdated,
            }
            for use in overview.servers(processes)
        ],
    }


def _state(process: overview.Process) -> str:
    ago = f"{process.seen:.0f} s"
    return {
        "own": "this one",
        "running": f"running, told {ago} ago",
        "silent": f"not heard of for {ago}",
        "gone": f"gone, told {ago} ago",
    }[process.state]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 86400:
        raise ArgumentTypeError("give a number of seconds from 0.1 to 86400.")
    return seconds


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
