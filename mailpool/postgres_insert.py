"""An INSERT of one row that PostgreSQL parses and plans once for a connection.

A row by itself takes half of the time that way. psycopg would prepare statements as well, but not
with Django's settings, because of poolers that hand a connection from one client to the next.
It is a shortcut: whatever is out of the ordinary is left to Django's way, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus, PipelineStatus

# Rows that a connection has to write in Django's way first: to prepare takes longer than it saves
# where each request opens a connection of its own.
AFTER = 5
NEVER = -1

_PLAIN = (str, int, datetime, UUID)  # booleans are integers, and PostgreSQL reads their names


class PostgresInsert:
    """*sql* inserts a row by ``$1``, ``$2`` and so on, and returns a row."""

    def __init__(self, sql: str) -> None:
        self._sql = sql.encode()
        # Whoever finds a statement of this name behind a pooler finds the same statement.
        self._name = b"mailpool_%s" % sha256(self._sql).hexdigest()[:16].encode()
        self._written: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """Rows, by psycopg's connection, until it is prepared there; or that it must not be."""

    def execute(self, connection: Any, values: Sequence[Any]) -> bool:
        """Insert the row of *values* over *connection*, which is in no transaction.

        ``False``: do it in Django's way. Nothing was written then, or the connection is broken.
        """
        if connection.queries_logged or connection.execute_wrappers:
            return False  # somebody wants to see it
        if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
            return False  # the word for a pooler that hands connections on
        # Though its cursor has nothing to do: making one, Django's backend connects where it has
        # to, and others do what they do before each query, as choosing a schema.
        with connection.cursor() as cursor:
            driver = getattr(cursor, "connection", None)
        if type(driver) is not psycopg.Connection:
            return False  # a tool's own, which may want to see it as well
        written = self._written.get(driver, 0)
        parameters = _as_text(values)
        if written == NEVER or parameters is None:
            return False
        if written < AFTER:
            self._written[driver] = written + 1
            return False
        with driver.lock:
            try:
                is_done = self._run(driver, parameters, prepare=written == AFTER)
            except psycopg.Error:
                is_done = False
        self._written[driver] = AFTER + 1 if is_done else NEVER
        return is_done

    def _run(self, driver: Any, parameters: list[bytes | None], *, prepare: bool) -> bool:
        pgconn = driver.pgconn
        if not driver.autocommit or pgconn.pipeline_status != PipelineStatus.OFF:
            return False
        if prepare:
            pgconn.send_prepare(self._name, self._sql)
            if driver.wait(generators.execute(pgconn))[-1].status != ExecStatus.COMMAND_OK:
                return False
        pgconn.send_query_prepared(self._name, parameters)
        return bool(driver.wait(generators.execute(pgconn))[-1].status == ExecStatus.TUPLES_OK)


def _as_text(values: Sequence[Any]) -> list[bytes | None] | None:
    """*values* as PostgreSQL reads them; ``None`` where that is not for sure."""
    if not all(value is None or isinstance(value, _PLAIN) for value in values):
        return None
    texts = [None if value is None else str(value).encode() for value in values]
    # libpq would end a text there.
    return None if any(text and b"\0" in text for text in texts) else texts
