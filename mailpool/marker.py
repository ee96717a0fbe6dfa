"""The marker of a database: the name of the site that it belongs to.

A copy of a database carries its marker along. An installation that has a name of its own,
``MAILPOOL["SITE"]``, sends nothing from a database with another marker: those credentials are
another site's customers'.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps as all_apps
from django.db import router
from django.db.models import Subquery
from django.utils.translation import gettext as _

from mailpool import conf
from mailpool.exceptions import WrongSite
from mailpool.models import Credential, SiteMarker

# For a query that reads credentials: the marker comes along with them, out of the same database
# and without a query of its own. Kept for a while it would be wrong, since a copy may be loaded
# under a running process.
COLUMN = Subquery(SiteMarker.objects.values("name")[:1])


def own() -> str | None:
    """The name of this installation; ``None`` where it has none and nothing is compared."""
    return str(conf.get("SITE") or "").strip() or None


def read(using: str | None = None) -> str | None:
    """The marker of the database of the credentials (or *using*); ``None`` if it has none."""
    rows = SiteMarker.objects.using(using or router.db_for_read(Credential))
    return rows.values_list("name", flat=True).first()


def write(name: str | None) -> None:
    """Say that the database of the credentials belongs to *name*; ``None``: to nobody."""
    rows = SiteMarker.objects.using(router.db_for_write(Credential))
    if name is None:
        rows.delete()
    else:
        rows.update_or_create(pk=1, defaults={"name": name})


def mark_new(*, using: str, apps: Any = all_apps, **kwargs: Any) -> None:
    """After ``migrate`` and ``flush``: a database without a marker is this site's."""
    name = own()
    try:
        model = apps.get_model("mailpool", "SiteMarker")
    except LookupError:  # migrated to where there is no table
        return
    if name is not None and router.allow_migrate_model(using, model):
        model._base_manager.using(using).get_or_create(pk=1, defaults={"name": name})


def is_foreign(found: str | None) -> bool:
    """Whether *found* is another site's marker."""
    return found is not None and own() not in (None, found)


def require_own(credential: Credential | None = None) -> None:
    """Raise ``WrongSite`` where the database, *credential*'s own if given, is another site's."""
    if own() is None:
        return
    try:
        found = credential.site_marker  # type: ignore[union-attr]  # COLUMN, where it was read
    except AttributeError:
        found = read(credential._state.db if credential else None)
    if is_foreign(found):
        raise WrongSite(f"{describe(found)} {advice()}")


def describe(found: str | None) -> str:
    """What is wrong with the database whose marker is *found*."""
    return _(
        "This database belongs to the site “%(found)s”, and this site is “%(own)s”: nothing is "
        "sent with its credentials."
    ) % {"found": found, "own": own()}


def advice() -> str:
    """What to do about a database of another site."""
    return _(
        "If it is a copy, run mailpool_scrub, which removes all passwords from it. If it is not, "
        "correct MAILPOOL['SITE'], or after a change of name run mailpool_scrub --mark-only."
    )
