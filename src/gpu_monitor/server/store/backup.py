"""Copies the server's database while it runs, and brings a copy back. A copy that was not verified is none.

SQLite: the file itself, copied page by page from one snapshot. PostgreSQL: pg_dump's custom format, from the
snapshot in which the digests are checked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageError, StorageForeign, StorageFull
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.blob_files import missing_files
from gpu_monitor.server.store.check import CheckReport, check
from gpu_monitor.server.store.engine import Store, looking_engine, open_store, postgresql_engine
from gpu_monitor.server.store.faults import sqlite_fault, told
from gpu_monitor.server.store.lock import ServerLock
from gpu_monitor.server.store.migrate import is_current, refuse_unknown, stored_version
from gpu_monitor.server.store.postgres_tools import dump, dumped_version, is_dump, read_through, restore_dump
from gpu_monitor.server.store.url import shown

Progress = Callable[[str, int, int], None]
"""What is done, how far, of how much."""

_PAGES = 2048
"""8 MiB between two words about progress."""
_BAD_COPY = "This copy is of no use: name another one. The database was not touched."
_HEADER = b"SQLite format 3\0"


@dataclass(frozen=True)
class Copy:
    """A verified copy."""

    path: Path
    size: int
    receipts: int
    rows: int
    experiments: int
    segments: int


def back_up(store: Store, target: Path, clock: Clock, progress: Progress) -> Copy:
    """Copy the database to the file `target`, also beside a running server, and verify the copy.

    The file appears under its name only when it is whole, on disk and verified. StorageCorrupt where the
    digests do not fit the rows: a copy of that is not made.
    """
    part = target.with_name(target.name + ".part")
    with _told(part):
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))  # it holds password hashes
        try:
            if store.dialect == "sqlite":
                report = _copy_sqlite(store, part, clock, progress)
            else:
                report = _copy_postgresql(store, part, clock, progress)
            _refuse_different(report, str(store))
            _sync(part)
            part.replace(target)
            _sync(target.parent)
        finally:
            part.unlink(missing_ok=True)
    size = target.stat().st_size
    return Copy(target, size, report.receipts, report.rows, report.experiments, report.segments)


def _refuse_different(report: CheckReport, name: str) -> None:
    if report.count:
        first = report.differences[0]
        where = f" ({first.node}, {first.period})" if first.period else ""
        raise StorageCorrupt(
            f"{name}: {report.count} differences between what is there and what was written: {first.what}{where}",
            "gpu_monitor server check lists them.",
        )


def _copy_sqlite(store: Store, part: Path, clock: Clock, progress: Progress) -> CheckReport:
    with store.read() as connection, contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        connection.exec_driver_sql(
            "SELECT count(*) FROM sqlite_master"
        ).scalar_one()  # one snapshot from here on
        source = connection.connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        source.backup(
            copy,
            pages=_PAGES,
            sleep=0,
            progress=lambda _, left, total: progress("copied", total - left, total),
        )
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
    return verify_file(part, clock, progress)


def verify_file(path: Path, clock: Clock, progress: Progress) -> CheckReport:
    """Check a copy of a SQLite database, changing nothing; one with older tables in a second copy beside it."""

    @contextlib.contextmanager
    def read() -> Iterator[Connection]:
        with told(engine.url), engine.connect() as connection:
            yield connection

    def tell(done: int, total: int) -> None:
        progress("checked", done, total)

    engine = looking_engine(path)
    try:
        with read() as connection:
            version = stored_version(connection, str(path))
        if version is None:
            raise StorageForeign(f"{path} holds no server's database", "Name another file.")
        if is_current(version):
            return check(read, clock, tell)
    finally:
        engine.dispose()
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        newer = Path(folder) / path.name
        shutil.copyfile(path, newer)
        with contextlib.closing(open_store(URL.create("sqlite+pysqlite", database=str(newer)))) as store:
            return check(store.read, clock, tell)


def _copy_postgresql(store: Store, part: Path, clock: Clock, progress: Progress) -> CheckReport:
    with store.read() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        with dump(store.url, part, snapshot):
            # The same snapshot, while pg_dump writes.
            report = check(
                lambda: contextlib.nullcontext(connection),
                clock,
                lambda done, total: progress("checked", done, total),
            )
    read_through(part)
    return report


# --- bringing it back ----------------------------------------------------------------------------------


def verify_copy(url: URL, source: Path, clock: Clock, progress: Progress) -> CheckReport | None:
    """Check the copy at `source` before it takes the place of the database at `url`.

    None for a dump of PostgreSQL, whose digests can be checked only once it is in a database: it is read
    through. StorageForeign where it is no copy, or one of another kind of database; StorageCorrupt where
    it is damaged.
    """
    kind = _kind(source)
    if kind != url.get_backend_name():
        raise StorageForeign(
            f"{source} is a copy of a {kind} database, DATABASE_URL names one of {url.get_backend_name()}",
            "Name a database of the copy's own kind with --database.",
        )
    if kind == "postgresql":
        refuse_unknown(dumped_version(source), str(source))
        read_through(source)
        return None
    try:
        report = verify_file(source, clock, progress)
    except StorageCorrupt as error:
        raise StorageCorrupt(error.message, _BAD_COPY) from error
    _refuse_different(report, str(source))
    return report


def _kind(source: Path) -> str:
    with _told(source), source.open("rb") as file:
        head = file.read(len(_HEADER))
    if head == _HEADER:
        return "sqlite"
    if is_dump(head):
        return "postgresql"
    raise StorageForeign(
        f"{source} is no copy that gpu_monitor server backup made", "Name one of those files."
    )


def restore_sqlite(url: URL, source: Path, clock: Clock) -> Path | None:
    """Put the copy in the place of the database; the old one is kept under the name that is returned.

    StorageBusy where a server or another program has it open. Killed at any moment, either the old database
    or the copy, whole, is there under the name or beside it.
    """
    target = Path(str(url.database)).resolve()
    lock = ServerLock(target)
    lock.acquire()
    fresh = target.with_name(target.name + ".restoring")
    try:
        with _told(fresh):
            kept = None
            if target.exists():
                _settle(target)
                kept = target.with_name(f"{target.name}.{format_time(int(clock.now())).replace(':', '')}")
            with source.open("rb") as old, os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
            ) as new:  # fmt: skip
                shutil.copyfileobj(old, new, 1 << 20)
            _sync(fresh)
            if kept is not None:
                os.link(target, kept)  # the name itself never points at nothing
            fresh.replace(target)
            _sync(target.parent)
            return kept
    finally:
        fresh.unlink(missing_ok=True)
        lock.close()


def _settle(target: Path) -> None:
    """Bring everything into the one file; StorageBusy where somebody else has it open."""
    try:
        with contextlib.closing(sqlite3.connect(target, isolation_level=None, timeout=2.0)) as connection:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    except sqlite3.DatabaseError as error:
        fault = sqlite_fault(error, str(target))
        if isinstance(fault, StorageBusy) or fault is None:
            raise _in_use(target) from error
        # Damaged: it is moved aside with its log, and what can still be read there is there.
        for suffix in ("-wal", "-shm"):
            log = target.with_name(target.name + suffix)
            if log.exists():
                log.replace(log.with_name(f"{log.name}.damaged"))
        return
    if busy or mode != "delete":
        raise _in_use(target)


def _in_use(target: Path) -> StorageBusy:
    return StorageBusy(f"another program has {target} open", "End it, then restore again.")


_OTHERS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'gpu_monitor' AND pid <> pg_backend_pid()"
)


def restore_postgresql(url: URL, source: Path, clock: Clock, progress: Progress) -> CheckReport:
    """Replace everything in the database by the dump, in one transaction, then check it.

    StorageBusy where a server is connected to it.
    """
    engine = postgresql_engine(url)
    try:
        with told(url), engine.connect() as connection:
            stored_version(connection, shown(url))
            others = connection.execute(_OTHERS).scalars().all()
    finally:
        engine.dispose()
    if others:
        raise StorageBusy(
            f"{shown(url)} is in use by a server ({len(others)} connections)", "Stop every server first."
        )
    restore_dump(url, source)
    with contextlib.closing(open_store(url)) as store:
        report = check(store.read, clock, lambda done, total: progress("checked", done, total))
        _refuse_different(report, str(store))
        return report


def missing_after(url: URL, folder: Path) -> int:
    """How many files that a restored database names are not in `folder`; 0 where its tables are older than files."""
    if url.get_backend_name() == "postgresql":
        with contextlib.closing(open_store(url)) as store:
            return missing_files(store.read, folder)
    engine = looking_engine(Path(str(url.database)))
    try:
        with told(engine.url), engine.connect() as connection:
            if not is_current(stored_version(connection, shown(url))):
                return 0
            return missing_files(lambda: contextlib.nullcontext(connection), folder)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system and SQLite refuse while a copy is written, in our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_fault(error, str(path)) or StorageError(f"{path}: {error}") from error
    except OSError as error:
        kind = StorageFull if error.errno in (28, 122) else StorageError  # ENOSPC, EDQUOT
        raise kind(
            f"{path}: {error.strerror}", "Name a folder that is there, writable and has room."
        ) from error


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # a folder cannot be opened there, and its entries are journalled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
