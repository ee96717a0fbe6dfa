"""Queries whose SQL is made once and executed many times.

Django makes the SQL of a queryset anew each time that it is executed, which takes longer than
executing it where a row has as many columns as a credential with its server. Nothing else is
left out: each execution asks the database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import AutoField, Field, Model, QuerySet

if TYPE_CHECKING:
    from mailpool.kept import KeptInsert, KeptSelect


@dataclass(frozen=True, slots=True)
class Part:
    """Where one model's columns are in a row."""

    model: type[Model]
    columns: slice
    attnames: list[str]
    key: int
    """Where its primary key is: nothing, if the row refers to none."""

    attach: Callable[[Any, Any], object] | None
    """Puts the instance on the one that refers to it."""

    @classmethod
    def of(cls, info: dict[str, Any], select: Sequence[Any]) -> Part:
        """*info* is what the compiler calls ``klass_info``."""
        first, last = info["select_fields"][0], info["select_fields"][-1]
        model = info["model"]
        names = [column.target.attname for column, _, _ in select[first : last + 1]]
        key = first + names.index(model._meta.pk.attname)
        return cls(model, slice(first, last + 1), names, key, info.get("local_setter"))

    def instance(self, using: str, row: list[Any]) -> Any:
        return self.model.from_db(using, self.attnames, row[self.columns])


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What executing a queryset takes once its SQL is there. It belongs to no connection."""

    using: str
    sql: str
    parameter: Field[Any, Any] | None
    """The column that the one parameter is compared with; ``None``: there is no parameter."""

    main: Part
    related: list[Part]
    annotations: dict[str, int]
    converted: dict[int, Any]
    """Positions in a row of what the backend or the field converts."""

    kept: KeptSelect | None
    """A quicker way, where there is one."""

    def rows(self, value: Any = None) -> list[Any]:
        """The instances, as the queryset's own execution would make them.

        *value* takes the place of the one that the queryset was made with. Raises what a look-up
        raises for a value that the column can't have.
        """
        connection = connections[self.using]
        parameters = []
        if self.parameter is not None:
            value = self.parameter.get_prep_value(value)
            parameters = [self.parameter.get_db_prep_value(value, connection, prepared=True)]
        with connection.cursor() as cursor:
            found = self.kept.fetch(connection, cursor, parameters) if self.kept else None
            if found is None:
                cursor.execute(self.sql, parameters)
                found = cursor.fetchall()
        # They hold on to their connection, so nothing that lives longer may hold on to them.
        known = vars(connection).setdefault("_mailpool_converters", {})
        converters = known.get(self)
        if converters is None:
            converters = known[self] = [
                (position, expression, _converters(expression, connection))
                for position, expression in self.converted.items()
            ]
        return [self._instance(list(row), converters, connection) for row in found]

    def _instance(
        self, row: list[Any], converters: Sequence[tuple[int, Any, Any]], connection: Any
    ) -> Any:
        for position, expression, chain in converters:
            for convert in chain:
                row[position] = convert(row[position], expression, connection)
        instance = self.main.instance(self.using, row)
        for part in self.related:
            assert part.attach
            is_there = row[part.key] is not None
            part.attach(instance, part.instance(self.using, row) if is_there else None)
        for name, position in self.annotations.items():
            setattr(instance, name, row[position])
        return instance


def prepare(queryset: QuerySet[Any], column: Field[Any, Any] | None, value: Any) -> Prepared | None:
    """*queryset*, which compares *column* with *value* and has no other parameter.

    ``None`` where it is more than that: where the column's type makes its own SQL of a value, the
    queryset has to be executed as it is.
    """
    connection = connections[queryset.db]
    compiler = queryset.query.get_compiler(queryset.db)
    sql, parameters = compiler.as_sql()
    expected: tuple[Any, ...] = ()
    if column is not None:
        prepared = column.get_prep_value(value)
        expected = (column.get_db_prep_value(prepared, connection, prepared=True),)
    if tuple(parameters) != expected:
        return None
    # What ModelIterable does with the rows of a query, with all that doesn't depend on them.
    select, info = compiler.select, compiler.klass_info
    return Prepared(
        using=queryset.db,
        sql=sql,
        parameter=column,
        main=Part.of(info, select),
        related=[Part.of(each, select) for each in info.get("related_klass_infos", ())],
        annotations=compiler.annotation_col_map,
        converted={
            position: expression
            for position, (expression, _, _) in enumerate(select)
            if _converters(expression, connection)
        },
        kept=_kept_select(connection, sql, len(expected)),
    )


def _kept(connection: Any) -> Any:
    """The module, where the database is PostgreSQL and its driver is psycopg 3."""
    if connection.vendor != "postgresql":
        return None
    try:
        from mailpool import kept
    except ImportError:
        return None
    return kept


def _kept_select(connection: Any, sql: str, parameters: int) -> KeptSelect | None:
    kept = _kept(connection)
    if not kept or parameters > 1 or sql.count("%") != parameters:
        return None
    return kept.KeptSelect(sql.replace("%s", "$1"))  # type: ignore[no-any-return]


def _converters(expression: Any, connection: Any) -> list[Callable[..., Any]]:
    return [
        *connection.ops.get_db_converters(expression),
        *expression.get_db_converters(connection),
    ]


@dataclass(frozen=True, slots=True)
class PreparedInsert:
    """An INSERT whose SQL is made once; the values are as the database takes them."""

    using: str
    columns: list[str]
    into: str
    row: str
    in_one: int
    """How many rows fit into one statement."""

    from_json: str
    """Instead of the rows where there are several; empty where the database has no such thing."""

    of_one: KeptInsert | None
    """A quicker way for one row, where there is one."""

    def execute(self, rows: Sequence[Sequence[Any]], *, alone: bool = False) -> None:
        """Insert *rows*, at least one.

        *alone* tells that no transaction is under way. Then PostgreSQL does not wait for its disk.
        """
        single = self.of_one if alone and len(rows) == 1 else None
        if single and single.execute(connections[self.using], rows[0]):
            return
        # Its driver takes longer over a value for each column of many rows than all else takes.
        as_json = self.from_json and len(rows) > 1
        with connections[self.using].cursor() as cursor:
            for first in range(0, len(rows), self.in_one):
                part = rows[first : first + self.in_one]
                if as_json:
                    objects = [dict(zip(self.columns, row, strict=True)) for row in part]
                    sql, values = self.from_json, [json.dumps(objects, default=str)]
                else:
                    sql = "VALUES " + ", ".join([self.row] * len(part))
                    values = [value for row in part for value in row]
                if alone and self.from_json:
                    sql += f", {_DO_NOT_WAIT}" if as_json else f" RETURNING {_DO_NOT_WAIT}"
                cursor.execute(self.into + sql, values)


# Waiting for the disk takes PostgreSQL many times as long as all else about a row. This spares it,
# for the transaction that the statement is: a crash of the database server itself may lose the
# rows of the last moments, and nothing else.
_DO_NOT_WAIT = "set_config('synchronous_commit', 'off', true)"


def prepare_insert(using: str, model: type[Model]) -> PreparedInsert:
    """An INSERT of all columns of *model* but the keys that the database makes itself.

    For rows that may be lost with a crash of the database server.
    """
    connection: Any = connections[using]
    fields = [each for each in model._meta.concrete_fields if not isinstance(each, AutoField)]
    table = connection.ops.quote_name(model._meta.db_table)
    names = [str(field.column) for field in fields]
    columns = ", ".join(map(connection.ops.quote_name, names))
    into = f"INSERT INTO {table} ({columns}) "
    from_json, of_one = "", None
    if connection.vendor == "postgresql":
        from_json = f"SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"  # noqa: S608
        if kept := _kept(connection):
            places = ", ".join(f"${number}" for number in range(1, len(fields) + 1))
            of_one = kept.KeptInsert(f"{into}VALUES ({places}) RETURNING {_DO_NOT_WAIT}")
    most = connection.features.max_query_params
    return PreparedInsert(
        using=using,
        columns=names,
        into=into,
        row=f"({', '.join(['%s'] * len(fields))})",
        in_one=most // len(fields) if most else 1000,
        from_json=from_json,
        of_one=of_one,
    )
