"""A file that is only there to be given up: its room lets the store recover when the disk is full."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

_LOG = logging.getLogger("storage")
_FREE_TIMES = 4
"""It is laid down only where this many times its size is free, so that it never is what fills the disk."""
_CHUNK = bytes(1 << 20)


class Ballast:
    """The file `<store>.ballast` of `megabytes` (0: none), really allocated. Neither call ever raises."""

    def __init__(self, store: Path, megabytes: int) -> None:
        real = store.resolve()
        self.path = real.with_name(real.name + ".ballast")
        self._bytes = megabytes << 20
        self._is_down = False
        self._complained = False

    def lay(self) -> bool:
        """Lay it down where there is room to spare; True if it lies there. Cheap once it does."""
        if self._is_down or not self._bytes:
            return self._is_down
        try:
            self._is_down = self._lies_there() or self._allocated()
        except OSError as error:
            self._remove()
            if not self._complained:
                _LOG.warning("cannot lay down %s: %s", self.path, error.strerror)
                self._complained = True
        return self._is_down

    def _lies_there(self) -> bool:
        """Whether a whole one was left by an agent before; a part of one is removed."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return False
        # Blocks of 512 bytes, whatever the file system's own; a sparse file would give no room back.
        allocated = getattr(stat, "st_blocks", stat.st_size // 512) * 512
        if stat.st_size == self._bytes and allocated >= self._bytes:
            return True
        self._remove()
        return False

    def _allocated(self) -> bool:
        if shutil.disk_usage(self.path.parent).free < self._bytes * _FREE_TIMES:
            return False
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _allocate(handle, self._bytes)
        finally:
            os.close(handle)
        return True

    def give_up(self) -> bool:
        """Remove it; True if that gave room."""
        self._is_down = False
        try:
            size = self.path.stat().st_size
        except OSError:
            return False
        self._remove()
        _LOG.warning("gave up %s: %d MiB for the store to recover with", self.path, size >> 20)
        return True

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _allocate(handle: int, size: int) -> None:
    """Give an open, empty file `size` bytes that are its own on the disk; OSError where there is no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    left = size
    while left > 0:
        left -= os.write(handle, _CHUNK[: min(left, len(_CHUNK))])
