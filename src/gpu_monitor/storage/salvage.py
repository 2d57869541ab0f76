"""A damaged store is moved aside and kept; what can be read of it becomes a new store.

The new store is built beside and takes its name at the very end, with the record of what happened in
it. A note says that this is under way, so a start after a kill does the whole of it again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageFull
from gpu_monitor.storage.ballast import Ballast
from gpu_monitor.storage.database import Reader, Writer, refuse_unwritable
from gpu_monitor.storage.files import looks_like, note_path, wal_path
from gpu_monitor.storage.locks import FileLock, lock_path
from gpu_monitor.storage.rebuild import Account, rebuild
from gpu_monitor.storage.wal import damage_of

_LOG = logging.getLogger("storage")
_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.3
"""How long a start looks for damage; `find_damage` looks at everything, in the background."""
_READING_SECONDS = 60.0
"""How long reading a damaged store may take; what is not read by then stays in the file that is kept."""


def open_store(
    path: Path,
    clock: Clock | None = None,
    *,
    page_limit: int | None = None,
    look_seconds: float = _LOOK_SECONDS,
) -> Writer:
    """The writer of the store at `path`, made where there is none, salvaged first where it is damaged.

    Only for the holder of the agent lock. A foreign file and a newer schema are refused untouched.
    """
    clock = clock or SystemClock()
    try:
        return _opened(path, clock, page_limit, look_seconds)
    except StorageFull:
        if not Ballast(path, 0).give_up():
            raise
        return _opened(path, clock, page_limit, look_seconds)


def _opened(path: Path, clock: Clock, page_limit: int | None, look_seconds: float) -> Writer:
    writer = _sound(path, clock, page_limit, look_seconds)
    try:
        writer.set_meta("opened", clock.now())  # a full disk shows here, while something can be done about it
    except BaseException:
        writer.close()
        raise
    return writer


def _sound(path: Path, clock: Clock, page_limit: int | None, look_seconds: float) -> Writer:
    """The writer of a store that was looked over, or made anew from one that was damaged."""
    _go_on(path, clock)
    try:
        refuse_unwritable(path)
        torn = _keep_torn_log(path, clock)
        writer = Writer(path, page_limit=page_limit)
    except StorageCorrupt as error:
        trouble = error.message
    else:
        found = _look(writer, clock, look_seconds)
        if found is None:
            if torn is not None:
                _tell_torn_log(writer, clock, *torn)
            return writer
        writer.close()
        trouble = found
    _salvage(path, clock, trouble)
    return Writer(path, page_limit=page_limit)


def recover(writer: Writer, clock: Clock) -> Account | None:
    """Mend the store of a running agent after StorageCorrupt; may be called again where it failed.

    Other threads wait on the writer meanwhile. Whatever is kept in memory of the store is to be read anew
    afterwards. Returns what was salvaged; None where the file was sound after all, or is a new one.
    """
    path = writer.path
    with writer.closed():
        account = _go_on(path, clock)
        if account is None and looks_like(path) not in ("absent", "empty"):
            trouble = find_damage(path)
            if trouble is not None:
                account = _salvage(path, clock, trouble)
    return account


def find_damage(path: Path) -> str | None:
    """What is wrong with the store at `path`, found by reading all of it; None where it is sound.

    Works beside a running agent, which goes on writing meanwhile.
    """
    try:
        reader = Reader(path)
    except StorageCorrupt as error:
        return error.message
    try:
        return _verdict(reader.value("PRAGMA integrity_check(1)"))
    except StorageCorrupt as error:
        return error.message
    finally:
        reader.close()


def _verdict(answer: str | None) -> str | None:
    """What SQLite found, in one line; None where that is nothing."""
    lines = [line for line in (answer or "ok").splitlines() if not line.startswith("***")]
    return None if lines == ["ok"] else "; ".join(lines)


def _look(writer: Writer, clock: Clock, seconds: float) -> str | None:
    """What a short look finds wrong with an opened store."""
    deadline = clock.monotonic() + seconds
    try:
        with writer.transaction() as connection:
            connection.set_progress_handler(lambda: int(clock.monotonic() > deadline), 20_000)
            try:
                found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "interrupted" not in str(error):
                    raise
                found = None
            finally:
                connection.set_progress_handler(None, 0)
    except StorageCorrupt as error:
        return error.message
    return _verdict(found)


def stamp(clock: Clock) -> str:
    """The time in the name of a file that is kept (UTC)."""
    return datetime.fromtimestamp(clock.now(), timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def _keep_torn_log(path: Path, clock: Clock) -> tuple[str, str] | None:
    """What is wrong with the log that was left, and the name of its copy: SQLite drops what it cannot use of it."""
    log = wal_path(path)
    damage = damage_of(log)
    if damage is None:
        return None
    name = f"{log.name}.corrupt-{stamp(clock)}"
    with storage_errors(path):
        shutil.copyfile(log, log.with_name(name))
    return damage, name


def _tell_torn_log(writer: Writer, clock: Clock, damage: str, kept: str) -> None:
    message = f"{damage}: what was stored after that place is lost; the log is kept as {kept}"
    _LOG.error("%s: %s", writer.path, message)
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO events (time, node, kind, severity, message) VALUES (?, 1, 'store_log_damaged', 'error', ?)",
            (clock.now(), message),
        )
        connection.execute(
            "INSERT INTO losses (time, what, cause, rows) VALUES (?, 'samples', ?, 0)", (clock.now(), message)
        )


def _salvage(path: Path, clock: Clock, trouble: str) -> Account:
    """Salvage the damaged store at `path`, from the beginning to the end."""
    real, trouble = path.resolve(), trouble.removeprefix(f"{path} ").removeprefix("is damaged: ")
    moment = stamp(clock)
    name, number = f"{real.name}.corrupt-{moment}", 2
    while real.with_name(name).exists():
        name, number = f"{real.name}.corrupt-{moment}-{number}", number + 1
    _LOG.critical("%s is damaged (%s); it is kept as %s, and its rows are salvaged", path, trouble, name)
    with storage_errors(path):
        _write_note(note_path(path), {"aside": name, "trouble": trouble})
    account = _go_on(path, clock)
    if account is None:
        raise StorageError(f"{path} vanished while it was salvaged", "Start the agent again.")
    return account


def _go_on(path: Path, clock: Clock) -> Account | None:
    """Do what a note asks for, from its beginning; None where there is no note, or nothing left to do."""
    note, real = note_path(path), path.resolve()
    if not note.exists():
        return None
    lock = FileLock(lock_path(path), clock)
    lock.acquire(_LOCK_SECONDS)
    try:
        with storage_errors(path):
            told = json.loads(note.read_text(encoding="utf-8"))
            aside, building = real.with_name(told["aside"]), real.with_name(real.name + ".salvaging")
            account = None
            if not aside.exists():
                _move(real, aside)
            if aside.exists() and not real.exists():
                _remove(building)
                account = rebuild(aside, building, clock, _READING_SECONDS, told["trouble"])
                sync(building)
                building.replace(real)
                sync(real.parent)
                _say(path, account)
            _remove(building)
            note.unlink()
            return account
    finally:
        lock.close()


def _move(real: Path, aside: Path) -> None:
    """Move the store aside, its log first: killed in between, the store itself is still to be moved."""
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            real.with_name(real.name + suffix).replace(aside.with_name(aside.name + suffix))
    sync(aside.parent)


def _write_note(note: Path, content: dict[str, str]) -> None:
    draft = note.with_name(note.name + ".new")
    draft.write_text(json.dumps(content), encoding="utf-8")
    sync(draft)
    draft.replace(note)
    sync(note.parent)


def _remove(building: Path) -> None:
    for suffix in ("", "-journal"):
        building.with_name(building.name + suffix).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk (Windows cannot sync folders)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _say(path: Path, account: Account) -> None:
    _LOG.warning(
        "salvaged %d samples and %d hours into a new %s; delete %s when you no longer need it",
        account.rows.get("samples_raw", 0), account.rows.get("aggregates", 0), path, account.kept,
    )  # fmt: skip
    if account.lost:
        _LOG.error("rows of %s could not be read; the table losses says how many", ", ".join(account.lost))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Errors of moving and copying files as storage errors."""
    try:
        yield
    except OSError as error:
        text = f"cannot salvage {path}: {error.strerror} ({error.filename})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(text, "Free space on that disk; the next start goes on.") from error
        raise StorageError(text, "Check the rights on its folder; the next start goes on.") from error
