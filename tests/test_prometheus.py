"""Prometheus sees what happened, under few labels, and looking costs no query."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.core.mail import EmailMessage
from django.db import OperationalError, connection
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mailpool import checks, delivery, prometheus, signals
from mailpool.models import MailServer
from mailpool.routing import Router
from tests.factories import SenderFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def metrics():
    """Register with options: a function that reads one sample."""
    made = []

    def register(**options):
        registry = CollectorRegistry()
        made.append((registry, prometheus.register(registry, **options)))

        def sample(name, **labels):
            return registry.get_sample_value(f"mailpool_{name}", labels)

        sample.registry = registry
        return sample

    yield register
    for registry, found in made:
        for outcome in prometheus.OUTCOMES:
            getattr(signals, f"message_{outcome}").disconnect(found.count)
        del prometheus._registered[registry]


def send(tenant, to="a@example.com"):
    message = EmailMessage("Hello", "text", f"{tenant}@example.com", [to])
    message.tenant = tenant
    return delivery.deliver([message], Router().resolve)[0]


def text_of(sample):
    return generate_latest(sample.registry).decode()


def test_messages_are_counted_by_outcome(metrics, mail_host, make_credential):
    sample = metrics()
    server = make_credential(mail_host, "bob").server.name
    assert sample("messages_total", server=server, outcome="sent") is None
    send("bob")
    assert sample("messages_total", server=server, outcome="sent") == 1
    # A rate needs the zero before the first failure.
    assert sample("messages_total", server=server, outcome="refused") == 0
    send("bob", "refused@example.com")
    send("nobody")
    assert sample("messages_total", server=server, outcome="sent") == 1
    assert sample("messages_total", server=server, outcome="refused") == 1
    assert sample("messages_total", server="(none)", outcome="failed") == 1
    assert sample("send_seconds_count", server=server) == 1
    assert 0 < sample("send_seconds_sum", server=server) < 30
    assert sample("send_seconds_bucket", server=server, le="120.0") == 1


def test_the_pool_is_seen(metrics, mail_host, make_credential, settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "MAX_SESSIONS": 7, "MAX_WAITING": 9}
    sample = metrics()
    before = {name: sample(f"session_{name}_total") for name in ("reused", "closed", "failed")}
    make_credential(mail_host, "bob")
    server = MailServer.objects.get()
    server.name = "relay “one”\n"
    server.save()
    opened = sample("session_opened_total", server=server.name, reason="new") or 0
    send("bob")
    send("bob")
    assert sample("sessions", server=server.name, state="idle") == 1
    assert sample("sessions", server=server.name, state="busy") == 0
    assert sample("session_opened_total", server=server.name, reason="new") == opened + 1
    assert sample("session_reused_total") == before["reused"] + 1
    mail_host.drop_connections()
    send("bob")
    assert sample("session_opened_total", server=server.name, reason="dead") == 1
    assert sample("session_closed_total") == before["closed"] + 1
    MailServer.objects.update(maintain_connection=False)
    send("bob")
    assert sample("session_opened_total", server=server.name, reason="not_maintained") == 1
    assert sample("sessions", server=server.name, state="idle") == 0
    assert (sample("pool_limit"), sample("pool_waiting"), sample("pool_waiting_limit")) == (7, 0, 9)
    mail_host.accounts["bob"] = "changed"
    send("bob")
    assert sample("session_failed_total") == before["failed"] + 1
    # Whatever operators call it, the text is what a parser takes.
    names = {family.name for family in text_string_to_metric_families(text_of(sample))}
    assert {"mailpool_messages", "mailpool_session_opened", "mailpool_sessions"} <= names


def test_labels_are_few_and_tell_nothing_of_tenants(metrics, mail_host, make_credential, settings):
    settings.MAILPOOL = {
        **settings.MAILPOOL,
        "TENANT_SERVER_NETWORKS": ["127.0.0.0/8", "::1/128"],
        "TENANT_SERVER_PORTS": [mail_host.port],
    }
    sample = metrics()
    for slug in ("bob", "mary"):
        credential = make_credential(mail_host, slug, username=f"{slug}@private.example")
        server = MailServer.objects.get(pk=credential.server_id)
        server.pk, server._state.adding = None, True
        server.name, server.tenant = f"of {slug}", credential.tenant
        server.save()
        credential.server = server
        credential.password = "correct-horse-battery"
        credential.save()
        mail_host.accounts[credential.username] = "correct-horse-battery"
        assert send(slug).status == "sent"
    assert sample("messages_total", server="(tenants)", outcome="sent") == 2
    text = text_of(sample)
    for word in ("bob", "mary", "private", "localhost", "127.0.0.1", "tenant="):
        assert word not in text
    assert sample("sessions", server="(tenants)", state="idle") == 2


def test_by_tenant_where_asked_for(metrics, mail_host, make_credential):
    sample = metrics(by_tenant=True)
    server = make_credential(mail_host, "bob").server.name
    make_credential(mail_host)
    send("bob")
    delivery.deliver([EmailMessage("x", "x", "a@example.com", ["b@example.com"])], Router().resolve)
    assert sample("messages_total", server=server, tenant="bob", outcome="sent") == 1
    assert sample("messages_total", server=server, tenant="(site)", outcome="sent") == 1
    assert sample("send_seconds_count", server=server, tenant="bob") == 1


def test_looking_asks_no_database_unless_told_to(
    metrics, settings, django_assert_num_queries, mail_host, make_credential
):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    SenderFactory(credential=make_credential(mail_host, "bob"))
    with django_assert_num_queries(0):
        sample = metrics()
        text = text_of(sample)
    assert "mailpool_credentials" not in text
    with django_assert_num_queries(0):
        sample = metrics(database=True)
    with django_assert_num_queries(2):
        text = text_of(sample)
    assert "mailpool_credentials 1.0" in text
    assert "mailpool_credentials_needing_attention 0.0" in text
    assert "mailpool_senders_unproven 1.0" in text

    def down(*args):
        raise OperationalError("down")

    with connection.execute_wrapper(down):
        text = text_of(sample)
    assert "mailpool_pool_limit" in text
    assert "mailpool_credentials" not in text


def test_registered_twice_it_counts_once(metrics, mail_host, make_credential):
    sample = metrics()
    again = prometheus.register(sample.registry)
    assert again is prometheus.register(sample.registry)
    server = make_credential(mail_host, "bob").server.name
    send("bob")
    assert sample("messages_total", server=server, outcome="sent") == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, None),
        (False, None),
        (True, None),
        ({"by_tenant": True, "database": False}, None),
        ("yes", "E050"),
        ({"by_tennant": True}, "E050"),
        ({"database": "yes"}, "E050"),
    ],
)
def test_the_setting_is_checked(settings, monkeypatch, given, problem):
    settings.MAILPOOL = {**settings.MAILPOOL, "METRICS": given}
    found = [each.id for each in checks.check_settings()]
    assert found == ([f"mailpool.{problem}"] if problem else [])
    monkeypatch.setattr(checks.settings, "find_spec", lambda name: None)
    missing = "mailpool.E051" in [each.id for each in checks.check_settings()]
    assert missing is bool(given and not problem)


IN_TWO_PROCESSES = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
from django.conf import settings
settings.MAILPOOL["METRICS"] = True
import django
django.setup()
from mailpool import delivery, signals
from mailpool.outcomes import MailpoolResult

def sent():
    result = MailpoolResult("sent", server="relay", seconds=0.5)
    signals.message_sent.send(sender=MailpoolResult, message=None, result=result)

sent()
child = os.fork()
sent()
if not child:
    os._exit(0)
os.waitpid(child, 0)
from prometheus_client import CollectorRegistry, REGISTRY
from prometheus_client.multiprocess import MultiProcessCollector
every = CollectorRegistry()
MultiProcessCollector(every)
for registry, name, labels in (
    (every, "messages_total", {"server": "relay", "outcome": "sent"}),
    (every, "send_seconds_count", {"server": "relay"}),
    (every, "pool_limit", {}),
    (REGISTRY, "pool_limit", {}),
):
    print(registry.get_sample_value(f"mailpool_{name}", labels))
"""


def test_messages_of_all_processes_are_counted_where_there_are_several(tmp_path):
    """The setting alone registers; the pool's metrics are of one process, and are left out."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:mailpool", "-c", IN_TWO_PROCESSES],
        env=environment,
        cwd=os.path.dirname(os.path.dirname(__file__)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["3.0", "3.0", "None", "100"], done.stderr
