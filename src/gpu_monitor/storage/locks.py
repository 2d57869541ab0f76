"""Locks between processes: one agent per store, one writer at a time.

They are locks on open files (flock, or msvcrt on Windows), so the system lets go of them when their
holder dies, however it dies: a stale lock cannot exist, only a stale text inside the file.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
from pathlib import Path

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import StorageBusy, StorageError, StorageFull

if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int, shared: bool = False) -> bool:
        try:
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte far behind the text, so that others can read it
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, 1 << 30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: int, shared: bool = False) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


_STEP_SECONDS = 0.001
"""How often a lock that is held is tried again. A writer lets go for some 50 microseconds between two
transactions of 1 to 10 ms, so a waiting agent gets in after a tenth of a second or so of a busy import."""


class FileLock:
    """An exclusive lock on the file at `path`, held between `acquire` and `release`.

    Made with mode 0600: only who may write the store may hold it up.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        self._handle: int | None = None

    def _open(self) -> int:
        if self._handle is None:
            try:
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull(
                        f"no room for the lock file {self.path}: {error.strerror}",
                        "Free space on that disk; sampling goes on in memory.",
                    ) from error
                raise StorageError(
                    f"cannot open the lock file {self.path}: {error.strerror}",
                    "The folder of the store must be writable by the user who runs this.",
                ) from error
        return self._handle

    def try_acquire(self) -> bool:
        """True if the lock is ours now."""
        while True:
            handle = self._open()
            if not _try_lock(handle):
                return False
            if self._is_current(handle):
                return True
            # Somebody removed the file, and whoever opens its name now locks another one: so must we.
            self.close()

    def _is_current(self, handle: int) -> bool:
        ours = os.fstat(handle)
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def acquire(self, timeout: float) -> None:
        """Wait up to `timeout` seconds; StorageBusy after that."""
        if self.try_acquire():
            return
        never, deadline = threading.Event(), self._clock.monotonic() + timeout
        while not self.try_acquire():
            moment = self._clock.monotonic()
            if moment >= deadline:
                raise StorageBusy(
                    f"another process has held {self.path} for {timeout:.0f} s",
                    "Wait for the import or repair that is running, then try again.",
                )
            # Not in step with the holder's own rhythm, or every try could fall into the same place of it.
            step = _STEP_SECONDS * random.uniform(0.5, 1.5)
            self._clock.wait(never, min(moment + step, deadline))

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._handle is not None:
            _unlock(self._handle)

    def close(self) -> None:
        """Let go and close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def write_text(self, text: str) -> None:
        """Replace the text inside the file (for people and error messages; it decides nothing)."""
        handle = self._open()
        data = text.encode()
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, data)
        os.ftruncate(handle, len(data))


def lock_path(store: Path) -> Path:
    """The file that every write transaction and checkpoint on `store` locks (the same through a link)."""
    real = store.resolve()
    return real.with_name(real.name + ".lock")


def agent_path(store: Path) -> Path:
    """The file that the one agent of `store` keeps locked for as long as it runs."""
    real = store.resolve()
    return real.with_name(real.name + ".agent")


def holder(path: Path) -> str | None:
    """The text a lock's last holder wrote (its pid), None where unreadable."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    return words[0] if words else None


def is_held(path: Path) -> bool | None:
    """Whether somebody holds the lock at `path`; None where we may not look."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        if _try_lock(handle, shared=True):  # shared: two who look at once do not take each other for a holder
            _unlock(handle)
            return False
        return True
    finally:
        os.close(handle)
