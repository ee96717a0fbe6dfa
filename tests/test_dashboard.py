"""The dashboard: figures, who sees what, and what it costs."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailpool import attention, dashboard, summaries
from mailpool.dashboard import SPANS, traffic
from mailpool.models import Credential, DeliveryRecord, OAuthClient, SendingProcess
from mailpool.models.records import first_key
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.records import add_records
from tests.smtpd import PASSWORD

pytestmark = pytest.mark.django_db

PAGE = "/admin/mailpool/"
NOW = datetime(2026, 10, 27, 12, 20, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_cached():
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def staff(client):
    """Log in somebody with these permissions: ``staff("view_credential")``."""

    def staff(*names):
        user = User.objects.create_user("staff", password="x", is_staff=True)
        found = Permission.objects.filter(content_type__app_label="mailpool", codename__in=names)
        assert found.count() == len(names)
        user.user_permissions.set(found)
        client.force_login(user)
        return client

    return staff


def record(when, credential=None, number=0, **values):
    add_records(credential, at=when, number=number, **values)


# Figures.


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"])
@pytest.mark.parametrize("key", SPANS)
def test_each_record_is_in_the_step_of_its_time(zone, key):
    with timezone.override(ZoneInfo(zone)):
        span = SPANS[key]
        edges = span.edges(NOW)
        ends = [*edges[1:], edges[-1] + span.step]
        for number, (begin, end) in enumerate(zip(edges, ends, strict=True)):
            record(begin, number=number)
            record(end - timedelta(milliseconds=1), number=number, outcome="failed")
        record(edges[0] - timedelta(milliseconds=1))
        found = traffic(span, NOW)
    assert [step.messages for step in found.steps] == [2] * span.count
    assert [step.failures for step in found.steps] == [1] * span.count
    assert edges[-1] <= NOW < edges[-1] + span.step
    assert {(edge.minute % 5, edge.second) for edge in edges} == {(0, 0)}
    assert key == "1h" or {edge.minute for edge in edges} == {0}


def test_days_are_those_of_the_reader_also_when_clocks_are_changed():
    with timezone.override(ZoneInfo("Europe/Berlin")):  # 25 October 2026 has 25 hours there
        edges = SPANS["7d"].edges(NOW)
        assert {edge.hour for edge in edges} == {0}
        lengths = [b.astimezone(UTC) - a.astimezone(UTC) for a, b in pairwise(edges)]
        assert timedelta(hours=25) in lengths


def test_reuse_and_sending_time_are_of_what_was_sent():
    times = [round(1.03**n) for n in range(300)]
    record(NOW, number=1, sending=5000, outcome="failed", reused=True)
    for number, sending in enumerate(times):
        record(NOW, number=2 + number, sending=sending, reused=number % 3 == 0)
    total = traffic(SPANS["24h"], NOW).total
    assert (total.messages, total.failures, total.sent, total.reused) == (301, 1, 300, 100)
    assert total.p50 == pytest.approx(statistics.median(times), rel=0.1)
    assert total.p95 == pytest.approx(statistics.quantiles(times, n=20)[-1], rel=0.1)


@pytest.mark.parametrize("speeds", [{}, {0: 1}, {-1: 0, 5: 3}, {3: 1, 40: 1}])
def test_percentiles_of_few(speeds):
    found = dashboard.percentile(speeds, 0.5)
    assert (found is None) == (not any(speeds.values()))
    assert found is None or 0 <= found <= dashboard.percentile(speeds, 0.95)


def test_the_ten_with_the_most_messages_and_the_others():
    server = MailServerFactory(name="Relay")
    for number in range(13):
        credential = CredentialFactory(server=server, tenant__name=f"T{number}")
        add_records(credential, number + 1, at=NOW, number=number)
    record(NOW, credential, number=99, outcome="refused")
    record(NOW, number=98, outcome="failed")  # had no credential
    found = traffic(SPANS["24h"], NOW)
    assert [group.name for group in found.tenants] == [
        *(f"T{number}" for number in range(12, 2, -1)),
        "others",
    ]
    assert [group.messages for group in found.tenants] == [14, *range(12, 3, -1), 1 + 2 + 3 + 1]
    assert found.tenants[0].failures == 1
    assert found.tenants[-1].failures == 1
    assert [(group.name, group.messages) for group in found.servers] == [
        ("Relay", 92),
        ("(no server)", 1),
    ]


def test_whoever_was_renamed_has_the_latest_name():
    credential = CredentialFactory()
    record(NOW - timedelta(hours=2), credential, tenant_name="old")
    record(NOW - timedelta(hours=1), credential, tenant_name="new")
    record(NOW - timedelta(hours=3), credential, tenant_name="older")
    (group,) = traffic(SPANS["24h"], NOW).tenants
    assert (group.name, group.messages) == ("new", 3)


# What it costs.


def test_a_page_takes_eleven_queries_at_the_most(admin_client):
    server = MailServerFactory(host="smtp.office365.com")
    for number in range(12):
        credential = CredentialFactory(server=server)
        add_records(credential, 3, number=number, recipients=3_000)
        add_records(credential, 2, number=50 + number, outcome="failed")
    admin_client.get("/admin/")
    with CaptureQueriesContext(connection) as first:
        response = admin_client.get(PAGE)
    assert min(response.text.count(each) for each in ("Near the limit", "Failing")) > 5
    # Session and user are Django's.
    assert len(first) <= 11 + 2, [query["sql"][:80] for query in first]
    with CaptureQueriesContext(connection) as second:
        again = admin_client.get(PAGE)
    assert again.context["plots"] == response.context["plots"]
    assert again.context["attention"] == response.context["attention"]
    assert len(second) == 3


def test_a_period_that_is_none_is_told_of(admin_client):
    text = admin_client.get(f"{PAGE}?span=<week>").text
    assert "There is no period “&lt;week&gt;”. This is the last 24 hours." in text
    for query in ("", "?span=", "?span=7d"):
        assert "There is no period" not in admin_client.get(PAGE + query).text


def test_too_many_records_are_not_counted(admin_client, monkeypatch):
    monkeypatch.setattr(dashboard, "MOST_RECORDS", 10)
    monkeypatch.setattr(dashboard, "SUMMED_AT_ONCE", 0)
    monkeypatch.setattr(summaries, "ENOUGH", 5)
    credential = CredentialFactory()
    add_records(credential, 8, ago=timedelta(days=3))
    add_records(credential, 8)
    response = admin_client.get(f"{PAGE}?span=30d")
    assert "too many messages in 30 days" in response.text
    assert "This is the last 24 hours" in response.text
    assert "8 messages, of which 0 failed" in response.text
    add_records(credential, 8, number=1)
    cache.clear()
    response = admin_client.get(PAGE)
    assert "too many messages in 24 hours" in response.text
    assert "This is the last" not in response.text


@pytest.mark.skipif(connection.vendor != "postgresql", reason="asks PostgreSQL's planner")
def test_no_query_has_to_read_the_whole_table():
    add_records(CredentialFactory(), 20)
    with CaptureQueriesContext(connection) as queries:
        traffic(SPANS["24h"])
        attention.attention(with_records=True)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for query in queries:
            if "mailpool_deliveryrecord" in query["sql"]:
                cursor.execute(f"EXPLAIN {query['sql']}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Seq Scan on mailpool_deliveryrecord" not in plan, plan


# Who sees what.

RECORDS, CREDENTIALS, CONNECTIONS = (
    "Messages and failures",
    "Credentials that need attention",
    "Connections of all processes",
)


@pytest.mark.parametrize(
    ("permission", "shown"),
    [
        ("view_deliveryrecord", {RECORDS}),
        ("view_credential", {CREDENTIALS}),
        ("view_connections", {CONNECTIONS}),
        ("view_mailserver", set()),
    ],
)
def test_what_somebody_may_not_view_is_not_shown(staff, permission, shown):
    credential = CredentialFactory(username="bob@example.com", tenant__name="Secretive")
    add_records(credential, 3, outcome="failed")
    with CaptureQueriesContext(connection) as queries:
        # A page of this app needs a model of it that may be seen.
        page = staff(permission, *({"view_mailserver"} - {permission})).get(PAGE)
    assert page.status_code == 200
    assert {each for each in (RECORDS, CREDENTIALS, CONNECTIONS) if each in page.text} == shown
    assert ("Secretive" in page.text) == (permission == "view_deliveryrecord")
    asked = any("mailpool_deliveryrecord" in query["sql"] for query in queries)
    assert asked == (permission == "view_deliveryrecord")
    assert ("attention" in page.context) == (permission == "view_credential")
    assert ("sessions" in page.context) == (permission == "view_connections")


def test_failures_are_told_to_whoever_may_view_records(staff):
    credential = CredentialFactory(username="bob@example.com")
    add_records(credential, 3, outcome="failed")
    attention_of_all = staff("view_credential", "view_deliveryrecord").get(PAGE).text
    assert "bob@example.com" in attention_of_all
    assert f"?tenant={credential.tenant_id}&amp;credential={credential.pk}" in attention_of_all
    User.objects.get().user_permissions.remove(
        Permission.objects.get(codename="view_deliveryrecord")
    )
    # What was kept for the one is not shown to the other.
    assert "bob@example.com" not in staff_page(User.objects.get())


def staff_page(user):
    from django.test import Client

    client = Client()
    client.force_login(user)
    return client.get(PAGE).text


def test_the_cache_has_no_secret(admin_client):
    CredentialFactory(password=PASSWORD, username="bob")
    add_records(Credential.objects.get(), 3, outcome="failed")
    admin_client.get(PAGE)
    kept = b"".join(cache._cache.values())
    assert b"bob" in kept
    assert PASSWORD.encode() not in kept
    assert Credential.objects.values_list("password_ciphertext")[0][0].encode() not in kept


# What needs attention.


def problems(**kwargs):
    found = attention.attention(**{"with_records": True, **kwargs})
    return [(each.account, each.short) for each in found.problems]


def test_a_credential_whose_latest_messages_failed(db):
    server = MailServerFactory()
    failing, recovered, once, old = (
        CredentialFactory(username=name, server=server)
        for name in ("failing", "recovered", "once", "old")
    )
    for number, credential in enumerate((failing, recovered)):
        add_records(credential, 2, number=number, ago=timedelta(hours=2))
        add_records(credential, 2, number=number, ago=timedelta(hours=1), outcome="failed")
    add_records(recovered, 1)
    add_records(once, 1, outcome="failed", number=3)
    add_records(old, 5, outcome="failed", ago=timedelta(days=2))
    assert problems() == [("failing", "failing")]
    Credential.objects.filter(username="failing").update(is_active=False)
    assert problems() == []


def test_the_site_s_own_credential_that_fails(db):
    add_records(CredentialFactory(tenant=None, username="site"), 2, outcome="failed")
    (problem,) = attention.attention(with_records=True).problems
    assert (problem.account, problem.tenant, problem.tenant_id) == ("site", "(site)", "")


@pytest.mark.parametrize(
    ("recipients", "found"), [(3999, []), (4000, [("busy", "near the limit")])]
)
def test_a_credential_near_its_provider_s_limit(db, recipients, found):
    server = MailServerFactory(host="smtp.office365.com")
    busy = CredentialFactory(server=server, username="busy")
    other = CredentialFactory(username="elsewhere")
    for number, credential in enumerate((busy, other)):
        add_records(credential, 2, recipients=recipients, number=number)
        add_records(credential, 1, recipients=9000, ago=timedelta(hours=25), number=number)
        add_records(credential, 1, recipients=9, refused=9, number=number + 5)
    assert problems() == found


def test_what_is_stored_and_of_no_use(db, settings):
    CredentialFactory(username="lost")
    client = OAuthClient.objects.create(
        name="P",
        authorization_url="https://p.example/a",
        token_url="https://p.example/t",
        client_id="id",
        client_secret="s",
    )
    CredentialFactory(
        username="withdrawn",
        kind="authorization_code",
        oauth_client=client,
        password="",
        needs_attention="The permission was withdrawn.",
        needs_attention_since=timezone.now(),
    )
    assert problems(with_records=False) == [("withdrawn", "connect again")]
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": ["b" * 43 + "="]}
    assert set(problems(with_records=False)) == {
        ("withdrawn", "connect again"),
        ("lost", "does not decrypt"),
    }


def test_not_all_of_many_are_looked_through(admin_client, monkeypatch):
    monkeypatch.setattr(attention, "EXAMINED_AT_MOST", 2)
    CredentialFactory.create_batch(2)
    assert "could be looked through" not in admin_client.get(PAGE).text
    cache.clear()
    CredentialFactory()
    assert "could be looked through" in admin_client.get(PAGE).text


# Where there is nothing to show.


def test_an_empty_page_says_what_to_do_next(admin_client, settings):
    def page():
        cache.clear()
        return admin_client.get(PAGE).text

    assert "add the mail server" in page()
    server = MailServerFactory()
    assert "add a credential" in page()
    CredentialFactory(server=server)
    assert "Verify connection" in page()
    assert "records are off" not in page()
    settings.MAILPOOL = {**settings.MAILPOOL, "RECORDS": "off"}
    assert "records are off" in page()
    assert "&quot;RECORDS&quot;" in page() or '"RECORDS"' in page()


def test_names_can_not_break_out_of_the_data(admin_client):
    credential = CredentialFactory(tenant=TenantFactory(name="</script><b>x"))
    add_records(credential, 2)
    assert "<b>x" not in admin_client.get(PAGE).text


def test_open_connections_beside_their_limit(admin_client, real_mail, make_credential, mail_host):
    from django.core.mail import EmailMessage

    credential = make_credential(mail_host, "bob")
    message = EmailMessage("s", "b", "bob@example.com", ["to@example.com"])
    message.tenant = "bob"
    message.send()
    page = admin_client.get(PAGE).text
    assert "<strong>1</strong> open of at most 100" in page
    assert f"/admin/mailpool/credential/{credential.pk}/change/" in page
    # Another process has two more, and the same limit for itself.
    account = {"credential_id": str(credential.pk), "server_id": str(credential.server_id)}
    account |= {"generation": 0, "address": "h:25", "idle": 2, "closes_in": 30}
    now = timezone.now()
    other = {"host": "elsewhere", "pid": 7, "started_at": now, "seen_at": now}
    SendingProcess.objects.create(**other, accounts=[account])
    answer = admin_client.get(PAGE)
    assert "<strong>3</strong> open of at most 200" in answer.text
    ((_name, _url, opened, most),) = answer.context["accounts"]
    assert (opened, most) == (3, 2 * credential.server.max_connections)


def test_keys_of_records_are_counted_in_whole_hours():
    assert first_key(datetime(1970, 1, 1, 1, tzinfo=UTC)) * 24 == first_key(
        datetime(1970, 1, 2, tzinfo=UTC)
    )
    assert DeliveryRecord.objects.count() == 0
