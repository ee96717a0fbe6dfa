"""Each misconfiguration has its message, and each message its cure."""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.core import checks, mail
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.db import connection

from mailpool import conf
from mailpool.checks import (
    BACKEND,
    MIDDLEWARE,
    check_backend,
    check_keys,
    check_provided_keys,
    check_settings,
    check_stored_secrets,
)
from mailpool.middleware import TenantMiddleware
from mailpool.vault import generate_key
from tests.factories import CredentialFactory

KEY = generate_key()
HAS_MAILERS = hasattr(mail, "mailers")


def ours():
    return [
        message for message in checks.run_checks() if (message.id or "").startswith("mailpool.")
    ]


def ids():
    found = ours()
    assert all(message.hint for message in found)
    return {message.id.removeprefix("mailpool.") for message in found}


@pytest.fixture(autouse=True)
def sound(settings, real_mail):
    """A configuration without a fault."""
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY]}
    assert ids() == set()


def test_a_sound_configuration_is_silent():
    assert ours() == []


def not_callable_here():
    """Something that can be called, for the test of what can't."""


SETTINGS = [
    ("a list", ["x"], {"E001", "E012"}),
    ("nothing", {}, {"E012"}),
    ("unknown name", {"ENCRYPTION_KEYS": [KEY], "MAX_SESSION": 1}, {"E002"}),
    ("text for a number", {"ENCRYPTION_KEYS": [KEY], "MAX_SESSIONS": "10"}, {"E003"}),
    ("true for a number", {"ENCRYPTION_KEYS": [KEY], "MAX_WAITING": True}, {"E003"}),
    ("nought sessions", {"ENCRYPTION_KEYS": [KEY], "MAX_SESSIONS": 0}, {"E003"}),
    ("no time", {"ENCRYPTION_KEYS": [KEY], "POOL_TIMEOUT": 0}, {"E003"}),
    ("negative pause", {"ENCRYPTION_KEYS": [KEY], "AUTH_FAILURE_PAUSE": -1}, {"E003"}),
    ("blank in host name", {"ENCRYPTION_KEYS": [KEY], "EHLO_HOSTNAME": "a b"}, {"E004"}),
    ("no such field", {"ENCRYPTION_KEYS": [KEY], "TENANT_SLUG_FIELD": "code"}, {"E006"}),
    ("no such function", {"ENCRYPTION_KEYS": [KEY], "REQUEST_TENANT": "no.such"}, {"E007"}),
    (
        "not callable",
        {"ENCRYPTION_KEYS": [KEY], "REQUEST_TENANT": f"{__name__}.KEY"},
        {"E007", "W002"},
    ),
    (
        "no middleware",
        {"ENCRYPTION_KEYS": [KEY], "REQUEST_TENANT": f"{__name__}.not_callable_here"},
        {"W002"},
    ),
    *(
        (f"tenant servers {wrong}", {"ENCRYPTION_KEYS": [KEY], **wrong}, {"E008"})
        for wrong in (
            {"TENANT_SERVER_NETWORKS": "10.0.0.0/8"},
            {"TENANT_SERVER_NETWORKS": None},
            {"TENANT_SERVER_NETWORKS": ["10.0.0.1/8"]},
            {"TENANT_SERVER_NETWORKS": ["mail.example.com"]},
            {"TENANT_SERVER_NETWORKS": [10]},
            {"TENANT_SERVER_PORTS": 587},
            {"TENANT_SERVER_PORTS": ["587"]},
            {"TENANT_SERVER_PORTS": [0]},
        )
    ),
    (
        "tenant servers",
        {
            "ENCRYPTION_KEYS": [KEY],
            "TENANT_SERVER_NETWORKS": ["10.1.0.0/16", "fd00::/8", "192.0.2.7"],
            "TENANT_SERVER_PORTS": (587, 10025),
        },
        set(),
    ),
    ("keys as text", {"ENCRYPTION_KEYS": KEY}, {"E010"}),
    ("keys as bytes", {"ENCRYPTION_KEYS": [KEY.encode()]}, {"E010"}),
    ("no keys", {"ENCRYPTION_KEYS": []}, {"E012"}),
    ("empty keys", {"ENCRYPTION_KEYS": ["", " "]}, {"E012"}),
    ("short key", {"ENCRYPTION_KEYS": ["c2hvcnQ="]}, {"E013"}),
    ("no base64", {"ENCRYPTION_KEYS": ["not a key!"]}, {"E013"}),
    ("key twice", {"ENCRYPTION_KEYS": [KEY, KEY]}, {"W011"}),
]


@pytest.mark.parametrize(
    ("value", "expected"), [s[1:] for s in SETTINGS], ids=[s[0] for s in SETTINGS]
)
def test_setting(settings, value, expected):
    settings.MAILPOOL = value
    assert ids() == expected


def test_unknown_name_is_explained(settings):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY], "ENCRYPTION_KEY": [KEY]}
    (message,) = ours()
    assert "'ENCRYPTION_KEYS'" in message.hint


def test_no_key_is_ever_shown(settings):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY, KEY, KEY[:20]]}
    assert KEY[:10] not in str(ours())


def test_middleware_without_a_function(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, MIDDLEWARE]
    assert ids() == {"W001"}


def test_key_that_is_secret_key(settings):
    settings.SECRET_KEY = KEY
    assert ids() == {"W010"}


def test_key_file_that_can_not_be_read(settings, monkeypatch, tmp_path):
    settings.MAILPOOL = {}
    monkeypatch.setenv("MAILPOOL_ENCRYPTION_KEYS_FILE", str(tmp_path / "missing"))
    assert ids() == {"E011"}


def test_key_and_path_of_its_file_in_each_others_variable(settings, monkeypatch):
    settings.MAILPOOL = {}
    monkeypatch.setenv("MAILPOOL_ENCRYPTION_KEYS_FILE", KEY)
    (found,) = check_keys()
    assert found.hint.endswith("A key itself goes into MAILPOOL_ENCRYPTION_KEYS.")
    assert KEY not in str(found)
    monkeypatch.delenv("MAILPOOL_ENCRYPTION_KEYS_FILE")
    monkeypatch.setenv("MAILPOOL_ENCRYPTION_KEYS", "/run/secrets/mailpool.key")
    (found,) = check_keys()
    assert found.hint.endswith(
        "The path of a file with keys goes into MAILPOOL_ENCRYPTION_KEYS_FILE."
    )


def test_tenant_model_that_is_not_there(settings):
    settings.MAILPOOL_TENANT_MODEL = "shop.Customer"
    assert ids() == {"E005"}
    settings.MAILPOOL_TENANT_MODEL = "nonsense"
    assert ids() == {"E005"}


@pytest.mark.skipif(HAS_MAILERS, reason="about EMAIL_BACKEND")
def test_backend_setting(settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    assert ids() == {"W020"}
    settings.EMAIL_BACKEND = BACKEND
    settings.EMAIL_HOST_PASSWORD = "x"
    assert ids() == {"W021"}


@pytest.mark.skipif(not HAS_MAILERS, reason="MAILERS came with Django 6.1")
@pytest.mark.parametrize(
    ("mailers", "expected"),
    [
        ({"default": {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}}, {"W020"}),
        ({}, {"W020"}),
        ({"a": {"BACKEND": BACKEND, "OPTIONS": {"host": "x"}}}, {"E020"}),
        ({"a": {"BACKEND": BACKEND, "OPTIONS": {"tenant": " "}}}, {"E021"}),
        ({"a": {"BACKEND": BACKEND, "OPTIONS": {"tenant": "x", "fail_silently": True}}}, set()),
    ],
)
def test_mailers(settings, mailers, expected):
    settings.MAILERS = mailers
    assert ids() == expected


@pytest.mark.django_db
def test_secrets_under_a_key_that_is_gone(settings):
    lost = CredentialFactory().password_ciphertext.key_id
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [generate_key()]}
    (message,) = check_stored_secrets(databases=["default"])
    assert message.id == "mailpool.E030"
    assert lost in message.msg
    assert check_stored_secrets(databases=[]) == []
    settings.MAILPOOL = {"ENCRYPTION_KEYS": []}
    assert check_stored_secrets(databases=["default"]) == []  # reported by another check


@pytest.mark.django_db
def test_database_that_is_not_migrated_yet(monkeypatch):
    monkeypatch.setattr(connection.introspection, "table_names", list)
    assert check_stored_secrets(databases=["default"]) == []


@pytest.mark.parametrize(
    "value",
    [
        {"POOL_TIMEOUT": float("nan")},
        {"DEADLINE": float("inf")},
        {"DEADLINE": -1},
        {"KEEP_ORDER": "no"},
        {"REPORT_CONNECTIONS": "no"},
    ],
)
def test_numbers_that_are_none(settings, value):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY], **value}
    assert ids() == {"E003"}


@pytest.mark.parametrize("field", ["is_active", "mailpool_credentials"])
def test_slug_field_that_is_no_text(settings, field):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY], "TENANT_SLUG_FIELD": field}
    assert ids() == {"E006"}


def test_slug_field_that_is_not_unique(settings):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [KEY], "TENANT_SLUG_FIELD": "name"}
    assert ids() == {"W003"}


@pytest.mark.skipif(not HAS_MAILERS, reason="MAILERS came with Django 6.1")
@pytest.mark.parametrize(
    ("mailers", "expected"),
    [
        ([], {"E022"}),
        ({"default": None}, {"W020"}),
        ({"default": {"BACKEND": BACKEND, "OPTIONS": None}}, set()),
        ({"default": {"BACKEND": BACKEND, "OPTIONS": {"deadline": -1}}}, {"E023"}),
        ({"default": {"BACKEND": BACKEND, "OPTIONS": {"keep_order": "no"}}}, {"E023"}),
    ],
)
def test_mailers_of_odd_forms(settings, mailers, expected):
    settings.MAILERS = mailers
    assert {m.id.removeprefix("mailpool.") for m in check_backend(None)} == expected


@pytest.mark.parametrize("model", ["nonsense", "shop", "swapped.Nope", "mailpool.Nope", 5, None])
def test_tenant_model_that_is_none_in_a_process_of_its_own(model, tmp_path):
    """It is read while models are made; nobody may get a traceback for it."""
    code = (
        "import sys\n"
        "from django.conf import settings\n"
        "from django.core.management import execute_from_command_line\n"
        "from tests import settings as base\n"
        "names = {n: getattr(base, n) for n in dir(base) if n.isupper()}\n"
        f"settings.configure(**names, MAILPOOL_TENANT_MODEL={model!r})\n"
        "execute_from_command_line(['manage.py', 'check'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ImproperlyConfigured: MAILPOOL_TENANT_MODEL is" in last
    assert "'app_label.ModelName'" in last


MISPLACED = [KEY, [KEY], {KEY: KEY}]


def told_of(read):
    """What *read* says of a setting that it can't use."""
    try:
        read()
    except (ImproperlyConfigured, MiddlewareNotUsed) as error:
        return str(error)
    except (TypeError, AttributeError):
        return ""  # of a type that the checks report
    return ""


@pytest.mark.parametrize("value", MISPLACED, ids=["value", "list", "dictionary"])
@pytest.mark.parametrize("setting", [*conf.DEFAULTS, pytest.param(KEY, id="a name")])
def test_a_key_in_the_wrong_place_is_not_repeated(settings, setting, value):
    """Checks are printed by every command, and go into the logs of what starts them."""
    settings.MAILPOOL = {**settings.MAILPOOL, setting: value}
    found = [*check_settings(), *check_keys(), *check_provided_keys()]
    is_fine = (setting, value) in (("ENCRYPTION_KEYS", [KEY]), ("HEALTH_TOKEN", KEY))
    assert bool(found) != is_fine
    told = "".join(f"{message.msg} {message.hint}" for message in found)
    readers = [conf.tenant_guard, conf.sender_dns_servers, conf.tenant_verify_rate]
    told += "".join(map(told_of, [*readers, lambda: TenantMiddleware(lambda request: None)]))
    assert KEY[:10] not in told


def test_nor_is_one_in_the_name_of_the_tenant_model(settings):
    settings.MAILPOOL_TENANT_MODEL = KEY
    (message,) = check_settings()
    assert KEY[:10] not in message.msg + message.hint
    settings.MAILPOOL_TENANT_MODEL = "word.word"
    assert "word" not in told_of(conf.require_tenant_model)
    assert "installed model" in told_of(conf.require_tenant_model)


@pytest.mark.skipif(not HAS_MAILERS, reason="MAILERS came with Django 6.1")
@pytest.mark.parametrize("option", ["deadline", "keep_order"])
def test_nor_is_one_in_the_options(settings, option):
    settings.MAILERS = {"default": {"BACKEND": BACKEND, "OPTIONS": {option: KEY}}}
    (message,) = check_backend(None)
    assert KEY[:10] not in message.msg + message.hint
