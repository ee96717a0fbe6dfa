"""What the dashboard shows: figures of delivery records, and the connections of all processes.

The database does the counting, over the chosen window alone, and returns as many rows as there are
things to show. No time is computed by a database: the edges of hours and days are those of the
reader's time zone, as keys of records.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import Any, NamedTuple

from django.db.models import Count, F, FloatField, Max, Q
from django.db.models.functions import Cast, Floor, Ln
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import delivery, overview
from mailpool.models import DeliveryRecord
from mailpool.models.records import EPOCH, Outcome, first_key

# Servers and tenants that are shown by themselves; the rest is “others”.
TOP = 10

# Sending times are counted in classes, four for each doubling: a percentile is right within a few
# per cent, in the same way on every database.
PER_DOUBLING = 4

# More records than these are not counted while somebody waits for a page.
MOST_RECORDS = 200_000

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

    @property
    def width(self) -> timedelta:
        """What records are counted by: steps, and hours of which days are made up."""
        return min(self.step, HOUR)

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
    """The figures of *span* in six queries; ``None`` where there are too many records for that."""
    edges = span.edges(now)
    keys = [first_key(edge) for edge in edges]
    records = DeliveryRecord.objects.filter(pk__gte=keys[0]).order_by()
    if records.order_by("pk")[MOST_RECORDS : MOST_RECORDS + 1].values_list("pk"):
        return None
    at = _at(span, keys[0])
    counts: dict[int, list[Row]] = defaultdict(list)
    for when, *row in (
        records.annotate(at=at, speed=_speed())
        .values_list("at", "outcome", "reused", "speed")
        .annotate(count=Count("pk"))
    ):
        counts[_step_of(when, keys)].append(Row(*row))
    total = _step("", [row for rows in counts.values() for row in rows])
    if not total.messages:
        return Traffic(edges[0], total)
    form = "H:i" if span.step <= HOUR else "MONTH_DAY_FORMAT"
    steps = tuple(_step(date_format(edge, form), counts[n]) for n, edge in enumerate(edges))
    return Traffic(
        edges[0],
        total,
        steps,
        _groups(records, keys, at, "server", gettext("(no server)"), steps),
        _groups(records, keys, at, "tenant", gettext("(no tenant)"), steps),
    )


def _at(span: Span, start: int) -> Any:
    """An expression: the first key of the hour or step of a record, counted from *start*.

    A remainder is the same on every database; a quotient is not.
    """
    since = F("pk") - start
    return since - since % first_key(EPOCH + span.width)


def _step_of(at: int, keys: Sequence[int]) -> int:
    """The step that an hour is in: days of a time zone are not all of one length."""
    return bisect_right(keys, keys[0] + int(at)) - 1


def _speed() -> Any:
    """An expression: the class of a record's sending time."""
    return Floor(Ln(Cast("sending", FloatField()) + 1.0) * (PER_DOUBLING / math.log(2)))


class Row(NamedTuple):
    outcome: str
    reused: bool
    speed: float
    messages: int


def _step(label: str, rows: Iterable[Row]) -> Step:
    messages = sent = reused = 0
    speeds: Counter[int] = Counter()
    for row in rows:
        messages += row.messages
        if row.outcome == Outcome.SENT:
            sent += row.messages
            reused += row.messages if row.reused else 0
            speeds[int(row.speed)] += row.messages
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


def _groups(
    records: Any, keys: Sequence[int], at: Any, name: str, without: str, steps: Sequence[Step]
) -> tuple[Group, ...]:
    """Those servers or tenants with the most messages, and the others together."""
    counted = {
        "messages": Count("pk"),
        # Also keeps PostgreSQL from reading an index of all times for the sake of one of them.
        "sent": Count("pk", filter=Q(outcome=Outcome.SENT)),
    }
    most = records.values_list(name).annotate(**counted).order_by("-messages", name)
    order = [row[0] for row in most[: TOP + 1]]
    shown = order[:TOP]
    chosen = Q(**{f"{name}__in": [key for key in shown if key is not None]})
    if None in shown:
        chosen |= Q(**{f"{name}__isnull": True})
    names: dict[Any, tuple[int, str]] = {}
    counts = {key: ([0] * len(steps), [0] * len(steps)) for key in shown}
    for key, called, when, newest, messages, sent in (
        records.filter(chosen)
        .annotate(at=at)
        .values_list(name, f"{name}_name", "at")
        .annotate(newest=Max("pk"), **counted)
    ):
        step = _step_of(when, keys)
        counts[key][0][step] += messages
        counts[key][1][step] += messages - sent
        # It may have been renamed: the latest name counts.
        names[key] = max(names.get(key, (0, "")), (newest, called))
    groups = [
        _group(key, names[key][1] if key is not None else without, *counts[key]) for key in shown
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
