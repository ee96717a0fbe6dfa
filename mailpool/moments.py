"""Points in time, for the people who look at a page."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone
from django.utils.formats import date_format


def moment(when: datetime | None, *, seconds: bool = False) -> str:
    """*when* in the time zone and the format that are active; ``-`` for ``None``."""
    if when is None:
        return "-"
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    if not seconds:
        return date_format(local, "DATETIME_FORMAT")
    # No language's format of a time has seconds.
    return f"{date_format(local, 'DATE_FORMAT')} {date_format(local, 'H:i:s')}"
