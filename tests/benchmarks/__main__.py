"""Mailpool side by side with what a user would pick instead: ``python -m tests.benchmarks``.

Against a private Postfix with Dovecot's logins, over STARTTLS, through a proxy that adds latency
and counts round trips. All contestants take turns in one run on one machine, so their ratios mean
something; the milliseconds are that machine's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

SMALL = "Hello!\n\nThis is a short text, as most mail is.\n" * 4
LARGE = ("x" * 75 + "\n") * (1024 * 1024 // 76)
LATENCIES = [0.0, 0.02, 0.05, 0.1]
TENANTS = 100


@dataclass
class Row:
    """One contestant's measurement: milliseconds and round trips, each per message."""

    name: str
    ms: float
    trips: float


@dataclass
class Report:
    machine: str
    by_latency: dict[float, list[Row]] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    claims: list[tuple[str, str, str, bool]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def claim(self, text: str, value: float, bound: str, unit: str = "") -> None:
        """*value* against a *bound* such as ``<= 2.3``."""
        relation, limit = bound.split()
        met = value <= float(limit) if relation == "<=" else value >= float(limit)
        sign = {"<=": "at most", ">=": "at least"}[relation]
        self.claims.append((text, f"{sign} {limit}{unit}", f"{value:.2f}{unit}", met))

    def row(self, seconds: float, name: str) -> Row:
        return next(row for row in self.by_latency[seconds] if row.name == name)


class Benchmark:
    def __init__(self, place: Callable[[float], object], proxy, report: Report, quick: bool):
        self.place = place
        self.proxy = proxy
        self.report = report
        self.quick = quick

    def mails(self, count, tenants=1, recipients=1, body=SMALL):
        from tests.benchmarks.contestants import Mail

        to = tuple(f"r{number}@elsewhere.example" for number in range(recipients))
        return [Mail(f"t{number % tenants}", to, body) for number in range(count)]

    def measure(self, kind, place, mails, *, warm=None) -> Row:
        """One round to open what is kept open, then one that counts."""
        from tests.benchmarks.contestants import Raw, prepared

        with prepared(kind, place) as contestant:
            for group in (warm or mails[:10], mails):
                if isinstance(contestant, Raw):
                    contestant.prepare(group)
                self.proxy.counts()
                started = time.perf_counter()
                contestant.send(group)
                seconds = time.perf_counter() - started
            trips = self.proxy.counts()["round_trips"]
        row = Row(kind.name, seconds / len(mails) * 1000, trips / len(mails))
        print(f"  {row.name:36} {row.ms:9.2f} ms {row.trips:8.2f} round trips", flush=True)
        return row

    def latencies(self):
        from tests.benchmarks import contestants as c

        kinds = [
            c.DjangoOpening,
            c.DjangoOneConnection,
            c.PostOffice,
            c.DjangoMailer,
            c.Aiosmtplib,
            c.NodemailerOne,
            c.Nodemailer,
            c.MailpoolSingle,
            c.MailpoolSingleFlight,
            c.Mailpool,
            c.MailpoolFive,
            c.Raw,
        ]
        for kind in list(kinds):
            if reason := kind.why_not():
                kinds.remove(kind)
                self.report.left_out.append(f"{kind.name}: {reason}")
                print(f"Left out: {kind.name}: {reason}")
        for seconds in LATENCIES:
            print(f"\nOne tenant, {seconds * 1000:.0f} ms round trip")
            rows = self.report.by_latency[seconds] = []
            for kind in kinds:
                if kind.opens:
                    count = 5
                elif self.quick:
                    count = 20 if kind.batches else 5
                else:
                    count = (100 if seconds <= 0.05 else 40) if kind.batches else 20
                mails = self.mails(count)
                warm = self.mails(60) if kind in (c.MailpoolFive, c.Nodemailer) else None
                rows.append(self.measure(kind, self.place(seconds), mails, warm=warm))

    def shapes(self):
        from tests.benchmarks import contestants as c

        self.table("10 recipients, 50 ms, one tenant", self.mails(20, recipients=10))
        self.table("1 MB each, 50 ms, one tenant", self.mails(5, body=LARGE))
        for tenants in (10, TENANTS):
            each = 20 if tenants == 10 else 2
            place = self.place(0.05, tenants)
            print(f"\n{tenants} tenants, {each} messages each, 50 ms")
            mails = self.mails(tenants * each, tenants)
            self.report.tables[f"{tenants} tenants with {each} messages each, 50 ms"] = [
                self.measure(kind, place, mails, warm=self.mails(tenants, tenants))
                for kind in (c.DjangoOneConnection, c.Mailpool)
            ]
        print("\nOne tenant, 20 messages, 50 ms")
        one = self.measure(c.Mailpool, self.place(0.05), self.mails(20))
        ten = self.report.tables["10 tenants with 20 messages each, 50 ms"][1]
        self.report.claim("10 tenants at once, times one tenant's rate", one.ms / ten.ms, ">= 8")

    def table(self, title, mails):
        from tests.benchmarks import contestants as c

        print(f"\n{title}")
        kinds = (c.DjangoOneConnection, c.MailpoolSingle, c.MailpoolSingleFlight, c.Mailpool, c.Raw)
        self.report.tables[title] = [self.measure(kind, self.place(0.05), mails) for kind in kinds]

    def loopback(self):
        """Without the proxy, in turns, so that the machine's moods hit all of them.

        In another order each time: Postfix is still filing what came before. Like is compared with
        like: batches with batches, single sends with single sends.
        """
        from tests.benchmarks import contestants as c

        print("\nLoopback, no proxy, in turns")
        mails, order = self.mails(30 if self.quick else 50), random.Random(1)
        single = (c.DjangoSingle, c.MailpoolSingle, c.RawSingle)
        batch = (c.DjangoOneConnection, c.Mailpool, c.Raw)
        kinds = (*single, *batch)
        times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
        rendering = times["Django's rendering alone"] = []
        place = self.place(None)
        with ExitStack() as stack:
            runs = [stack.enter_context(c.prepared(kind, place)) for kind in kinds]
            for number in range(4 if self.quick else 25):
                for run in order.sample(runs, len(runs)):
                    if isinstance(run, c.Raw):
                        run.prepare(mails)
                    started = time.perf_counter()
                    run.send(mails)
                    if number:  # the first round opens connections
                        times[run.name].append(time.perf_counter() - started)
                started = time.perf_counter()
                for mail in mails:
                    mail.message().message().as_bytes()
                rendering.append(time.perf_counter() - started)
        median = {name: statistics.median(each) / len(mails) for name, each in times.items()}
        rows = [Row(name, seconds * 1000, 0) for name, seconds in median.items()]
        self.report.tables["Loopback without latency"] = rows
        for row in rows:
            print(f"  {row.name:36} {row.ms:9.2f} ms")
        for django, kind, raw in (single, batch):
            ours = median[kind.name]
            limit = 1.5 * median[raw.name] + median["Django's rendering alone"]
            self.report.claim(
                f"Loopback, {kind.name}, times Django's", ours / median[django.name], "<= 1"
            )
            self.report.claim(
                f"Loopback, {kind.name}, times (1.5 raw + rendering)", ours / limit, "<= 1"
            )

    def claims(self):
        from tests.benchmarks import contestants as c

        claim, row = self.report.claim, self.report.row
        single, batch = row(0.05, c.MailpoolSingle.name), row(0.05, c.Mailpool.name)
        ten = self.report.tables["10 recipients, 50 ms, one tenant"]
        trips = next(each.trips for each in ten if each.name == c.MailpoolSingle.name)
        claim("Round trips of a single send", single.trips, "<= 2")
        claim("Round trips of a single send to 10 recipients", trips, "<= 2")
        claim("Round trips per message of a batch of 100", batch.trips, "<= 1.01")
        flight = row(0.05, c.MailpoolSingleFlight.name)
        claim("Round trips of a single send in single flight", flight.trips, "<= 1")
        claim("50 ms, single send, in round trips of time", single.ms / 50, "<= 2.3")
        claim("50 ms, batch, in round trips of time per message", batch.ms / 50, "<= 1.15")
        names = {each.name for each in self.report.by_latency[0.05]}
        if c.Nodemailer.name in names:
            theirs, ours = row(0.05, c.Nodemailer.name), row(0.05, c.MailpoolFive.name)
            claim("50 ms, 5 sessions, times Nodemailer's pool of 5", theirs.ms / ours.ms, ">= 1.7")


def many_credentials(report: Report) -> None:
    """Checkout with few and with many keys, through the whole of resolve and acquire."""
    from django.core.mail import EmailMessage

    from mailpool import delivery
    from mailpool.models import Credential, MailServer, Tenant
    from mailpool.routing import Router
    from tests.benchmarks.pool import FakeSessions

    Tenant.objects.all().delete()
    server = MailServer.objects.create(name="many", host="smtp.example.com")

    def checkout(count: int) -> float:
        missing = range(Credential.objects.count(), count)
        tenants = Tenant.objects.bulk_create(
            Tenant(slug=f"m{number}", name="m") for number in missing
        )
        Credential.objects.bulk_create(
            Credential(tenant=tenant, server=server, username="u", password="p")
            for tenant in tenants
        )
        fake = FakeSessions()
        params = [delivery.session_params(each) for each in Credential.objects.all()]
        for each in params:
            with fake.pool.session(each):
                pass
        wanted = Tenant.objects.order_by("pk")[:: max(1, count // 100)]
        times = []
        for tenant in [*wanted] * 5:
            message = EmailMessage("x", "x", "a@example.com", ["b@example.com"])
            message.tenant = tenant
            started = time.perf_counter()
            with fake.pool.session(delivery.session_params(Router(None).resolve(message))):
                pass
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    few, many = checkout(100), checkout(10_000)
    print(f"\nCheckout: {few * 1e6:.0f} µs with 100 credentials, {many * 1e6:.0f} µs with 10,000")
    report.claim("Checkout with 10,000 credentials, times that with 100", many / few, "<= 1.5")
    Credential.objects.all().delete()
    Tenant.objects.all().delete()
    server.delete()


def idle_memory(report: Report) -> None:
    """Memory of this process for each idle TLS session."""
    from mailpool.smtp import SessionParams, SessionPool
    from tests.smtpd import PASSWORD

    count = 500
    host = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.load_host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        at = json.loads(host.stdout.readline())

        def params(number):
            return SessionParams(
                credential_id=str(number),
                host="localhost",
                port=at["port"],
                security="starttls",
                ca_certificate=at["ca"],
                username=f"t{number % 200}",
                password=PASSWORD,
                idle_timeout=600,
            )

        pool = SessionPool(max_sessions=count + 10)
        with pool.session(params(0)):
            pass
        before = _resident()
        for number in range(1, count + 1):
            with pool.session(params(number)):
                pass
        used = (_resident() - before) / count / 1024
        assert pool.stats().idle == count + 1
        print(f"\n{count} idle TLS sessions: {used:.0f} KiB each")
        report.tables[f"Memory: {count} idle TLS sessions, KiB each"] = [Row("KiB", used, 0)]
        pool.close()
    finally:
        host.stdin.close()
        host.stdout.close()
        host.wait(60)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages: a look, no figures")
    parser.add_argument("--report", type=Path, help="folder for the tables and the plot")
    options = parser.parse_args()
    if options.report:
        options.report = options.report.resolve()  # before the folder is changed

    from tests.integration.postfix import Postfix, why_not
    from tests.smtpd import Authority

    if reason := why_not():
        print(f"The benchmark needs Postfix and Dovecot: {reason}", file=sys.stderr)
        return 1
    authority = Authority()
    with TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        ca = Path(folder) / "ca.pem"
        ca.write_text(authority.pem)
        # For those who take the system's authorities and nothing else.
        os.environ |= {
            "SSL_CERT_FILE": str(ca),
            "BENCHMARK_DIR": folder,
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.settings",
        }
        import logging
        import warnings

        import django

        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)  # other contestants' progress
        os.chdir(folder)  # where django-mailer puts its lock
        django.setup()
        from django.core.management import call_command

        from tests.benchmarks.contestants import Place
        from tests.benchmarks.report import write
        from tests.latency import LatencyProxy

        call_command("migrate", verbosity=0)
        logins = [f"t{number}" for number in range(TENANTS)]
        postfix = stack.enter_context(Postfix(Path(folder), authority, logins))
        proxy = stack.enter_context(LatencyProxy(postfix.port, LATENCIES))

        def place(seconds, tenants=1):
            port = postfix.port if seconds is None else proxy.ports[seconds]
            return Place(port, tuple(logins[:tenants]), authority.pem)

        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, Django "
        report = Report(machine + django.get_version())
        benchmark = Benchmark(place, proxy, report, options.quick)
        benchmark.latencies()
        benchmark.shapes()
        benchmark.loopback()
        benchmark.claims()
        many_credentials(report)
        idle_memory(report)
        print()
        for text, bound, value, met in report.claims:
            print(f"  {'met   ' if met else 'MISSED'}  {value:>8}  {text}: {bound}")
        if options.report:
            write(report, options.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
