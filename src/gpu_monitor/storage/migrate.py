"""Numbered steps from an empty file to today's schema, each applied in one transaction with its record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_monitor.core.errors import StorageForeign
from gpu_monitor.storage.tables import APPLICATION_ID, SCHEMA_1


def _first(connection: sqlite3.Connection) -> None:
    for statement in SCHEMA_1:
        connection.execute(statement)


def grow(connection: sqlite3.Connection) -> None:
    """The step for new metrics: gives every table the columns that the catalogue asks for, and makes the views anew.

    A new file has them from its first step on, which is made from the same catalogue; then this changes nothing.
    """
    wanted = sqlite3.connect(":memory:")
    try:
        _first(wanted)
        tables = [row[0] for row in wanted.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        views = wanted.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'").fetchall()
        for table in tables:
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for row in wanted.execute(f"PRAGMA table_info({table})"):
                if there and row[1] not in there:
                    connection.execute(f'ALTER TABLE {table} ADD COLUMN "{row[1]}" {row[2]}')
    finally:
        wanted.close()
    for name, sql in views:
        connection.execute(f"DROP VIEW IF EXISTS {name}")
        connection.execute(sql)


Step = Callable[[sqlite3.Connection], None]

STEPS: tuple[Step, ...] = (_first,)
"""Step N brings version N to N + 1. Never change a step that was released; add one (`grow` for new metrics)."""

NEWEST = len(STEPS)


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of the file; StorageForeign where it is not ours or newer than this program.

    Reads only.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or version or application):
        raise StorageForeign(
            f"{path} is a SQLite database of another program; it was left untouched",
            "Set database.file to a path of its own.",
        )
    if version > NEWEST:
        raise StorageForeign(
            f"{path} has schema {version}, this program knows up to {NEWEST}; it was left untouched",
            "Install the gpu_monitor version that wrote it, or a newer one.",
        )
    return version


def migrate(connection: sqlite3.Connection, version: int, steps: Sequence[Step] = STEPS) -> None:
    """Apply every step after `version`, each in one transaction; the caller holds the file lock."""
    for number in range(version, len(steps)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            steps[number](connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
