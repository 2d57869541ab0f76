"""What lies at the path of a store: ours, damaged, another program's; and what its errors mean."""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
from pathlib import Path

from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageError, StorageFull
from gpu_monitor.storage.locks import lock_path
from gpu_monitor.storage.tables import APPLICATION_ID

MAGIC = b"SQLite format 3\x00"
_APPLICATION = APPLICATION_ID.to_bytes(4, "big")
_PROOF = b"tablesamples_rawsamples_raw"
"""Type, name and table name of the main table as SQLite lays them side by side in its schema; never in a text."""
_UNBORN_BYTES = 8192
"""A file that was made and not migrated yet has no page but the first (and, with auto-vacuum, the second)."""
_WAL_HEADER = 32

# SQLite's primary result codes (sqlite.org/rescode.html); Python gives them from 3.11 on.
_BUSY, _LOCKED, _IOERR, _CORRUPT, _FULL, _PROTOCOL, _NOTADB = 5, 6, 10, 11, 13, 15, 26
_WORDS = (
    ("disk i/o", _IOERR), ("malformed", _CORRUPT), ("not a database", _NOTADB), ("is full", _FULL),
    ("locking protocol", _PROTOCOL), ("locked", _BUSY), ("busy", _BUSY),
)  # fmt: skip


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF
    text = str(error).lower()
    return next((code for words, code in _WORDS if words in text), 0)


def translated(error: sqlite3.Error, path: Path) -> StorageError:
    """The storage error that an SQLite error on `path` means, with what to do."""
    code = _code(error)
    if code == _FULL:
        return StorageFull(
            f"no room to write {path}: {error}",
            "Free space on that disk; an agent that runs goes on in memory.",
        )
    if code == _IOERR:
        # A quota that is used up looks like this too, so it is treated as a full disk: giving up the ballast may help.
        return StorageFull(
            f"cannot write {path}: {error}",
            "Check that disk (space, quota, its own errors in the kernel log); sampling goes on in memory.",
        )
    if code in (_CORRUPT, _NOTADB):
        return StorageCorrupt(
            f"{path} is damaged: {error}", "The agent moves it aside and salvages its rows at start."
        )
    if code in (_BUSY, _LOCKED, _PROTOCOL):
        return StorageBusy(
            f"{path} is locked by another program: {error}", "Close the program that has it open."
        )
    return StorageError(f"{path}: {error}", "Check that the file and its folder are readable and writable.")


FileKey = tuple[int, int]
"""Which file it is, whatever its name: device and inode."""


class OpenFiles:
    """Which files this process has open through SQLite.

    POSIX locks belong to the process: closing any other descriptor of such a file would let go of
    SQLite's locks on it (sqlite.org/howtocorrupt.html, 2.2), so it must not be opened in passing.
    """

    def __init__(self) -> None:
        self._counts: dict[FileKey, int] = {}
        self._mutex = threading.Lock()

    def add(self, path: Path) -> FileKey:
        """Note that `path` is open; returns the key for `remove`."""
        key = _key(path)
        with self._mutex:
            self._counts[key] = self._counts.get(key, 0) + 1
        return key

    def remove(self, key: FileKey) -> None:
        """Note that one of the connections to it was closed."""
        with self._mutex:
            left = self._counts.pop(key, 0) - 1
            if left > 0:
                self._counts[key] = left

    def has(self, path: Path) -> bool:
        """Whether `path` is open here."""
        try:
            key = _key(path)
        except OSError:
            return False
        with self._mutex:
            return key in self._counts

    def is_at(self, path: Path, key: FileKey) -> bool:
        """Whether the open file `key` is still the one at `path`."""
        try:
            return _key(path) == key
        except OSError:
            return False


def _key(path: Path) -> FileKey:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def key_of(path: Path) -> FileKey | None:
    """Which file is at `path`; None where there is none that can be seen."""
    try:
        return _key(path)
    except OSError:
        return None


OPEN = OpenFiles()
"""The one list of this process: the locks it guards are the process's, too."""


def looks_like(path: Path) -> str:
    """`absent`, `empty`, `ours`, `sqlite` (another program's), `damaged` (ours, header broken) or `foreign`."""
    if OPEN.has(path):
        return "ours"
    try:
        with path.open("rb") as file:
            head = file.read(100)
            if not head:
                return "damaged" if has_wal(path) and lock_path(path).exists() else "empty"
            if head.startswith(MAGIC) and len(head) == 100:
                return _known(head, file.seek(0, os.SEEK_END))
            return "damaged" if _was_ours(path, head, file.fileno()) else "foreign"
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "Check its owner and mode.") from error


def _known(head: bytes, size: int) -> str:
    """`ours` or `sqlite`, for a file with a whole SQLite header."""
    application = head[68:72]
    unborn = application == bytes(4) and size <= _UNBORN_BYTES
    return "ours" if application == _APPLICATION or unborn else "sqlite"


def _was_ours(path: Path, head: bytes, handle: int) -> bool:
    """Whether a file whose header is broken was a store: it still says so, or held nothing but a store."""
    if head[68:72] == _APPLICATION:
        return True
    with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as content:
        if content.find(_PROOF) >= 0:
            return True
        # Where a store was opened before, zeros and the torn beginning of a database are its remains.
        remains = MAGIC.startswith(head[: len(MAGIC)]) or not any(
            any(content[offset : offset + (1 << 20)]) for offset in range(0, len(content), 1 << 20)
        )
    return remains and lock_path(path).exists()


def wal_path(store: Path) -> Path:
    """The write-ahead log of `store`."""
    real = store.resolve()
    return real.with_name(real.name + "-wal")


def shm_path(store: Path) -> Path:
    """The shared index of the write-ahead log of `store`."""
    real = store.resolve()
    return real.with_name(real.name + "-shm")


def has_wal(store: Path) -> bool:
    """Whether a write-ahead log with anything in it lies beside `store`."""
    try:
        return wal_path(store).stat().st_size > _WAL_HEADER
    except OSError:
        return False


def note_path(store: Path) -> Path:
    """The file that says that `store` is being salvaged."""
    real = store.resolve()
    return real.with_name(real.name + ".salvage")
