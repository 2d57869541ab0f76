"""Whole columns in one row: JSON arrays that the database writes, so that no row is handed over for itself."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Select, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_decode = msgspec.json.Decoder(list[list[Any]]).decode


class _Gathered(FunctionElement[str]):
    """A column's values as a JSON array, in the order of the rows."""

    type = Text()
    inherit_cache = True


@compiles(_Gathered, "sqlite")
def _on_sqlite(element: _Gathered, compiler: Any, **more: Any) -> str:
    return f"json_group_array({compiler.process(element.clauses, **more)})"


@compiles(_Gathered, "postgresql")
def _on_postgresql(element: _Gathered, compiler: Any, **more: Any) -> str:
    return f"coalesce(json_agg({compiler.process(element.clauses, **more)})::text, '[]')"


def gather(connection: Connection, query: Select[Any]) -> list[list[Any]]:
    """The columns of a query's answer, each in its order; for integers and texts.

    At a tenth of the cost of rows: a year of hours is 8,760 of them. SQLite writes 15 digits of a float: not for those.
    """
    inner = query.subquery()
    found = connection.execute(select(*(_Gathered(column) for column in inner.c))).one()
    return _decode(f"[{','.join(found)}]")
