"""Summaries of delivery records: the dashboard's figures are the same with them as without."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailpool import dashboard, recording, summaries
from mailpool.dashboard import SPANS, traffic
from mailpool.models import DeliveryRecord, DeliverySummary, ServerSummary, TenantSummary
from mailpool.models.records import first_key
from tests.factories import CredentialFactory
from tests.records import add_records

pytestmark = pytest.mark.django_db

PAGE = "/admin/mailpool/"
ALL = (DeliverySummary, ServerSummary, TenantSummary)
ZONES = (
    "UTC",
    "Europe/Berlin",  # its clocks are changed on 25 October 2026
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # by half an hour, on 4 October 2026
    "Pacific/Apia",
)
NOW = datetime(2026, 10, 27, 12, 20, 3, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(summaries, "ENOUGH", 0)
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def clock(monkeypatch):
    """Sets the time for what is summed up and for what is shown."""

    def set_to(now):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return now.astimezone(tz)

        monkeypatch.setattr(summaries, "datetime", Clock)
        monkeypatch.setattr(dashboard, "datetime", Clock)

    set_to(NOW)
    return set_to


def add_random(rng, count=400, days=32.5):
    """Records of many tenants, under changing names, at any time until now."""
    credentials = [None, *CredentialFactory.create_batch(14)]
    rows = []
    for number in range(count):
        credential = rng.choices(credentials, range(1, 16))[0]
        # Some are next to the edge of a quarter.
        when = NOW - timedelta(days=days) * rng.random() ** 2
        if rng.random() < 0.3:
            edge = first_key(when) // summaries.SLOT * summaries.SLOT
            key = edge + rng.choice((-1, 0, 1))
        else:
            key = first_key(when)
        names = {}
        if credential:
            names = {
                "tenant": credential.tenant,
                "server": credential.server,
                "tenant_name": rng.choice(("", " Ltd")).join(("", str(credential.tenant))),
                "server_name": credential.server.name,
            }
        rows.append(
            DeliveryRecord(
                pk=key + 10 * number * (key % summaries.SLOT > 10_000),
                when=when,
                outcome=rng.choices(("sent", "refused", "failed", "unknown"), (20, 2, 1, 1))[0],
                reused=rng.random() < 0.7,
                sending=int(rng.expovariate(1 / 300)),
                **names,
            )
        )
    DeliveryRecord.objects.bulk_create(rows, ignore_conflicts=True)


def live(monkeypatch, span, now=None):
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "ENOUGH", 10**9)
        return traffic(span, now)


def everything():
    """What is stored, whatever the order."""
    return [
        sorted(model.objects.values_list("slot", "speeds"), key=str)
        if model is DeliverySummary
        else sorted(
            model.objects.values_list(*(f.attname for f in model._meta.fields[1:])), key=str
        )
        for model in ALL
    ]


def stored():
    return [sum(model.objects.values_list("messages", flat=True)) for model in ALL[1:]]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("seed", range(2))
def test_figures_are_those_of_the_records(zone, seed, clock, monkeypatch):
    add_random(random.Random(f"{seed} {zone}"))
    monkeypatch.setattr(summaries, "BATCH", 90)
    with timezone.override(ZoneInfo(zone)):
        expected = {key: live(monkeypatch, span) for key, span in SPANS.items()}
        assert DeliverySummary.objects.count() == 0
        # Also while only a part is summed up, in the middle of the longest span.
        summaries.sum_up(200)
        monkeypatch.setattr(dashboard, "SUMMED_AT_ONCE", 0)
        for part in (0, 10**9):
            summaries.sum_up(part)
            for key, span in SPANS.items():
                assert traffic(span) == expected[key]
        # Of the records themselves, only the latest ones are counted.
        monkeypatch.setattr(dashboard, "MOST_RECORDS", 100)
        assert traffic(SPANS["30d"]) == expected["30d"]
    assert expected["30d"].total.messages > 200
    assert (
        stored()
        == [
            DeliveryRecord.objects.filter(
                pk__gte=DeliverySummary.objects.earliest("pk").pk,
                pk__lt=DeliverySummary.objects.latest("pk").pk + summaries.SLOT,
            ).count()
        ]
        * 2
    )


@pytest.mark.parametrize("zone", ZONES)
def test_steps_are_those_of_the_reader_s_clock(zone, clock):
    """Counted in Python, by the time that the reader would see beside each record."""
    add_random(random.Random(zone))
    with timezone.override(ZoneInfo(zone)):
        today = timezone.localtime(NOW).date()
        days = Counter(
            timezone.localtime(
                datetime.fromtimestamp(0, UTC) + timedelta(microseconds=pk >> 11)
            ).date()
            for pk in DeliveryRecord.objects.values_list("pk", flat=True)
        )
        found = traffic(SPANS["30d"])
    assert TenantSummary.objects.exists()
    assert [step.messages for step in found.steps] == [
        days[today - timedelta(days=n)] for n in range(29, -1, -1)
    ]


def test_a_zone_whose_hours_begin_between_quarters(clock):
    add_random(random.Random(7))
    with timezone.override(timezone.get_fixed_timezone(7)):
        found = traffic(SPANS["24h"])
        first = first_key(found.first)
    assert found.total.messages == DeliveryRecord.objects.filter(pk__gte=first).count()


def test_a_quarter_is_summed_up_an_hour_after_its_end(clock):
    credential = CredentialFactory()
    quarter = datetime(2026, 10, 27, 11, 0, tzinfo=UTC)
    add_records(credential, 3, at=quarter)
    add_records(credential, 4, at=quarter + timedelta(minutes=15) - timedelta(microseconds=1))
    clock(quarter + timedelta(minutes=75) - timedelta(microseconds=1))
    assert summaries.sum_up() == 0
    assert traffic(SPANS["24h"]).total.messages == 7
    clock(quarter + timedelta(minutes=75))
    # In time: committed before the quarter is summed up.
    add_records(credential, 1, at=quarter + timedelta(minutes=1))
    assert summaries.sum_up() == 8
    assert summaries.sum_up() == 0
    # Too late.
    add_records(credential, 1, at=quarter + timedelta(minutes=2))
    assert traffic(SPANS["24h"]).total.messages == 8
    assert traffic(SPANS["1h"]).total.messages == 0


def test_opening_the_dashboard_sums_up_a_part(admin_client, monkeypatch):
    monkeypatch.setattr(dashboard, "MOST_RECORDS", 10)
    monkeypatch.setattr(dashboard, "SUMMED_AT_ONCE", 10)
    monkeypatch.setattr(summaries, "BATCH", 5)
    credential = CredentialFactory()
    for hour in range(12):
        add_records(credential, 4, ago=timedelta(hours=3 + hour))
    for left, messages in ((48 - 12, None), (48 - 24, None), (48 - 36, None), (0, 48)):
        cache.clear()
        page = admin_client.get(PAGE)
        assert ("too many messages in 24 hours" in page.text) == (messages is None)
        assert ("mailpool_prune" in page.text) == (messages is None)
        assert sum(stored()) == 2 * (48 - left)
    assert "48 messages, of which 0 failed" in page.text
    before = everything()
    cache.clear()
    assert "48 messages, of which 0 failed" in admin_client.get(PAGE).text
    assert everything() == before


def test_what_can_not_be_summed_up_is_counted(clock, monkeypatch):
    add_records(CredentialFactory(), 5, at=NOW - timedelta(hours=5))

    def read_only(*args, **kwargs):
        raise DatabaseError("read only")

    monkeypatch.setattr(summaries, "sum_up", read_only)
    assert traffic(SPANS["24h"]).total.messages == 5


def test_an_error_while_summing_up_spoils_no_transaction(clock, monkeypatch):
    """As with ATOMIC_REQUESTS, where the database gives up a query that takes too long."""
    add_records(CredentialFactory(), 5, at=NOW - timedelta(hours=5))

    def given_up(*args):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM no_such_table")

    monkeypatch.setattr(summaries, "_sum_up", given_up)
    with transaction.atomic():
        assert traffic(SPANS["24h"]).total.messages == 5
    assert traffic(SPANS["24h"]).total.messages == 5


@contextmanager
def meanwhile(is_it, do, *, before=False):
    """*do* it once: after, or *before*, a query whose SQL and parameters *is_it* accepts."""
    done = []

    def watch(execute, sql, params, many, context):
        is_now = not done and is_it(sql, params)
        if is_now:
            done.append(True)
        if is_now and before:
            do()
        result = execute(sql, params, many, context)
        if is_now and not before:
            do()
        return result

    with connection.execute_wrapper(watch):
        yield
    assert done


def test_records_may_go_while_they_are_counted(clock, monkeypatch):
    monkeypatch.setattr(summaries, "ENOUGH", 10**9)
    add_records(CredentialFactory(), 5, at=NOW - timedelta(hours=5))
    with meanwhile(
        lambda sql, params: "server_id" in sql,
        lambda: DeliveryRecord.objects.all()._raw_delete("default"),
    ):
        found = traffic(SPANS["24h"])
    assert found.total.messages == 5
    assert found.servers == ()


def whole_quarters():
    """How many messages each quarter has, by each of the tables."""
    return [
        {
            slot: sum(count for _, _, count in speeds)
            for slot, speeds in DeliverySummary.objects.values_list("slot", "speeds")
            if speeds
        },
        *(
            {slot: sum(m for s, m in rows if s == slot) for slot, _ in rows}
            for rows in (model.objects.values_list("slot", "messages") for model in ALL[1:])
        ),
    ]


def test_what_is_summed_up_while_others_are_removed_is_whole(clock):
    """Another process, that committed between two statements of the one that removes."""
    credential = CredentialFactory()
    for days in range(1, 6):
        add_records(credential, days, at=NOW - timedelta(days=days))
    summaries.sum_up()
    late = first_key(NOW - timedelta(days=5)) // summaries.SLOT * summaries.SLOT
    DeliverySummary.objects.filter(pk=late).delete()
    for model in ALL[1:]:
        model.objects.filter(slot=late).delete()

    def other():
        records = DeliveryRecord.objects.order_by()
        end = late + summaries.SLOT
        summaries._sum_up(records.filter(pk__gte=late, pk__lt=end), late, end)

    for table in ("deliverysummary", "serversummary", "tenantsummary"):
        with transaction.atomic():
            with meanwhile(
                lambda sql, params, table=table: (
                    sql.startswith("DELETE") and table in sql and max(params) > late
                ),
                other,
            ):
                summaries.remove(late + 10 * summaries.SLOT)
            sums = whole_quarters()
            assert sums[0] == sums[1] == sums[2]
            assert sorted(sums[0].values()) in ([1, 2, 3, 4], [1, 2, 3, 4, 5])
            transaction.set_rollback(True)


def test_two_that_remove_the_same_leave_nothing_half(clock, monkeypatch):
    """While a third one makes it anew."""
    monkeypatch.setattr(summaries, "KEPT", timedelta(hours=24))
    add_records(CredentialFactory(), 3, at=NOW - timedelta(hours=20))
    summaries.sum_up()
    whole = everything()
    late = first_key(NOW - timedelta(hours=20)) // summaries.SLOT * summaries.SLOT
    removals = []

    def is_removal(sql, params):
        return sql.startswith("DELETE") and "deliverysummary" in sql

    def is_second_removal(sql, params):
        removals.append(is_removal(sql, params))
        return sum(removals) == 2

    def remove():
        summaries.remove(late + summaries.SLOT)

    # What one has found, another one removes just before it; after it a third one commits.
    with (
        meanwhile(is_removal, remove, before=True),
        meanwhile(is_second_removal, summaries.sum_up),
    ):
        remove()
    summaries.sum_up()
    assert everything() == whole


def test_few_records_are_not_summed_up(clock, monkeypatch, admin_client):
    monkeypatch.setattr(summaries, "ENOUGH", 5)
    add_records(CredentialFactory(), 5, at=NOW - timedelta(hours=5))
    assert traffic(SPANS["30d"]).total.messages == 5
    assert summaries.sum_up() == 0
    assert not DeliverySummary.objects.exists()
    add_records(CredentialFactory(), 1, at=NOW - timedelta(days=2))
    assert traffic(SPANS["24h"]).total.messages == 5
    assert not DeliverySummary.objects.exists()
    assert traffic(SPANS["30d"]).total.messages == 6
    assert DeliverySummary.objects.exists()


def test_queries_are_as_many_with_more_records(clock, monkeypatch):
    add_random(random.Random(3), count=300)
    summaries.sum_up()

    def queries():
        found = []
        for key in ("24h", "7d", "30d"):
            with CaptureQueriesContext(connection) as each:
                traffic(SPANS[key])
            # Those of the transaction that the test runs in are no queries.
            found.append(sum("SAVEPOINT" not in query["sql"] for query in each))
        return found

    few = queries()
    assert max(few) <= 15
    add_random(random.Random(4), count=300, days=0.02)
    assert queries() == few


@pytest.mark.django_db(transaction=True)
def test_two_processes_count_nothing_twice(monkeypatch):
    credential = CredentialFactory()
    for hour in range(40):
        add_records(credential, 3, ago=timedelta(hours=3 + hour))
    monkeypatch.setattr(summaries, "BATCH", 10)
    barrier = threading.Barrier(4)
    done, errors = [], []

    def work():
        try:
            barrier.wait(30)
            done.append(summaries.sum_up())
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    done.append(summaries.sum_up())
    assert sum(done) == 120
    assert stored() == [120, 120]
    found = traffic(SPANS["7d"])
    assert found.total.messages == found.servers[0].messages == 120


@pytest.mark.django_db(transaction=True)
def test_whoever_comes_second_to_a_quarter_leaves_it(monkeypatch):
    """Between what the first one has read and what it writes, another process does it all."""
    credential = CredentialFactory()
    add_records(credential, 3, ago=timedelta(hours=3))
    original, calls = summaries._sum_up, []

    def late(records, *part):
        if not calls:
            calls.append(part)
            other = threading.Thread(target=lambda: (summaries.sum_up(), connection.close()))
            other.start()
            other.join(60)
        return original(records, *part)

    monkeypatch.setattr(summaries, "_sum_up", late)
    assert summaries.sum_up() == 0
    assert stored() == [3, 3]


def test_an_error_in_between_leaves_nothing_half(clock, monkeypatch):
    add_random(random.Random(1))
    add_records(CredentialFactory(), 1, at=NOW - timedelta(hours=2))
    monkeypatch.setattr(summaries, "BATCH", 100)
    create = QuerySet.bulk_create

    def broken(self, *args, **kwargs):
        if self.model is TenantSummary:
            raise ZeroDivisionError
        return create(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(QuerySet, "bulk_create", broken)
        with pytest.raises(ZeroDivisionError):
            summaries.sum_up()
    assert [model.objects.count() for model in ALL] == [0, 0, 0]
    summaries.sum_up()
    assert traffic(SPANS["30d"]) == live(monkeypatch, SPANS["30d"])


def test_quarters_with_a_gap_before_them_are_made_again(clock, monkeypatch):
    add_random(random.Random(2))
    monkeypatch.setattr(summaries, "BATCH", 50)
    expected = live(monkeypatch, SPANS["30d"])
    summaries.sum_up()
    whole = everything()
    middle = first_key(NOW - timedelta(days=9)) // summaries.SLOT * summaries.SLOT
    for model in ALL:
        model.objects.filter(slot__gte=middle, slot__lt=middle + 3 * summaries.SLOT).delete()
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "sum_up", lambda most: 0)
        assert traffic(SPANS["30d"]) == expected
    summaries.sum_up()
    assert everything() == whole


def test_summaries_go_with_their_records_and_after_a_month(clock, monkeypatch):
    add_random(random.Random(5))
    summaries.sum_up()
    before = NOW - timedelta(days=7, minutes=4)
    recording.prune(before, batch=50)
    assert DeliverySummary.objects.earliest("pk").pk >= first_key(before)
    assert TenantSummary.objects.earliest("slot").slot >= first_key(before)
    expected = live(monkeypatch, SPANS["30d"])
    assert traffic(SPANS["30d"]) == expected
    summaries.sum_up()
    assert traffic(SPANS["30d"]) == expected
    clock(NOW + timedelta(days=29))
    add_records(CredentialFactory(), 1, at=NOW + timedelta(days=28))
    summaries.sum_up()
    oldest = first_key(NOW - timedelta(days=3, minutes=15))
    assert all(model.objects.order_by("slot").first().slot >= oldest for model in ALL)
    assert traffic(SPANS["30d"]) == live(monkeypatch, SPANS["30d"])
    clock(NOW + timedelta(days=400))
    add_records(CredentialFactory(), 1, at=NOW + timedelta(days=399))
    summaries.sum_up()
    assert traffic(SPANS["30d"]).total.messages == 1
    assert stored() == [1, 1]


@pytest.fixture
def binding(transactional_db):
    """A connection whose parameters PostgreSQL binds itself; elsewhere any other one."""
    original = connections["default"]
    other = original.copy()
    if other.vendor == "postgresql":
        other.settings_dict["OPTIONS"] = {"server_side_binding": True}
    connections["default"] = other
    yield
    other.close()
    connections["default"] = original


def test_parameters_may_be_bound_by_the_server(binding, clock, monkeypatch):
    add_random(random.Random(8))
    expected = live(monkeypatch, SPANS["7d"])
    assert summaries.sum_up() > 200
    assert not any(
        pk % summaries.SLOT for pk in ServerSummary.objects.values_list("slot", flat=True)
    )
    assert traffic(SPANS["7d"]) == expected


class RecordsOnly:
    """Knows where records are, and of nothing else of theirs."""

    def db_for_read(self, model, **hints):
        return "elsewhere" if model in ALL else None

    db_for_write = db_for_read


def test_sums_are_in_the_database_of_the_records(clock, settings):
    add_random(random.Random(6))
    settings.DATABASE_ROUTERS = ["tests.test_summaries.RecordsOnly"]
    recording.prune(NOW - timedelta(days=20))
    assert summaries.sum_up() > 0
    found = traffic(SPANS["7d"])
    assert found.total.messages == sum(server.messages for server in found.servers)


def test_the_command_sums_up(capsys, settings):
    add_records(CredentialFactory(), 3, ago=timedelta(hours=3))
    add_records(CredentialFactory(), 2, ago=timedelta(days=20))
    with pytest.raises(CommandError, match="--sum-up-only"):
        call_command("mailpool_prune")
    call_command("mailpool_prune", "--older-than", "10", "--dry-run")
    assert "2 records" in capsys.readouterr().out
    assert not DeliverySummary.objects.exists()
    call_command("mailpool_prune", "--older-than", "10")
    assert "3 records summed up." in capsys.readouterr().out
    call_command("mailpool_prune", "--sum-up-only")
    assert capsys.readouterr().out == "0 records summed up.\n"
    call_command("mailpool_prune", "--sum-up-only", "--json")
    assert '"before": null' in capsys.readouterr().out
    assert DeliveryRecord.objects.count() == 3


def test_a_scrubbed_copy_has_no_summaries():
    add_records(CredentialFactory(), 3, ago=timedelta(hours=3))
    summaries.sum_up()
    assert all(model.objects.exists() for model in ALL)
    call_command("mailpool_scrub", "--no-input")
    assert not any(model.objects.exists() for model in ALL)


def test_summaries_are_nobody_s_to_view(admin_client):
    page = admin_client.get(PAGE).text
    assert "summar" not in page.lower()
