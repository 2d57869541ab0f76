"""Locks between processes: one agent per store, one writer at a time.

They are locks on open files (flock, or msvcrt on Windows), so the system lets go of them when their
holder dies, however it dies: a stale lock cannot exist, only a stale text inside the file.
"""

from __future__ import annotations

import contextlib
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
"""How often a lock that is held is tried again."""
_COURTESY_SECONDS = 0.002
"""Whoever lets go of it and sees that another waits leaves it alone for so long: the other tries in that time.
Without it an agent waited 0.2 s on average, and 0.8 s at most, for a turn beside a busy import."""
_KNOCKS = 8
"""At every so many tries one who waits marks the file's time, which the holder sees."""


class FileLock:
    """An exclusive lock on the file at `path`, held between `acquire` and `release`.

    Made with mode 0600: only who may write the store may hold it up.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        self._handle: int | None = None
        self._released = float("-inf")
        self._seen = 0

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
            if self.is_current():
                return True
            # Somebody removed the file, and whoever opens its name now locks another one: so must we.
            self.close()

    def is_current(self) -> bool:
        """Whether the file that is open, and may be locked, is the one at `path`; False where none is open."""
        if self._handle is None:
            return False
        ours = os.fstat(self._handle)
        try:
            named = self.path.stat()
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def acquire(self, timeout: float) -> None:
        """Wait up to `timeout` seconds; StorageBusy after that."""
        never, deadline = threading.Event(), self._clock.monotonic() + timeout
        if self._clock.monotonic() < self._released + _COURTESY_SECONDS and self._knocked():
            self._clock.wait(never, self._released + _COURTESY_SECONDS)
        tries = 0
        while not self.try_acquire():
            if tries % _KNOCKS == 0:
                self._knock()
            tries += 1
            moment = self._clock.monotonic()
            if moment >= deadline:
                raise StorageBusy(
                    f"another process has held {self.path} for {timeout:.0f} s",
                    "Wait for the import or repair that is running, then try again.",
                )
            # Not in step with the holder's own rhythm, or every try could fall into the same place of it.
            step = _STEP_SECONDS * random.uniform(0.5, 1.5)
            self._clock.wait(never, min(moment + step, deadline))
        self._seen = os.fstat(self._open()).st_mtime_ns

    def _knock(self) -> None:
        """Let the holder see that somebody waits. Only a courtesy: where it cannot be done, waiting takes longer."""
        moment = round(self._clock.now() * 1e9)
        with contextlib.suppress(OSError):
            os.utime(self.path, ns=(moment, moment))

    def _knocked(self) -> bool:
        """Whether somebody waited while the lock was ours."""
        return os.fstat(self._open()).st_mtime_ns != self._seen

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._handle is not None:
            _unlock(self._handle)
            self._released = self._clock.monotonic()

    def close(self) -> None:
        """Let go and close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def write_text(self, text: str) -> None:
        """Replace the text inside the file (for people and error messages); StorageFull where it has no room."""
        handle = self._open()
        data = text.encode()
        try:
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, data)
            os.ftruncate(handle, len(data))
        except OSError as error:
            raise StorageFull(
                f"cannot write {self.path}: {error.strerror}", "Free space on that disk, then start again."
            ) from error


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
