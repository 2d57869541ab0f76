# SPDX-License-Identifier: MIT
"""Copies of files that others may be writing to: cloned where the filesystem can, and of one moment or refused.

A clone takes no room until one of the two files is written to. A link would change with its file, so only files
that nobody writes to again are linked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.training.drafts import digest

if sys.platform == "linux":
    import fcntl

_CLONE = 0x40049409
"""The request FICLONE of linux/fs.h: this file shares the blocks of another one from now on."""
_CHUNK = 1 << 20
_TRIES = 3
"""How often a file that changes while it is copied is copied."""
_FRESH_SECONDS = 0.1
"""Longer than the tick of any kernel's file times: a later change of the file has a later time."""
_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


class CopyRefused(GpuMonitorError):
    """A file that changes each time it is copied, or that is another one than was looked at."""


def copy_steady(
    source: Path, target: Path, clock: Clock, seen: os.stat_result | None = None
) -> tuple[str, int]:
    """Copy a regular file to `target`, which is not there; SHA-256 and size of what was copied.

    CopyRefused where it changes each time, is no regular file, or is not the one that `seen` was found to be.
    """
    for _ in range(_TRIES):
        found = _copied(source, target, clock, seen)
        if found is not None:
            return found
        target.unlink()
    raise CopyRefused(f"{source} changes while it is copied", "Take it once whoever writes it has finished.")


def link_or_copy(source: Path, target: Path, clock: Clock) -> tuple[str, int]:
    """As `copy_steady`, for a file that nobody writes to again: a link where the filesystem can."""
    try:
        os.link(source, target)
    except OSError:
        return copy_steady(source, target, clock)
    return digest(target)


def _copied(source: Path, target: Path, clock: Clock, seen: os.stat_result | None) -> tuple[str, int] | None:
    """One try; None where the file changed meanwhile."""
    handle = os.open(source, _FLAGS)
    with open(handle, "rb", buffering=0) as content:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode) or not (seen is None or os.path.samestat(before, seen)):
            raise CopyRefused(f"{source} was replaced while it was looked at", "Try again.")
        began = clock.now()
        _copy(handle, content.read, target)
        found = digest(target)
        after = os.fstat(handle)
        changed = _face(before) != _face(after) or found[1] != after.st_size
        if not changed and began - before.st_mtime < _FRESH_SECONDS:
            # Written so shortly before that a change now may have left its time as it was: read it again.
            content.seek(0)
            changed = _digest(content.read) != found
    return None if changed else found


def _face(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file's content does."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _copy(handle: int, read: Callable[[int], bytes], target: Path) -> None:
    """Clone or copy an open file to `target`."""
    with target.open("xb", buffering=0) as out:
        if _clone(handle, out.fileno()):
            return
        while chunk := read(_CHUNK):
            view = memoryview(chunk)
            while view:
                view = view[out.write(view) :]


def _clone(source: int, target: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _CLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True


def _digest(read: Callable[[int], bytes]) -> tuple[str, int]:
    found, size = hashlib.sha256(), 0
    while chunk := read(_CHUNK):
        found.update(chunk)
        size += len(chunk)
    return found.hexdigest(), size
