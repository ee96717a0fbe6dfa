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
from mailpool.events import event
from mailpool.exceptions import TooManyAttempts

logger = logging.getLogger("mailpool")

now = time.time


# How many codes are mailed to one address for one tenant, within how many seconds. Whoever it
# belongs to did not ask for them; and each is another chance to guess.
MAILINGS = (5, 86400)


def count(tenant: Any) -> None:
    """Count one attempt of *tenant*, a model instance; ``TooManyAttempts`` if it has no more.

    Also where the cache fails or forgets at once: what can't be counted can't be limited.
    """
    rate = conf.tenant_verify_rate()
    if rate is not None:
        _count(str(tenant.pk), *rate)


def count_mailing(scope: str, address: str) -> None:
    """Count one code that is mailed to *address* for the tenant of *scope*, in the same way.

    By the address, not by the row: a row can be removed and entered anew.
    """
    _count(f"mail {scope} {address}", *MAILINGS)


def _count(what: str, most: int, period: int) -> None:
    window, passed = divmod(now(), period)
    left = max(1, round(period - passed))
    # A key may be any text; a cache's key may not.
    who = hashlib.sha256(what.encode()).hexdigest()[:32]
    key = f"mailpool:attempts:{who}:{period}:{window:.0f}"
    try:
        cache.add(key, 0, timeout=period + 60)
        attempts = cache.incr(key)
    except Exception as error:
        # Its kind alone: the text may be an address with a password in it.
        logger.error(
            "Attempts of tenants can't be counted, so none is made: the cache failed with %s.",
            type(error).__name__,
            extra=event("mailpool.attempts_not_counted", error=error),
        )
        raise TooManyAttempts(_("This is not possible right now. Try again later."), 60) from None
    if attempts > most:
        minutes = -(-left // 60)
        hours = -(-left // 3600)
        if minutes <= 90:
            text = ngettext(
                "Too many attempts. Try again in %(count)d minute.",
                "Too many attempts. Try again in %(count)d minutes.",
                minutes,
            ) % {"count": minutes}
        else:
            text = ngettext(
                "Too many attempts. Try again in %(count)d hour.",
                "Too many attempts. Try again in %(count)d hours.",
                hours,
            ) % {"count": hours}
        raise TooManyAttempts(text, left)
