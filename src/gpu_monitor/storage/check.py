"""Looks whether a store is whole, in bounded time and without changing it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.clock import Clock
from gpu_monitor.storage.files import translated
from gpu_monitor.storage.reader import Opened

_STEPS = 20_000
"""SQLite's virtual machine does some millions of steps a second: the clock is looked at every few ms."""


@dataclass(frozen=True)
class Shape:
    """The size of a store in bytes: all of it, and what of it holds nothing now."""

    size: int
    free: int


def shape_of(path: Path, clock: Clock) -> Shape:
    """Its size; StorageError where it cannot be read."""
    opened = Opened(path, clock)
    try:
        pages, free, size = (
            int(opened.connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
    except sqlite3.Error as error:
        raise translated(error, path) from error
    finally:
        opened.close()
    return Shape(pages * size, free * size)


def quick_check(path: Path, clock: Clock, seconds: float) -> tuple[str, ...] | None:
    """What SQLite's quick_check complains of (nothing: the file is whole); None where time ran out."""
    opened = Opened(path, clock)
    deadline = clock.monotonic() + seconds
    try:
        opened.connection.set_progress_handler(lambda: int(clock.monotonic() > deadline), _STEPS)
        rows = opened.connection.execute("PRAGMA quick_check(5)").fetchall()
        if opened.is_stale():
            return None  # a writer came: what was read belongs to no one state
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return None
        raise translated(error, path) from error
    except sqlite3.Error as error:
        raise translated(error, path) from error
    finally:
        opened.close()
    return tuple(str(row[0]) for row in rows if row[0] != "ok")
