"""Keys from a provider: asked for seldom, followed when they change, silent when they fail."""

from __future__ import annotations

import base64
import functools
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import types
import urllib.error
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.core import checks
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.test import override_settings

from mailpool import rotation
from mailpool.backends import EmailBackend
from mailpool.checks import check_stored_secrets
from mailpool.exceptions import SecretError
from mailpool.models import Credential
from mailpool.vault import Keyring, generate_key, get_keyring
from mailpool.vault.provider import PAUSE, REFRESH_AFTER, ProvidedKeys, provided_keys
from tests.factories import CredentialFactory
from tests.smtpd import PASSWORD
from tests.test_docs import BLOCK, page
from tests.test_secrets import everything_about

OLD, NEW, LOST = generate_key(), generate_key(), generate_key()
OLD_ID, NEW_ID, LOST_ID = (Keyring([key]).newest for key in (OLD, NEW, LOST))
LEAK = "hvs.leaked-token"


class Manager:
    """A secret manager, as a provider sees it."""

    def __init__(self, *keys):
        self.keys = list(keys)
        self.asked = 0
        self.down = False

    def __call__(self):
        self.asked += 1
        if self.down:
            raise ConnectionError(f"{LEAK} {self.keys}")
        return list(self.keys)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def manager(settings, clock):
    """A manager with one key, which is in use."""
    manager = Manager(OLD)
    use(settings, manager, clock)
    return manager


def use(settings, provider, clock=None):
    settings.MAILPOOL = {"KEY_PROVIDER": provider, "EHLO_HOSTNAME": "client.test"}
    if clock:
        provided_keys(provider).clock = clock


def by_path():
    return [NEW]


@contextmanager
def all_logs():
    """What any logger writes, tracebacks included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def assert_silent(text):
    for secret in (LEAK, OLD[:12], NEW[:12], LOST[:12]):
        assert secret not in text


def report_of(caught):
    """As a debug page shows it, from the first frame of mailpool on."""
    return everything_about(caught.value.with_traceback(caught.tb.tb_next))


# Asked once


@pytest.mark.django_db
def test_it_is_not_asked_at_every_send(manager, mail_host, make_credential, real_mail):
    make_credential(mail_host, "bob")
    for _ in range(3):
        message = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
        message.tenant = "bob"
        EmailBackend().send_messages([message])
    assert [each.login for each in mail_host.delivered] == ["bob"] * 3
    assert manager.asked == 1


def test_it_is_asked_once_by_many_threads_at_first_use(settings):
    threads = 24
    together = threading.Barrier(threads)
    asked_again = threading.Event()
    calls = []

    def provider():
        calls.append(None)
        if len(calls) > 1:
            asked_again.set()
        asked_again.wait(0.5)  # room for a second question, which must not come
        return [NEW]

    def first_use(_):
        together.wait(10)
        return get_keyring().newest

    use(settings, provider)
    with ThreadPoolExecutor(threads) as crew:
        assert set(crew.map(first_use, range(threads))) == {NEW_ID}
    assert len(calls) == 1


def test_a_provider_by_its_path_and_one_by_itself(settings):
    for provider in (f"{__name__}.by_path", by_path):
        use(settings, provider)
        assert get_keyring().key_ids == (NEW_ID,)


def test_keys_belong_to_their_provider(settings):
    first, second = Manager(OLD), Manager(NEW)
    use(settings, first)
    assert get_keyring().newest == OLD_ID
    with override_settings(MAILPOOL={"KEY_PROVIDER": second}):
        assert get_keyring().newest == NEW_ID
        with override_settings(MAILPOOL={"ENCRYPTION_KEYS": [LOST]}):
            assert get_keyring().newest == LOST_ID
    assert get_keyring().newest == OLD_ID


# Asked again


@pytest.mark.django_db
def test_a_secret_under_a_new_key_opens_without_a_restart(manager, clock):
    credential = CredentialFactory()
    credential.password_ciphertext = Keyring([NEW]).seal("new", *place_and_use(credential))
    Credential.objects.filter(pk=credential.pk).update(password=credential.password_ciphertext)
    manager.keys = [NEW, OLD]
    clock.now += PAUSE
    assert Credential.objects.get().password == "new"
    assert manager.asked == 2
    assert get_keyring().newest == NEW_ID


def place_and_use(credential):
    field = Credential._meta.get_field("password")
    return field.place(credential), field.use(credential)


@pytest.mark.django_db
def test_a_row_that_nobody_can_decrypt_does_not_hammer_the_provider(manager, clock):
    credential = CredentialFactory()
    lost = Keyring([LOST]).seal("x", *place_and_use(credential))
    Credential.objects.filter(pk=credential.pk).update(password=lost)
    get_keyring()
    for asked in (2, 3):
        clock.now += PAUSE
        for _ in range(20):
            with pytest.raises(SecretError, match=LOST_ID) as caught:
                Credential.objects.get().password  # noqa: B018
            clock.now += PAUSE / 100
        assert manager.asked == asked
    assert "the end of the keys of the key provider tests.test_key_provider.Manager" in str(
        caught.value
    )


def test_many_threads_that_miss_a_key_ask_once(manager, clock):
    get_keyring()
    clock.now += PAUSE
    threads = 16
    together = threading.Barrier(threads)

    def miss(_):
        together.wait(10)
        return get_keyring(LOST_ID).newest

    with ThreadPoolExecutor(threads) as crew:
        assert set(crew.map(miss, range(threads))) == {OLD_ID}
    assert manager.asked == 2


def test_a_rotation_elsewhere_is_followed_when_sealing(manager, clock):
    assert get_keyring().seal("x", "place").key_id == OLD_ID
    manager.keys = [NEW, OLD]
    clock.now += REFRESH_AFTER - 1
    assert get_keyring().seal("x", "place").key_id == OLD_ID
    clock.now += 1
    assert get_keyring().seal("x", "place").key_id == NEW_ID
    assert manager.asked == 2


@pytest.mark.parametrize("kind", ["down", "empty", "malformed"])
def test_known_keys_stay_in_use_when_asking_again_fails(manager, clock, kind):
    sealed = get_keyring().seal("x", "place")
    if kind == "down":
        manager.down = True
    else:
        manager.keys = [] if kind == "empty" else [NEW[:20]]
    clock.now += REFRESH_AFTER
    with all_logs() as log:
        for _ in range(10):
            assert get_keyring().open(sealed, "place") == "x"
    assert log.getvalue().count("stay in use") == log.getvalue().count("\n") == 1
    assert "tests.test_key_provider.Manager" in log.getvalue()
    assert_silent(log.getvalue())
    assert manager.asked == 2
    clock.now += REFRESH_AFTER
    manager.down, manager.keys = False, [NEW, OLD]
    assert get_keyring().newest == NEW_ID


def test_a_slow_answer_holds_up_only_the_thread_that_asks(settings, clock):
    asked, go_on = threading.Event(), threading.Event()
    keys = [OLD]

    def provider():
        if len(keys) > 1:
            asked.set()
            assert go_on.wait(10)
        return keys

    use(settings, provider, clock)
    get_keyring()
    keys.insert(0, NEW)
    clock.now += REFRESH_AFTER
    with ThreadPoolExecutor(1) as crew:
        passing = crew.submit(get_keyring)
        try:
            assert asked.wait(10)
            assert get_keyring().newest == OLD_ID
        finally:
            go_on.set()
        assert passing.result(10).newest == NEW_ID


# When it fails


def raises():
    try:
        raise KeyError(OLD)
    except KeyError as error:
        raise ConnectionError(f"token {LEAK} refused, had {NEW}") from error


def raises_ours():
    raise SecretError(f"{LEAK} {NEW}")


def fails_while_it_is_read():
    class Odd(list):
        def __iter__(self):
            raise LookupError(LEAK)

    return Odd([NEW])


async def coroutine():
    return [NEW]


FAILURES = [
    (raises, "failed with ConnectionError"),
    (raises_ours, "failed with SecretError"),
    (fails_while_it_is_read, "failed with LookupError"),
    (lambda: None, "returned NoneType instead of a list"),
    (lambda: NEW, "returned str instead of a list"),
    (lambda: NEW.encode(), "returned bytes instead of a list"),
    (lambda: {NEW: OLD}, "returned dict instead of a list"),
    (lambda: iter([NEW]), "returned list_iterator instead of a list"),
    (list, "returned no keys"),
    (lambda: [NEW, None], "returned NoneType instead of text as key number 2"),
    (lambda: [NEW.encode()], "returned bytes instead of text as key number 1"),
    (lambda: [NEW, OLD[:20]], "key number 2 is unusable: it has"),
    (lambda: [NEW, ""], "key number 2 is unusable: it has 0 bytes"),
    (lambda: [NEW, OLD[:-2] + "!="], "key number 2 is unusable: it is not URL-safe"),
]


@pytest.mark.parametrize(("provider", "reason"), FAILURES, ids=[each[1] for each in FAILURES])
def test_a_provider_that_fails_is_named_and_its_words_are_not(settings, provider, reason):
    use(settings, provider)
    with all_logs() as log, pytest.raises(SecretError) as caught:
        get_keyring()
    assert reason in str(caught.value)
    assert f"key provider {provider.__module__}.{provider.__qualname__}" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    report = report_of(caught)
    assert "vault/provider.py" in report  # it does show our frames
    assert_silent(report + log.getvalue())


def test_a_coroutine_is_no_list(settings):
    made = coroutine()
    use(settings, lambda: made)
    with pytest.raises(SecretError, match="returned coroutine instead of a list"):
        get_keyring()
    made.close()


def test_a_provider_that_is_down_is_not_asked_by_every_caller(manager, clock):
    manager.down = True
    for _ in range(10):
        with pytest.raises(SecretError, match="ConnectionError"):
            get_keyring()
    assert manager.asked == 1
    manager.down = False
    clock.now += PAUSE
    assert get_keyring().newest == OLD_ID


def test_a_provider_that_needs_a_key_itself_fails_instead_of_waiting_for_itself(settings):
    calls = []

    def provider():
        calls.append(None)
        return [get_keyring().newest]

    use(settings, provider)
    with ThreadPoolExecutor(1) as crew, pytest.raises(SecretError, match="failed with SecretError"):
        crew.submit(get_keyring).result(10)
    assert len(calls) == 1


def test_an_interrupted_question_is_asked_again():
    answers = iter([KeyboardInterrupt, [NEW]])

    def provider():
        answer = next(answers)
        if answer is KeyboardInterrupt:
            raise answer
        return answer

    provided = ProvidedKeys(provider)
    with pytest.raises(KeyboardInterrupt):
        provided.keyring()
    assert provided.keyring().newest == NEW_ID


@pytest.mark.django_db
def test_nothing_is_sent_or_stored_without_keys(
    manager, clock, mail_host, make_credential, real_mail
):
    make_credential(mail_host, "bob")
    use(real_mail, down := Manager(OLD))
    down.down = True
    message = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
    message.tenant = "bob"
    with pytest.raises(SecretError, match="failed with ConnectionError"):
        EmailBackend().send_messages([message])
    with pytest.raises(SecretError, match="failed with ConnectionError"):
        CredentialFactory()
    assert mail_host.delivered == []


# Checks


def ids(**kwargs):
    found = [each for each in checks.run_checks(**kwargs) if "mailpool." in (each.id or "")]
    assert all(each.hint for each in found)
    assert_silent(str(found))
    return {each.id.removeprefix("mailpool.") for each in found} - {"W020"}


def test_checks_ask_the_provider_before_a_deployment_only(manager):
    manager.down = True
    assert ids() == set()
    assert manager.asked == 0
    assert ids(include_deployment_checks=True) == {"E016"}
    assert manager.asked == 1


def test_a_sound_provider_is_silent(settings):
    use(settings, f"{__name__}.by_path")
    assert ids(include_deployment_checks=True) == set()


def test_a_provider_and_keys_at_once(settings):
    settings.MAILPOOL = {"KEY_PROVIDER": by_path, "ENCRYPTION_KEYS": [OLD]}
    assert ids(include_deployment_checks=True) == {"E014"}
    with pytest.raises(SecretError, match="Remove ENCRYPTION_KEYS"):
        get_keyring()


@pytest.mark.parametrize("variable", ["MAILPOOL_ENCRYPTION_KEYS", "MAILPOOL_ENCRYPTION_KEYS_FILE"])
def test_a_provider_and_keys_in_the_environment(settings, monkeypatch, variable):
    monkeypatch.setenv(variable, OLD)
    use(settings, by_path)
    assert ids() == {"W012"}
    assert get_keyring().key_ids == (NEW_ID,)


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("no.such", "The key provider no.such can't be imported: ModuleNotFoundError."),
        (f"{__name__}.missing", f"The key provider {__name__}.missing can't be imported"),
        ("a..b", "The key provider in MAILPOOL['KEY_PROVIDER'] can't be imported"),
        ("", "The key provider in MAILPOOL['KEY_PROVIDER'] can't be imported"),
        (NEW, "The key provider in MAILPOOL['KEY_PROVIDER'] can't be imported"),
        (f"{__name__}.NEW", f"The key provider {__name__}.NEW can't be called."),
        ([NEW], "The key provider builtins.list can't be called."),
        (functools.partial(by_path, NEW), None),
    ],
    ids=["no module", "no name", "no path", "empty", "key", "no function", "keys", "arguments"],
)
def test_a_provider_that_is_none(settings, provider, reason):
    use(settings, provider)
    expected = {"E015"} if reason else {"E016"}
    assert ids(include_deployment_checks=True) == expected
    with pytest.raises(SecretError) as caught:
        get_keyring()
    assert (reason or "functools.partial failed with TypeError") in str(caught.value)
    assert_silent(report_of(caught))


def test_a_module_that_fails_while_it_is_imported(settings, tmp_path, monkeypatch):
    (tmp_path / "keys_that_fail.py").write_text(f"raise RuntimeError({LEAK!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    use(settings, "keys_that_fail.provide")
    assert ids() == {"E015"}
    with pytest.raises(SecretError, match="can't be imported: RuntimeError") as caught:
        get_keyring()
    assert_silent(report_of(caught))


@pytest.mark.django_db
def test_stored_secrets_are_compared_with_what_the_provider_has_now(settings, manager, clock):
    assert check_stored_secrets(databases=["default"]) == []
    assert manager.asked == 0  # nothing is stored
    CredentialFactory()
    assert check_stored_secrets(databases=["default"]) == []
    use(settings, other := Manager(NEW), clock)
    (error,) = check_stored_secrets(databases=["default"])
    assert error.id == "mailpool.E030"
    assert "the key provider tests.test_key_provider.Manager" in error.hint
    clock.now += PAUSE
    other.keys = [NEW, OLD]
    assert check_stored_secrets(databases=["default"]) == []


@pytest.mark.django_db
def test_stored_secrets_that_can_not_be_compared(settings, manager):
    CredentialFactory()
    use(settings, down := Manager(OLD))
    down.down = True
    (warning,) = check_stored_secrets(databases=["default"])
    assert warning.id == "mailpool.W013"
    assert not warning.is_serious()  # 'migrate' goes on
    assert "failed with ConnectionError" in warning.msg
    use(settings, "no.such")
    assert check_stored_secrets(databases=["default"]) == []  # reported by another check


@pytest.mark.parametrize(("option", "status"), [([], 0), (["--deploy"], 1)])
def test_manage_py_check_has_plain_words_for_a_provider_that_is_down(option, status):
    code = (
        "from django.conf import settings\n"
        "from django.core.management import execute_from_command_line\n"
        "from tests import settings as base\n"
        "names = {n: getattr(base, n) for n in dir(base) if n.isupper() and n != 'MAILPOOL'}\n"
        "path = 'tests.test_key_provider.raises'\n"
        "settings.configure(**names, MAILPOOL={'KEY_PROVIDER': path})\n"
        f"execute_from_command_line(['manage.py', 'check', *{option!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "DATABASE_URL": "sqlite:///:memory:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert ("failed with ConnectionError" in done.stderr) is bool(option)
    assert "Traceback" not in done.stderr
    assert LEAK not in done.stderr + done.stdout


# Forks


def in_child(work):
    """Fork, do *work* in the child, and return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_goes_on_with_the_keys_of_its_parent(manager):
    get_keyring()

    def work():
        manager.down = True
        assert get_keyring().newest == OLD_ID
        assert manager.asked == 1

    assert in_child(work) == 0


def test_a_child_does_not_wait_for_a_thread_of_its_parent(settings):
    asked, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def provider():
        if os.getpid() == parent:
            asked.set()
            assert go_on.wait(20)
        return [NEW]

    def work():
        watchdog = threading.Timer(10, os._exit, [3])
        watchdog.daemon = True
        watchdog.start()
        assert get_keyring().newest == NEW_ID

    use(settings, provider)
    with ThreadPoolExecutor(1) as crew:
        first = crew.submit(get_keyring)
        try:
            assert asked.wait(10)
            assert in_child(work) == 0
        finally:
            go_on.set()
        assert first.result(10).newest == NEW_ID


# Commands


def run(name, *args):
    out = io.StringIO()
    try:
        call_command(f"mailpool_{name}", *args, stdout=out, stderr=out)
    except SystemExit as end:
        return out.getvalue(), end.code
    return out.getvalue(), 0


@pytest.mark.django_db
def test_rotation_and_status(manager, clock):
    bob, mary = CredentialFactory(), CredentialFactory()
    manager.keys = [NEW, OLD]
    clock.now += REFRESH_AFTER
    text, status = run("rotate_keys")
    assert status == 0
    assert f"Newest key {NEW_ID}: 2 rewritten" in text
    for credential in (bob, mary):
        credential.refresh_from_db()
        assert credential.password_ciphertext.key_id == NEW_ID
        assert credential.password == PASSWORD
    text, status = run("status", "--json")
    assert status == 0
    assert [(key["id"], key["secrets"]) for key in json.loads(text)["keys"]] == [
        (NEW_ID, 2),
        (OLD_ID, 0),
    ]


@pytest.mark.django_db
def test_a_rotation_never_goes_back_to_an_older_key(settings, manager, clock):
    """This process knows the old key only; others have begun to use the new one."""
    first, second = sorted((CredentialFactory(), CredentialFactory()), key=lambda row: row.pk)
    sealed = Keyring([NEW]).seal("new", *place_and_use(first))
    Credential.objects.filter(pk=first.pk).update(password=sealed)
    manager.keys = [NEW, OLD]
    clock.now += PAUSE
    result = rotation.rotate()
    assert (result.newest, result.current, result.rewritten) == (NEW_ID, 1, 1)
    for row in (first, second):
        row.refresh_from_db()
        assert row.password_ciphertext.key_id == NEW_ID


@pytest.mark.django_db
def test_status_asks_again_for_a_key_that_it_does_not_know(manager, clock):
    credential = CredentialFactory()
    sealed = Keyring([NEW]).seal("new", *place_and_use(credential))
    Credential.objects.filter(pk=credential.pk).update(password=sealed)
    text, status = run("status")
    assert (status, "not configured" in text) == (1, True)
    manager.keys = [NEW, OLD]
    clock.now += PAUSE
    text, status = run("status")
    assert (status, "not configured" in text) == (0, False)


@pytest.mark.django_db
@pytest.mark.parametrize("command", ["status", "rotate_keys"])
def test_commands_have_plain_words_for_a_provider_that_is_down(manager, command):
    manager.down = True
    with pytest.raises(CommandError, match="failed with ConnectionError") as caught:
        run(command)
    assert_silent(report_of(caught))


# The recipes of the documentation, as they stand there


def recipe(name):
    """The function *name* of docs/security.md."""
    (code,) = (each for each in BLOCK.findall(page("security.md")) if f"def {name}(" in each)
    namespace = {}
    exec(compile(code, f"security.md, {name}", "exec"), namespace)
    return namespace[name]


class Vault(BaseHTTPRequestHandler):
    """As much of HashiCorp Vault as it takes to read a secret of KV version 2."""

    def do_GET(self):
        vault = self.server
        if vault.sealed:
            self.answer(503, {"errors": ["Vault is sealed"]})
        elif vault.active:
            self.send_response(307)
            self.send_header("Location", f"{vault.active}{self.path}")
            self.end_headers()
        elif self.headers["X-Vault-Token"] != vault.token:
            self.answer(403, {"errors": ["permission denied"]})
        elif self.path != "/v1/secret/data/mailpool":
            self.answer(404, {"errors": []})
        else:
            metadata = {"version": 2, "destroyed": False, "deletion_time": ""}
            data = {"data": {"keys": vault.keys}, "metadata": metadata}
            self.answer(200, {"lease_duration": 0, "data": data, "auth": None})

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def vault_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Vault) as server:
        server.address = f"http://127.0.0.1:{server.server_port}"
        server.token, server.keys, server.sealed, server.active = LEAK, f"{NEW} {OLD}", False, None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def vault(monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text(f"{LEAK}\n")
    with vault_server() as server:
        monkeypatch.setenv("VAULT_ADDR", server.address)
        monkeypatch.setenv("VAULT_TOKEN_FILE", str(token))
        monkeypatch.setenv("no_proxy", "*")
        yield server


def test_recipe_for_vault(vault, settings, clock):
    use(settings, recipe("from_vault"), clock)
    sealed = get_keyring().seal("x", "place")
    assert get_keyring().key_ids == (NEW_ID, OLD_ID)
    vault.keys = f"{LOST}\n{NEW}"
    clock.now += REFRESH_AFTER
    assert get_keyring().key_ids == (LOST_ID, NEW_ID)
    vault.sealed = True
    clock.now += REFRESH_AFTER
    assert get_keyring().open(sealed, "place") == "x"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sealed": True}, "failed with HTTPError"),
        ({"token": "another"}, "failed with HTTPError"),
        ({"keys": ""}, "returned no keys"),
        ({"keys": None}, "failed with AttributeError"),
        ({"keys": NEW[:20]}, "key number 1 is unusable"),
    ],
    ids=["sealed", "token", "no keys", "no text", "malformed"],
)
# Python keeps the answer open that an HTTPError has; here it is collected with the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_recipe_for_vault_leaves_errors_to_mailpool(vault, settings, change, reason):
    vars(vault).update(change)
    use(settings, recipe("from_vault"))
    with pytest.raises(SecretError, match=reason) as caught:
        get_keyring()
    assert_silent(report_of(caught))


def test_recipe_for_vault_gives_its_token_to_no_other_host(vault):
    with vault_server() as other:
        vault.active = other.address
        with pytest.raises(urllib.error.HTTPError, match="403") as caught:
            recipe("from_vault")()
        caught.value.close()


def wrapped(*keys):
    """Keys as the recipes for a KMS have them in the environment; this KMS turns them around."""
    return " ".join(base64.b64encode(key.encode()[::-1]).decode() for key in keys)


def test_recipe_for_aws(settings, monkeypatch):
    def client(service, config):
        assert (service, config["read_timeout"]) == ("kms", 5)
        return types.SimpleNamespace(decrypt=decrypt)

    def decrypt(*, KeyId, CiphertextBlob, EncryptionContext):
        assert (KeyId, EncryptionContext) == ("alias/mailpool", {"app": "mailpool"})
        return {"Plaintext": CiphertextBlob[::-1]}

    boto3, config = types.ModuleType("boto3"), types.ModuleType("botocore.config")
    boto3.client, config.Config = client, dict
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    monkeypatch.setitem(sys.modules, "botocore", types.ModuleType("botocore"))
    monkeypatch.setitem(sys.modules, "botocore.config", config)
    monkeypatch.setenv("MAILPOOL_ENCRYPTED_KEYS", wrapped(NEW, f"{OLD}\n"))
    use(settings, recipe("from_aws"))
    assert get_keyring().key_ids == (NEW_ID, OLD_ID)


def test_recipe_for_google(settings, monkeypatch):
    class Client:
        def decrypt(self, *, request, timeout):
            assert (request["name"], timeout) == ("projects/shop", 5)
            return types.SimpleNamespace(plaintext=request["ciphertext"][::-1])

    cloud, kms = types.ModuleType("google.cloud"), types.ModuleType("google.cloud.kms")
    cloud.kms, kms.KeyManagementServiceClient = kms, Client
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.cloud", cloud)
    monkeypatch.setitem(sys.modules, "google.cloud.kms", kms)
    monkeypatch.setenv("MAILPOOL_ENCRYPTED_KEYS", wrapped(NEW, f"{OLD}\n"))
    monkeypatch.setenv("MAILPOOL_KMS_KEY", "projects/shop")
    use(settings, recipe("from_google"))
    assert get_keyring().key_ids == (NEW_ID, OLD_ID)


def test_the_recipes_name_a_file_and_so_are_no_running_examples():
    assert len(re.findall(r"^# shop/keys\.py$", page("security.md"), re.MULTILINE)) == 3
