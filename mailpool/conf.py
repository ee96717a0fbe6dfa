"""The ``MAILPOOL`` setting, read when it is used, so that ``override_settings`` works."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import environ
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from mailpool.guard import MAIL_PORTS, Guard
from mailpool.secret import Secret

TENANT_MODEL_SETTING = "MAILPOOL_TENANT_MODEL"
DEFAULT_TENANT_MODEL = "mailpool.Tenant"
LEAST_TOKEN = 16
KEYS_VARIABLE = "MAILPOOL_ENCRYPTION_KEYS"

# Every name that MAILPOOL may hold, with its default. Times are seconds.
DEFAULTS: dict[str, Any] = {
    "ENCRYPTION_KEYS": None,  # newest first; None: from the environment
    "KEY_PROVIDER": None,  # a callable or its dotted path: () -> such a list, instead of it
    "REQUEST_TENANT": None,  # dotted path of a callable: request -> tenant, slug or None
    "TENANT_SLUG_FIELD": "slug",
    "MAX_SESSIONS": 100,  # open connections in one process, all credentials together
    "MAX_WAITING": 1000,  # callers that may wait for a connection in one process
    "POOL_TIMEOUT": 30.0,  # longest wait for a connection, opening it included
    "DEADLINE": None,  # longest time for one call that sends, whatever it sends; None: no limit
    "MAX_PARALLEL": 16,  # connections that one call sends over at the same time
    "KEEP_ORDER": True,  # within a credential; False: one call uses several of its connections
    "AUTH_FAILURE_PAUSE": 60.0,  # after a refused login, the same login fails at once
    "REPORT_CONNECTIONS": True,  # this process's connections into the database, for the admin
    "EHLO_HOSTNAME": None,  # None: this machine's own name
    "TENANT_SERVER_NETWORKS": (),  # where tenants' servers may be, beside public addresses
    "TENANT_SERVER_PORTS": MAIL_PORTS,
    "TENANT_VERIFY_RATE": "10/hour",  # attempts of a tenant in mailpool.views; None: no limit
    "VERIFY_SENDERS": False,  # whether a tenant sends only as those that it was proven to own
    "SENDER_DNS_SERVERS": None,  # name servers that are asked for proofs; None: the system's
    "LOG_ADDRESSES": False,  # whether log records have fields with the addresses of a message
    "METRICS": None,  # for Prometheus: True, or the options of mailpool.prometheus.register()
    "HEALTH_TOKEN": None,  # shows the details of mailpool.health without a login
    "RECORDS": "counts",  # what is kept of each message: off, counts, addresses or subjects
    "RECORDS_KEEP_DAYS": None,  # older records are removed by mailpool_prune; None: say how old
    "SITE": None,  # name of this installation; None: databases are not told apart
}


def tenant_model() -> str:
    """The tenant model as ``app_label.ModelName``; ``ImproperlyConfigured`` if it is not that.

    Whether there is such a model, a system check tells.
    """
    label = getattr(settings, TENANT_MODEL_SETTING, DEFAULT_TENANT_MODEL)
    if not isinstance(label, str) or not re.fullmatch(r"\w+\.\w+", label):
        raise ImproperlyConfigured(
            f"{TENANT_MODEL_SETTING} is not the name of a model. Write it as 'app_label.ModelName'."
        )
    return label


def require_tenant_model() -> None:
    """Raise ``ImproperlyConfigured`` where the tenant model is not installed.

    For the moment when all models are loaded: Django's own checks would stumble over it before
    ours could name the cure.
    """
    label = tenant_model()
    try:
        apps.get_model(label, require_ready=False)
    except LookupError:
        raise ImproperlyConfigured(
            f"{TENANT_MODEL_SETTING} is no installed model. Write it as 'app_label.ModelName', "
            "with the app in INSTALLED_APPS."
        ) from None


def raw() -> Mapping[str, Any]:
    """The setting as the project wrote it; an empty mapping where it is missing or no mapping."""
    value = getattr(settings, "MAILPOOL", {})
    return value if isinstance(value, Mapping) else {}


def get(name: str) -> Any:
    """One value of ``MAILPOOL``, or its default. ``KeyError`` for a name that is none."""
    return raw().get(name, DEFAULTS[name])


def is_seconds(value: object) -> bool:
    """Whether *value* is a number that can be a time."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def tenant_guard() -> Guard:
    """Where connections to tenants' own servers may go.

    ``ImproperlyConfigured`` where the settings can't be read: then they go nowhere.
    """
    try:
        return Guard(
            networks=tuple(get("TENANT_SERVER_NETWORKS")), ports=tuple(get("TENANT_SERVER_PORTS"))
        )
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(
            "TENANT_SERVER_NETWORKS or TENANT_SERVER_PORTS of MAILPOOL can't be used, so no "
            f"server of a tenant is: {error}."
        ) from error


# What MAILPOOL["RECORDS"] may be; each says more than the one before it.
RECORDS = ("off", "counts", "addresses", "subjects")
RECORDS_OFF, RECORDS_COUNTS, RECORDS_ADDRESSES, RECORDS_SUBJECTS = range(len(RECORDS))


def records_level() -> int:
    """How much is recorded of each message. With a mistake in the setting, no addresses."""
    given = get("RECORDS")
    return RECORDS.index(given) if given in RECORDS else RECORDS_COUNTS


def verifies_senders() -> bool:
    """Whether tenants' senders count only once their ownership is proven.

    On for anything that is not false, so that a mistake in the setting does not open it.
    """
    return bool(get("VERIFY_SENDERS"))


def sender_dns_servers() -> list[tuple[str, int]] | None:
    """Address and port of the name servers to ask; ``None``: those of the system.

    ``ImproperlyConfigured`` where the setting can't be read.
    """
    given = get("SENDER_DNS_SERVERS")
    if given is None:
        return None
    try:
        if isinstance(given, str) or not given:
            raise ValueError
        return [_name_server(str(each)) for each in given]
    except (TypeError, ValueError):
        raise ImproperlyConfigured(
            "MAILPOOL['SENDER_DNS_SERVERS'] can't be used. Write a list of addresses, such as "
            "['192.0.2.53'], with a port if it is not 53: '192.0.2.53:5353', '[2001:db8::53]:5353'."
        ) from None


def _name_server(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]+))(?::(?P<port>[0-9]{1,5}))?", text)
    host = (match["six"] or match["four"]) if match else text
    port = int(match["port"] or 53) if match else 53
    if not 0 < port < 65536:
        raise ValueError
    return str(ipaddress.ip_address(host)), port


def health_token() -> Secret | None:
    """What shows the details of ``mailpool.health``; ``None``: nothing does, nor one so short that
    it may be guessed."""
    given = get("HEALTH_TOKEN")
    return Secret(given) if isinstance(given, str) and len(given) >= LEAST_TOKEN else None


def metrics_options() -> dict[str, bool] | None:
    """The options of ``mailpool.prometheus.register()``; ``None`` where no metrics are wanted.

    ``ImproperlyConfigured`` where the setting can't be read.
    """
    given = get("METRICS")
    if given is None or given is False:
        return None
    options = {} if given is True else given
    if (
        not isinstance(options, Mapping)
        or not {"by_tenant", "database"}.issuperset(options)
        or not all(isinstance(value, bool) for value in options.values())
    ):
        raise ImproperlyConfigured(
            "MAILPOOL['METRICS'] can't be used. Write True, or options such as "
            "{'by_tenant': True, 'database': True}."
        )
    return dict(options)


_PERIODS = {"minute": 60, "hour": 3600, "day": 86400}


def tenant_verify_rate() -> tuple[int, int] | None:
    """How many attempts within how many seconds; ``None``: no limit.

    ``ImproperlyConfigured`` where the setting can't be read.
    """
    given = get("TENANT_VERIFY_RATE")
    if given is None:
        return None
    count, _, period = str(given).partition("/")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", count) or period not in _PERIODS:
        raise ImproperlyConfigured(
            "MAILPOOL['TENANT_VERIFY_RATE'] can't be used. Write it like '10/hour' (or /minute, "
            "/day), or None for no limit."
        )
    return int(count), _PERIODS[period]


def encryption_keys() -> tuple[Secret, ...]:
    """The configured keys as text, newest first; empty where there are none.

    Where the setting has none, the environment is asked: ``MAILPOOL_ENCRYPTION_KEYS``, keys
    separated by commas, or ``MAILPOOL_ENCRYPTION_KEYS_FILE`` with the path of a file that holds
    them (Docker and Kubernetes secrets).
    """
    keys = get("ENCRYPTION_KEYS")
    if keys is None:
        # One key a line is what people write into a file; commas are django-environ's way.
        text = Secret(environ.FileAwareEnv().str(KEYS_VARIABLE, default=""))
        keys = text.replace("\n", ",").split(",")
    elif isinstance(keys, str):
        keys = [keys]  # reported by a check; a lone key is clear enough to work with
    return tuple(Secret(key.strip()) for key in keys if key and key.strip())
