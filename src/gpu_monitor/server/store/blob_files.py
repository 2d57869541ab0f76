"""The files that the database names: whether they are what their digests say, and copies of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, select

from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageFull
from gpu_monitor.server.store.schema_experiments import blob_holders, blobs

Read = Callable[[], AbstractContextManager[Connection]]
Progress = Callable[[int, int], None]
_ROWS = 500
_PIECE = 1 << 20


@dataclass(frozen=True)
class Files:
    """Files that the database names: how many, and bytes."""

    count: int
    bytes: int


def blob_path(folder: Path, sha256: str) -> Path:
    """Where a whole file lies in a folder of them."""
    return folder / sha256[:2] / sha256


def count_files(read: Read) -> Files:
    """What the database names."""
    with read() as connection:
        asked = select(func.count(), func.coalesce(func.sum(blobs.c.size), 0)).select_from(blobs)
        count, size = connection.execute(asked).one()
    return Files(int(count), int(size))


def missing_files(read: Read, folder: Path) -> int:
    """How many of the files are not there, or not as long as they were."""
    return sum(_size(blob_path(folder, sha256)) != size for sha256, size in _named(read))


def file_faults(read: Read, folder: Path, progress: Progress) -> Iterator[str]:
    """What is wrong with files that the database names; reads every byte. One that is let go of meanwhile is well."""
    total, done = count_files(read).bytes, 0
    for sha256, _ in _named(read):
        path = blob_path(folder, sha256)
        try:
            with path.open("rb") as file:
                engine = hashlib.sha256()
                while piece := file.read(_PIECE):
                    engine.update(piece)
                    done += len(piece)
                    progress(done, max(done, total))
            is_right = engine.hexdigest() == sha256
            what = "its bytes are not what its digest says"
        except FileNotFoundError:
            is_right, what = False, "it is not there"
        except OSError as error:
            is_right, what = False, error.strerror or str(error)
        if not is_right and _is_named(read, sha256):
            yield f"file {sha256} in {folder}: {what}"


def copy_files(read: Read, folder: Path, target: Path, progress: Progress) -> Files:
    """Copy the files that `target` does not have yet, each verified on the way; how many, and bytes.

    StorageCorrupt for one that is not what its digest says; StorageFull where there is no room. What was copied
    before stays, and is not copied again.
    """
    total, done, count, copied = count_files(read).bytes, 0, 0, 0
    for sha256, size in _named(read):
        final, source = blob_path(target, sha256), blob_path(folder, sha256)
        if _size(final) != size:
            with _told(target):
                final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                is_copied = _copy(source, final, sha256)
            if is_copied:
                count, copied = count + 1, copied + size
            elif _is_named(read, sha256):
                raise StorageCorrupt(
                    f"{source} is missing or not what its digest says",
                    "gpu_monitor server check lists all that are wrong.",
                )
        done += size
        progress(done, max(done, total))
    return Files(count, copied)


def _copy(source: Path, final: Path, sha256: str) -> bool:
    """Copy one file whole; whether it was what its digest says."""
    part = final.with_name(final.name + ".part")
    try:
        with source.open("rb") as old, open(part, "wb", opener=_private) as new:
            engine = hashlib.sha256()
            while piece := old.read(_PIECE):
                engine.update(piece)
                new.write(piece)
            new.flush()
            os.fsync(new.fileno())
        if engine.hexdigest() != sha256:
            return False
        part.replace(final)
        return True
    except FileNotFoundError:
        return False
    finally:
        part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _named(read: Read) -> Iterator[tuple[str, int]]:
    """Digest and size of each file, in the order of their rows."""
    after = 0
    while True:
        asked = select(blobs.c.id, blobs.c.sha256, blobs.c.size).where(blobs.c.id > after)
        with read() as connection:
            found = connection.execute(asked.order_by(blobs.c.id).limit(_ROWS)).fetchall()
        for row in found:
            yield bytes(row.sha256).hex(), row.size
        if len(found) < _ROWS:
            return
        after = found[-1].id


def _is_named(read: Read, sha256: str) -> bool:
    """Whether anybody still holds it."""
    asked = select(blob_holders.c.blob).join(blobs, blobs.c.id == blob_holders.c.blob)
    with read() as connection:
        return connection.execute(asked.where(blobs.c.sha256 == bytes.fromhex(sha256))).first() is not None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in (28, 122) else StorageError  # ENOSPC, EDQUOT
        raise kind(f"{folder}: {error.strerror}", "Name a folder that is writable and has room.") from error
