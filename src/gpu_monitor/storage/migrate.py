"""Numbered steps from an empty file to today's schema, each applied in one transaction with its record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from gpu_monitor.core.errors import StorageForeign
from gpu_monitor.storage.tables import APPLICATION_ID, SCHEMA_1


def _first(connection: sqlite3.Connection) -> None:
    for statement in SCHEMA_1:
        connection.execute(statement)


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first,)
"""Step N brings version N to N + 1. Never change a step that was released; add one."""

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


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Apply every step after `version`; the caller holds the file lock."""
    for number in range(version, NEWEST):
        connection.execute("BEGIN IMMEDIATE")
        try:
            STEPS[number](connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
