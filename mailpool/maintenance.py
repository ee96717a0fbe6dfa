"""What is done to a server's connections in every process at once, through the database.

``reset`` leaves behind all that is open, ``pause`` lets nothing be sent for a while, too. Each
process reads the server at each send, so nobody has to be told.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from django.db import router, transaction
from django.db.models import F
from django.utils import timezone

from mailpool import audit
from mailpool.delivery import close_connections
from mailpool.models import MailServer


def reset(server: MailServer | None = None) -> None:
    """Have no open connection of *server*, or of any, used again by any process.

    A message that is on its way gets there. This process closes its idle connections at once,
    another one when it next sends over that server; until then they may stay open for their idle
    timeout, and are of use to nobody.
    """
    _change(server, audit.Action.RESET, "" if server else "all mail servers")


def pause(server: MailServer, until: datetime) -> None:
    """Have nothing sent over *server* until then: messages fail before anything is handed over.

    A call that sends already goes on, and its connections are closed then, as ``reset`` has it.
    Raises ``ValueError`` for a time that has passed.
    """
    if until <= timezone.now():
        raise ValueError("A pause ends in the future.")
    _change(server, audit.Action.PAUSED, f"until {until.isoformat('T', 'seconds')}", until=until)


def resume(server: MailServer) -> None:
    """Let mail be sent over *server* again, from the next message on."""
    _change(server, audit.Action.RESUMED, "", until=None)


def _change(server: MailServer | None, action: audit.Action, details: str, **pause: Any) -> None:
    using = router.db_for_write(MailServer, instance=server)
    rows = MailServer.objects.using(using)
    chosen = rows.all() if server is None else rows.filter(pk=server.pk)
    with transaction.atomic(using=using):
        if pause:
            chosen.update(paused_until=pause["until"])
        if action is not audit.Action.RESUMED:
            chosen.update(generation=F("generation") + 1)
            close = partial(close_connections, server=server and server.pk)
            transaction.on_commit(close, using=using)
        audit.record(action, server, details)
    if server is not None:
        server.refresh_from_db(using=using, fields=["generation", "paused_until"])
