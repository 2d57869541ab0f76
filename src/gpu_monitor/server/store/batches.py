"""Deletes rows a batch at a time, so that no transaction keeps reports waiting."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    UniqueConstraint,
    delete,
    literal_column,
    select,
    tuple_,
)

BATCH = 5000
"""Rows in one transaction: some 50 ms on SQLite, in which reports wait."""


def delete_some(connection: Connection, table: Table, which: ColumnElement[bool], most: int = BATCH) -> int:
    """Delete up to `most` of the rows that `which` means; fewer went where no more is left."""
    keys = _keys(table, connection.dialect.name)
    chosen = select(*keys).select_from(table).where(which).limit(most)
    key = keys[0] if len(keys) == 1 else tuple_(*keys)
    return connection.execute(delete(table).where(key.in_(chosen))).rowcount


def _keys(table: Table, dialect: str) -> list[ColumnElement[Any]]:
    """What names a row; partitioned tables have no primary key."""
    if table.primary_key.columns:
        return list(table.primary_key)
    if dialect == "sqlite":
        return [literal_column("rowid")]
    unique = next(one for one in table.constraints if isinstance(one, UniqueConstraint))
    return list(unique.columns)
