"""Sums delivery records up by quarters of an hour, of which all zones' hours and days are made.

Sending has no part in it: ``mailpool_prune`` and whoever opens the dashboard sum up what is over.
What is summed up is one run of quarters without a gap. Each step makes it longer at one of its
ends, in a transaction: where two processes do that at once, only one of them can write the
quarters' keys.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import IntegrityError, models, router, transaction
from django.db.models import Case, Count, F, FloatField, Max, Q, When
from django.db.models.functions import Cast, Floor, Ln

from mailpool.models import DeliveryRecord, DeliverySummary, ServerSummary, TenantSummary
from mailpool.models.records import EPOCH, Outcome, first_key

# As many keys as a record of one quarter can have.
SLOT = first_key(EPOCH + timedelta(minutes=15))

# A record that is committed later than this after its quarter is in no summary.
SETTLED = timedelta(hours=1)

# Longer than any month on the dashboard, in any time zone.
KEPT = timedelta(days=32)

# Fewer records are counted as fast, and need no summaries.
ENOUGH = 20_000

# Records that are summed up in one transaction; never less than a quarter's.
BATCH = 50_000

# Sending times are counted in classes, four for each doubling: a percentile is right within a few
# per cent, in the same way on every database.
PER_DOUBLING = 4

SHARES: dict[str, type[models.Model]] = {"server": ServerSummary, "tenant": TenantSummary}

SENT = Count("pk", filter=Q(outcome=Outcome.SENT))


def speed() -> Any:
    """An expression: the class of a sent record's sending time."""
    doublings = Ln(Cast("sending", FloatField()) + 1.0) / math.log(2)
    return Case(When(outcome=Outcome.SENT, then=Floor(doublings * PER_DOUBLING)))


def are_more_than(number: int, records: models.QuerySet[Any, Any]) -> bool:
    """Whether that many records are exceeded, without counting all of them."""
    return bool(records.order_by("pk").values_list("pk")[number : number + 1])


def are_worth_it(records: models.QuerySet[Any, Any]) -> bool:
    """Whether there are too many of these to be counted in next to no time."""
    return are_more_than(ENOUGH, records)


def run_of(slots: Iterable[int]) -> tuple[int, int] | None:
    """The latest of *slots* that follow each other without a gap: from the first key to the last's
    end."""
    ordered = sorted(slots, reverse=True)
    if not ordered:
        return None
    first = ordered[0]
    for slot in ordered[1:]:
        if slot != first - SLOT:
            break
        first = slot
    return first, ordered[0] + SLOT


def sum_up(most: float = math.inf, *, progress: Callable[[int], None] = lambda done: None) -> int:
    """Sum up what is over and not summed up yet, the latest first; how many messages these were.

    It ends after *most* of them, or a little later. *progress* is called with the number so far.
    """
    using = router.db_for_write(DeliveryRecord)
    now = datetime.now(UTC)
    oldest, end = (_slot_of(first_key(now - ago)) for ago in (KEPT, SETTLED))
    records = DeliveryRecord.objects.using(using).order_by()
    if not are_worth_it(records.filter(pk__gte=oldest)):
        return 0
    slots = list(DeliverySummary.objects.using(using).values_list("pk", flat=True))
    first, last = run_of(slot for slot in slots if slot >= oldest) or (end, end)
    if any(slot < first for slot in slots):
        remove(first)
    done = 0
    while done < most and (last < end or oldest < first):
        if last < end:
            later = records.filter(pk__gte=last, pk__lt=end).order_by("pk")
            part = last, max(last + SLOT, _slot_of(_key_at(BATCH, later) or end))
            last = part[1]
        else:
            earlier = records.filter(pk__gte=oldest, pk__lt=first).order_by("-pk")
            beyond = _key_at(BATCH, earlier)
            part = min(first - SLOT, _slot_of(beyond) + SLOT if beyond else oldest), first
            first = part[0]
        try:
            done += _sum_up(records.filter(pk__gte=part[0], pk__lt=part[1]), *part)
        except IntegrityError:  # another process is at it
            break
        progress(done)
    return done


def _slot_of(key: int) -> int:
    return key - key % SLOT


def _key_at(place: int, records: models.QuerySet[Any, Any]) -> int | None:
    return next(iter(records.values_list("pk", flat=True)[place : place + 1]), None)


def _sum_up(records: models.QuerySet[Any, Any], first: int, last: int) -> int:
    """Sum up the quarters from *first* to before *last*."""
    using = records.db
    # A remainder is the same on every database; a quotient is not.
    # Without its type the number would lose half of its bytes where parameters are bound by
    # PostgreSQL, as Django's option server_side_binding has it.
    length = models.Value(SLOT, output_field=models.BigIntegerField())
    by_slot = records.annotate(slot=F("pk") - F("pk") % length)
    speeds: dict[int, list[tuple[bool, int | None, int]]] = defaultdict(list)
    for slot, reused, number, count in (
        by_slot.annotate(speed=speed())
        .values_list("slot", "reused", "speed")
        .annotate(count=Count("pk"))
    ):
        speeds[slot].append((bool(reused), None if number is None else int(number), count))
    slots = [DeliverySummary(slot=n, speeds=speeds[n]) for n in range(first, last, SLOT)]
    with transaction.atomic(using=using):
        # First, so that another process that is at the same quarters gets no further.
        DeliverySummary.objects.using(using).bulk_create(slots, batch_size=1000)
        for name, model in SHARES.items():
            rows = by_slot.values_list("slot", f"{name}_id", f"{name}_name").annotate(
                newest=Max("pk"), count=Count("pk"), sent=SENT
            )
            model._default_manager.using(using).bulk_create(
                (
                    model(
                        slot=slot,
                        newest=newest,
                        messages=messages,
                        sent=sent,
                        **{f"{name}_id": key, f"{name}_name": called},
                    )
                    for slot, key, called, newest, messages, sent in rows
                ),
                batch_size=1000,
            )
    return sum(count for rows in speeds.values() for _reused, _speed, count in rows)


def remove(before: int) -> None:
    """Remove the quarters that began before that key, a day of them in each transaction."""
    using = router.db_for_write(DeliveryRecord)
    slots = DeliverySummary.objects.using(using).order_by()
    keys = sorted(slots.filter(pk__lt=before).values_list("pk", flat=True))
    for day in (keys[n : n + 96] for n in range(0, len(keys), 96)):
        with transaction.atomic(using=using):
            # These and no others: another process may be summing up what is between them.
            if slots.filter(pk__in=day)._raw_delete(using) < len(day):
                # Another one is removing them, and a third one may be making them anew.
                transaction.set_rollback(True, using)
                continue
            for model in SHARES.values():
                shares = model._default_manager.using(using).filter(slot__in=day)
                shares.order_by()._raw_delete(using)
