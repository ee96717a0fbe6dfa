"""Bob and Mary, one host: what each sends is filed under their own login, and nowhere else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.mail import send_mail
from django.db import connection

import mailpool
from mailpool.smtp import SessionPool

pytestmark = pytest.mark.django_db(transaction=True)


def crossed(host):
    """Messages that were sent on somebody else's login; the sender's local part is the login."""
    return [each for each in host.delivered if each.sender.split("@")[0] != each.login]


def send_as(slug, number, to="all@customers.example"):
    with mailpool.use_tenant(slug):
        send_mail(f"{slug} {number}", "hello", f"{slug}@example.com", [to])


def test_bob_and_mary_each_send_on_their_own_login(mail_host, make_credential, real_mail):
    make_credential(mail_host, "bob")
    make_credential(mail_host, "mary")
    for number in range(50):
        send_as("bob", number)
        send_as("mary", number)
    assert len(mail_host.sent_as("bob")) == 50
    assert len(mail_host.sent_as("mary")) == 50
    assert crossed(mail_host) == []
    assert mail_host.connections == 2


def run_threads(slugs, messages, threads=8):
    numbers = iter(range(messages))
    lock = threading.Lock()

    def work(_):
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                send_as(slugs[number % len(slugs)], number)
        finally:
            connection.close()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))


ACCOUNTS = ["bob", "mary", "shop-important", "shop-marketing"]


@pytest.mark.slow
def test_thousands_of_interleaved_messages_from_threads_never_cross(
    mail_host, make_credential, real_mail
):
    for account in ACCOUNTS:
        make_credential(mail_host, account)
    run_threads(ACCOUNTS, 2000)
    assert crossed(mail_host) == []
    assert len(mail_host.delivered) == 2000
    subjects = {each.message["Subject"] for each in mail_host.delivered}
    assert len(subjects) == 2000  # nothing twice, nothing lost
    assert mail_host.most_open <= 3 * len(ACCOUNTS)


class HostKeyedPool(SessionPool):
    """The old bug, on purpose: a connection is reused for whoever uses the same host."""

    def acquire(self, params, **kwargs):
        with self._lock:
            for key in self._idle:
                if (key.host, key.port) == (params.host, params.port):
                    params = key
                    break
        return super().acquire(params, **kwargs)


def test_the_story_catches_a_pool_that_is_keyed_by_host(
    mail_host, make_credential, real_mail, monkeypatch
):
    pool = HostKeyedPool()
    monkeypatch.setattr("mailpool.delivery.get_pool", lambda: pool)
    make_credential(mail_host, "bob")
    make_credential(mail_host, "mary")
    try:
        send_as("bob", 1)
        send_as("mary", 1)
        assert [each.sender for each in crossed(mail_host)] == ["mary@example.com"]
    finally:
        pool.close()
