"""Encryption keys: in the settings, from a provider, and those that stored secrets need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connections, router

from mailpool import conf, marker
from mailpool.exceptions import SecretError
from mailpool.models import Credential
from mailpool.vault import get_keyring
from mailpool.vault.keyring import parse_key
from mailpool.vault.provider import load

_GENERATE = "Make one with 'manage.py mailpool_generate_key'."


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
                hint="Check its path, and that this process may read it. A key itself goes into "
                f"{conf.KEYS_VARIABLE}.",
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
                hint=f"{_GENERATE} Copy all of it. The path of a file with keys goes into "
                f"{conf.KEYS_VARIABLE}_FILE.",
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
