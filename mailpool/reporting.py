"""Each process tells the database what its pool is doing, for the Connections page.

After a send, and seldom: once in ten seconds, and sooner only where connections were opened that
nobody has heard of. It is a row of the process's own, and no send waits for another one's. What
goes wrong here is logged, and never a send's failure.

A process that sends no more tells nothing more. No thread does it in its place: what is idle is
closed after its idle timeout, so what was told last says enough.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any

from django.db import connections, router, transaction
from django.utils import timezone

from mailpool import conf, process
from mailpool.events import event, tell
from mailpool.models import SendingProcess
from mailpool.smtp import PoolStats, SessionInfo, SessionPool

logger = logging.getLogger("mailpool")

EVERY = 10.0  # seconds from one report to the next
SOONER_AT_MOST = 10  # in that time, when connections were opened
MAX_ACCOUNTS = 100  # told in a row; the others are only counted
# The longest idle timeout: who was not heard of for so long has no idle connection left.
KEEP = timedelta(hours=1)
KEEP_GONE = timedelta(minutes=5)  # of this machine, where one can see that they are gone
LEAVING = 2.0  # seconds that the end of a process may wait for the database
CLEAN_UP_AT_MOST = 500  # rows of each kind, whenever a process tells of itself for the first time


@dataclass(frozen=True, slots=True)
class Account:
    """The connections of one credential to one server in one process. Times are seconds."""

    credential_id: str
    server_id: str
    generation: int
    address: str
    idle: int = 0
    busy: int = 0
    """In use, or being opened or closed."""

    waiting: int = 0
    messages: int = 0
    reused: int = 0
    age: float = 0.0
    """Of the oldest."""

    closes_in: float = 0.0
    """When the last idle one is closed, if nobody takes it."""


def accounts_of(stats: PoolStats) -> list[Account]:
    """*stats* by account, those with most connections first."""
    waiting = dict(stats.waiting_for)
    ordered = sorted(stats.sessions, key=_account_key)
    accounts = [
        _account(list(group), waiting.pop(key[0], 0))
        for key, group in groupby(ordered, _account_key)
    ]
    accounts += [Account(credential, "", 0, "", waiting=n) for credential, n in waiting.items()]
    return sorted(accounts, key=lambda each: -(each.idle + each.busy + each.waiting))


def _account_key(info: SessionInfo) -> tuple[str, str, int, str]:
    return info.credential_id, info.server_id, info.generation, info.address


def _account(sessions: list[SessionInfo], waiting: int) -> Account:
    idle = sum(info.state == "idle" for info in sessions)
    return Account(
        *_account_key(sessions[0]),
        idle=idle,
        busy=len(sessions) - idle,
        waiting=waiting,
        messages=sum(info.messages for info in sessions),
        reused=sum(info.reused for info in sessions),
        age=round(max(info.age for info in sessions), 1),
        closes_in=round(max(info.closes_in for info in sessions), 1),
    )


class Reporter:
    """What one process tells of itself. A forked child has one of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.key = uuid.uuid4()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._due = 0.0
        self._sooner = 0
        self._opened = 0
        self._using = self._database = ""  # where the row is

    def is_due(self, opened: int) -> bool:
        """Whether to report, after *opened* connections in all; if so, not again for a while."""
        now = time.monotonic()
        if now < self._due and (opened == self._opened or self._sooner >= SOONER_AT_MOST):
            return False
        with self._lock:
            if now >= self._due:
                self._due, self._sooner = now + EVERY, 0
            elif opened == self._opened:  # another thread was first
                return False
            else:
                self._sooner += 1
            self._opened = opened
        return True

    def write(self, pool: SessionPool, using: str) -> None:
        """Update the row, or make it. Never raises."""
        if self.pid != os.getpid() or not self._writing.acquire(blocking=False):
            return  # another thread is at it
        try:
            stats = pool.stats()
            accounts = [_as_json(account) for account in accounts_of(stats)[:MAX_ACCOUNTS]]
            values = {
                "seen_at": timezone.now(),
                "waiting": stats.waiting,
                "opened": stats.opened,
                "reused": stats.reused,
                "closed": stats.closed,
                "failed": stats.failed,
                "accounts": accounts,
            }
            rows = SendingProcess.objects.using(using)
            if not rows.filter(pk=self.key).update(**values):
                self._introduce(using, values)
        except Exception as error:
            _log(error)
        finally:
            self._writing.release()

    def _introduce(self, using: str, values: dict[str, Any]) -> None:
        """For the first time, or after somebody has taken the row away."""
        SendingProcess.objects.using(using).create(
            pk=self.key,
            host=process.HOST,
            pid=self.pid,
            command=process.command(),
            machine=process.machine(),
            birth=process.birth(self.pid),
            started_at=process.started_at(),
            **values,
        )
        self._using, self._database = using, _name_of(using)
        atexit.unregister(self.leave)
        atexit.register(self.leave)
        clean_up(using)

    def leave(self) -> None:
        """At the end of the process: remove the row. Never raises, and takes ``LEAVING`` at most.

        On a connection of its own: Django has closed that of a request or a command by now.
        """
        if self.pid != os.getpid():
            return  # a child; the row is its parent's
        thread = threading.Thread(target=self._remove, name="mailpool-leaving", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # Python 3.12.0 to 3.12.2 can't at their end
        thread.join(LEAVING)

    def _remove(self) -> None:
        try:
            if _name_of(self._using) == self._database:  # and not a test's, which is no more
                try:
                    SendingProcess.objects.using(self._using).filter(pk=self.key).delete()
                finally:
                    connections.close_all()  # this thread's
        except Exception as error:
            logger.debug(
                "The row of this process is left behind: %s",
                error,
                extra=event("mailpool.connections_not_reported", error=error),
            )


def _name_of(using: str) -> str:
    return str(connections.settings[using]["NAME"])


def report(pool: SessionPool) -> None:
    """Tell the database what *pool* is doing, if that is due. Never raises.

    Inside a transaction of the caller's it is told once that is committed: so a statement that
    fails can't break the transaction, and no lock is held until its end.
    """
    opened = pool.opened
    if not opened:
        return  # nothing was ever sent from here
    reporter = _own()
    if not reporter.is_due(opened) or not conf.get("REPORT_CONNECTIONS"):
        return
    try:
        using = router.db_for_write(SendingProcess)
        connection = transaction.get_connection(using)
        if connection.in_atomic_block or connection.get_autocommit():
            transaction.on_commit(partial(reporter.write, pool, using), using=using, robust=True)
    except Exception as error:
        _log(error)


def clean_up(using: str) -> None:
    """Remove rows of processes that have ended or were not heard of; some, if there are many."""
    now = timezone.now()
    rows = SendingProcess.objects.using(using).order_by("seen_at")
    old = rows.filter(seen_at__lt=now - KEEP)
    keys = list(old.values_list("pk", flat=True)[:CLEAN_UP_AT_MOST])
    near = rows.filter(seen_at__lt=now - KEEP_GONE, machine=process.machine()).exclude(machine="")
    for key, pid, birth in near.values_list("pk", "pid", "birth")[:CLEAN_UP_AT_MOST]:
        if not process.is_running(pid, birth):
            keys.append(key)
    if keys:
        # None that was heard of meanwhile.
        rows.filter(pk__in=keys, seen_at__lt=now - KEEP_GONE).delete()


_reporter = Reporter()


def _own() -> Reporter:
    """That of this process."""
    global _reporter
    if _reporter.pid != os.getpid():
        _reporter = Reporter()
    return _reporter


def own_key() -> uuid.UUID:
    """The key of this process's row, if it has one."""
    return _own().key


def _as_json(account: Account) -> dict[str, Any]:
    return {name: getattr(account, name) for name in Account.__slots__}


def from_json(accounts: Any) -> list[Account]:
    """What a row holds. A later version's may say more and an earlier one's less; what no version
    would have written is left out, so that the page is there whoever wrote into the table."""
    found = [_read(each) for each in (accounts if isinstance(accounts, list) else ())]
    return [account for account in found if account is not None]


def _read(account: Any) -> Account | None:
    if not isinstance(account, dict):
        return None
    known = {name: value for name, value in account.items() if name in Account.__slots__}
    try:
        known["credential_id"] = str(uuid.UUID(known["credential_id"]))
        known["server_id"] = known["server_id"] and str(uuid.UUID(known["server_id"]))
        made = Account(**known)
    except (TypeError, ValueError, AttributeError, KeyError):
        return None
    numbers = (made.generation, made.idle, made.busy, made.waiting, made.messages, made.reused)
    times = (made.age, made.closes_in)
    is_sound = (
        isinstance(made.address, str)
        and all(type(each) is int and 0 <= each < 2**31 for each in numbers)
        and all(type(each) in (int, float) and 0 <= each < 2**31 for each in times)
    )
    return made if is_sound else None


def _log(error: Exception) -> None:
    tell(
        lambda: logger.warning(
            "This process could not report its connections; sending goes on (%s: %s).",
            type(error).__name__,
            error,
            extra=event("mailpool.connections_not_reported", error=error),
        )
    )
