"""The way of a message: resolve (database reads), transmit (network), record (database writes).

Each stage is whole before the next one starts, so no connection is held while the database
works, and no database error can pass for a mail failure. Messages are rendered while those
before them are on their way.
"""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from smtplib import SMTPAuthenticationError
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.utils import DNS_NAME
from django.core.signals import setting_changed
from django.dispatch import Signal
from django.utils.translation import gettext as _

from mailpool import conf, marker, recording, reporting, signals
from mailpool.events import tell
from mailpool.exceptions import MailpoolError, PoolTimeout, SecretError
from mailpool.models import Credential, MailServer
from mailpool.oauth import tokens
from mailpool.outcomes import MailpoolResult, log_result, make_result
from mailpool.rendering import render
from mailpool.routing import require_own_server, require_running, slug_of
from mailpool.smtp import Attempt, PoolStats, Session, SessionParams, SessionPool, Transmitter

# What is rendered at a time: a batch of any size needs the memory of so much.
WINDOW_MESSAGES = 1000
WINDOW_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Job:
    """One message on its way through the stages."""

    message: EmailMessage
    credential: Credential | None = None
    server: str = ""
    tenant: str = ""
    owner: Any = None
    """The tenant, where it is known and none of its credentials was chosen."""

    params: SessionParams | None = None
    attempt: Attempt | None = None
    error: Exception | None = None
    """Why there is nothing to transmit."""

    outcome: MailpoolResult | None = None
    trace: recording.Trace | None = None
    """What its record is still to be made from."""

    @property
    def is_waiting(self) -> bool:
        return self.attempt is None and self.error is None and self.outcome is None

    @property
    def is_refused_token(self) -> bool:
        """Whether it was not even handed over, since the server wants another access token."""
        error = self.attempt.error if self.attempt else None
        return (
            self.params is not None
            and self.params.auth == "bearer"
            and isinstance(error, SMTPAuthenticationError)
            and not (self.attempt and self.attempt.handed_over)
            and 500 <= error.smtp_code < 600
        )

    def render(self) -> Attempt | None:
        """Its bytes, on their way from now on; ``None`` where they can't be made."""
        assert self.credential is not None
        try:
            self.attempt = Attempt(render(self.message, self.credential))
        except Exception as error:
            self.error = error
        return self.attempt


@dataclass(frozen=True, slots=True)
class Terms:
    """What the caller of a batch asks for."""

    deadline: float | None = None
    """Monotonic, seconds: nothing takes longer."""

    keep_order: bool = True
    """Whether the messages of a credential leave in their order, so over one connection."""


Route = Callable[[EmailMessage], Credential]
Transmit = Callable[[Sequence[Job], Transmitter, Terms], None]


def deliver(
    messages: Sequence[EmailMessage],
    route: Route,
    *,
    transmit: Transmit | None = None,
    block: Transmitter | None = None,
    deadline: float | None = None,
    keep_order: bool | None = None,
) -> list[MailpoolResult]:
    """Send *messages*, and report of each what became of it, in the same order.

    *route* chooses the credential of a message, as ``Router.resolve`` does. No failure of one
    message keeps another one back, and nothing is raised for one. *block* is the transmitter of
    a ``with connection:`` block, which keeps its sessions when this returns.

    *deadline* (seconds from now) bounds all of it: what was not begun by then fails. Different
    credentials send at the same time; without *keep_order* one credential's messages do as well.
    ``None`` for either: as ``MAILPOOL`` has it.
    """
    terms = _terms(deadline, keep_order)
    transmit = transmit or transmit_jobs
    transmitter = block or Transmitter(get_pool())
    jobs = [Job(message) for message in messages]
    reported = 0
    try:
        while window := jobs[reported : reported + WINDOW_MESSAGES]:
            try:
                resolve(window, route, terms.deadline)
                _transmit_all(window, transmit, transmitter, terms)
            finally:
                settle(window)
                if block is None and reported + len(window) == len(jobs):
                    transmitter.release()  # before anybody hears of it
                write_records(window)
                for job in window:
                    reported += 1
                    report(job)
    except BaseException:
        if block is None:
            transmitter.release()
        # Ctrl-C, or a time limit of a task queue: what it kept back is not lost in silence.
        late = jobs[reported:]
        settle(late)
        write_records(late)
        for job in late:
            report(job)
        raise
    return [_outcome(job) for job in jobs]


def _transmit_all(
    jobs: Sequence[Job], transmit: Transmit, transmitter: Transmitter, terms: Terms
) -> None:
    """Each that can be sent, in as many parts as *transmit* makes of them."""
    waiting = [job for job in jobs if job.is_waiting]
    renewed: set[Any] = set()
    while waiting:
        transmit(waiting, transmitter, terms)
        is_renewed = _renew_tokens(waiting, renewed, terms.deadline)
        settle(job for job in waiting if not job.is_waiting)
        left = [job for job in waiting if job.is_waiting]
        if len(left) == len(waiting) and not is_renewed:
            return
        waiting = left


def _renew_tokens(jobs: Sequence[Job], renewed: set[Any], deadline: float | None) -> bool:
    """Have messages whose access token was refused wait again, with another one: is there any?

    A token may be revoked before its time, and expires under a long batch when that has to connect
    again. Each credential gets one more token, its key is added to *renewed*, and none of its
    messages had been handed over: the login is what failed.
    """
    refused = [job for job in jobs if job.is_refused_token and _key(job) not in renewed]
    params: dict[Any, SessionParams] = {}
    for job in refused:
        key, credential = _key(job), job.credential
        if key in renewed or credential is None or job.params is None:
            continue
        renewed.add(key)
        if tokens.is_young(credential):
            continue  # the next one would be refused as well
        try:
            token = tokens.access_token(
                credential, refused=job.params.access_token, deadline=deadline
            )
            params[key] = replace(job.params, access_token=token)
        except Exception as error:
            for other in refused:
                if _key(other) == key:
                    other.attempt, other.error = None, error
    for job in jobs:
        if (job.is_waiting or job.is_refused_token) and _key(job) in params:
            job.attempt, job.params = None, params[_key(job)]
    return bool(params)


def _key(job: Job) -> Any:
    return job.credential and job.credential.pk


def _terms(deadline: float | None, keep_order: bool | None) -> Terms:
    seconds = conf.get("DEADLINE") if deadline is None else deadline
    return Terms(
        deadline=None if seconds is None else time.monotonic() + seconds,
        keep_order=conf.get("KEEP_ORDER") if keep_order is None else keep_order,
    )


def resolve(jobs: Sequence[Job], route: Route, deadline: float | None = None) -> None:
    """Credential and connection parameters of each message, or its error: all database reads.

    Access tokens as well, which are got from their provider where they are about to expire.
    """
    params: dict[Any, SessionParams] = {}
    for job in jobs:
        try:
            job.credential = credential = route(job.message)
            job.server, job.tenant = credential.server.label, slug_of(credential.tenant)
            if credential.pk not in params:
                server = credential.server
                get_pool().leave_behind(str(server.pk), server.generation)
                require_running(server)
                params[credential.pk] = session_params(credential, deadline)
            job.params = params[credential.pk]
        except Exception as error:
            job.error = error
            if job.credential is None and isinstance(error, MailpoolError):
                job.owner, job.tenant = error.tenant, slug_of(error.tenant)


def session_params(credential: Credential, deadline: float | None = None) -> SessionParams:
    """How to connect for *credential*: the only way from the database to a connection.

    Raises ``WrongSite`` where the database is another site's, ``NoRoute`` where the server is
    another tenant's, ``SecretError`` where a secret is missing or does not decrypt, and
    ``OAuthError`` where an OAuth 2 provider gives no access token: then no password is tried.
    """
    marker.require_own(credential)
    require_own_server(credential)
    password, key = credential.password, credential.client_key
    if credential.uses_password and not password:
        text = _("No password is stored for %(credential)s. Enter it in the admin.")
        raise SecretError(text % {"credential": credential})
    if bool(credential.client_certificate) != bool(key):
        raise SecretError(
            _(
                "Of the client certificate of %(credential)s and its private key only one is "
                "stored. Enter both in the admin."
            )
            % {"credential": credential}
        )
    if credential.is_oauth:
        login = {
            "auth": "bearer",
            "access_token": tokens.access_token(credential, deadline=deadline),
            "grant": _grant(credential),
        }
    else:
        login = {
            "password": password if credential.uses_password else "",
            "mechanism": credential.mechanism,
        }
    return server_params(
        credential.server,
        credential_id=str(credential.pk),
        username=credential.username,
        client_certificate=credential.client_certificate,
        client_key=key,
        **login,
    )


def _grant(credential: Credential) -> str:
    """What the access tokens of *credential* stand for, whichever of them it is just now."""
    client = credential.oauth_client
    assert client is not None  # or there would be no token
    return " ".join((credential.kind, credential.grant, client.token_url, client.client_id))


def server_params(server: MailServer, **identity: Any) -> SessionParams:
    """How to connect to *server* as *identity*: ``credential_id``, and what it logs in with."""
    return SessionParams(
        server_id=str(server.pk),
        generation=server.generation,
        host=server.host,
        port=server.port,
        security=server.security,  # type: ignore[arg-type]  # its choices are the same words
        server_name=server.label,
        ca_certificate=server.ca_certificate,
        guard=server.guard,
        local_hostname=conf.get("EHLO_HOSTNAME") or DNS_NAME.get_fqdn(),
        timeout=server.timeout,
        connect_timeout=server.connect_timeout,
        data_timeout=server.data_timeout,
        final_timeout=server.final_timeout,
        single_flight=server.single_flight,
        maintain_connection=server.maintain_connection,
        max_connections=server.max_connections,
        idle_timeout=server.idle_timeout,
        max_lifetime=server.max_lifetime,
        max_messages=server.max_messages,
        **identity,
    )


def transmit_jobs(jobs: Sequence[Job], transmitter: Transmitter, terms: Terms) -> None:
    """Send those that wait, all credentials at the same time. No database in here.

    As many as may be in memory; the others still wait then.
    """
    groups: dict[SessionParams, list[Job]] = {}
    for job in jobs:
        if job.params is not None:
            groups.setdefault(job.params, []).append(job)
    width = max(1, conf.get("MAX_PARALLEL"))
    transmitter.transmit_as_made(
        {params: len(group) for params, group in groups.items()},
        _render_all(_in_turns(groups, width), terms.deadline),
        deadline=terms.deadline,
        width=width,
        keep_order=terms.keep_order,
    )


def _in_turns(
    groups: Mapping[SessionParams, Iterable[Job]], width: int
) -> Iterator[tuple[SessionParams, Job]]:
    """The order in which to render: one of each that can send at the same time, in turns."""
    rest = ((params, iter(group)) for params, group in groups.items())
    turns = deque(islice(rest, width))
    while turns:
        params, group = turns.popleft()
        job = next(group, None)
        if job is not None:
            yield params, job
            turns.append((params, group))
        else:
            turns.extend(islice(rest, 1))


def _render_all(
    turns: Iterable[tuple[SessionParams, Job]], deadline: float | None
) -> Iterator[tuple[SessionParams, Attempt | None]]:
    """As many as may be in memory. Nothing of a message that comes too late anyway."""
    size = 0
    for params, job in turns:
        if deadline is not None and time.monotonic() >= deadline:
            job.error = PoolTimeout("The deadline passed before it was the message's turn.")
            yield params, None
            continue
        attempt = job.render()
        yield params, attempt
        size += attempt.envelope.size if attempt else 0
        if size >= WINDOW_BYTES:
            return


def settle(jobs: Iterable[Job]) -> None:
    """Put each message's outcome on it. Nothing of a project's runs in here."""
    for job in jobs:
        # Django's class has no such attribute; it is this backend's own.
        job.message.mailpool_result = _outcome(job)  # type: ignore[attr-defined]
        job.attempt = None  # its bytes are no longer needed


def write_records(jobs: Iterable[Job]) -> None:
    """Write what became of *jobs*: all database writes, and none that anything depends on."""
    entries = []
    for job in jobs:
        if job.trace is not None:
            entries.append(
                recording.Entry(job.message, job.credential, job.owner, job.trace, _outcome(job))
            )
            job.trace = None  # never twice, whatever interrupts
    if entries:
        recording.write(entries)


def report(job: Job) -> None:
    """Log and signal what became of it."""
    outcome = _outcome(job)
    tell(lambda: log_result(job.message, outcome))
    signal = getattr(signals, f"message_{outcome.status}")
    signal.send_robust(sender=MailpoolResult, message=job.message, result=outcome)
    reporting.report(get_pool())


def _outcome(job: Job) -> MailpoolResult:
    if job.outcome is None:
        made = make_result(job.attempt, job.error)
        made.credential_id = str(job.credential.pk) if job.credential else None
        made.server, made.tenant = job.server, job.tenant
        job.trace = recording.trace(job.attempt)
        job.outcome = made  # whole, whatever interrupts
    return job.outcome


# This process's pool


_made: dict[str, SessionPool] = {}


def get_pool() -> SessionPool:
    """The pool of this process, made when it is first needed."""
    pool = _made.get("pool")
    if pool is None:
        made = SessionPool(**_limits(), on_open=_opened, on_close=_closed)
        # In one step: another thread may have been first, and two pools would be twice the limits.
        pool = _made.setdefault("pool", made)
        if pool is made:
            atexit.register(pool.shut_down)
    return pool


def _opened(session: Session) -> None:
    _tell(signals.connection_opened, session)


def _closed(session: Session) -> None:
    _tell(
        signals.connection_closed,
        session,
        messages=session.messages,
        reason=session.closed_because,
    )


def _tell(signal: Signal, session: Session, **more: Any) -> None:
    signal.send_robust(
        sender=SessionPool,
        session_id=session.id,
        credential_id=session.params.credential_id,
        address=session.params.address,
        tls_version=session.tls_version,
        **more,
    )


def _limits() -> dict[str, Any]:
    return {
        "max_sessions": conf.get("MAX_SESSIONS"),
        "max_waiting": conf.get("MAX_WAITING"),
        "timeout": conf.get("POOL_TIMEOUT"),
        "auth_pause": conf.get("AUTH_FAILURE_PAUSE"),
    }


def _apply_limits(*, setting: str, **_: Any) -> None:
    if setting == "MAILPOOL" and _made:
        for name, value in _limits().items():
            setattr(get_pool(), name, value)


setting_changed.connect(_apply_limits, dispatch_uid="mailpool.delivery")


def stats() -> PoolStats:
    """What this process's pool is doing now."""
    return get_pool().stats()


def close_connections(
    *,
    credential: Any = None,
    server: Any = None,
    tenant: Any = None,
    session_id: str | None = None,
) -> int:
    """Close this process's connections of *credential*, *server* or *tenant*, or all of them.

    Each is an instance or its primary key. Idle connections are closed now, busy ones when they
    come back. Returns how many that are.
    """
    pool = get_pool()
    chosen = {"pk": credential, "server": server, "tenant": tenant}
    filters = {
        name: getattr(value, "pk", value) for name, value in chosen.items() if value is not None
    }
    if not filters:
        return pool.close(session_id=session_id)
    if "pk" in filters and len(filters) == 1:
        # The database is not asked: a deleted one has connections all the same.
        ids = {str(Credential._meta.pk.to_python(filters["pk"]))}
    else:
        rows = Credential.objects.filter(**filters)
        ids = {str(pk) for pk in rows.values_list("pk", flat=True)}
    return pool.close(ids, session_id=session_id)
