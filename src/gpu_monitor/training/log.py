# SPDX-License-Identifier: MIT
"""The append-only file of one writer: each record handed to the kernel before its call returns, and synced a second later.

What cannot be written waits in memory, bounded, and is written in order when there is room again.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SYNC_SECONDS = 1.0
"""A record survives a power cut after this time at most."""
WAITING_BYTES = 16 << 20
"""What waits in memory while the file cannot be written; records of points beyond it are given up and counted."""
FRESH_BYTES = 1 << 20
"""Of what was written last and is kept until the file was seen to hold it: looked at once a second, or when it is more."""
MOST_MOVES = 100
"""How often it goes on in a new file, where others keep cutting the old ones."""
_COPY_BYTES = 1 << 20
_LOCK_TRIES = 50
_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_sync = getattr(os, "fdatasync", os.fsync)


class SegmentWriter:
    """Appends lines to `path`, which must not exist. All but `sync_soon` and the thread's work is done under `lock`.

    The file is locked (flock) for as long as the writer lives: who can take the lock knows that the writer is gone.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[str, str], None],
        begin_anew: Callable[[bytes, bytes], tuple[Path, bytes]] | None = None,
        moved: Callable[[], None] | None = None,
    ) -> None:
        """`begin_anew`: where to go on once the file was cut short, and what stands there at first; it is given the
        lines that were written since, and what waits. None: it goes on where it is. `moved`: called once it has, under
        the lock."""
        self.path = path
        self.lock = threading.RLock()
        self.size = 0
        """Bytes in the file, as far as this writer put them there."""
        self.lost = 0
        """Records that were given up, or went with a file that could not be put back."""
        self.cut: Path | None = None
        """The file that another program made shorter than what was written to it, the last one; None: none."""
        self._tell = tell
        self._begin_anew = begin_anew
        self._moved = moved
        self._moves = 0
        self._seen = 0
        self._fresh: list[bytes] = []
        self._mending = threading.Lock()
        self._file = -1
        self._in_sync = -1
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_writing = False
        self._is_dirty = False
        self._is_full = False
        self._is_over = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    def write(self, line: bytes, *, is_needed: bool = False) -> None:
        """Append whole lines. `is_needed`: later lines make no sense without these, so they are never given up."""
        if self._waiting or self._file < 0 or self._is_writing:
            self._keep(line, is_needed)
            if self._file < 0 and not self._is_dirty:
                self.drain()
            self._rouse()
            return
        count = -1
        self._is_writing = True
        try:
            count = os.write(self._file, line)
        except OSError as error:
            self._fail(error)
            self._keep(line, is_needed)
        else:
            self.size += count
            if count == len(line):
                self._fresh.append(line)
            else:
                # The disk has no room for the rest: it must come next, or the line stays torn.
                self._fresh.append(line[:count])
                self._keep(line[count:], True)
        finally:
            self._is_writing = False
        if self.size - self._seen > FRESH_BYTES:
            self._look_for_cut()
        if self._waiting and count == len(line):
            self.drain()  # what a signal handler had to say meanwhile
        if not self._is_dirty:
            self._rouse()

    def drain(self) -> bool:
        """Try to write what waits; whether nothing waits any more."""
        if self._is_writing or (self._file < 0 and not self._open()):
            return False
        self._is_writing = True
        try:
            while self._waiting:
                line = self._waiting[0]
                count = os.write(self._file, line)
                self.size += count
                self._fresh.append(line[:count])
                self._waiting_bytes -= count
                if count == len(line):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = line[count:]
        except OSError as error:
            self._fail(error)
        finally:
            self._is_writing = False
        if not self._waiting:
            self._is_full = False
        return not self._waiting

    def last_words(self, line: bytes) -> None:
        """Write a line from a signal handler that may have interrupted any other call of this thread."""
        if not self._is_writing:
            self.write(line, is_needed=True)
            self.drain()
            return
        try:
            end = os.fstat(self._file).st_size
            is_whole = end == 0 or os.pread(self._file, 1, end - 1) == b"\n"
            os.write(self._file, line if is_whole else b"\n" + line)
        except OSError as error:
            self._fail(error)

    def settle(self) -> None:
        """Look now whether the file is there and whole, and put it in order where it is not. Any thread."""
        if not self._mending.acquire(timeout=SYNC_SECONDS):
            return  # it is under way
        try:
            with self.lock:
                if self._file >= 0 and not self._is_over:
                    if os.fstat(self._file).st_nlink == 0:
                        self._restore(self._file)
                    self._look_for_cut()
        except OSError as error:
            self._fail(error)
        finally:
            self._mending.release()

    def close(self, timeout: float) -> None:
        """Write what waits, sync and let go of the file; in `timeout` seconds. What still waits is counted as lost."""
        self._closed.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        with self.lock:
            self.drain()
        self.settle()
        with self.lock:
            if self._file >= 0:
                try:
                    _sync(self._file)
                except OSError as error:
                    self._fail(error)
                self.lost += _gone(self._file)
            self._is_over = True
            self.lost += sum(line.count(b"\n") for line in self._waiting)
            self._waiting.clear()
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's file and of what waits for it, without a write."""
        for file in (self._file, self._in_sync):
            if file >= 0:
                os.close(file)
        self._file = self._in_sync = -1
        self._waiting.clear()
        self._is_over = True
        self._closed.set()

    def _keep(self, line: bytes, is_needed: bool) -> None:
        if self._waiting_bytes + len(line) > WAITING_BYTES:
            self._is_full = True  # until all of it is written: what is kept has no gaps
        if not self._is_over and (is_needed or not self._is_full):
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        else:
            self.lost += line.count(b"\n")

    def _open(self) -> bool:
        """Make the file and its folder, and lock it; whether that worked."""
        if self._is_over:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, _FLAGS, 0o644)
        except OSError as error:
            self._fail(error)
            return False
        _hold(self._file)
        return True

    def _fail(self, error: OSError) -> None:
        self._tell(
            "write",
            f"cannot write {self.path}: {error.strerror or error}; the training goes on, records wait in memory "
            f"(up to {WAITING_BYTES >> 20} MiB) and are written when that works again",
        )

    def _rouse(self) -> None:
        """Have the background thread sync, or try again, within a second; it is started at first use."""
        self._is_dirty = True
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._work, name="gpu_monitor-sync", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # The interpreter is ending, or no thread can be had: closing syncs.
                self._thread = None
        self._wake.set()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            if self._closed.wait(SYNC_SECONDS):
                return
            self._wake.clear()
            self._look_after()

    def _look_after(self) -> None:
        """What the thread does once a second while there is something to do."""
        with self.lock:
            self._is_dirty = False
            is_done = self.drain() if self._waiting else True
            if self._file < 0:
                self._rouse()
                return
            self._look_for_cut()
            self._in_sync = os.dup(self._file)
        try:
            if os.fstat(self._in_sync).st_nlink == 0:
                self._put_back()
            else:
                _sync(self._in_sync)
        except OSError as error:
            self._fail(error)
        finally:
            with self.lock:
                file, self._in_sync = self._in_sync, -1
                if file >= 0:
                    os.close(file)
        if not is_done:
            self._rouse()

    def _put_back(self) -> None:
        """As the thread: the file was deleted. OSError where it cannot be put back."""
        with self._mending:
            is_ours = self._file >= 0 and os.path.sameopenfile(self._in_sync, self._file)
            if is_ours and os.fstat(self._in_sync).st_nlink == 0:
                self._restore(self._in_sync)
        self._rouse()

    def _look_for_cut(self) -> None:
        """Tell of a file that is shorter than what was written to it, and go on in a new one. Under the lock."""
        if self._file < 0 or self._is_writing:
            return
        self._is_writing = True  # what a signal handler says meanwhile waits
        try:
            found = os.fstat(self._file).st_size
            if found < self.size:
                self._move_on(found)
        except OSError as error:
            self._fail(error)
        finally:
            self._is_writing = False
        self._seen = self.size
        self._fresh.clear()

    def _move_on(self, found: int) -> None:
        """Another program cut the file, which has `found` bytes now: what was written since goes to a new one.

        What that leaves is the begin of what was written, which a server that holds more holds, too. The lines that
        were written since are known by being the last of both.
        """
        since = self._written_since(found)
        self._tell(
            f"cut:{self._moves}",
            f"{self.path} was cut short while the training ran, from {self.size:,} bytes to {found - len(since):,}: "
            "what it held beyond that is lost here; what was recorded since is kept",
        )
        self.cut, self.size = self.path, found
        if self._begin_anew is None or self._moves >= MOST_MOVES:
            return
        self._moves += 1
        path, head = self._begin_anew(since, b"".join(self._waiting))
        path.parent.mkdir(parents=True, exist_ok=True)
        new = os.open(path, _FLAGS, 0o644)
        try:
            _hold(new)
            _write_all(new, head)
        except OSError:
            os.close(new)
            path.unlink(missing_ok=True)
            raise
        os.ftruncate(self._file, found - len(since))
        old, self._file = self._file, new
        self.path, self.size = path, len(head)
        os.close(old)
        if self._moved is not None:
            self._moved()

    def _written_since(self, found: int) -> bytes:
        """The lines at the end of the file that were written since it was cut."""
        fresh = b"".join(self._fresh)
        start = max(0, found - len(fresh))
        there = b""
        while len(there) < found - start and (
            data := os.pread(self._file, found - start - len(there), start + len(there))
        ):
            there += data
        same, most = 0, min(len(fresh), len(there))
        while same < most:
            middle = (same + most + 1) // 2
            if fresh[-middle:] == there[-middle:]:
                same = middle
            else:
                most = middle - 1
        place = len(fresh) - same
        if place and fresh[place - 1 : place] != b"\n":
            place = fresh.find(b"\n", place) + 1 or len(fresh)
        return fresh[place:]

    def _restore(self, source: int) -> None:
        """The file was deleted under the training: what it holds is copied into a new one of its name."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = _set_aside(self.path)
        new = os.open(self.path, _FLAGS, 0o644)
        words = f"; what another program put there is {aside.name} now" if aside is not None else ""
        self._tell(
            "gone", f"{self.path} was deleted while the training ran; it is put back with all it held{words}"
        )
        _hold(new)
        try:
            done = _copy(source, new, 0)
            with self.lock:
                _copy(source, new, done)
                if self._file < 0:
                    return
                old, self._file, new = self._file, new, -1
                os.close(old)
        finally:
            if new >= 0:
                os.close(new)


def _set_aside(path: Path) -> Path | None:
    """Rename what stands at `path`, where anything does; its new name."""
    aside = path.with_name(f"{path.name}.foreign-{os.urandom(4).hex()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def _gone(file: int) -> int:
    """The lines of a file that is deleted, and goes when it is closed; 0 for any other."""
    count = start = 0
    try:
        if os.fstat(file).st_nlink:
            return 0
        while data := os.pread(file, _COPY_BYTES, start):
            count += data.count(b"\n")
            start += len(data)
    except OSError:
        return count  # as many as can be counted
    return count


def _copy(source: int, target: int, start: int) -> int:
    """Append what `source` holds from `start` on to `target`; where it ended."""
    while data := os.pread(source, _COPY_BYTES, start):
        _write_all(target, data)
        start += len(data)
    return start


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _hold(file: int) -> None:
    """Lock a file for as long as it is open; where file systems have no locks, it stays without."""
    if sys.platform == "win32":
        return
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # a reader tries it for a moment
        except OSError:
            return
        return
