"""A number in the database that grows whenever a right is taken away: what is held in memory is then stale."""

from __future__ import annotations

from sqlalchemy import Connection, select, text

from gpu_monitor.server.store.schema import versions

_NAME = "access"


def raise_version(connection: Connection) -> None:
    """Count on, in the transaction that takes a right away; its row lock keeps the order of commits."""
    connection.execute(
        text(
            "INSERT INTO versions (name, number) VALUES (:name, 1)"
            " ON CONFLICT (name) DO UPDATE SET number = versions.number + 1"
        ),
        {"name": _NAME},
    )


def read_version(connection: Connection) -> int:
    """The number now; 0 before the first change."""
    return connection.execute(select(versions.c.number).where(versions.c.name == _NAME)).scalar() or 0
