"""The one writer and the read-only readers of a store."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import (
    StorageBusy,
    StorageCorrupt,
    StorageError,
    StorageForeign,
    StorageFull,
)
from gpu_monitor.storage.locks import FileLock, agent_path, is_held, lock_path
from gpu_monitor.storage.migrate import NEWEST, migrate, version_of
from gpu_monitor.storage.tables import APPLICATION_ID

Row = tuple[Any, ...]

_MAGIC = b"SQLite format 3\x00"
_LOCK_SECONDS = 10.0


def translated(error: sqlite3.Error, path: Path) -> StorageError:
    """The storage error that an SQLite error on `path` means, with what to do."""
    text = str(error).lower()
    if "full" in text or "disk i/o" in text:
        return StorageFull(
            f"no room to write {path}: {error}", "Free space on that disk; sampling goes on in memory."
        )
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return StorageCorrupt(
            f"{path} is damaged: {error}", "The agent moves it aside and salvages its rows at start."
        )
    if "locked" in text or "busy" in text:
        return StorageBusy(
            f"{path} is locked by another program: {error}", "Close the program that has it open."
        )
    return StorageError(f"{path}: {error}", "Check that the file and its folder are readable and writable.")


def looks_like(path: Path) -> str:
    """`absent`, `empty`, `ours`, `sqlite` (another program's), `damaged` (ours, header broken) or `foreign`."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "Check its owner and mode.") from error
    if not head:
        return "empty"
    ours = head[68:72] == APPLICATION_ID.to_bytes(4, "big")
    if head.startswith(_MAGIC):
        # A database that was made but never migrated has version and application 0 and no page but the first.
        return "ours" if ours or (head[68:72] == bytes(4) and path.stat().st_size <= 4096) else "sqlite"
    neighbours = (lock_path(path), agent_path(path))
    return "damaged" if ours or any(neighbour.exists() for neighbour in neighbours) else "foreign"


class Writer:
    """The one connection that writes and checkpoints.

    `transaction()` may be entered from any thread; one at a time, each under the store's file lock, so
    a second process (an import beside the agent) takes its turns between them.
    """

    def __init__(self, path: Path, *, page_limit: int | None = None, cache_kib: int = 512) -> None:
        self.path = path
        self._turn = threading.RLock()
        self._lock = FileLock(lock_path(path))
        self._depth = 0
        kind = looks_like(path)
        if kind in ("foreign", "sqlite"):
            what = "a database of another program" if kind == "sqlite" else "not a database"
            raise StorageForeign(
                f"{path} is {what}; it was left untouched", "Set database.file to a path of its own."
            )
        if kind == "damaged":
            raise StorageCorrupt(f"{path} has a damaged header", "The agent moves it aside at start.")
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=5.0
            )
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot open {path}: {error}",
                "Its folder must exist and be writable by the user who runs this.",
            ) from error
        try:
            self._prepare(page_limit, cache_kib)
        except BaseException:
            self._connection.close()
            self._lock.close()
            raise

    def _prepare(self, page_limit: int | None, cache_kib: int) -> None:
        self._lock.acquire(_LOCK_SECONDS)
        try:
            run = self._connection.execute
            run("PRAGMA auto_vacuum = INCREMENTAL")
            version = version_of(self._connection, self.path)
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = FULL")
            run(f"PRAGMA cache_size = -{cache_kib}")
            run("PRAGMA journal_size_limit = 4194304")
            run("PRAGMA wal_autocheckpoint = 500")
            run("PRAGMA temp_store = MEMORY")
            if page_limit is not None:
                run(f"PRAGMA max_page_count = {page_limit}")
            migrate(self._connection, version)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
        finally:
            self._lock.release()

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

    def close(self) -> None:
        """Checkpoint and close; the write-ahead log is gone afterwards."""
        with self._turn:
            self._lock.acquire(_LOCK_SECONDS)
            try:
                self._connection.close()
            finally:
                self._lock.release()
                self._lock.close()


class Reader:
    """Reads a store, changes nothing in it, and answers while an agent writes.

    Where no write-ahead log exists and no writer holds the store it is opened as immutable (a reader of
    a folder it may not write could not open it otherwise); when a writer appears it is reopened, and
    what was read in between is read again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kind = looks_like(path)
        if kind in ("absent", "empty"):
            raise StorageError(f"there is no store at {path}", "Start the agent once, or give --config.")
        if kind in ("foreign", "sqlite"):
            raise StorageForeign(f"{path} is not a gpu_monitor store", "Check database.file.")
        if kind == "damaged":
            raise StorageCorrupt(
                f"{path} has a damaged header", "Start the agent: it moves it aside and salvages."
            )
        self._immutable = False
        self._connection = self._open()
        try:
            version = version_of(self._connection, path)
        except sqlite3.Error as error:
            raise translated(error, path) from error
        if version < NEWEST:
            raise StorageError(
                f"{path} has schema {version}, this program reads {NEWEST}",
                "Start the agent once: it upgrades the file.",
            )

    def _fingerprint(self) -> tuple[bool, int, int]:
        stat = self.path.stat()
        return (self.path.with_name(self.path.name + "-wal").exists(), stat.st_mtime_ns, stat.st_size)

    def _open(self) -> sqlite3.Connection:
        self._seen = self._fingerprint()
        self._immutable = not self._seen[0] and not is_held(agent_path(self.path))
        mode = "mode=ro&immutable=1" if self._immutable else "mode=ro"
        quoted = str(self.path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        try:
            connection = sqlite3.connect(f"file:{quoted}?{mode}", uri=True, isolation_level=None, timeout=5.0)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cache_size = -2048")
        except sqlite3.Error as error:
            raise translated(error, self.path) from error
        return connection

    @property
    def immutable(self) -> bool:
        """Whether the file is read as one that nobody writes."""
        return self._immutable

    def _writer_appeared(self) -> bool:
        """True (and reopened) where an immutable read can no longer be trusted."""
        if not self._immutable or self._fingerprint() == self._seen:
            return False
        self._connection.close()
        self._connection = self._open()
        return True

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query."""
        while True:
            try:
                found = self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                if self._writer_appeared():
                    continue
                raise translated(error, self.path) from error
            if not self._writer_appeared():
                return found

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """First column of the first row, None where there is none."""
        found = self.rows(sql, parameters)
        return found[0][0] if found else None

    def stream(self, sql: str, start: int, end: int, batch: int = 8192) -> Iterator[list[Row]]:
        """Batches of rows whose first column is an ascending integer key within [start, end).

        `sql` takes three parameters: key from, key to (exclusive), limit; rows come ordered by key. Each
        batch is checked before it is handed out, so a writer that appears half way cannot mix states
        within one.
        """
        while start < end:
            found = self.rows(sql, (start, end, batch))
            if not found:
                return
            yield found
            start = found[-1][0] + 1

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def insert_sql(table: str, columns: Iterable[str], verb: str = "INSERT") -> str:
    """`INSERT INTO table (columns) VALUES (?, ...)`."""
    names = list(columns)
    return f"{verb} INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
