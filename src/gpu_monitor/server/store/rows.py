"""The bulk statements of either dialect, and the choice between them."""

from __future__ import annotations

from sqlalchemy import Connection

from gpu_monitor.server.store.write_postgres import PostgresRows
from gpu_monitor.server.store.write_sqlite import SqliteRows

Rows = SqliteRows | PostgresRows


def rows_of(connection: Connection) -> Rows:
    """The bulk statements on this connection."""
    return SqliteRows(connection) if connection.dialect.name == "sqlite" else PostgresRows(connection)
