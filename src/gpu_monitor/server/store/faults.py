"""What a database's error means for us: busy, full, damaged, or away."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gpu_monitor.core.errors import (
    StorageBusy,
    StorageCorrupt,
    StorageError,
    StorageForeign,
    StorageFull,
    StorageUnreachable,
)
from gpu_monitor.server.store.url import shown

_FREE = "Free space on that disk; nothing that was acknowledged is lost."
# Codes of sqlite.org/rescode.html; the upper bits say more.
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_READONLY, _SQLITE_IOERR = 5, 6, 8, 10
_SQLITE_CORRUPT, _SQLITE_FULL, _SQLITE_CANTOPEN, _SQLITE_NOTADB = 11, 13, 14, 26
# Classes and codes of the PostgreSQL manual, appendix A.
_AWAY_CLASSES = ("08", "57P")  # connection exception; shut down, crashed, starting, dropped
_BUSY = ("40001", "40P01", "55P03", "57014", "53300", "25P03")
_FULL = ("53100",)
_STANDBY = ("25006",)
_CORRUPT = ("XX001", "XX002")


@contextlib.contextmanager
def told(url: URL) -> Iterator[None]:
    """Errors of the database become ours, naming the database; a constraint that failed stays as it is."""
    try:
        yield
    except PoolTimeout as error:
        raise StorageBusy(f"every connection to {shown(url)} was in use for 30 s", "Try again.") from error
    except DBAPIError as error:
        ours = fault_of(error, url)
        if ours is None:
            raise
        raise ours from error


def fault_of(error: DBAPIError, url: URL) -> StorageError | None:
    """Our error for one of the database; None where the statement itself was wrong."""
    if isinstance(error.orig, sqlite3.Error):
        return sqlite_fault(error.orig, shown(url))
    state = getattr(error.orig, "sqlstate", None)
    # Without a state it never reached the database, or the connection broke, or our own call was wrong.
    lost = error.connection_invalidated or (state is None and isinstance(error, OperationalError))
    return _postgresql(state or "", _line(error), shown(url), lost)


def sqlite_fault(error: sqlite3.Error, name: str) -> StorageError | None:
    """The same for an error of Python's sqlite3."""
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.11 and newer
    code = _code_of(str(error)) if code is None else code & 0xFF
    if code in (_SQLITE_BUSY, _SQLITE_LOCKED):
        return StorageBusy(f"{name}: another process is writing ({error})", "Try again.")
    if code == _SQLITE_FULL:
        return StorageFull(f"no room to write {name}", _FREE)
    if code == _SQLITE_IOERR:
        return StorageError(
            f"{name}: {error}", "Look at the disk and its space: the system could not read or write."
        )
    if code == _SQLITE_CORRUPT:
        return StorageCorrupt(
            f"{name} is damaged: {error}",
            "Stop the server and bring back a copy: gpu_monitor server restore FILE.",
        )
    if code == _SQLITE_NOTADB:
        return StorageForeign(f"{name} is not a SQLite database", "Name another file in DATABASE_URL.")
    if code in (_SQLITE_READONLY, _SQLITE_CANTOPEN):
        return StorageError(
            f"cannot open {name} for writing: {error}",
            "The file and its folder must be there and writable by the user who runs the server.",
        )
    return None


_WORDS = {
    "locked": _SQLITE_BUSY,
    "full": _SQLITE_FULL,
    "disk I/O": _SQLITE_IOERR,
    "malformed": _SQLITE_CORRUPT,
    "not a database": _SQLITE_NOTADB,
    "readonly": _SQLITE_READONLY,
    "unable to open": _SQLITE_CANTOPEN,
}


def _code_of(message: str) -> int | None:
    """SQLite's code by its words, where Python (3.10) does not give it."""
    return next((code for words, code in _WORDS.items() if words in message), None)


def _postgresql(state: str, line: str, name: str, lost: bool) -> StorageError | None:
    if state in _BUSY:
        return StorageBusy(f"{name}: {line}", "Try again.")
    if state in _FULL:
        return StorageFull(f"no room on the disk of {name}", _FREE)
    if state in _STANDBY:
        return StorageUnreachable(
            f"{name} is a standby that takes no writes", "Name the primary in DATABASE_URL."
        )
    if state in _CORRUPT:
        return StorageCorrupt(f"{name} is damaged: {line}", "Bring back a copy of the database.")
    if lost or state.startswith(_AWAY_CLASSES):
        return StorageUnreachable(
            f"cannot reach {name}: {line}", "See that PostgreSQL runs and DATABASE_URL is right."
        )
    if state.startswith("28") or state == "3D000":
        return StorageError(
            f"{name} does not let us in: {line}", "Correct user, password or name in DATABASE_URL."
        )
    if state == "42501":
        return StorageError(
            f"{name}: {line}", "The server's user must own its schema: GRANT CREATE, USAGE ON SCHEMA public."
        )
    return None


def _line(error: DBAPIError) -> str:
    """The first words of the database's message, which never hold values."""
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0] if lines else type(error.orig).__name__
