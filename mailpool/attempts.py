"""How often a tenant may save, verify and test accounts of its own.

Without a limit, a page that connects wherever it is told to is a scanner of ports and a guesser
of passwords. Counted in fixed windows, in Django's default cache: one that all processes share, or
else each process counts for itself.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from django.core.cache import cache
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from mailpool import conf
from mailpool.exceptions import TooManyAttempts

logger = logging.getLogger("mailpool")

now = time.time


def count(tenant: Any) -> None:
    """Count one attempt of *tenant*, a model instance; ``TooManyAttempts`` if it has no more.

    Also where the cache fails or forgets at once: what can't be counted can't be limited.
    """
    rate = conf.tenant_verify_rate()
    if rate is None:
        return
    most, period = rate
    window, passed = divmod(now(), period)
    left = max(1, round(period - passed))
    # A key may be any text; a cache's key may not.
    who = hashlib.sha256(str(tenant.pk).encode()).hexdigest()[:32]
    key = f"mailpool:attempts:{who}:{period}:{window:.0f}"
    try:
        cache.add(key, 0, timeout=period + 60)
        attempts = cache.incr(key)
    except Exception as error:
        # Its kind alone: the text may be an address with a password in it.
        logger.error(
            "Attempts of tenants can't be counted, so none is made: the cache failed with %s.",
            type(error).__name__,
        )
        raise TooManyAttempts(_("This is not possible right now. Try again later."), 60) from None
    if attempts > most:
        minutes = -(-left // 60)
        text = ngettext(
            "Too many attempts. Try again in %(count)d minute.",
            "Too many attempts. Try again in %(count)d minutes.",
            minutes,
        )
        raise TooManyAttempts(text % {"count": minutes}, left)
