"""What pages show that may be a minute old."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from django.core.cache import cache
from django.utils import timezone
from django.utils.translation import get_language

from mailpool import __version__

CACHED = 60  # seconds

Found = TypeVar("Found")


def cached(name: str, make: Callable[[], Found]) -> Found:
    """*make*'s result, at most a minute old. It holds texts and times of the reader's own.

    A cache that does not answer is none: no page is missing for that.
    """
    zone = timezone.get_current_timezone_name()
    key = f"mailpool:{__version__}:{name}:{zone}:{get_language()}"
    found: Found | None = None
    with suppress(Exception):
        found = cache.get(key)
    if found is None:
        found = make()
        with suppress(Exception):
            cache.set(key, found, CACHED)
    return found
