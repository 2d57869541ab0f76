"""A store whose file lost its name under the writer: what it holds is saved through the open file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError, StorageFull
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.files import looks_like, shm_path, wal_path
from gpu_monitor.storage.locks import FileLock, lock_path
from gpu_monitor.storage.salvage import stamp, storage_errors, sync

_LOG = logging.getLogger("storage")
_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Orphan:
    """What became of it: back at its path; kept as `name` beside a file that took its path; or lost (None)."""

    is_back: bool
    name: str | None


def keep_orphan(writer: Writer, clock: Clock, make_room: Callable[[], object]) -> Orphan | None:
    """Save the open store where its file was removed or replaced, and open what is at its path then.

    None where the file still has its name. `make_room` is called once where the disk is full. A file that
    took its place is never written over.
    """
    if not writer.is_orphan():
        return None
    path = writer.path.resolve()
    draft = path.with_name(path.name + ".saving")
    saved = _copied(writer, draft, make_room)
    with writer.closed():
        found = Orphan(False, None)
        if saved:
            with storage_errors(path):
                found = _placed(draft, path, writer, clock)
        _say(writer.path, found)
    return found


def _copied(writer: Writer, draft: Path, make_room: Callable[[], object]) -> bool:
    for is_last in (False, True):
        try:
            with storage_errors(draft):
                draft.unlink(missing_ok=True)
            writer.copy(draft)
            with storage_errors(draft):
                sync(draft)
            return True
        except StorageError as error:
            if isinstance(error, StorageFull) and not is_last and make_room():
                continue
            _LOG.critical("%s was removed or replaced, and saving it failed: %s", writer.path, error)
            break
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
    return False


def _placed(draft: Path, path: Path, writer: Writer, clock: Clock) -> Orphan:
    lock = FileLock(lock_path(writer.path), clock)
    lock.acquire(_LOCK_SECONDS)
    try:
        is_free = looks_like(path) in ("absent", "empty")
        if (
            is_free or writer.has_own_log()
        ):  # left of the file that is gone; it would be read into the next one
            wal_path(path).unlink(missing_ok=True)
            shm_path(path).unlink(missing_ok=True)
        name = path.name if is_free else f"{path.name}.deleted-{stamp(clock)}"
        draft.replace(path.with_name(name))
        sync(path.parent)
        return Orphan(is_free, name)
    finally:
        lock.close()


def _say(path: Path, found: Orphan) -> None:
    if found.is_back:
        _LOG.error("%s was removed while it was open: what it held was saved and is there again", path)
    elif found.name is not None:
        _LOG.critical("%s was replaced while it was open: what it held is kept as %s", path, found.name)
