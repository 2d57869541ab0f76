"""The one writer of a store; the readers stand in `reader` and are named here, too."""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageForeign
from gpu_monitor.storage.files import OPEN, FileKey, key_of, looks_like, note_path, translated, wal_path
from gpu_monitor.storage.locks import FileLock, lock_path
from gpu_monitor.storage.migrate import NEWEST, migrate, version_of
from gpu_monitor.storage.reader import Reader, Row, version_from_outside
from gpu_monitor.storage.turn import Turn

__all__ = ["Reader", "Row", "Writer", "insert_sql", "looks_like", "translated"]

_LOCK_SECONDS = 10.0
_BUSY_SECONDS = 5.0
"""How long another program (a database browser, say) may hold the file up."""
_CLOSING_BUSY_MS = 250
"""How long the last checkpoint waits for readers; what it leaves is done at the next start."""


class Writer:
    """The one connection that writes and checkpoints.

    `transaction()` may be entered from any thread; one at a time, each under the store's file lock, so
    a second process (an import beside the agent) takes its turns between them.
    """

    def __init__(
        self,
        path: Path,
        *,
        page_limit: int | None = None,
        cache_kib: int = 512,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self.path = path
        self._turn = Turn()
        self._lock = FileLock(lock_path(path))
        self._depth = 0
        self._page_limit = page_limit
        self._cache_kib = cache_kib
        self._busy_seconds = busy_seconds
        refuse_unwritable(path)
        self._open()

    def _open(self) -> None:
        """Open, prepare and migrate, all under the file lock; nothing stays open where that fails."""
        self._lock.acquire(_LOCK_SECONDS)
        try:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=self._busy_seconds
            )
            try:
                _prepare(connection, self.path, self._page_limit, self._cache_kib)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise _opening(error, self.path) from error
        finally:
            self._lock.release()
        self._connection = connection
        self._key = OPEN.add(self.path)
        self._log_key = key_of(wal_path(self.path))
        # A connection that was never closed would checkpoint when it is collected, without the lock.
        self._shut = weakref.finalize(self, _shut, connection, self._lock, self._key)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE ... COMMIT under the file lock; rolled back and raised on any error.

        Entered again inside itself it joins the outer transaction.
        """
        with self._turn:
            if self._depth:
                self._depth += 1
                try:
                    yield self._connection
                finally:
                    self._depth -= 1
                return
            self._lock.acquire(_LOCK_SECONDS)
            self._depth = 1
            try:
                self._refuse_replaced()
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            finally:
                self._depth = 0
                self._lock.release()

    def _refuse_replaced(self) -> None:
        """Rows written to a file that no longer has its name would be lost."""
        if not OPEN.is_at(self.path, self._key):
            raise StorageCorrupt(
                f"{self.path} was removed or replaced while it was open",
                "What was collected since waits in memory.",
            )

    def is_orphan(self) -> bool:
        """Whether the file is open and no longer the one at `path`."""
        return self._shut.alive and not OPEN.is_at(self.path, self._key)

    def has_own_log(self) -> bool:
        """Whether the write-ahead log beside `path` is the one of the file that was opened last."""
        return self._log_key is not None and OPEN.is_at(wal_path(self.path), self._log_key)

    def copy(self, target: Path) -> None:
        """Copy all that the open file holds to `target` page by page, even where the file has lost its name."""
        with self._turn:
            try:
                with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as other:
                    other.execute("PRAGMA synchronous = OFF")  # whoever wants it on the disk syncs the whole
                    self._connection.backup(other)
            except sqlite3.Error as error:
                raise translated(error, self.path) from error

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query on the writing connection."""
        with self._turn:
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """First column of the first row, None where there is none."""
        found = self.rows(sql, parameters)
        return found[0][0] if found else None

    def maintain(self, sql: str) -> list[Row]:
        """A statement that may not run inside a transaction (checkpoint, vacuum), under the file lock."""
        with self._turn:
            self._lock.acquire(_LOCK_SECONDS)
            try:
                return self._connection.execute(sql).fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            finally:
                self._lock.release()

    def get_meta(self, key: str) -> Any:
        """The value kept under `key`, None where there is none."""
        return self.value("SELECT value FROM meta WHERE key = ?", (key,))

    def set_meta(self, key: str, value: str | int | float | None) -> None:
        """Keep `value` under `key`."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """The file closed for as long as the block lasts, other threads kept waiting; opened again after it.

        Not inside a transaction. Where the block fails the writer stays closed.
        """
        with self._turn:
            self._shut()
            yield
            self._open()

    def close(self) -> None:
        """Checkpoint and close; the write-ahead log is gone afterwards, unless a reader still has it."""
        with self._turn:
            self._shut()


def _shut(connection: sqlite3.Connection, lock: FileLock, key: FileKey) -> None:
    """Close under the lock: the last connection to close checkpoints."""
    lock.acquire(_LOCK_SECONDS)
    try:
        with contextlib.suppress(sqlite3.Error):  # what cannot be checkpointed now is at the next start
            connection.execute(f"PRAGMA busy_timeout = {_CLOSING_BUSY_MS}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
    finally:
        OPEN.remove(key)
        lock.close()


def refuse_unwritable(path: Path) -> None:
    """StorageForeign or StorageCorrupt where the file at `path` must not be written; nothing is touched."""
    if note_path(path).exists():
        raise StorageCorrupt(f"{path} is being salvaged", "Start the agent: it brings that to its end.")
    kind = looks_like(path)
    if kind in ("foreign", "sqlite"):
        what = "a database of another program" if kind == "sqlite" else "not a database"
        raise StorageForeign(
            f"{path} is {what}; it was left untouched", "Set database.file to a path of its own."
        )
    if kind == "damaged":
        raise StorageCorrupt(f"{path} has a damaged header", "The agent moves it aside at start.")
    if kind == "ours":
        version_from_outside(path)


def _prepare(connection: sqlite3.Connection, path: Path, page_limit: int | None, cache_kib: int) -> None:
    """Set the connection up and bring the file to today's schema; the caller holds the file lock."""
    run = connection.execute
    version = version_of(connection, path)
    if version == 0:  # it holds for files without tables only, and is a write on any other
        run("PRAGMA auto_vacuum = INCREMENTAL")
    run("PRAGMA journal_mode = WAL")
    run("PRAGMA synchronous = FULL")
    run(f"PRAGMA cache_size = -{cache_kib}")
    run("PRAGMA journal_size_limit = 4194304")
    run("PRAGMA wal_autocheckpoint = 500")
    run("PRAGMA temp_store = MEMORY")
    if page_limit is not None:
        run(f"PRAGMA max_page_count = {page_limit}")
    if version < NEWEST:
        migrate(connection, version)
        # So that the main file says from the first hour on whose it is.
        run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _opening(error: sqlite3.Error, path: Path) -> StorageError:
    if "unable to open" in str(error):
        return StorageError(
            f"cannot open {path}: {error}",
            "Its folder must exist and be writable by the user who runs this.",
        )
    return translated(error, path)


def insert_sql(table: str, columns: Iterable[str], verb: str = "INSERT") -> str:
    """`INSERT INTO table (columns) VALUES (?, ...)`."""
    names = list(columns)
    return f"{verb} INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
