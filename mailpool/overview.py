"""The connections of all processes, for the Connections page and ``mailpool_status``.

What a process told last, with what is known to have become of it since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from django.db.models import Q
from django.utils import timezone

from mailpool import delivery, process, reporting
from mailpool.models import Credential, MailServer, SendingProcess
from mailpool.reporting import Account

State = Literal["own", "running", "silent", "gone"]

# Seconds. A process of another machine that is silent for longer has ended, or nothing to send.
SILENT_AFTER = 60.0

MAX_PROCESSES = 500
MAX_SERVERS = 100


@dataclass(slots=True)
class Process:
    """One process. ``own`` is the one that looks, and told as it is now."""

    host: str
    pid: int
    command: str
    state: State
    started_at: datetime
    seen: float
    """Seconds ago."""

    waiting: int
    opened: int
    reused: int
    closed: int
    failed: int
    accounts: list[Account] = field(default_factory=list)

    @property
    def is_gone(self) -> bool:
        return self.state == "gone"

    @property
    def open(self) -> int:
        return sum(each.idle + each.busy for each in self.accounts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "open": self.open}


@dataclass(slots=True)
class ServerUse:
    """What all processes have open to one server."""

    server: MailServer
    idle: int = 0
    busy: int = 0
    waiting: int = 0
    processes: int = 0
    outdated: int = 0
    """Of an earlier generation: nobody uses them again."""


def processes() -> list[Process]:
    """This process and the others, those that were heard of last first; at most so many."""
    now = timezone.now()
    rows = SendingProcess.objects.filter(seen_at__gte=now - reporting.KEEP)
    others = rows.exclude(pk=reporting.own_key()).order_by("-seen_at", "pk")
    return [_own(), *(_process(row, now) for row in others[:MAX_PROCESSES])]


def _own() -> Process:
    stats = delivery.stats()
    return Process(
        host=process.HOST,
        pid=stats.pid,
        command=process.command(),
        state="own",
        started_at=process.started_at(),
        seen=0.0,
        waiting=stats.waiting,
        opened=stats.opened,
        reused=stats.reused,
        closed=stats.closed,
        failed=stats.failed,
        accounts=reporting.accounts_of(stats),
    )


def _process(row: SendingProcess, now: datetime) -> Process:
    seen = max(0.0, (now - row.seen_at).total_seconds())
    state = _state(row, seen)
    accounts = [] if state == "gone" else _left(reporting.from_json(row.accounts), seen)
    return Process(
        host=row.host,
        pid=row.pid,
        command=row.command,
        state=state,
        started_at=row.started_at,
        seen=seen,
        waiting=0 if state == "gone" else row.waiting,
        opened=row.opened,
        reused=row.reused,
        closed=row.closed,
        failed=row.failed,
        accounts=accounts,
    )


def _state(row: SendingProcess, seen: float) -> State:
    if row.machine and row.machine == process.machine():
        return "running" if process.is_running(row.pid, row.birth) else "gone"
    return "running" if seen <= SILENT_AFTER else "silent"


def _left(accounts: Iterable[Account], seconds: float) -> list[Account]:
    """What is left of them so many seconds later, if the process sent nothing meanwhile."""
    later = [
        replace(
            each,
            age=each.age + seconds,
            idle=each.idle if each.closes_in > seconds else 0,
            closes_in=max(0.0, each.closes_in - seconds),
        )
        for each in accounts
    ]
    return [each for each in later if each.idle or each.busy or each.waiting]


def servers(found: Sequence[Process]) -> list[ServerUse]:
    """The servers that *found* have connections to, and those that are paused; by name."""
    uses: dict[str, list[Account]] = {}
    users: dict[str, int] = {}
    for each in found:
        for account in each.accounts:
            if account.server_id:
                uses.setdefault(account.server_id, []).append(account)
        for server_id in {account.server_id for account in each.accounts}:
            users[server_id] = users.get(server_id, 0) + 1
    most = sorted(uses, key=lambda server_id: -len(uses[server_id]))[:MAX_SERVERS]
    rows = MailServer.objects.filter(Q(pk__in=most) | Q(paused_until__gt=timezone.now()))
    return [
        _use(server, uses.get(str(server.pk), []), users.get(str(server.pk), 0))
        for server in rows.order_by("name")[: 2 * MAX_SERVERS]
    ]


def _use(server: MailServer, accounts: Sequence[Account], users: int) -> ServerUse:
    return ServerUse(
        server,
        idle=sum(each.idle for each in accounts),
        busy=sum(each.busy for each in accounts),
        waiting=sum(each.waiting for each in accounts),
        processes=users,
        outdated=sum(
            each.idle + each.busy for each in accounts if each.generation < server.generation
        ),
    )


def owners(found: Iterable[Process]) -> dict[str, Credential]:
    """The credentials of their connections, by key as text; those that are there still."""
    keys = {account.credential_id for each in found for account in each.accounts}
    rows = Credential.objects.select_related("tenant", "server").in_bulk(sorted(filter(None, keys)))
    return {str(pk): credential for pk, credential in rows.items()}
