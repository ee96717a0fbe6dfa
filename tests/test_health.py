"""The health view: what keeps mail from being sent is a failure, and nobody learns too much."""

from __future__ import annotations

import threading
import time

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import OperationalError, connection
from django.test import Client
from django.urls import path

from mailpool import delivery, health
from mailpool.checks import check_settings
from mailpool.exceptions import SecretError
from mailpool.models import Credential, OAuthClient
from mailpool.vault import generate_key
from tests.factories import CredentialFactory, SenderFactory
from tests.smtpd import PASSWORD

TOKEN = "a-token-that-is-long-enough"

urlpatterns = [path("health/", health.view)]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture(autouse=True)
def _fresh(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "HEALTH_TOKEN": TOKEN}
    health.keeper.forget()
    yield
    health.keeper.forget()


def ask(token=None, client=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = (client or Client()).get("/health/", headers=headers)
    return response.status_code, response.json()


def anew(token=None):
    health.keeper.forget()
    return ask(token)


def say_it_is_down(execute, sql, params, many, context):
    raise OperationalError("could not connect to db.internal as shop")


def needs_attention():
    credential = CredentialFactory()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailpool_credential SET needs_attention = 'The permission is gone.'")
    return credential


def test_all_is_well():
    CredentialFactory()
    checks = {"keys": "ok", "pool": "ok", "database": "ok"}
    assert ask() == (200, {"status": "ok", "checks": checks})
    status, answer = ask(TOKEN)
    assert (status, answer["status"]) == (200, "ok")
    assert answer["checks"]["accounts"] == {
        "status": "ok",
        "credentials": 1,
        "credentials_needing_attention": 0,
        "senders_unproven": 0,
    }


def test_one_accounts_trouble_takes_no_process_out_of_service(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True}
    credential = needs_attention()
    SenderFactory(credential=credential)
    status, answer = ask()
    assert (status, answer["status"]) == (200, "ok")
    assert "accounts" not in answer["checks"]
    status, answer = ask(TOKEN)
    assert (status, answer["status"]) == (200, "warning")
    accounts = answer["checks"]["accounts"]
    assert (accounts["credentials_needing_attention"], accounts["senders_unproven"]) == (1, 1)
    assert credential.username not in str(answer)


def test_without_keys_it_fails(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": ["short"]}
    status, answer = ask()
    assert (status, answer["status"], answer["checks"]["keys"]) == (503, "failing", "failing")
    status, answer = ask(TOKEN)
    assert status == 503
    assert "key" in answer["checks"]["keys"]["what"]
    assert "short" not in answer["checks"]["keys"]["what"].split()


def with_keys(settings, *keys):
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": list(keys)}


def test_with_another_key_it_fails(settings):
    (right,) = settings.MAILPOOL["ENCRYPTION_KEYS"]
    wrong = generate_key()
    with_keys(settings, wrong)
    assert anew()[0] == 200  # nothing is stored yet
    with_keys(settings, right)
    credential = CredentialFactory()
    assert anew()[0] == 200
    with_keys(settings, wrong)
    status, answer = anew()
    assert (status, answer["checks"]["keys"]) == (503, "failing")
    assert "what" not in str(answer)
    with pytest.raises(SecretError):
        credential.refresh_from_db()
        str(credential.password)
    status, answer = anew(TOKEN)
    assert (status, answer["checks"]["keys"]["status"]) == (503, "failing")
    assert "no mail that needs one can be sent" in answer["checks"]["keys"]["what"]
    for name in (PASSWORD, credential.username, str(credential.pk), credential.server.host, wrong):
        assert name not in str(answer)
    with_keys(settings, wrong, right)  # put back
    assert anew(TOKEN)[1]["status"] == "ok"


def test_one_password_that_does_not_decrypt_takes_no_process_out_of_service(settings):
    credentials = CredentialFactory.create_batch(3)
    stolen = credentials[0].password_ciphertext
    Credential.objects.filter(pk=credentials[1].pk).update(password=stolen)
    assert ask() == (200, anew()[1])
    assert ask()[1]["checks"]["keys"] == "ok"
    answer = ask(TOKEN)[1]
    assert (answer["status"], answer["checks"]["keys"]["status"]) == ("warning", "warning")
    assert credentials[1].username not in str(answer)
    # Nor one that nobody uses.
    Credential.objects.filter(pk=credentials[1].pk).update(is_active=False)
    assert anew(TOKEN)[1]["status"] == "ok"


def in_order(count):
    """So many accounts, in the order in which they are tried."""
    return sorted(CredentialFactory.create_batch(count), key=lambda credential: str(credential.pk))


def test_a_key_that_serves_one_account_alone_is_missed(settings):
    """After a rotation that was not finished, say; however many others open."""
    (key,) = settings.MAILPOOL["ENCRYPTION_KEYS"]
    *_rest, last = in_order(2 * health.TRIED)
    other = generate_key()
    with_keys(settings, other, key)
    last.password = PASSWORD
    last.save()
    assert anew(TOKEN)[1]["status"] == "ok"
    with_keys(settings, key)
    status, answer = anew(TOKEN)
    assert (status, answer["checks"]["keys"]["status"]) == (200, "warning")
    assert last.username not in str(answer)


def test_as_long_as_one_account_can_send_the_process_is_in_service(settings):
    *_rest, last = in_order(2 * health.TRIED)
    other = generate_key()
    with_keys(settings, other, *settings.MAILPOOL["ENCRYPTION_KEYS"])
    last.password = PASSWORD
    last.save()
    with_keys(settings, other)
    status, answer = anew(TOKEN)
    assert (status, answer["checks"]["keys"]["status"]) == (200, "warning")


def test_what_is_no_ciphertext_is_found_wherever_it_is():
    *_rest, last = in_order(2 * health.TRIED)
    with connection.cursor() as cursor:
        table, pk = Credential._meta.db_table, Credential._meta.pk
        cursor.execute(
            f"UPDATE {table} SET password = 'plain text' WHERE id = %s",
            [pk.get_db_prep_value(last.pk, connection)],
        )
    assert anew(TOKEN)[1]["checks"]["keys"]["status"] == "warning"


def test_refresh_tokens_need_the_key_as_well(settings):
    client = OAuthClient.objects.create(name="Provider", client_id="id", client_secret="secret")
    CredentialFactory(
        kind="authorization_code", oauth_client=client, password="", refresh_token="token"
    )
    assert anew()[0] == 200
    with_keys(settings, generate_key())
    assert anew()[0] == 503


def test_accounts_without_a_login_need_no_key(settings):
    CredentialFactory(username="", password="")
    with_keys(settings, generate_key())
    assert anew()[0] == 200


def test_a_database_that_fails_while_passwords_are_read_is_no_wrong_key():
    CredentialFactory()

    def fail(execute, sql, params, many, context):
        if "password" in sql:
            raise OperationalError("gone")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        assert ask()[1]["checks"]["keys"] == "ok"


@pytest.mark.parametrize("token", [None, TOKEN])
def test_without_a_database_it_fails_and_says_little(token):
    with connection.execute_wrapper(say_it_is_down):
        status, answer = ask(token)
    assert (status, answer["status"]) == (503, "failing")
    assert "internal" not in str(answer)
    assert ("OperationalError" in str(answer)) is (token is not None)
    assert "accounts" not in answer["checks"]


def test_a_database_that_is_anothers_fails(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "SITE": "staging"}
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM mailpool_sitemarker")
        cursor.execute("INSERT INTO mailpool_sitemarker (id, name) VALUES (1, 'production')")
    assert ask()[0] == 503
    assert "production" in ask(TOKEN)[1]["checks"]["database"]["what"]
    assert "production" not in str(ask())


def test_a_full_pool_fails_once_nobody_may_wait(mail_host, make_credential, settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "MAX_SESSIONS": 1, "MAX_WAITING": 1}
    params = delivery.session_params(make_credential(mail_host))
    pool = delivery.get_pool()
    with pool.session(params) as session:
        assert anew()[0] == 200  # full, and nobody has to wait
        waiting = threading.Thread(target=lambda: pool.release(pool.acquire(params)))
        waiting.start()
        while not delivery.stats().waiting:
            waiting.join(0.01)
        status, answer = anew(TOKEN)
        assert (status, answer["checks"]["pool"]["status"]) == (503, "failing")
        assert answer["checks"]["pool"]["waiting"] == 1
        settings.MAILPOOL = {**settings.MAILPOOL, "MAX_WAITING": 2}
        status, answer = anew(TOKEN)
        assert (status, answer["checks"]["pool"]["status"]) == (200, "warning")
        assert session.is_open
    waiting.join(30)
    assert anew(TOKEN)[1]["checks"]["pool"]["status"] == "ok"


def test_where_nobody_may_wait_a_full_pool_fails(mail_host, make_credential, settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "MAX_SESSIONS": 1, "MAX_WAITING": 0}
    assert anew()[0] == 200
    with delivery.get_pool().session(delivery.session_params(make_credential(mail_host))):
        assert anew()[0] == 503
    assert anew()[0] == 200  # an idle one makes room


# Who may know


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "\N{SNOWMAN}"])
def test_a_wrong_token_shows_no_more_than_none(token):
    assert ask(token.encode().decode("latin-1")) == ask()


@pytest.mark.parametrize("configured", [None, "", "short", 12345678901234567])
def test_a_token_that_is_none_opens_nothing(settings, configured):
    settings.MAILPOOL = {**settings.MAILPOOL, "HEALTH_TOKEN": configured}
    for given in ("", "short", str(configured)):
        assert "accounts" not in ask(given)[1]["checks"]
    problems = [] if configured is None else ["mailpool.E052"]
    found = check_settings()
    assert [each.id for each in found] == problems
    assert all(str(configured) not in each.msg for each in found if configured)


def test_a_permission_shows_the_details():
    user = get_user_model().objects.create_user("ops")
    client = Client()
    client.force_login(user)
    assert "accounts" not in ask(client=client)[1]["checks"]
    user.user_permissions.add(Permission.objects.get(codename="view_credential"))
    assert "accounts" in ask(client=client)[1]["checks"]
    with connection.execute_wrapper(say_it_is_down):
        health.keeper.forget()
        assert ask(client=client)[0] == 503


# What it costs


def test_it_asks_little_and_seldom(settings, django_assert_max_num_queries, mail_host):
    settings.MAILPOOL = {**settings.MAILPOOL, "VERIFY_SENDERS": True, "SITE": "here"}
    for _ in range(5):
        SenderFactory()
    with django_assert_max_num_queries(5):
        ask()
    with django_assert_max_num_queries(0):
        assert [ask(TOKEN)[0] for _ in range(20)] == [200] * 20
    assert mail_host.connections == 0


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_it_is_only_looked_at(method):
    assert getattr(Client(), method)("/health/").status_code == 405
    response = Client().get("/health/")
    assert "no-store" in response["Cache-Control"]
    assert Client().head("/health/").status_code == 200


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_report_is_kept_for_a_moment_and_no_longer():
    clock, looks = Clock(), []
    keeper = health.Keeper(lambda: looks.append(1) or {"x": health.Finding("ok")}, clock)
    for seconds, expected in ((0, 1), (health.KEEP - 0.1, 1), (0.1, 2), (0, 2), (1000, 3)):
        clock.now += seconds
        keeper.report()
        assert len(looks) == expected


def test_while_one_looks_others_are_not_kept_waiting():
    """Until it takes too long: a database that hangs is none."""
    clock, go_on, looking = Clock(), threading.Event(), threading.Event()
    good = {"database": health.Finding("ok")}
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 2:
            looking.set()
            assert go_on.wait(30)
        return good

    keeper = health.Keeper(look, clock)
    keeper.report()
    clock.now += health.KEEP
    thread = threading.Thread(target=keeper.report)
    thread.start()
    assert looking.wait(30)
    started = time.monotonic()
    assert keeper.report() is good
    assert time.monotonic() - started < health.PATIENCE / 2
    clock.now += health.PATIENCE
    health_patience, health.PATIENCE = health.PATIENCE, 0.01
    try:
        assert keeper.report()["database"].state == "failing"
    finally:
        health.PATIENCE = health_patience
        go_on.set()
        thread.join(30)
    assert len(looks) == 2
