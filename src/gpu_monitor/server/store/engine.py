"""Opens the server's database: SQLite with one serialised writer, or PostgreSQL; the same Core code on both."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import QueuePool

from gpu_monitor.core.clock import process_seconds
from gpu_monitor.core.errors import StorageBusy, StorageError
from gpu_monitor.server.store.faults import sqlite_fault, told
from gpu_monitor.server.store.lock import ServerLock
from gpu_monitor.server.store.migrate import bring_up, is_current, stored_version
from gpu_monitor.server.store.partitions import Partitions
from gpu_monitor.server.store.url import parse_url, shown
from gpu_monitor.storage.turn import Turn

WRITER_LOCK = 0x6770756D6F6E
"""The advisory lock under which every PostgreSQL writer assigns `changes.seq`: the letters gpumon."""
OLDEST_POSTGRESQL = 15

_WRITER_CACHE_KIB = 8 * 1024
_READERS = 8
_READER_CACHE_KIB = 1024
"""SQLite keeps a cache for each connection: 8 + 8 = 16 MiB in all. With 3 MiB for each reader questions on a year were
not faster, because the system keeps the file's pages too, and the process held 20 MB more."""
_BUSY_SECONDS = 10.0
_POOL_SECONDS = 30
_TRUSTED_SECONDS = 1.0
"""A connection to PostgreSQL that was used so lately is taken to be whole."""
_LOG_PAGES = 4000
"""Of 4 KiB, after which what is in the write-ahead log goes to its place: most pages of indexes are written in group
after group, and go there once. With SQLite's own 1,000 writing a report took 6 % more, some 10 us."""
_LOG_LIMIT = 64 << 20
"""The write-ahead log is cut to this once a long reader let it grow."""


class Store:
    """The open database. Reads run side by side; on SQLite all writes of the process take turns.

    Usable from any thread. What the database refuses comes as a StorageError (busy, full, damaged, away).
    """

    def __init__(self, url: URL, reading: Engine, writing: Engine, lock: ServerLock | None = None) -> None:
        self.url = url
        self.dialect: str = writing.dialect.name
        self._reading, self._writing, self._lock = reading, writing, lock
        self._turn = Turn()
        self._writer: int | None = None  # the thread inside write(), on SQLite
        self._partitions = Partitions()

    def __str__(self) -> str:
        return shown(self.url)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for SELECTs, in one snapshot; it cannot write."""
        with told(self.url), self._reading.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One short write transaction, committed at the end, rolled back on any exception."""
        with told(self.url):
            if self.dialect != "sqlite":
                with self._writing.connect() as connection:
                    yield connection
                    connection.commit()
                return
            if self._writer == threading.get_ident():
                raise RuntimeError("write() inside write(): hand the connection on instead")
            with self._turn:
                self._writer = threading.get_ident()
                try:
                    with self._writing.connect() as connection:
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                        yield connection
                        connection.commit()
                finally:
                    self._writer = None

    def lock_sequence(self, connection: Connection) -> None:
        """Hold the writers' lock until the transaction ends; needed by whoever appends to `changes`."""
        if self.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})

    def make_room(self, hours: Iterable[int] = (), times: Iterable[int] = (), *, now: float) -> None:
        """Make the partitions for `aggregates` of these hours and `samples` of these times, before a transaction.

        Nothing to do on SQLite. Cheap where they are there; blocks nobody who reads or writes.
        """
        if self.dialect == "postgresql":
            with told(self.url):
                self._partitions.make(self._writing, hours, times, now)

    def close(self) -> None:
        """Let go of every connection and of the file."""
        self._reading.dispose()
        self._writing.dispose()
        if self._lock is not None:
            self._lock.close()


def open_store(url: str | URL, *, alone: bool = False) -> Store:
    """Open the database at `url` (a DATABASE_URL), make or migrate its tables where that is due.

    `alone`: be the one server of a SQLite file, which `serve` must be; StorageBusy, naming the other's pid,
    where another is. ConfigError for a URL that cannot be used; StorageForeign, with nothing touched, for a
    database that is not ours or of a newer version.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    if parsed.get_backend_name() == "postgresql":
        return _open_postgresql(parsed)
    return _open_sqlite(parsed, alone)


# --- SQLite --------------------------------------------------------------------------------------------


def _open_sqlite(url: URL, alone: bool) -> Store:
    path = Path(str(url.database))
    refuse_foreign(path)
    _make_private(path)
    lock = ServerLock(path) if alone else None
    if lock is not None:
        lock.acquire()
    writing = _sqlite_engine(url, _WRITER_CACHE_KIB, 1, query_only=False)
    reading = _sqlite_engine(url, _READER_CACHE_KIB, _READERS, query_only=True)
    store = Store(url, reading, writing, lock)
    try:
        _bring_up_sqlite(store, path, alone)
    except BaseException:
        store.close()
        raise
    return store


def _make_private(path: Path) -> None:
    """A new file is for its owner alone: it holds password hashes and addresses with secrets in them."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StorageError(
            f"cannot make {path}: {error.strerror}",
            "Its folder must be writable by the user who runs the server, on a disk with room.",
        ) from error


def refuse_foreign(path: Path) -> None:
    """StorageError where `path` cannot hold our SQLite database; looks without changing a byte."""
    if not path.parent.is_dir():
        raise StorageError(
            f"there is no folder {path.parent} for the database", "Make it, or correct DATABASE_URL."
        )
    if path.is_dir():
        raise StorageError(f"{path} is a folder", "Name a file in DATABASE_URL.")
    if not path.exists():
        return
    # Only through SQLite: closing another handle would drop the locks of a connection this process may have.
    engine = looking_engine(path)
    try:
        with told(engine.url), engine.connect() as connection:
            stored_version(connection, str(path))
    finally:
        engine.dispose()


def looking_engine(path: Path) -> Engine:
    """One connection to a SQLite file that cannot change it."""
    url = URL.create("sqlite+pysqlite", database=str(path))
    return _sqlite_engine(url, _READER_CACHE_KIB, 1, query_only=True, prepared=False)


def _sqlite_engine(url: URL, cache_kib: int, size: int, *, query_only: bool, prepared: bool = True) -> Engine:
    path = Path(str(url.database)).absolute()
    pragmas = [
        "journal_mode=WAL",
        "synchronous=FULL",
        f"cache_size=-{cache_kib}",
        "mmap_size=0",
        f"wal_autocheckpoint={_LOG_PAGES}",
        f"journal_size_limit={_LOG_LIMIT}",
        "foreign_keys=ON",
        f"query_only={'ON' if query_only else 'OFF'}",
    ]

    def connect() -> sqlite3.Connection:
        mode = "rwc" if prepared else "ro"
        try:
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            try:
                if prepared and not query_only:
                    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table
                for pragma in pragmas if prepared else ():
                    connection.execute(f"PRAGMA {pragma}")
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise sqlite_fault(error, str(path)) or error from error
        return connection

    return create_engine(
        url,
        creator=connect,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        hide_parameters=True,
    )


def _bring_up_sqlite(store: Store, path: Path, alone: bool) -> None:
    with store.write() as connection:
        version = stored_version(connection, str(store))
        if is_current(version):
            return
        if version is not None and not alone:
            # A server of the older version may be running: it would not start again on the newer tables.
            lock = ServerLock(path)
            try:
                lock.acquire()
            except StorageBusy as error:
                hint = "It is of an older version than this program: stop it, then start it of this version."
                raise StorageBusy(error.message, hint) from None
            lock.close()
        bring_up(connection)


# --- PostgreSQL ----------------------------------------------------------------------------------------


def _open_postgresql(url: URL) -> Store:
    engine = postgresql_engine(url)
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    store = Store(url, reading, engine)
    try:
        with store.write() as connection:
            _refuse_unfit(connection, store)
            bring_up(connection)
    except BaseException:
        store.close()
        raise
    return store


def postgresql_engine(url: URL) -> Engine:
    """Connections to the database as it is: nothing is made, migrated or looked at yet."""
    engine = create_engine(
        _with_options(url), pool_size=_READERS, max_overflow=_READERS, pool_timeout=_POOL_SECONDS, pool_use_lifo=True,
        hide_parameters=True,
    )  # fmt: skip
    event.listen(engine, "checkin", _note_return)
    event.listen(engine, "checkout", _refuse_broken)
    return engine


def _note_return(driver: Any, record: Any) -> None:
    record.info["returned"] = process_seconds()


def _refuse_broken(driver: Any, record: Any, _proxy: Any) -> None:
    """Have another connection made where this one is broken. One that was just in use is not asked, but looked at."""
    returned = record.info.get("returned")
    if returned is None or (not driver.closed and process_seconds() - returned < _TRUSTED_SECONDS):
        return
    import psycopg  # loaded by now: this is its connection

    try:
        driver.execute("SELECT 1")
        driver.rollback()
    except psycopg.Error as error:
        raise InvalidatePoolError from error


def _with_options(url: URL) -> URL:
    """What every connection asks for, where the URL does not say otherwise.

    synchronous_commit: what was answered must be on the disk whatever the cluster's default is. A client or
    network that is gone is noticed within a minute, so that the locks it held are free again.
    """
    settings = "-c synchronous_commit=on -c jit=off -c idle_in_transaction_session_timeout=60000"
    given = url.query.get("options", "")
    defaults = {
        "connect_timeout": "10",
        "application_name": "gpu_monitor",
        "keepalives_idle": "20",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
    }
    options = f"{settings} {given if isinstance(given, str) else ' '.join(given)}".strip()
    return url.set(query={**defaults, **url.query, "options": options})


def _refuse_unfit(connection: Connection, store: Store) -> None:
    version = [int(part) for part in connection.dialect.server_version_info or (0,)]
    if version[0] < OLDEST_POSTGRESQL:
        raise StorageError(
            f"{store} is PostgreSQL {'.'.join(map(str, version))}",
            f"Version {OLDEST_POSTGRESQL} or newer is needed.",
        )
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise StorageError(
            f"the database {store} is encoded in {encoding}",
            "Make one with: CREATE DATABASE name ENCODING 'UTF8'.",
        )
