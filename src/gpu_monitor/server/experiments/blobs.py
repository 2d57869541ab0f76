"""Files of experiments, by the SHA-256 of their bytes: grown piece by piece, counted only once that is right.

    <folder>/<2 digits>/<digest>          whole and verified
    <folder>/incoming/<digest>.<contract> on its way; nobody sees it
    <folder>/incoming/lock-<2 digits>     held by whoever changes files whose digest begins so

Several server processes share the folder; the locks in it are between them, too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError, StorageFull
from gpu_monitor.server.store.blob_files import blob_path
from gpu_monitor.server.store.blob_rows import BlobRow, bytes_of, held_by, hold, is_held, want
from gpu_monitor.server.store.engine import Store
from gpu_monitor.storage.locks import FileLock

RESERVE_BYTES = 256 << 20
"""Room that files leave on their disk: the database may be on the same one."""
BLOB_BYTES = 1 << 40
_PIECE = 1 << 20
_HASHES = 64
"""Unfinished files whose running digest is kept; of others it is worked out anew."""
_THREADS = 4
_LOCK_SECONDS = 20.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFT_SECONDS = 7 * 86400.0
"""An upload that has not gone on for so long is given up."""
_PLAIN = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True, slots=True)
class BlobState:
    """How far a contract has brought a file; `is_whole`: all of it, and verified."""

    offset: int
    is_whole: bool


class Elsewhere(Exception):
    """What was sent begins beyond what is held: go on from `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"{offset} bytes are held")
        self.offset = offset


class NotThatFile(Exception):
    """All bytes are there and they are not those of the digest: they were discarded."""


class OverQuota(Exception):
    """The contract's files would come to more than they may."""


class BlobStore:
    """The files. The methods may be called from any thread, and wait for disk and database."""

    def __init__(
        self, folder: Path, store: Store, clock: Clock, quota: int | None = None, reserve: int = RESERVE_BYTES
    ) -> None:
        self.folder = folder
        self._store, self._clock = store, clock
        self._quota, self._reserve = quota, reserve
        self._hashes: OrderedDict[Path, tuple[Any, int]] = OrderedDict()
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")

    def start(self) -> None:
        """Nothing to do: folders are made when the first file comes."""

    def stop(self) -> None:
        """Let the pieces under way be written, and take no more."""
        self.threads.shutdown(wait=True, cancel_futures=True)

    def path_of(self, sha256: str) -> Path:
        """Where a whole file lies."""
        return blob_path(self.folder, sha256)

    def state(self, contract: int, sha256: str) -> BlobState:
        """How far it is; whoever is told that it is whole has time to name it. One whose bytes are lost is brought anew."""
        with self._store.read() as connection:
            row = held_by(connection, contract, sha256)
        if row is not None and self._is_there(row):
            with self._store.write() as connection:
                want(connection, contract, row.id, self._clock.now())
            return BlobState(row.size, True)
        try:
            return BlobState(self._incoming(contract, sha256).stat().st_size, False)
        except FileNotFoundError:
            return BlobState(0, False)

    def put(self, contract: int, sha256: str, offset: int, data: bytes, size: int | None) -> BlobState:
        """Add bytes that begin at `offset`; nothing at the end of what is held says that it is all.

        `size`: of the whole file, where it is known. Elsewhere, NotThatFile, OverQuota; StorageFull where the disk
        has no room.
        """
        with self._told(), self._turn(sha256):
            with self._store.read() as connection:
                row = held_by(connection, contract, sha256)
                taken = 0 if self._quota is None else bytes_of(connection, contract)
            if row is not None and self._is_there(row):
                return BlobState(row.size, True)
            if row is not None:
                taken -= row.size
            path = self._incoming(contract, sha256)
            handle = os.open(path, _PLAIN, 0o600)
            try:
                held = self._append(handle, path, offset, data, taken)
                digest = self._digest(handle, path, held)
                if digest == sha256:
                    os.fsync(handle)
                elif (size is not None and held >= size) or not data:
                    self._discard(path)
                    raise NotThatFile
            finally:
                os.close(handle)
            if digest != sha256:
                return BlobState(held, False)
            self._publish(contract, sha256, path, held)
            return BlobState(held, True)

    def _append(self, handle: int, path: Path, offset: int, data: bytes, taken: int) -> int:
        """Write what is new of the bytes; how many there are then."""
        held = os.fstat(handle).st_size
        if offset > held:
            raise Elsewhere(held)
        common = min(held - offset, len(data))
        if common and _read(handle, common, offset) != data[:common]:
            # One of both is wrong, and the digest will tell: the sender is believed, who sees the file.
            os.ftruncate(handle, offset)
            self._hashes.pop(path, None)
            held, common = offset, 0
        rest = data[common:]
        if self._quota is not None and taken + held + len(rest) > self._quota:
            raise OverQuota
        if held + len(rest) > BLOB_BYTES:
            raise OverQuota
        self._refuse_full(len(rest))
        os.lseek(handle, held, os.SEEK_SET)
        try:
            _write(handle, rest)
        except OSError:
            os.ftruncate(handle, held)
            raise
        kept = self._hashes.get(path)
        if kept is not None and kept[1] == held:
            kept[0].update(rest)
            self._hashes[path] = (kept[0], held + len(rest))
        return held + len(rest)

    def _digest(self, handle: int, path: Path, held: int) -> str:
        """The SHA-256 of what is held."""
        kept = self._hashes.get(path)
        if kept is None or kept[1] != held:
            engine, place = hashlib.sha256(), 0
            while place < held and (piece := _read(handle, _PIECE, place)):
                engine.update(piece)
                place += len(piece)
            self._hashes[path] = (engine, held)
            while len(self._hashes) > _HASHES:
                self._hashes.popitem(last=False)
        self._hashes.move_to_end(path)
        return str(self._hashes[path][0].hexdigest())

    def _publish(self, contract: int, sha256: str, path: Path, size: int) -> None:
        """Give the file its name, then count it. Killed in between, it is brought again."""
        final = self.path_of(sha256)
        final.parent.mkdir(mode=0o700, exist_ok=True)
        path.replace(final)
        _sync_folder(final.parent)
        _sync_folder(self.folder)
        self._hashes.pop(path, None)
        with self._store.write() as connection:
            hold(connection, contract, sha256, size, self._clock.now())

    def remove(self, sha256: str) -> None:
        """Delete a file that is no longer held by anybody; one that was brought again meanwhile stays."""
        with self._told(), self._turn(sha256):
            with self._store.read() as connection:
                if is_held(connection, sha256):
                    return
            self.path_of(sha256).unlink(missing_ok=True)

    def give_up_old(self) -> int:
        """Delete uploads that have not gone on for a week, and files that no row knows; how many."""
        oldest = self._clock.now() - _LEFT_SECONDS
        gone = 0
        for path in self._files():
            digest = path.name.partition(".")[0]
            try:
                if path.stat().st_mtime > oldest:
                    continue
                if path.parent.name == "incoming":
                    with self._turn(digest):
                        if path.stat().st_mtime <= oldest:
                            self._discard(path)
                            gone += 1
                    continue
            except FileNotFoundError:
                continue
            with self._store.read() as connection:
                known = is_held(connection, digest)
            if not known:
                self.remove(digest)
                gone += 1
        return gone

    def _files(self) -> Iterator[Path]:
        for folder in sorted(self.folder.glob("*")):
            if folder.is_dir():
                yield from (path for path in folder.iterdir() if len(path.name) >= 64)

    def _is_there(self, row: BlobRow) -> bool:
        """Whether a file that is known to be whole lies where it should: somebody may have deleted it, or cut it."""
        try:
            found = self.path_of(row.sha256).stat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == row.size

    def _incoming(self, contract: int, sha256: str) -> Path:
        return self.folder / "incoming" / f"{sha256}.{contract}"

    def _discard(self, path: Path) -> None:
        self._hashes.pop(path, None)
        path.unlink(missing_ok=True)

    def _refuse_full(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size and free - size < self._reserve:
            raise StorageFull(
                f"{self.folder}: {free >> 20} MiB are free on its disk", "Make room, or move the folder."
            )

    @contextlib.contextmanager
    def _turn(self, sha256: str) -> Iterator[None]:
        """Be the only one, of all processes, who changes files whose digest begins like this one."""
        folder = self.folder / "incoming"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / f"lock-{sha256[:2]}")  # by the real clock, as the other processes
        lock.acquire(_LOCK_SECONDS)
        try:
            yield
        finally:
            lock.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the system refuses, in our words."""
        try:
            yield
        except OSError as error:
            kind = StorageFull if error.errno in _FULL else StorageError
            raise kind(
                f"{self.folder}: {error.strerror}", "BLOBS_DIRECTORY must be writable and have room."
            ) from error


def _read(handle: int, size: int, offset: int) -> bytes:
    """Bytes at a place; fewer only at the end."""
    os.lseek(handle, offset, os.SEEK_SET)
    pieces = []
    while size and (piece := os.read(handle, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _write(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and its entries are journalled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
