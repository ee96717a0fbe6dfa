"""What delivery records cost: ``python -m tests.benchmarks.records``.

Sends the same messages with ``MAILPOOL["RECORDS"]`` off and on, in turns of a few messages, so that
the machine's moods hit both. The database is that of ``DATABASE_URL`` (PostgreSQL is what counts).
The mail host is on loopback: a private Postfix with Dovecot's logins, or a process that files
nothing, which makes the records look more expensive than they are beside a real server; with
``--round-trip`` it is that many milliseconds away. Medians of the turns, milliseconds per message.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

BODY = "Hello!\n\nThis is a short text, as most mail is.\n" * 4


@contextmanager
def postfix():
    """``(port, CA)`` of a Postfix, over STARTTLS."""
    from tests.integration.postfix import Postfix
    from tests.smtpd import Authority

    authority = Authority()
    with (
        TemporaryDirectory(prefix="benchmark-") as folder,
        Postfix(Path(folder), authority, ["acme"]) as host,
    ):
        yield host.port, authority.pem


@contextmanager
def counting_host(security: str):
    """``(port, CA)`` of a host in another process, which files nothing."""
    host = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.load_host", security],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        at = json.loads(host.stdout.readline())
        yield at["port"], at["ca"]
    finally:
        host.stdin.close()
        host.stdout.close()
        host.wait(60)


@contextmanager
def far_away(port: int, milliseconds: float):
    """The port of a proxy that makes the one at *port* that far."""
    from tests.latency import LatencyProxy

    with LatencyProxy(port, [milliseconds / 1000]) as proxy:
        yield proxy.ports[milliseconds / 1000]


def make_account(port: int, ca: str, security: str):
    from mailpool.models import Credential, MailServer, Tenant
    from tests.smtpd import PASSWORD

    tenant = Tenant.objects.create(slug="acme", name="Acme")
    server = MailServer.objects.create(
        name="Loopback",
        host="localhost",
        port=port,
        security=security,
        ca_certificate=ca,
        max_messages=100_000,
        max_lifetime=86_400,
    )
    Credential.objects.create(tenant=tenant, server=server, username="acme", password=PASSWORD)


class Sender:
    """Sends *messages* at a time, *calls* times in a turn; its own subjects never repeat."""

    def __init__(self, messages: int, calls: int, recipients: int) -> None:
        self.messages = messages
        self.calls = calls
        self.to = [f"r{number}@elsewhere.example" for number in range(recipients)]
        self._number = 0

    def turn(self) -> float:
        """Milliseconds per message."""
        from django.core.mail import EmailMessage

        from mailpool.backends import EmailBackend

        batches = []
        for _ in range(self.calls):
            batch = []
            for _ in range(self.messages):
                self._number += 1
                message = EmailMessage(f"Hello {self._number}", BODY, "acme@example.com", self.to)
                message.tenant = "acme"
                batch.append(message)
            batches.append(batch)
        started = time.perf_counter()
        for batch in batches:
            EmailBackend().send_messages(batch)
        return (time.perf_counter() - started) / (self.messages * self.calls) * 1000


def compare(sender: Sender, levels: list[str], turns: int) -> dict[str, float]:
    """The median of each level's turns, in turns."""
    from django.conf import settings

    times: dict[str, list[float]] = {level: [] for level in levels}
    for number in range(turns + 2):
        # Whoever comes after the other may find something warm.
        for level in levels if number % 2 else reversed(levels):
            settings.MAILPOOL["RECORDS"] = level
            milliseconds = sender.turn()
            if number >= 2:  # the first ones open connections and make SQL
                times[level].append(milliseconds)
    return {level: statistics.median(each) for level, each in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.records", description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--levels", default="counts,addresses")
    parser.add_argument("--recipients", type=int, default=1)
    parser.add_argument("--host", default="postfix", choices=["postfix", "starttls", "plain"])
    parser.add_argument("--round-trip", type=float, default=0, metavar="MS")
    parser.add_argument("--transaction", action="store_true", help="within one of the caller's")
    parser.add_argument("--profile", action="store_true", help="where the time goes, of one level")
    options = parser.parse_args()

    from tests.integration.postfix import why_not

    if options.host == "postfix" and (reason := why_not()):
        print(f"Postfix and Dovecot: {reason}. Try --host starttls.", file=sys.stderr)
        return 1
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import warnings

    import django

    warnings.simplefilter("ignore")
    django.setup()
    from django.db import connection, transaction
    from django.test.utils import setup_test_environment

    setup_test_environment(debug=False)
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True)
    levels = ["off", *options.levels.split(",")]
    try:
        is_real = options.host == "postfix"
        with ExitStack() as stack:
            host = postfix() if is_real else counting_host(options.host)
            port, ca = stack.enter_context(host)
            if options.round_trip:
                port = stack.enter_context(far_away(port, options.round_trip))
            make_account(port, ca, "starttls" if is_real else options.host)
            print(
                f"{connection.vendor}, {options.host}, {options.recipients} recipient(s), "
                f"{options.round_trip:g} ms round trip"
            )
            for title, messages, calls in (("singly", 1, 20), ("batch of 100", 100, 1)):
                sender = Sender(messages, calls, options.recipients)
                if options.profile:
                    _profile(sender, levels[-1])
                elif options.transaction:
                    with transaction.atomic():
                        _print(title, compare(sender, levels, options.turns))
                else:
                    _print(title, compare(sender, levels, options.turns))
            from mailpool.models import DeliveryRecord

            print(f"{DeliveryRecord.objects.count()} records were written.")
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
    return 0


def _print(title: str, medians: dict[str, float]) -> None:
    print(f"\n{title}")
    for level, milliseconds in medians.items():
        ratio = milliseconds / medians["off"]
        print(f"  {level:10} {milliseconds:7.3f} ms per message   x {ratio:.3f}", flush=True)


def _profile(sender: Sender, level: str) -> None:
    import cProfile
    import pstats

    from django.conf import settings

    settings.MAILPOOL["RECORDS"] = level
    sender.turn()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(20):
        sender.turn()
    profile.disable()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    sys.exit(main())
