"""System checks: what can be seen to be wrong before the first message, each with its cure.

No message repeats a value: it may be a key or a password that was put into the wrong place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured, ValidationError
from django.db import DatabaseError, connections, router
from django.db.models import CharField, TextField
from django.utils.module_loading import import_string

from mailpool import conf, marker, txt_records
from mailpool.exceptions import SecretError
from mailpool.guard import Guard
from mailpool.models import Credential, SiteMarker
from mailpool.oauth import provider as oauth_provider
from mailpool.validators import validate_host
from mailpool.vault import get_keyring
from mailpool.vault.keyring import parse_key
from mailpool.vault.provider import load

BACKEND = "mailpool.backends.EmailBackend"
MIDDLEWARE = "mailpool.middleware.TenantMiddleware"

_OPTIONS = {"tenant", "fail_silently", "deadline", "keep_order"}

_NAME = re.compile("[A-Za-z_]{1,40}")

_GENERATE = "Make one with 'manage.py mailpool_generate_key'."


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


@register(Tags.security)
def check_keys(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The encryption keys: there, well-formed, each once, and used for nothing else."""
    provider = conf.get("KEY_PROVIDER")
    if provider is not None:
        return list(_provider(provider))
    given = conf.get("ENCRYPTION_KEYS")
    if given is not None and not isinstance(given, (list, tuple)):
        return [
            Error(
                "MAILPOOL['ENCRYPTION_KEYS'] is not a list.",
                hint="Write a list of keys, newest first: ['…'].",
                id="mailpool.E010",
            )
        ]
    if any(not isinstance(key, str) for key in given or ()):
        return [
            Error(
                "MAILPOOL['ENCRYPTION_KEYS'] contains something that is not text.",
                hint="Write each key as it was printed by mailpool_generate_key.",
                id="mailpool.E010",
            )
        ]
    try:
        keys = conf.encryption_keys()
    except OSError as error:
        return [
            Error(
                f"The file that {conf.KEYS_VARIABLE}_FILE names can't be read: {error.strerror}.",
                hint="Check its path, and that this process may read it.",
                id="mailpool.E011",
            )
        ]
    if not keys:
        return [
            Error(
                "There is no encryption key, so no password can be stored or read.",
                hint=f"{_GENERATE} Put it into MAILPOOL['ENCRYPTION_KEYS'] or the environment "
                f"variable {conf.KEYS_VARIABLE}, or have {conf.KEYS_VARIABLE}_FILE name its file. "
                "If passwords are stored already, it has to be the key that encrypted them.",
                id="mailpool.E012",
            )
        ]
    return list(_each_key(keys))


def _each_key(keys: tuple[str, ...]) -> Iterator[CheckMessage]:
    for number, key in enumerate(keys, start=1):
        try:
            parse_key(key)
        except ValueError as error:
            yield Error(
                f"Encryption key number {number} is unusable: {error}.",
                hint=f"{_GENERATE} Copy all of it.",
                id="mailpool.E013",
            )
        if key == settings.SECRET_KEY:
            yield Warning(
                f"Encryption key number {number} is also SECRET_KEY.",
                hint=f"Use a key of its own, so that each can be replaced. {_GENERATE}",
                id="mailpool.W010",
            )
    if len(set(keys)) < len(keys):
        yield Warning(
            "The same encryption key is configured more than once.",
            hint="Remove the copies; only the first of them counts.",
            id="mailpool.W011",
        )


def _provider(provider: object) -> Iterator[CheckMessage]:
    """The key provider as far as it can be judged without asking it."""
    if conf.get("ENCRYPTION_KEYS") is not None:
        yield Error(
            "MAILPOOL has both KEY_PROVIDER and ENCRYPTION_KEYS.",
            hint="Remove ENCRYPTION_KEYS, once the provider returns its keys too. Or remove "
            "KEY_PROVIDER, where the settings are to hold the keys.",
            id="mailpool.E014",
        )
    try:
        load(provider)
    except SecretError as error:
        yield Error(
            str(error),
            hint="Set MAILPOOL['KEY_PROVIDER'] to a function without arguments that returns the "
            "keys, or to its dotted path, such as 'shop.keys.provide'.",
            id="mailpool.E015",
        )
    for variable in (conf.KEYS_VARIABLE, f"{conf.KEYS_VARIABLE}_FILE"):
        if os.environ.get(variable):
            yield Warning(
                f"{variable} is set, but the keys come from MAILPOOL['KEY_PROVIDER'].",
                hint="Remove the variable, once the provider returns its keys too.",
                id="mailpool.W012",
            )


@register(Tags.security, deploy=True)
def check_provided_keys(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Whether the key provider gives keys that can be used.

    Only with ``check --deploy``: the other checks run ahead of every command, and also where no
    secret manager is in reach, as when an image is built.
    """
    if conf.get("KEY_PROVIDER") is None or any(found.is_serious() for found in check_keys()):
        return []
    try:
        get_keyring()
    except SecretError as error:
        return [
            Error(
                str(error),
                hint="See that what it asks can be reached from here, and lets this process read "
                "the keys.",
                id="mailpool.E016",
            )
        ]
    return []


@register()
def check_backend(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Whether mail goes through mailpool at all, and with options that it knows."""
    if hasattr(mail, "mailers") and hasattr(settings, "MAILERS"):
        return list(_mailers(settings.MAILERS))
    # Whether it is set, and not to what: Django 6.1 warns of whoever reads the older setting.
    is_set: Any = settings.is_overridden  # type: ignore[misc]
    if not is_set("EMAIL_BACKEND"):
        return [_not_used("MAILERS" if hasattr(mail, "mailers") else "EMAIL_BACKEND")]
    backend = settings.EMAIL_BACKEND
    if backend != BACKEND:
        return [_not_used("EMAIL_BACKEND", backend)]
    ignored = [name for name in ("EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD") if is_set(name)]
    if not ignored:
        return []
    return [
        Warning(
            f"{' and '.join(ignored)} are set, but mailpool does not use them.",
            hint="Store the account with 'manage.py mailpool_import_env' or in the admin, and "
            "remove these settings.",
            id="mailpool.W021",
        )
    ]


def _mailers(mailers: Any) -> Iterator[CheckMessage]:
    if not isinstance(mailers, dict):
        yield Error(
            "MAILERS is not a dictionary.",
            hint=f"Write MAILERS = {{'default': {{'BACKEND': '{BACKEND}'}}}}.",
            id="mailpool.E022",
        )
        return
    ours = {
        alias: config
        for alias, config in mailers.items()
        if isinstance(config, dict) and config.get("BACKEND") == BACKEND
    }
    if not ours:
        named = [config.get("BACKEND") for config in mailers.values() if isinstance(config, dict)]
        yield _not_used("MAILERS", named)
    for alias, config in ours.items():
        yield from _options(alias, config.get("OPTIONS") or {})


def _options(alias: str, options: dict[str, Any]) -> Iterator[CheckMessage]:
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        yield Error(
            f"MAILERS[{alias!r}] has options that mailpool does not know: {', '.join(unknown)}.",
            hint=f"It knows {', '.join(sorted(_OPTIONS))}. Logins are kept as credentials.",
            id="mailpool.E020",
        )
    if "tenant" in options and not str(options["tenant"] or "").strip():
        yield Error(
            f"MAILERS[{alias!r}] has an empty tenant.",
            hint="Name the tenant's slug, or remove the option.",
            id="mailpool.E021",
        )
    deadline = options.get("deadline")
    if deadline is not None and not (conf.is_seconds(deadline) and 0 < deadline < float("inf")):
        yield Error(
            f"The deadline of MAILERS[{alias!r}] is not a time that can be used.",
            hint="It must be a number of seconds above 0.",
            id="mailpool.E023",
        )
    if options.get("keep_order") not in (None, True, False):
        yield Error(
            f"keep_order of MAILERS[{alias!r}] is neither True nor False.",
            hint="It must be one of them.",
            id="mailpool.E023",
        )


def _not_used(setting: str, backend: object = "") -> CheckMessage:
    meant = f"Did you mean '{BACKEND}'?" if "mailpool" in str(backend) else ""
    if setting == "EMAIL_BACKEND" and hasattr(settings, "MAILERS"):
        meant = "MAILERS is for Django 6.1 and later."
    return Warning(
        f"No mail goes through mailpool: {setting} does not name its backend.",
        hint=f"{meant} Set the backend to '{BACKEND}'.".strip(),
        id="mailpool.W020",
    )


@register(Tags.database)
def check_stored_secrets(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Passwords under a key that is not configured (any more)."""
    alias = router.db_for_read(Credential)
    if alias not in (databases or ()):
        return []
    from mailpool.rotation import key_usage

    try:
        if Credential._meta.db_table not in connections[alias].introspection.table_names():
            return []
        if marker.own() and marker.is_foreign(marker.read()):
            return []  # its key does not belong here; the check below says what to do
        usage = key_usage()
        if not usage:
            return []
        keyring = get_keyring(*usage)
    except (DatabaseError, OSError):
        return []  # not migrated, or reported by the checks above
    except SecretError as error:
        if conf.get("KEY_PROVIDER") is None or any(found.is_serious() for found in check_keys()):
            return []  # reported by the checks above
        # No error: 'migrate' stops at those, and needs no key.
        return [
            Warning(
                f"Whether the stored secrets open can't be told. {error}",
                hint="See that what the provider asks can be reached from here.",
                id="mailpool.W013",
            )
        ]
    if not keyring.key_ids:
        return []  # which is an error of its own
    return [
        Error(
            f"{count} stored secrets are encrypted with key {key or '(none)'}, which is not "
            "configured.",
            hint=f"Put that key back at the end of {keyring.source} and run mailpool_rotate_keys, "
            "or enter these passwords again.",
            id="mailpool.E030",
        )
        for key, count in sorted(usage.items())
        if key not in keyring.key_ids
    ]


@register(Tags.database)
def check_marker(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """A database that was copied from another site, and not scrubbed."""
    alias = router.db_for_read(Credential)
    if marker.own() is None or alias not in (databases or ()):
        return []
    try:
        found = marker.read()
    except DatabaseError:
        return []  # not migrated, or it does not answer, which others report
    if not marker.is_foreign(found):
        return []
    return [Warning(marker.describe(found), hint=marker.advice(), id="mailpool.W030")]


@register(Tags.database)
def check_oauth(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """OAuth 2 logins without the library that they need."""
    alias = router.db_for_read(Credential)
    if alias not in (databases or ()) or oauth_provider.is_installed():
        return []
    try:
        count = Credential.objects.using(alias).exclude(kind=Credential.Kind.PASSWORD).count()
    except DatabaseError:
        return []  # not migrated, or it does not answer, which others report
    if not count:
        return []
    return [
        Error(
            f"{count} credentials log in by OAuth 2, and the library for that is not installed.",
            hint="Install it: pip install mailpool[oauth2].",
            id="mailpool.E040",
        )
    ]


@register(Tags.database)
def check_codes(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Codes for senders are mailed with the site's own account: is there one?"""
    alias = router.db_for_read(Credential)
    if alias not in (databases or ()) or not conf.verifies_senders():
        return []
    own = Credential.objects.using(alias).filter(tenant=None, is_active=True)
    try:
        if own.filter(server__is_active=True).exists():
            return []
    except DatabaseError:
        return []  # not migrated, or it does not answer, which others report
    return [
        Warning(
            "There is no active credential of the site's own, so no tenant gets a code.",
            hint="Enter one without a tenant, or let senders be proven by DNS and operators.",
            id="mailpool.W041",
        )
    ]
