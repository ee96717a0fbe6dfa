"""Points in time, for the people who look at a page or a terminal."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone
from django.utils.formats import date_format


def moment(when: datetime | None, *, seconds: bool = False) -> str:
    """*when* in the active time zone, which it names, and format; ``-`` for ``None``."""
    if when is None:
        return "-"
    local = _local(when)
    # No language's format of a time has seconds.
    said = (
        f"{date_format(local, 'DATE_FORMAT')} {date_format(local, 'H:i:s')}"
        if seconds
        else date_format(local, "DATETIME_FORMAT")
    )
    # The site's zone need not be the reader's.
    return f"{said} {local.tzname() or ''}".rstrip()


def plain_moment(when: datetime, *, seconds: bool = False) -> str:
    """The same in every language and of one width, as commands and errors have it."""
    local = _local(when)
    said = f"{local:%Y-%m-%d %H:%M:%S}" if seconds else f"{local:%Y-%m-%d %H:%M}"
    return f"{said} {local.tzname() or ''}".rstrip()


def _local(when: datetime) -> datetime:
    return timezone.localtime(when) if timezone.is_aware(when) else when
