"""Whether mail goes through mailpool, by Django's own settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Warning, register

from mailpool import conf

BACKEND = "mailpool.backends.EmailBackend"

_EXAMPLES = {
    "MAILERS": f'MAILERS = {{"default": {{"BACKEND": "{BACKEND}"}}}}',
    "EMAIL_BACKEND": f'EMAIL_BACKEND = "{BACKEND}"',
}

_OPTIONS = {"tenant", "fail_silently", "deadline", "keep_order"}


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
        hint=f"{meant} Write {_EXAMPLES[setting]}.".strip(),
        id="mailpool.W020",
    )
