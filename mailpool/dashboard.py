"""What the dashboard shows: figures of delivery records, and the connections of all processes.

The database does the counting, over the chosen window alone: of summaries where there are any,
and of the records themselves for the rest. No time is computed by a database: the edges of hours
and days are those of the reader's time zone, as keys of records.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import Any, NamedTuple, TypeAlias

from django.db import DatabaseError, router, transaction
from django.db.models import Case, Count, Max, Q, QuerySet, Sum, Value, When
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import delivery, overview, summaries
from mailpool.models import DeliveryRecord, DeliverySummary
from mailpool.models.records import first_key
from mailpool.summaries import PER_DOUBLING

# Servers and tenants that are shown by themselves; the rest is “others”.
TOP = 10

# More records than these are not counted while somebody waits for a page.
MOST_RECORDS = 200_000

# Nor are more than these summed up, or not many more.
SUMMED_AT_ONCE = 100_000

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Span:
    """How far back to look, and in which steps."""

    key: str
    label: str | Promise
    step: timedelta
    count: int

    @property
    def length(self) -> timedelta:
        return self.step * self.count

    def edges(self, now: datetime | None = None) -> list[datetime]:
        """The beginning of each step, in the reader's time zone; the last step is not over."""
        zone = timezone.get_current_timezone()
        now = (now or datetime.now(UTC)).astimezone(zone)
        back = range(self.count - 1, -1, -1)
        if self.step > HOUR:
            days = [now.date() - n * self.step for n in back]
            return [datetime.combine(day, clock(), zone) for day in days]
        begun = timedelta(minutes=now.minute, seconds=now.second, microseconds=now.microsecond)
        # In UTC, where each hour follows the last one; from a full hour of the zone on.
        latest = now.astimezone(UTC) - begun % self.step
        return [(latest - n * self.step).astimezone(zone) for n in back]


SPANS = {
    span.key: span
    for span in (
        Span("1h", _("1 hour"), timedelta(minutes=5), 12),
        Span("24h", _("24 hours"), HOUR, 24),
        Span("7d", _("7 days"), timedelta(days=1), 7),
        Span("30d", _("30 days"), timedelta(days=1), 30),
    )
}


@dataclass(frozen=True, slots=True)
class Step:
    """One hour or day of all mail. Times are milliseconds, ``None`` where nothing was sent."""

    label: str
    messages: int
    failures: int
    sent: int
    reused: int
    """Of those sent."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """The mail of one server or tenant, as a whole and in steps."""

    key: str | None
    """``None`` for mail that never came to have one, and for the others together."""

    name: str
    messages: int
    failures: int
    steps: tuple[int, ...]
    failed_steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was sent within a span."""

    first: datetime
    total: Step
    steps: tuple[Step, ...] = ()
    servers: tuple[Group, ...] = ()
    tenants: tuple[Group, ...] = ()

    @property
    def labels(self) -> list[str]:
        return [step.label for step in self.steps]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Open connections beside their limits."""

    open: int
    most: int
    waiting: int
    accounts: tuple[tuple[str, int, int], ...] = field(default=())
    """Credentials' ids, how many connections each has, in how many processes; the most first."""


def traffic(span: Span, now: datetime | None = None) -> Traffic | None:
    """The figures of *span*; ``None`` where there are too many records that are not summed up."""
    edges = span.edges(now)
    keys = [first_key(edge) for edge in edges]
    records = DeliveryRecord.objects.filter(pk__gte=keys[0]).order_by()
    live, summed = [records], None
    if summaries.are_worth_it(records):
        # No zone of today begins its hours elsewhere than at a quarter; if one does, records tell.
        if not any(key % summaries.SLOT for key in keys):
            _sum_up()
            rows = DeliverySummary.objects.using(records.db).filter(pk__gte=keys[0])
            slots = dict(rows.values_list("slot", "speeds"))
            summed = summaries.run_of(slots)
        if summed:
            live = [records.filter(pk__gte=summed[1])]
            if summed[0] > keys[0]:
                live.append(records.filter(pk__lt=summed[0]))
        if any(summaries.are_more_than(MOST_RECORDS, each) for each in live):
            return None
    counts: dict[int, Speeds] = defaultdict(Counter)
    for each in live:
        for step, reused, speed, messages in (
            each.annotate(step=_step_of("pk", keys), speed=summaries.speed())
            .values_list("step", "reused", "speed")
            .annotate(count=Count("pk"))
        ):
            counts[step][reused, speed] += messages
    for slot in range(*summed, summaries.SLOT) if summed else ():
        of_step = counts[bisect_right(keys, slot) - 1]
        for reused, speed, messages in slots[slot]:
            of_step[reused, speed] += messages
    total = _step("", sum(counts.values(), Counter()))
    if not total.messages:
        return Traffic(edges[0], total)
    form = "H:i" if span.step <= HOUR else "MONTH_DAY_FORMAT"
    steps = tuple(_step(date_format(edge, form), counts[n]) for n, edge in enumerate(edges))
    return Traffic(
        edges[0],
        total,
        steps,
        _groups(_sources("server", live, summed), keys, "server", gettext("(no server)"), steps),
        _groups(_sources("tenant", live, summed), keys, "tenant", gettext("(no tenant)"), steps),
    )


def _sum_up() -> None:
    """Sum up some of what is over. Where that can't be done, the records are counted."""
    using = router.db_for_write(DeliveryRecord)
    # Within a transaction, such as a request's, an error would spoil the queries that follow.
    is_within = transaction.get_connection(using).in_atomic_block
    with suppress(DatabaseError), transaction.atomic(using) if is_within else nullcontext():
        summaries.sum_up(SUMMED_AT_ONCE)


def _step_of(time: str, keys: Sequence[int]) -> Any:
    """An expression: the number of the step that *time*, a column of keys, is in."""
    steps = [When(**{f"{time}__lt": end, "then": Value(n)}) for n, end in enumerate(keys[1:])]
    return Case(*steps, default=Value(len(steps)))


# Messages by whether the connection was reused, and the class of the sending time: ``None`` for
# what was not sent.
Speeds: TypeAlias = Counter[tuple[bool, float | None]]


def _step(label: str, counts: Speeds) -> Step:
    messages = sent = reused = 0
    speeds: Counter[int] = Counter()
    for (was_reused, speed), count in counts.items():
        messages += count
        if speed is not None:
            sent += count
            reused += count if was_reused else 0
            speeds[int(speed)] += count
    p50, p95 = percentile(speeds, 0.5), percentile(speeds, 0.95)
    return Step(label, messages, messages - sent, sent, reused, p50, p95)


def percentile(speeds: Mapping[int, int], part: float) -> float | None:
    """The time (milliseconds) within which that *part* of the messages was sent.

    *speeds* has the count of each class. Within one, the messages are taken as evenly spread.
    """
    wanted = part * sum(speeds.values())
    for number in sorted(speeds):
        if wanted <= speeds[number]:
            within = wanted / speeds[number]
            return float(2 ** ((number + within) / PER_DOUBLING) - 1)
        wanted -= speeds[number]
    return None


class Source(NamedTuple):
    """Rows in which messages of servers or tenants are counted, and how."""

    rows: QuerySet[Any, Any]
    time: str
    total: Any
    good: Any
    latest: Any


def _sources(
    name: str, live: Sequence[QuerySet[Any, Any]], summed: tuple[int, int] | None
) -> list[Source]:
    """Records, and what others were summed up to."""
    # That it counts what was sent also keeps PostgreSQL from reading an index of all times for the
    # sake of one of them.
    found = [Source(each, "pk", Count("pk"), summaries.SENT, Max("pk")) for each in live]
    if summed:
        shares = summaries.SHARES[name]._default_manager.using(live[0].db)
        rows = shares.filter(slot__gte=summed[0], slot__lt=summed[1])
        found.append(Source(rows, "slot", Sum("messages"), Sum("sent"), Max("newest")))
    return found


def _groups(
    sources: Sequence[Source], keys: Sequence[int], name: str, without: str, steps: Sequence[Step]
) -> tuple[Group, ...]:
    """Those servers or tenants with the most messages, and the others together."""
    totals: Counter[Any] = Counter()
    for rows, _time, total, good, _latest in sources:
        for key, messages, _sent in rows.values_list(name).annotate(total=total, good=good):
            totals[key] += messages
    order = sorted(totals, key=lambda key: (-totals[key], key is None, str(key)))
    shown = order[:TOP]
    chosen = Q(**{f"{name}__in": [key for key in shown if key is not None]})
    if None in shown:
        chosen |= Q(**{f"{name}__isnull": True})
    names: dict[Any, tuple[int, str]] = {}
    counts = {key: ([0] * len(steps), [0] * len(steps)) for key in shown}
    for rows, time, total, good, latest in sources:
        for key, called, step, newest, messages, sent in (
            rows.filter(chosen)
            .annotate(step=_step_of(time, keys))
            .values_list(name, f"{name}_name", "step")
            .annotate(latest=latest, total=total, good=good)
        ):
            counts[key][0][step] += messages
            counts[key][1][step] += messages - sent
            # It may have been renamed: the latest name counts.
            names[key] = max(names.get(key, (0, "")), (newest, called))
    groups = [
        _group(key, names[key][1] if key is not None else without, *counts[key])
        for key in shown
        if key in names  # the rows may have been removed since they were counted
    ]
    if len(order) > TOP:
        rest = [
            [
                step.messages - sum(group.steps[n] for group in groups)
                for n, step in enumerate(steps)
            ],
            [
                step.failures - sum(group.failed_steps[n] for group in groups)
                for n, step in enumerate(steps)
            ],
        ]
        groups.append(_group(None, gettext("others"), *rest))
    return tuple(groups)


def _group(key: Any, name: str, messages: Sequence[int], failures: Sequence[int]) -> Group:
    return Group(
        None if key is None else str(key),
        name,
        sum(messages),
        sum(failures),
        tuple(messages),
        tuple(failures),
    )


def sessions() -> Sessions:
    """The connections of all processes that are known to run; the limits are each process's own."""
    running = [each for each in overview.processes() if each.state in ("own", "running")]
    opened: Counter[str] = Counter()
    having: Counter[str] = Counter()
    for each in running:
        for account in each.accounts:
            opened[account.credential_id] += account.idle + account.busy
        having.update({account.credential_id for account in each.accounts})
    return Sessions(
        open=sum(opened.values()),
        most=len(running) * delivery.stats().max_sessions,
        waiting=sum(each.waiting for each in running),
        accounts=tuple((key, count, having[key]) for key, count in opened.most_common(TOP)),
    )
