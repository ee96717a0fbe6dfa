"""``MAILPOOL`` as a whole: its form, and each setting but the keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured, ValidationError
from django.db.models import CharField, TextField
from django.utils.module_loading import import_string

from mailpool import conf, txt_records
from mailpool.guard import Guard
from mailpool.models import SiteMarker
from mailpool.validators import validate_host
from mailpool.vault.keyring import parse_key

MIDDLEWARE = "mailpool.middleware.TenantMiddleware"

_NAME = re.compile("[A-Za-z_]{1,40}")


@register(Tags.security)
def check_settings(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """``MAILPOOL`` as a whole: its form and the names in it."""
    value = getattr(settings, "MAILPOOL", {})
    if not isinstance(value, dict):
        return [
            Error(
                "MAILPOOL is not a dictionary.",
                hint="Write MAILPOOL = {'ENCRYPTION_KEYS': [...]}.",
                id="mailpool.E001",
            )
        ]
    return [
        *_unknown_names(value),
        *_numbers(value),
        *_site(),
        *_tenants(),
        *_request_tenant(),
        *_tenant_servers(),
        *_tenant_rate(),
        *_ownership(),
        *_monitoring(),
        *_records(),
    ]


def _unknown_names(value: dict[Any, Any]) -> Iterator[CheckMessage]:
    for name in value:
        if name not in conf.DEFAULTS:
            close = get_close_matches(str(name).upper(), conf.DEFAULTS, 1)
            meant = f"Did you mean {close[0]!r}?" if close else "See the settings reference."
            # What is not written like a name may be anything.
            which = repr(name) if _NAME.fullmatch(str(name)) else "of one of the names in it"
            yield Error(f"MAILPOOL has no setting {which}.", hint=meant, id="mailpool.E002")


def _numbers(value: dict[Any, Any]) -> Iterator[CheckMessage]:
    for name, kinds, least in (
        ("MAX_SESSIONS", int, 1),
        ("MAX_WAITING", int, 0),
        ("MAX_PARALLEL", int, 1),
        ("DEADLINE", (int, float), 0.001),
        ("POOL_TIMEOUT", (int, float), 0.001),
        ("AUTH_FAILURE_PAUSE", (int, float), 0),
        ("RECORDS_KEEP_DAYS", int, 1),
    ):
        given = conf.get(name)
        if given is None and conf.DEFAULTS[name] is None:
            continue
        if (
            isinstance(given, bool)
            or not isinstance(given, kinds)
            or not least <= given < float("inf")
        ):
            what = "a whole number" if kinds is int else "a number of seconds"
            yield Error(
                f"MAILPOOL[{name!r}] is not {what} that can be used.",
                hint=f"It must be {what}, at least {least}.",
                id="mailpool.E003",
            )
    for name in ("KEEP_ORDER", "REPORT_CONNECTIONS", "LOG_ADDRESSES"):
        if not isinstance(conf.get(name), bool):
            yield Error(
                f"MAILPOOL[{name!r}] is neither True nor False.",
                hint="It must be one of them.",
                id="mailpool.E003",
            )
    hostname = conf.get("EHLO_HOSTNAME")
    if hostname is not None and not (isinstance(hostname, str) and _is_host_name(hostname)):
        yield Error(
            "MAILPOOL['EHLO_HOSTNAME'] is not a host name.",
            hint="Name this machine as it is known outside, or leave the setting out.",
            id="mailpool.E004",
        )


def _records() -> Iterator[CheckMessage]:
    if conf.get("RECORDS") not in conf.RECORDS:
        yield Error(
            "MAILPOOL['RECORDS'] is not one of its words.",
            hint=f"Choose one of {', '.join(map(repr, conf.RECORDS))}.",
            id="mailpool.E019",
        )


def _is_host_name(text: str) -> bool:
    try:
        validate_host(text)
    except ValidationError:
        return text.startswith("[") and text.endswith("]")  # an address literal
    return text.isascii()


def _site() -> Iterator[CheckMessage]:
    name = conf.get("SITE")
    longest = SiteMarker._meta.get_field("name").max_length or 0
    if name is None:
        return
    fits = isinstance(name, str) and 0 < len(name.strip()) <= longest
    if fits and not _is_key(name):  # which would be written into the database
        return
    yield Error(
        "MAILPOOL['SITE'] is an encryption key." if fits else "MAILPOOL['SITE'] is not a name.",
        hint=f"Name this installation in up to {longest} characters, such as 'production', or "
        "leave the setting out.",
        id="mailpool.E009",
    )


def _is_key(text: str) -> bool:
    try:
        parse_key(text.strip())
    except ValueError:
        return False
    return True


def _tenants() -> Iterator[CheckMessage]:
    label = getattr(settings, conf.TENANT_MODEL_SETTING, conf.DEFAULT_TENANT_MODEL)
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError, AttributeError):
        yield Error(
            f"{conf.TENANT_MODEL_SETTING} is no installed model.",
            hint="Write it as 'app_label.ModelName', with the app in INSTALLED_APPS.",
            id="mailpool.E005",
        )
        return
    name = conf.get("TENANT_SLUG_FIELD")
    try:
        field = model._meta.get_field(name)
    except (FieldDoesNotExist, TypeError):
        field = None
    if not isinstance(field, (CharField, TextField)):
        yield Error(
            f"{model._meta.label} has no text field of the name in MAILPOOL['TENANT_SLUG_FIELD'], "
            "by which tenants are found.",
            hint="Name a unique text field of it in MAILPOOL['TENANT_SLUG_FIELD'].",
            id="mailpool.E006",
        )
    elif not field.unique:
        yield Warning(
            f"{model._meta.label}.{field.name}, by which tenants are found, is not unique.",
            hint="Mail of a slug that two tenants have is not sent. Make the field unique, or name "
            "another one in MAILPOOL['TENANT_SLUG_FIELD'].",
            id="mailpool.W003",
        )


def _request_tenant() -> Iterator[CheckMessage]:
    path = conf.get("REQUEST_TENANT")
    installed = MIDDLEWARE in settings.MIDDLEWARE
    if path is None:
        if installed:
            yield Warning(
                "TenantMiddleware is installed, but MAILPOOL['REQUEST_TENANT'] is not set.",
                hint="Set it to the dotted path of a function that gets the request.",
                id="mailpool.W001",
            )
        return
    try:
        function = import_string(path)
    except (ImportError, AttributeError, TypeError) as error:
        yield Error(
            f"MAILPOOL['REQUEST_TENANT'] can't be imported: {type(error).__name__}.",
            hint="Write the dotted path of a function, such as 'shop.tenants.of_request'.",
            id="mailpool.E007",
        )
        return
    if not callable(function):
        yield Error(
            "MAILPOOL['REQUEST_TENANT'] names something that can't be called.",
            hint="Name a function that gets the request and returns a tenant, a slug or None.",
            id="mailpool.E007",
        )
    if not installed:
        yield Warning(
            "MAILPOOL['REQUEST_TENANT'] is set, but TenantMiddleware is not installed.",
            hint=f"Add '{MIDDLEWARE}' to MIDDLEWARE, after authentication.",
            id="mailpool.W002",
        )


def _tenant_servers() -> Iterator[CheckMessage]:
    for name, option, example in (
        ("TENANT_SERVER_NETWORKS", "networks", "['10.1.0.0/16'], with the network's own address"),
        ("TENANT_SERVER_PORTS", "ports", "[25, 465, 587, 2525], as numbers"),
    ):
        given = conf.get(name)
        try:
            if not isinstance(given, (list, tuple)):
                raise ValueError("it is not a list")
            Guard(**{option: tuple(given)})
        except ValueError as error:
            yield Error(
                f"MAILPOOL[{name!r}] can't be used: {error}.",
                hint=f"Write it like {example}. Until then nothing is sent over tenants' servers.",
                id="mailpool.E008",
            )


def _tenant_rate() -> Iterator[CheckMessage]:
    try:
        conf.tenant_verify_rate()
    except ImproperlyConfigured as error:
        yield Error(
            str(error),
            hint="Until then tenants can neither save nor verify an account of their own.",
            id="mailpool.E017",
        )


def _ownership() -> Iterator[CheckMessage]:
    given = conf.get("VERIFY_SENDERS")
    if not isinstance(given, bool):
        yield Error(
            "MAILPOOL['VERIFY_SENDERS'] is neither True nor False.",
            hint="It must be one of them.",
            id="mailpool.E003",
        )
    try:
        conf.sender_dns_servers()
    except ImproperlyConfigured as error:
        yield Error(str(error), hint="Until then nothing is proven by DNS.", id="mailpool.E018")
    if given and not txt_records.is_installed():
        yield Warning(
            "MAILPOOL['VERIFY_SENDERS'] is on, and the library that looks into DNS is missing.",
            hint="Install it: pip install mailpool[dns]. Until then senders are proven by emailed "
            "codes alone, and whole domains by operators alone.",
            id="mailpool.W040",
        )


def _monitoring() -> Iterator[CheckMessage]:
    try:
        wanted = conf.metrics_options() is not None
    except ImproperlyConfigured as error:
        wanted = False
        yield Error(str(error), hint="Until then there are no metrics.", id="mailpool.E050")
    if wanted and find_spec("prometheus_client") is None:
        yield Error(
            "MAILPOOL['METRICS'] is on, and the library for Prometheus is missing.",
            hint="Install it: pip install mailpool[prometheus]. Until then there are no metrics.",
            id="mailpool.E051",
        )
    if conf.get("HEALTH_TOKEN") is not None and conf.health_token() is None:
        # Never the value: it may be most of a secret.
        yield Error(
            f"MAILPOOL['HEALTH_TOKEN'] is no text of at least {conf.LEAST_TOKEN} characters.",
            hint="Make one: python -c 'import secrets; print(secrets.token_urlsafe(24))'. Or leave "
            "the setting out.",
            id="mailpool.E052",
        )
