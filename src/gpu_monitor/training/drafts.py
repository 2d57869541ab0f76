# SPDX-License-Identifier: MIT
"""Files that are whole or not there: written in a draft beside their place, synced, and moved into it.

A draft is a folder `.draft-…` in the folder that the file is meant for (so on its filesystem, and what a library
leaves beside the file it writes is in it, too). Its maker holds a lock on a file in it while it lives; a
draft whose lock is free is what a killed process left, and the next one to make a draft there removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = ".draft-"
_LOCK = "lock"
_CHUNK = 1 << 20
_TRIES = 8
"""A draft is made anew where a cleaner took the folder for an abandoned one before it was locked."""


@contextlib.contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """A folder to write a file in, on the filesystem of `folder`, which is made; it is removed at the end.

    What processes that are gone left in `folder` is removed first. OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    draft, handle = _made(folder)
    try:
        yield draft
    finally:
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(handle)
            shutil.rmtree(draft, ignore_errors=True)
        else:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(handle)


def place(file: Path, target: Path) -> None:
    """Move `file`, written in a draft, to `target`: after a power cut, too, it is there whole or not at all.

    It gets the mode that a new file has here, whatever the library that wrote it thought.
    """
    move(file, target)
    sync_folder(target.parent)


def move(file: Path, target: Path) -> None:
    """As `place`, for one of many: that it is there is sure once the folder is synced, too."""
    file.chmod((file.parent / _LOCK).stat().st_mode & 0o777)
    with file.open("r+b") as written:
        os.fsync(written.fileno())
    file.replace(target)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk; nothing where the system cannot sync folders (Windows)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> int:
    """Remove the drafts in `folder` whose makers are gone; how many those were.

    One that cannot be judged (a filesystem without locks) or removed is left.
    """
    removed = 0
    for draft in sorted(folder.glob(f"{PREFIX}*")):
        removed += _remove_abandoned(draft)
    return removed


def digest(file: Path) -> tuple[str, int]:
    """SHA-256 (hexadecimal) and size in bytes of a file."""
    found = hashlib.sha256()
    size = 0
    with file.open("rb", buffering=0) as content:
        while chunk := content.read(_CHUNK):
            found.update(chunk)
            size += len(chunk)
    return found.hexdigest(), size


def _made(folder: Path) -> tuple[Path, int]:
    """A new draft and the handle whose lock says that its maker lives."""
    for _ in range(_TRIES):
        draft = folder / f"{PREFIX}{secrets.token_hex(6)}"
        draft.mkdir()
        try:
            handle = os.open(draft / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        if _lock(handle, waits=True) and not _is_at(handle, draft / _LOCK):
            os.close(handle)
            continue
        return draft, handle
    raise OSError(errno.EBUSY, "drafts are taken away as soon as they are made", str(folder))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(draft: Path) -> bool:
    """Remove a draft whose maker is gone; False where it lives, or where that cannot be known."""
    if sys.platform == "win32":
        try:
            (draft / _LOCK).unlink(missing_ok=True)
        except OSError:
            return False
        shutil.rmtree(draft, ignore_errors=True)
        return not draft.exists()
    try:
        handle = os.open(draft / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return False
    try:
        if not _lock(handle, waits=False):
            return False
        # Under the lock: a maker that was about to take it finds its file gone, and makes another draft.
        shutil.rmtree(draft, ignore_errors=True)
        return not draft.exists()
    finally:
        os.close(handle)


def _lock(handle: int, waits: bool) -> bool:
    """Take the lock; False where somebody has it, or where the filesystem has no locks."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
