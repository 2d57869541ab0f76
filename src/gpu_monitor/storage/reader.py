"""Reads a store, changes nothing in it, and answers while an agent writes."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageError, StorageForeign
from gpu_monitor.storage.files import OPEN, has_wal, looks_like, note_path, shm_path, translated, wal_path
from gpu_monitor.storage.migrate import NEWEST, version_of
from gpu_monitor.storage.wal import holds_a_commit

Row = tuple[Any, ...]

_TRIES = 40
_PAUSE_SECONDS = 0.05
"""Between two tries to open a file that a writer is just opening or closing; together two seconds."""
_TICK_SECONDS = 0.02
"""File times move in steps of the kernel's tick, 10 ms at most: a younger time may still hide a change."""


class Mode(Enum):
    """How a file is read."""

    LIVE = "live"
    """As one that others write: SQLite's locks and shared index are used."""
    IMMUTABLE = "immutable"
    """As one that nobody writes and that is complete in itself."""
    QUIET = "quiet"
    """As one that nobody writes, with the log that a killed agent left; its index is kept in memory."""


_URI = {
    Mode.LIVE: "mode=ro",
    Mode.IMMUTABLE: "mode=ro&immutable=1",
    # Without locks of its own a read-only connection may say that it is the only one, and then needs no index file.
    Mode.QUIET: "mode=ro&vfs=unix-none",
}

Print = tuple[Any, ...]
"""What a file looked like from outside: another print means that somebody wrote."""


def choose_mode(path: Path) -> Mode:
    """How `path` can be read now without leaving a trace.

    No lock is asked: another user may not look at it, and a running writer shows by its log and index.
    """
    if not has_wal(path):
        return Mode.IMMUTABLE
    # An open connection always has the shared index: without it nobody has the file open.
    if shm_path(path).exists() or sys.platform == "win32":
        return Mode.LIVE
    # A log in which nothing counts would be tidied up at closing.
    return Mode.QUIET if holds_a_commit(wal_path(path)) else Mode.IMMUTABLE


def connect(path: Path, mode: Mode, lenient: bool = False) -> sqlite3.Connection:
    """A read-only connection; sqlite3.Error where that is not possible. `lenient`: also to a file cut short."""
    quoted = str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    if os.name == "nt":
        quoted = "/" + quoted.replace("\\", "/")
    connection = sqlite3.connect(f"file:{quoted}?{_URI[mode]}", uri=True, isolation_level=None, timeout=5.0)
    try:
        if lenient:
            connection.execute("PRAGMA writable_schema = ON")
        if mode is Mode.QUIET:  # before anything is read: the log is opened then
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -2048")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def print_of(path: Path) -> Print:
    """The print of the file and its log now."""
    return (_file_print(path), _file_print(wal_path(path)), shm_path(path).exists())


def _file_print(path: Path) -> Print:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    # Not the time of its owner and mode: SQLite sets the owner of a log it opens, where it may.
    return (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class Opened:
    """A read-only connection that knows whether what it reads may have changed under it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self.mode, self._print, self.connection = self._open()
        self._key = OPEN.add(path)

    def _open(self) -> tuple[Mode, Print, sqlite3.Connection]:
        """Open in the mode that fits, again while a writer comes or goes just now; StorageError in the end."""
        for number in range(_TRIES):
            seen = print_of(self._path)
            mode = choose_mode(self._path)
            if mode is not Mode.LIVE and not self._is_settled():
                self._pause(_TICK_SECONDS)
                continue
            try:
                return mode, seen, connect(self._path, mode)
            except sqlite3.Error as error:
                if number == _TRIES - 1 or not _may_pass(error):
                    raise self._explained(error, mode) from error
                self._pause(_PAUSE_SECONDS)
        raise StorageBusy(
            f"{self._path} is being written, and no agent holds it", "Wait for the import that is running."
        )

    def _is_settled(self) -> bool:
        """Whether the last change is so old that another one would show in the files' times."""
        now = self._clock.now()
        for path in (self._path, wal_path(self._path)):
            try:
                changed = path.stat().st_mtime
            except OSError:
                continue
            if 0 <= now - changed < _TICK_SECONDS:
                return False
        return True

    def _pause(self, seconds: float) -> None:
        self._clock.wait(threading.Event(), self._clock.monotonic() + seconds)

    def _explained(self, error: sqlite3.Error, mode: Mode) -> StorageError:
        if "unable to open" in str(error):
            files = "it" if mode is Mode.IMMUTABLE else f"{self._path} and the -wal and -shm files beside it"
            return StorageError(
                f"cannot open {self._path}: {error}",
                f"You need the right to read {files}; start the agent once if it was killed.",
            )
        return translated(error, self._path)

    def is_stale(self) -> bool:
        """Whether a writer may have changed what was just read."""
        return self.mode is not Mode.LIVE and print_of(self._path) != self._print

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        OPEN.remove(self._key)


def _may_pass(error: sqlite3.Error) -> bool:
    text = str(error)
    return "unable to open" in text or "locked" in text or "locking protocol" in text


class Reader:
    """Reads a store, changes nothing in it, and answers while an agent writes.

    Where nobody writes it is read without any lock or shared file, so it works in a folder one may not
    write; when a writer appears it is opened anew, and what was read in between is read again.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        refuse_unreadable(path)
        self._opened = Opened(path, self._clock)
        try:
            version = checked_version(self._opened, path)
        except BaseException:
            self._opened.close()
            raise
        if version < NEWEST:
            self._opened.close()
            raise StorageError(
                f"{path} has schema {version}, this program reads {NEWEST}",
                "Start the agent once: it upgrades the file.",
            )

    @property
    def immutable(self) -> bool:
        """Whether the file is read as one that nobody writes."""
        return self._opened.mode is not Mode.LIVE

    def _reopened(self) -> bool:
        """True (and opened anew) where what was just read can no longer be trusted."""
        if not self._opened.is_stale():
            return False
        self._opened.close()
        self._opened = Opened(self.path, self._clock)
        return True

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query; StorageBusy where the file goes on changing without a writer to be seen."""
        for _ in range(_TRIES):
            try:
                found = self._opened.connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                if self._reopened():
                    continue
                raise translated(error, self.path) from error
            if not self._reopened():
                return found
        raise StorageBusy(f"{self.path} changes all the time", "Ask again, or look which program writes it.")

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
        self._opened.close()


def refuse_unreadable(path: Path) -> None:
    """StorageError with what to do where `path` holds no store that can be read."""
    kind = looks_like(path)
    if kind == "absent" and note_path(path).exists():
        raise StorageBusy(f"{path} was damaged and is being salvaged", "Ask again when the agent runs.")
    if kind in ("absent", "empty"):
        raise StorageError(f"there is no store at {path}", "Start the agent once, or give --config.")
    if kind in ("foreign", "sqlite"):
        raise StorageForeign(f"{path} is not a gpu_monitor store", "Check database.file.")
    if kind == "damaged":
        raise StorageCorrupt(
            f"{path} has a damaged header", "Start the agent: it moves it aside and salvages."
        )


def checked_version(opened: Opened, path: Path) -> int:
    """The schema version of an opened file; StorageForeign where it is not ours or newer."""
    try:
        return version_of(opened.connection, path)
    except sqlite3.Error as error:
        raise translated(error, path) from error


def version_from_outside(path: Path) -> int:
    """The schema version of the file at `path`, found without a chance to change it; errors as above."""
    opened = Opened(path, SystemClock())
    try:
        return checked_version(opened, path)
    finally:
        opened.close()
