"""Statements that PostgreSQL parses and plans once for a connection, and keeps.

The query that finds an account takes less than half of the time that way, and so does a record's
INSERT. psycopg would prepare statements as well, but not with Django's settings, because of poolers
that hand a connection from one client to the next. Here they are a shortcut: whatever is out of the
ordinary is left to Django's way, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from django.db import Error
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg import generators
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

# Executions in Django's way before: to prepare takes longer than it saves where each request opens
# a connection of its own.
AFTER = 5
NEVER = -1

_HOOKS = {"cursor", "_cursor", "create_cursor"}  # that tools replace
_PLAIN = (str, int, datetime, UUID)  # booleans are integers, and PostgreSQL reads their names


class Kept:
    """*sql* with its places as ``$1``, ``$2`` and so on."""

    def __init__(self, sql: str) -> None:
        self.sql = sql
        # Whoever finds a statement of this name behind a pooler finds the same statement.
        self.name = f"mailpool_{sha256(sql.encode()).hexdigest()[:16]}"
        self._executions: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """By psycopg's connection, until it is prepared there; or that it must not be."""

    def may_run(self, connection: Any, driver: Any) -> bool:
        """Whether it may be executed over *driver*, psycopg's connection if all is well."""
        if connection.queries_logged or connection.execute_wrappers:
            return False  # somebody wants to see what there is
        if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
            return False  # the word for a pooler that hands connections on
        if type(driver) is not psycopg.Connection or not driver.autocommit:
            return False  # a tool's own, or in a transaction, which an error would spoil
        if driver.pgconn.transaction_status != TransactionStatus.IDLE:
            return False  # in one that Django does not know of
        if driver.pgconn.pipeline_status != PipelineStatus.OFF:
            return False  # an error would undo what others have in it
        executions = self._executions.get(driver, 0)
        if 0 <= executions < AFTER:
            self._executions[driver] = executions + 1
        return executions >= AFTER

    def is_new(self, driver: Any) -> bool:
        """Whether it is still to be prepared there."""
        return self._executions.get(driver) == AFTER

    def note(self, driver: Any, *, is_done: bool) -> None:
        self._executions[driver] = AFTER + 1 if is_done else NEVER


class KeptSelect(Kept):
    """A query: psycopg and Django make of its rows what they always do."""

    def fetch(self, connection: Any, cursor: Any, values: Sequence[Any]) -> list[Any] | None:
        """The rows, by way of Django's *cursor*; ``None``: ask in Django's way."""
        if connection.features.uses_server_side_binding:
            return None  # EXECUTE takes no such values
        driver = getattr(cursor, "connection", None)
        if not self.may_run(connection, driver):
            return None
        places = f"({', '.join(['%s'] * len(values))})" if values else ""
        rows = None
        try:
            if self.is_new(driver):
                cursor.execute(f"PREPARE {self.name} AS {self.sql}")
            cursor.execute(f"EXECUTE {self.name}{places}", values or None)
            rows = cursor.fetchall()
        except Error:
            pass
        self.note(driver, is_done=rows is not None)
        return rows


class KeptInsert(Kept):
    """An INSERT of a row, which returns one: psycopg takes longer over each value than PostgreSQL
    over the row, so it has no part in that."""

    def execute(self, connection: Any, values: Sequence[Any]) -> bool:
        """Insert the row of *values* over *connection*, which is in no transaction.

        ``False``: do it in Django's way. Nothing was written then, or the connection is broken.
        """
        driver = _driver(connection)
        if not self.may_run(connection, driver):
            return False
        parameters = _as_text(values)
        if parameters is None:
            return False
        with driver.lock:
            try:
                is_done = self._run(driver, parameters)
            except psycopg.Error:
                is_done = False
        self.note(driver, is_done=is_done)
        return is_done

    def _run(self, driver: Any, parameters: list[bytes | None]) -> bool:
        pgconn, name = driver.pgconn, self.name.encode()
        if self.is_new(driver):
            pgconn.send_prepare(name, self.sql.encode())
            if driver.wait(generators.execute(pgconn))[-1].status != ExecStatus.COMMAND_OK:
                return False
        pgconn.send_query_prepared(name, parameters)
        return bool(driver.wait(generators.execute(pgconn))[-1].status == ExecStatus.TUPLES_OK)


def _driver(connection: Any) -> Any:
    """psycopg's connection, with all done that precedes a query."""
    if type(connection) is DatabaseWrapper and not _HOOKS & vars(connection).keys():
        connection.close_if_health_check_failed()
        connection.ensure_connection()
        return connection.connection
    # Backends of others choose a schema then, for example.
    with connection.cursor() as cursor:
        return getattr(cursor, "connection", None)


def _as_text(values: Sequence[Any]) -> list[bytes | None] | None:
    """*values* as PostgreSQL reads them; ``None`` where that is not for sure."""
    texts: list[bytes | None] = []
    for value in values:
        if value is not None and not isinstance(value, _PLAIN):
            return None
        texts.append(None if value is None else str(value).encode())
    # libpq would end a text there.
    return None if b"\0" in b"".join(filter(None, texts)) else texts
