"""Metrics for Prometheus: the extra ``mailpool[prometheus]``, switched on by ``METRICS``.

No label holds a host, a login or an address, and a server of a tenant's own has no name of its
own, so that there are about as many time series as servers of the operator's.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any

from django.db import Error
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailpool import conf, delivery, health, signals
from mailpool.outcomes import MailpoolResult
from mailpool.smtp import PoolStats

OUTCOMES = ("sent", "refused", "failed", "unknown")
STATES = ("connecting", "busy", "idle", "closing")

# Seconds. From a kept connection nearby to a server that scans what it gets.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

NOWHERE = "(none)"  # the server of a message that had no route
SITE = "(site)"


class Metrics(Collector):
    """What one registry shows of mailpool; made by ``register()``.

    Messages are counted as they get their outcome, in metrics that the multiprocess mode knows.
    The rest is what this process's pool is doing when it is looked at.
    """

    def __init__(self, registry: CollectorRegistry, *, by_tenant: bool, database: bool) -> None:
        self.by_tenant = by_tenant
        self.database = database
        of_whom = ["server", "tenant"] if by_tenant else ["server"]
        self.messages = Counter(
            "mailpool_messages",
            "Messages by outcome.",
            [*of_whom, "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "mailpool_send_seconds",
            "From a message's turn to the server's answer to all of it, connecting included.",
            of_whom,
            registry=registry,
            buckets=BUCKETS,
        )
        registry.register(self)
        for outcome in OUTCOMES:
            getattr(signals, f"message_{outcome}").connect(self.count)

    def count(self, sender: Any, result: MailpoolResult, **kwargs: Any) -> None:
        """Count one message; a receiver of the signals."""
        labels = [result.server or NOWHERE]
        if self.by_tenant:
            labels.append(result.tenant or SITE)
        for outcome in OUTCOMES:  # all at once: a rate needs the zero before the first failure
            self.messages.labels(*labels, outcome).inc(outcome == result.status)
        if result.seconds is not None:
            self.seconds.labels(*labels).observe(result.seconds)

    def describe(self) -> Iterator[Metric]:
        """The names; nothing is looked at when it is registered."""
        yield from _of_pool(None)
        if self.database:
            yield from _of_database({})

    def collect(self) -> Iterator[Metric]:
        """What there is now. No database, unless that was asked for."""
        yield from _of_pool(delivery.stats())
        if self.database:
            try:
                yield from _of_database(health.counts())
            except Error:
                return  # health tells; the rest is to be seen all the same


def _of_pool(stats: PoolStats | None) -> Iterator[Metric]:
    sessions = GaugeMetricFamily(
        "mailpool_sessions", "Connections of this process.", labels=["server", "state"]
    )
    opened = CounterMetricFamily(
        "mailpool_session_opened", "Connections opened, by why.", labels=["server", "reason"]
    )
    if stats is not None:
        now = Tally((each.server, each.state) for each in stats.sessions)
        servers = {each.server for each in stats.sessions}
        servers |= {each.server for each in stats.openings}
        for server in sorted(servers):
            for state in STATES:
                sessions.add_metric([server or NOWHERE, state], now[server, state])
        for each in stats.openings:
            opened.add_metric([each.server or NOWHERE, each.reason], each.count)
    yield sessions
    yield opened
    for kind, name, text, field in (
        (CounterMetricFamily, "session_reused", "Connections taken from the pool.", "reused"),
        (CounterMetricFamily, "session_closed", "Connections closed.", "closed"),
        (CounterMetricFamily, "session_failed", "Connections that could not be opened.", "failed"),
        (GaugeMetricFamily, "pool_limit", "MAX_SESSIONS of this process.", "max_sessions"),
        (GaugeMetricFamily, "pool_waiting", "Callers that wait for a connection.", "waiting"),
        (GaugeMetricFamily, "pool_waiting_limit", "MAX_WAITING of this process.", "max_waiting"),
    ):
        value = None if stats is None else getattr(stats, field)
        yield kind(f"mailpool_{name}", text, value=value)


def _of_database(counts: dict[str, int]) -> Iterator[Metric]:
    for name, text in (
        ("credentials", "Active credentials."),
        ("credentials_needing_attention", "Active credentials that a provider has cut off."),
        ("senders_unproven", "Senders in use that nobody has proven."),
    ):
        yield GaugeMetricFamily(f"mailpool_{name}", text, value=counts.get(name))


_registered: dict[CollectorRegistry, Metrics] = {}


def register(
    registry: CollectorRegistry = REGISTRY, *, by_tenant: bool = False, database: bool = False
) -> Metrics:
    """Show mailpool's metrics in *registry*; the same again for one that has them.

    *by_tenant* gives messages a label ``tenant``: a time series for each tenant, bucket and
    outcome. *database* asks it for counts at every scrape: two queries.
    """
    if registry not in _registered:
        _registered[registry] = Metrics(registry, by_tenant=by_tenant, database=database)
    return _registered[registry]


def register_as_configured() -> None:
    """What ``MAILPOOL["METRICS"]`` asks for."""
    options = conf.metrics_options()
    if options is not None:
        register(REGISTRY, **options)
