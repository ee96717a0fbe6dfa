"""What pages show that may be a minute old."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import TypeVar

from django.core.cache import cache
from django.db import connections, router
from django.utils import timezone
from django.utils.translation import get_language

from mailpool import __version__
from mailpool.models import DeliveryRecord

CACHED = 60  # seconds

Found = TypeVar("Found")


def _database() -> tuple[str, ...]:
    """Where it was read: sites may share a cache, and one site may choose among databases or
    PostgreSQL's schemas for each request."""
    alias = router.db_for_read(DeliveryRecord)
    connection = connections[alias]
    place = (str(connection.settings_dict[part]) for part in ("HOST", "PORT", "NAME"))
    return alias, *place, str(getattr(connection, "schema_name", ""))


def cached(name: str, make: Callable[[], Found]) -> Found:
    """*make*'s result, at most a minute old. It holds texts and times of the reader's own.

    A cache that does not answer is none: no page is missing for that.
    """
    zone = timezone.get_current_timezone_name()
    parts = (name, zone, get_language(), *_database())
    # Of a fixed length and plain characters, as caches want it.
    key = f"mailpool:{__version__}:{sha256(repr(parts).encode()).hexdigest()}"
    found: Found | None = None
    with suppress(Exception):
        found = cache.get(key)
    if found is None:
        found = make()
        with suppress(Exception):
            cache.set(key, found, CACHED)
    return found
