"""Opens the server's database: SQLite with one serialised writer, or PostgreSQL; the same Core code on both."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL

from gpu_monitor.server.store.schema import metadata

WRITER_LOCK = 0x6770756D6F6E
"""The advisory lock under which every PostgreSQL writer assigns `changes.seq`: the letters gpumon."""
_CACHE_KIB = 32 * 1024


class Store:
    """The open database. Reads run side by side; on SQLite all writes of the process pass one lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect: str = engine.dialect.name
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for SELECTs, in one snapshot."""
        with self.engine.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection
            connection.rollback()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One short write transaction, committed at the end, rolled back on any exception."""
        with (
            self._lock if self.dialect == "sqlite" else contextlib.nullcontext(),
            self.engine.connect() as connection,
        ):
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def lock_sequence(self, connection: Connection) -> None:
        """Hold the writers' lock until the transaction ends; needed by whoever appends to `changes`."""
        if self.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()


def open_store(url: URL) -> Store:
    """Open (and where it is empty make) the database at `url`."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    metadata.create_all(engine)
    return Store(engine)


def _prepare_sqlite(connection, _record) -> None:  # type: ignore[no-untyped-def]
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"cache_size=-{_CACHE_KIB // 4}",
        "mmap_size=0",
        "busy_timeout=10000",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
