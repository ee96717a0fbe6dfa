"""200 tenants, 16 threads, many messages: nothing crossed, lost or sent twice; bounded.

``LOAD_MESSAGES`` in the environment says how many; CI sends 5,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from django.core.mail import send_mail
from django.db import connection

import mailpool
from mailpool import delivery
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory

TENANTS, THREADS = 200, 16
MESSAGES = int(os.environ.get("LOAD_MESSAGES", "5000"))
MAX_SESSIONS = 120  # fewer than tenants: sessions have to make room for each other
# Bytes of memory after warming up. Seven kilobytes for each connection would be five times that.
MAX_GROWTH = (3 << 20) + 200 * MESSAGES


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def load_host():
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.load_host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, json.loads(process.stdout.readline())
    mailpool.close_connections()
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


def report(process) -> dict[str, int]:
    process.stdin.write("report\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_many_tenants_and_threads(load_host, real_mail, settings, record_property):
    settings.MAILPOOL = {**settings.MAILPOOL, "MAX_SESSIONS": MAX_SESSIONS}
    process, at = load_host
    server = MailServerFactory(host="localhost", port=at["port"], ca_certificate=at["ca"])
    for number in range(TENANTS):
        tenant = TenantFactory(slug=f"t{number}")
        CredentialFactory(tenant=tenant, server=server, username=f"t{number}")

    random = Random(20)
    lock = threading.Lock()
    numbers = iter(range(MESSAGES))
    most_open = 0
    memory: list[int] = []

    def work(_):
        nonlocal most_open
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                    if number is None:
                        return
                    if number % (MESSAGES // 20) == 0:
                        memory.append(resident_bytes())
                    # Neighbours in time are different tenants, some of them more often.
                    slug = f"t{int(TENANTS * random.random() ** 2)}"
                with mailpool.use_tenant(slug):
                    send_mail(f"m{number}", "hello", f"{slug}@example.com", ["a@example.com"])
                now = delivery.get_pool().stats().open
                with lock:
                    most_open = max(most_open, now)
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(work, range(THREADS)))

    seen = report(process)
    growth = memory[-1] - memory[len(memory) // 4]
    print(f"{seen} most_open={most_open} memory={[m >> 20 for m in memory]} MiB")
    assert seen["crossed"] == 0
    assert seen["twice"] == 0
    assert seen["messages"] == MESSAGES
    assert most_open <= MAX_SESSIONS
    # The server learns a moment later than we do that a connection was closed.
    assert seen["most_open"] <= MAX_SESSIONS + THREADS
    assert growth < MAX_GROWTH, f"grew by {growth >> 20} MiB after warming up"
