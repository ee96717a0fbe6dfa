"""Whether this process can send mail: for load balancers, Kubernetes and monitors.

A *failure* is what keeps all mail from being sent: no keys or others than the stored passwords
are under, no database, no room in the pool.
What concerns single accounts is a *warning* and no more: a tenant's wrong password must not take
a process out of service.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from django.db import Error, transaction
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from mailpool import conf, delivery, marker, ownership
from mailpool.exceptions import MailpoolError, SecretError
from mailpool.models import Credential
from mailpool.rotation import key_id_of
from mailpool.vault import Sealed, get_keyring

State = Literal["ok", "warning", "failing"]

# Seconds. So long an answer is given again, however many ask.
KEEP = 5.0
# And so long while the next one is not there: a database that hangs is none.
PATIENCE = 20.0

# So many credentials' secrets are opened at each look.
TRIED = 10

_SECRETS = ("password", "refresh_token", "client_key")

PERMISSION = "mailpool.view_credential"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. *about* is for people who may know it."""

    state: State
    about: dict[str, Any] = field(default_factory=dict)


Report = dict[str, Finding]


def check() -> Report:
    """Look at everything, now: five queries at the most, and no connection to a mail server."""
    database = _database()
    keys = _keys()
    if keys.state == "ok" and database["database"].state == "ok":
        keys = _fitting(keys)
    return {"keys": keys, "pool": _pool(), **database}


def counts() -> dict[str, int]:
    """Of the database's rows: two queries. Raises Django's database errors."""
    active = Credential.objects.filter(is_active=True)
    found: dict[str, int] = active.aggregate(
        credentials=Count("pk"),
        credentials_needing_attention=Count("pk", filter=Q(needs_attention__gt="")),
    )
    return found | {"senders_unproven": ownership.unproven().count()}


def _keys() -> Finding:
    try:
        count = len(get_keyring().key_ids)
        state: State = "ok" if count else "failing"
        return Finding(state, {"keys": count})
    except SecretError as error:
        return Finding("failing", {"what": str(error)})


def _fitting(keys: Finding) -> Finding:
    """*keys*, if they open what is stored: that is tried with the secrets of some credentials."""
    stored = (
        Credential.objects.filter(is_active=True, server__is_active=True)
        .exclude(password=Sealed(""), refresh_token=Sealed(""), client_key=Sealed(""))
        .select_related("server", "oauth_client")
        .order_by("pk")  # random keys, so the first ones are any
    )
    try:
        opens = [_opens(credential) for credential in stored[:TRIED]]
        # Some encryption keys serve few credentials, of which there may be none among those.
        if all(opens):
            opens += [_opens(credential) for credential in _with_our_keys(stored, False)[:TRIED]]
        elif not any(opens):
            opens += [_opens(credential) for credential in _with_our_keys(stored, True)[:TRIED]]
    except Error:
        return keys  # the database has its own check
    if all(opens):
        return keys
    if any(opens):
        text = (
            "Some stored passwords do not decrypt, and nothing is sent for those accounts. "
            "mailpool_check says which."
        )
        return Finding("warning", {**keys.about, "what": text})
    text = (
        "No stored password decrypts, so no mail that needs one can be sent. The encryption keys "
        "are not those that the passwords were stored with: put the former ones back."
    )
    return Finding("failing", {**keys.about, "what": text})


def _with_our_keys(stored: QuerySet[Credential], wanted: bool) -> QuerySet[Credential]:
    """Those of *stored* whose secrets are all under keys that there are; or the others."""
    keys = {f"{name}_key": key_id_of(name) for name in _SECRETS}
    ours = Q(**{f"{name}__in": ["", *get_keyring().key_ids] for name in keys})
    return stored.order_by().alias(**keys).filter(ours if wanted else ~ours)


def _opens(credential: Credential) -> bool:
    try:
        for name in _SECRETS:
            getattr(credential, name)
    except SecretError:
        return False
    return True


def _pool() -> Finding:
    stats = delivery.stats()
    is_full = stats.open >= stats.max_sessions and not stats.idle
    state: State = "ok"
    if stats.waiting >= stats.max_waiting and (stats.waiting or is_full):
        state = "failing"  # the next one that has to wait fails at once
    elif is_full and stats.waiting:
        state = "warning"
    names = ("open", "busy", "idle", "max_sessions", "waiting", "max_waiting")
    return Finding(state, {name: getattr(stats, name) for name in names})


def _database() -> Report:
    try:
        marker.require_own()
        found = counts()
    except Error as error:
        # Its kind alone: the text names host and user.
        text = f"The database does not answer as expected: {type(error).__name__}."
        return {"database": Finding("failing", {"what": text})}
    except MailpoolError as error:
        return {"database": Finding("failing", {"what": str(error)})}
    needed = found["credentials_needing_attention"] or found["senders_unproven"]
    return {"database": Finding("ok"), "accounts": Finding("warning" if needed else "ok", found)}


class Keeper:
    """Gives the last report again for a moment, so that who asks often costs nothing."""

    def __init__(
        self, look: Callable[[], Report] = check, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begin anew; also in a forked child, where whoever was looking stayed behind."""
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._at = 0.0

    def report(self) -> Report:
        """The report, ``KEEP`` seconds old at the most; while somebody looks, ``PATIENCE``."""
        # One looks, and the others take what there was, if it is not too old by now.
        report = self._younger_than(PATIENCE)
        if self._lock.acquire(timeout=0 if report else PATIENCE):
            try:
                if fresh := self._younger_than(KEEP):
                    return fresh
                report = self._look()
                self._at, self._report = self._clock(), report
            finally:
                self._lock.release()
        return report or {"database": Finding("failing", {"what": "The last look has no end."})}

    def _younger_than(self, seconds: float) -> Report | None:
        return self._report if self._clock() - self._at < seconds else None


keeper = Keeper()
os.register_at_fork(after_in_child=keeper.forget)


# Where ATOMIC_REQUESTS is on, a database that does not answer would end the request ahead of this.
@transaction.non_atomic_requests
@never_cache
@require_safe
def view(request: HttpRequest) -> HttpResponse:
    """200, or 503 where a check is failing, as JSON; details for those who may know them."""
    report = keeper.report()
    failing = [name for name, found in report.items() if found.state == "failing"]
    if _may_know(request):
        answer: dict[str, Any] = {"status": _worst(report)}
        answer["checks"] = {
            name: {"status": found.state, **found.about} for name, found in report.items()
        }
    else:
        answer = {
            "status": "failing" if failing else "ok",
            "checks": {
                name: "failing" if name in failing else "ok"
                for name in report
                if name != "accounts"
            },
        }
    return JsonResponse(answer, status=503 if failing else 200)


def _worst(report: Report) -> State:
    states: tuple[State, ...] = ("failing", "warning")
    return next((each for each in states if any(f.state == each for f in report.values())), "ok")


def _may_know(request: HttpRequest) -> bool:
    token = conf.health_token()
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if token and scheme.lower() == "bearer" and constant_time_compare(given.strip(), token):
        return True
    try:
        return bool(request.user.has_perm(PERMISSION))
    except Exception:  # nobody is signed in where there are no users, or no database to know them
        return False
