"""Opens a damaged store for reading without changing it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_monitor.storage.files import MAGIC, has_wal, wal_path
from gpu_monitor.storage.reader import Mode, connect

_LOG = logging.getLogger("storage")
_PAGE = 4096
"""SQLite's page size since 3.12, which the store never changes."""
_FILE_FORMAT = (1, 2)
"""Bytes 18 and 19 of the header: with a rollback journal, or with a write-ahead log (sqlite.org/fileformat.html)."""


@contextmanager
def open_wreck(wreck: Path, target: Path) -> Iterator[sqlite3.Connection | None]:
    """A connection that reads what can be read of `wreck`; None where nothing can.

    `target` is a sound, empty store: where the wreck's own first page is lost, which says where each
    table begins, the sound one's is taken, for tables begin at the same pages in every store. Works on a
    second name or a copy beside `target`, so that the wreck and its log stay as they are.
    """
    old = target.with_name(target.name + "-old")
    connection: sqlite3.Connection | None = None
    try:
        for attempt in (_as_it_is, _with_first_page, _with_first_page_alone):
            _remove(old)
            connection = _opened(attempt, wreck, old, target)
            if connection is not None:
                connection.text_factory = lambda data: data.decode("utf-8", "replace")
                break
        else:
            _LOG.error("nothing in %s can be read", wreck)
        yield connection
    finally:
        if connection is not None:
            connection.close()
        _remove(old)


def _opened(
    attempt: Callable[[Path, Path, Path], None], wreck: Path, old: Path, target: Path
) -> sqlite3.Connection | None:
    try:
        attempt(wreck, old, target)
        mode = Mode.IMMUTABLE if not has_wal(old) else Mode.QUIET if os.name != "nt" else Mode.LIVE
        connection = connect(old, mode, lenient=True)
    except sqlite3.Error as error:
        _LOG.info("%s: %s", attempt.__name__, error)
        return None
    try:
        found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'samples_raw'").fetchone()
        if found[0] == 1:
            return connection
    except sqlite3.Error as error:
        _LOG.info("%s: %s", attempt.__name__, error)
    connection.close()
    return None


def _as_it_is(wreck: Path, old: Path, target: Path) -> None:
    """The wreck under a second name, with a copy of its log: a reader may tidy up a log."""
    try:
        os.link(wreck, old)
    except OSError:  # a file system without links
        shutil.copyfile(wreck, old)
    if has_wal(wreck):
        shutil.copyfile(wal_path(wreck), wal_path(old))


def _with_first_page(wreck: Path, old: Path, target: Path) -> None:
    """A copy of the wreck whose first page is made anew."""
    _copy_pages(wreck, old)
    logged = has_wal(wreck)
    if logged:
        shutil.copyfile(wal_path(wreck), wal_path(old))
    _write_first_page(old, target, logged)
    _write_schema(old, target)


def _with_first_page_alone(wreck: Path, old: Path, target: Path) -> None:
    """The same without the log, which may be what is damaged."""
    _copy_pages(wreck, old)
    _write_first_page(old, target, False)
    _write_schema(old, target)


def _copy_pages(wreck: Path, old: Path) -> None:
    shutil.copyfile(wreck, old)
    size = old.stat().st_size
    os.truncate(old, max(_PAGE, size - size % _PAGE))


def _write_first_page(old: Path, target: Path, logged: bool) -> None:
    """A header that fits the file, and an empty list of tables."""
    with target.open("rb") as sound:
        page = bytearray(sound.read(100))
    assert page.startswith(MAGIC)
    pages = old.stat().st_size // _PAGE
    page[18] = page[19] = _FILE_FORMAT[logged]
    page[28:32] = pages.to_bytes(4, "big")
    page[32:40] = bytes(8)  # no list of free pages: nothing here is written over
    page[52:56] = bytes(4)  # no auto-vacuum: its maps may be damaged, and reading needs none
    page[64:68] = bytes(4)
    page[92:96] = page[24:28]  # the size above counts only where these two agree
    page += (
        b"\x0d\x00\x00\x00\x00\x10\x00\x00"  # a leaf of a table without cells; content begins at byte 4096
    )
    with old.open("r+b") as file:
        file.write(page + bytes(_PAGE - len(page)))


def _write_schema(old: Path, target: Path) -> None:
    """Name the tables and indexes with the pages at which they begin in a sound store."""
    sound = sqlite3.connect(target)
    try:
        rows = sound.execute(
            "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE rootpage > 0 ORDER BY rowid"
        ).fetchall()
    finally:
        sound.close()
    connection = sqlite3.connect(old, isolation_level=None)
    try:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    finally:
        connection.close()


def _remove(old: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            old.with_name(old.name + suffix).unlink()
