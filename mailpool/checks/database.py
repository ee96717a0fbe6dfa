"""What rows in the database ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, router

from mailpool import conf, marker
from mailpool.models import Credential
from mailpool.oauth import provider as oauth_provider


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
