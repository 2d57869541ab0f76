"""Brings a database to the newest version of the tables; Alembic is loaded only where there is something to do."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from gpu_monitor.core.errors import StorageForeign
from gpu_monitor.server.store.schema_experiments import metadata  # of every table

REVISIONS: tuple[str, ...] = ("0001", "0002", "0003")
"""Every version of the tables, oldest first: the names of the files in migrations/versions."""
MIGRATION_LOCK = 0x6770756D6967
"""The advisory lock of whoever migrates on PostgreSQL: the letters gpumig."""
VERSIONS = "alembic_version"
SCRIPTS = Path(__file__).with_name("migrations")


def is_current(version: str | None) -> bool:
    """Whether tables of this version need no migration."""
    return version == REVISIONS[-1]


def stored_version(connection: Connection, name: str) -> str | None:
    """The version of the tables in the database called `name`; None where there are none yet.

    StorageForeign where they are not ours, or of a version that this program does not know.
    """
    tables = set(inspect(connection).get_table_names())
    if VERSIONS not in tables:
        others = tables if connection.dialect.name == "sqlite" else tables & set(metadata.tables)
        if others:
            raise StorageForeign(
                f"{name} holds tables that the server did not make: {', '.join(sorted(others)[:5])}",
                "It was left untouched. Give the server a database of its own in DATABASE_URL.",
            )
        return None
    version = connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar_one_or_none()
    refuse_unknown(version, name)
    return str(version) if version is not None else None


def refuse_unknown(version: str | None, name: str) -> None:
    """StorageForeign where tables are of a version that this program does not know."""
    if version is not None and version not in REVISIONS:
        raise StorageForeign(
            f"{name} has tables of version {version}; this program knows them up to {REVISIONS[-1]}",
            "It was left untouched. Run the newer gpu_monitor that made them, or restore a copy from before.",
        )


def bring_up(connection: Connection) -> None:
    """Migrate inside the caller's transaction, which commits all of it or nothing.

    On PostgreSQL several processes may do so at once: they take turns, and the later ones find it done.
    """
    name = str(connection.engine.url.database)
    if is_current(stored_version(connection, name)):
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        if is_current(stored_version(connection, name)):
            return
    # Half a second and 15 MB that a server with a current database never pays.
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext, RevisionStep
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(SCRIPTS))

    def upgrade(heads: tuple[str, ...], _: MigrationContext) -> list[RevisionStep]:
        return list(script._upgrade_revs("head", heads))  # type: ignore[arg-type]

    migration = MigrationContext.configure(connection, opts={"fn": upgrade})
    with Operations.context(migration):
        migration.run_migrations()
