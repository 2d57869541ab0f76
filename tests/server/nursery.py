"""Starts `gpu_monitor` commands of the server in processes that have loaded it already.

Loading the server takes most of a start, and hundreds of tests start one. Here one process loads it, and forks for
each start; what runs from then on is the program's own entry, with arguments, environment, folder and standard
streams of its own, and it is signalled, killed and ended as any process. That `python -m gpu_monitor` comes to the
same point by itself is for test_serve and test_stopping, and for all tests of the agent.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_monitor.cli.main import entry

_MESSAGE = 1 << 20
_LOADED = (
    "gpu_monitor.cli.serve",
    "gpu_monitor.cli.server",
    "gpu_monitor.cli.token",
    "gpu_monitor.cli.user",
    "uvloop",
    "argon2",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)
"""Commands, and what a server loads only as it starts."""
_ROOT = Path(__file__).resolve().parents[2]
_CAN_FORK = sys.platform == "linux"
_is_open = False


class Forked:
    """A process that the nursery made, as far as `subprocess.Popen` is used by tests."""

    def __init__(self, ends: socket.socket) -> None:
        self._ends = ends
        self._lock = threading.Lock()
        """Whoever waits may be another thread than who asks or kills."""
        self.returncode: int | None = None
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while it runs."""
        if self._lock.acquire(blocking=False):  # else somebody waits for it, and will know
            try:
                if self.returncode is None and select.select([self._ends], [], [], 0)[0]:
                    self._reap()
            finally:
                self._lock.release()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same at its end; TimeoutExpired where that is not within `timeout` seconds."""
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise subprocess.TimeoutExpired("gpu_monitor", timeout or 0.0)
        try:
            if self.returncode is None:
                if not select.select([self._ends], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("gpu_monitor", timeout or 0.0)
                self._reap()
        finally:
            self._lock.release()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reap(self) -> None:
        self.returncode = int(self._line())
        self._ends.close()

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            part = self._ends.recv(1)
            assert part, "the nursery is gone"
            found += part
        return found


class Nursery:
    """This process's own nursery."""

    def __init__(self) -> None:
        self._asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(theirs.fileno())], cwd=_ROOT, pass_fds=(theirs.fileno(),)
            )  # fmt: skip

    def start(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[int]
    ) -> Forked:
        """Run `gpu_monitor` with `words`; `streams` are the descriptors of stdin, stdout and stderr."""
        mine, theirs = socket.socketpair()
        with theirs:
            wanted = json.dumps([list(words), str(folder), dict(environment)]).encode()
            socket.send_fds(self._asks, [wanted], [*streams, theirs.fileno()])
        return Forked(mine)

    def close(self) -> None:
        """End the nursery; what it made runs on."""
        self._asks.close()
        self._process.wait()


@functools.cache
def nursery() -> Nursery:
    """The one of this process, made when first asked for."""
    return Nursery()


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Servers come from the nursery meanwhile, where there is fork; what measures them does not want that."""
    global _is_open
    _is_open = _CAN_FORK
    try:
        yield
    finally:
        _is_open = False
        if nursery.cache_info().currsize:
            nursery().close()
            nursery.cache_clear()


def is_open() -> bool:
    """Whether servers come from the nursery now."""
    return _is_open


def run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], typed: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with `typed` on its stdin, as `subprocess.run` does."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(typed.encode())
        files[0].seek(0)
        code = nursery().start(words, folder, environment, [one.fileno() for one in files]).wait(timeout)
        said = []
        for one in files[1:]:
            one.seek(0)
            said.append(one.read().decode())
    return subprocess.CompletedProcess(["gpu_monitor", *words], code, *said)


# --- in the nursery itself ------------------------------------------------------------------------------


def _load() -> None:
    """All that a server loads until it is ready."""
    for name in _LOADED:
        importlib.import_module(name)


def _tend(asks: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]] | None:
    """Fork for every request, and say how each child ended; returns only in a child, or None at the end."""
    waking, woken = os.pipe()
    for end in (waking, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end it
    signal.set_wakeup_fd(woken)
    living: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([asks, waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
            _bury(living)
        if asks not in ready:
            continue
        wanted, descriptors, _, _ = socket.recv_fds(asks, _MESSAGE, 4)
        if not wanted:
            return None
        ends = socket.socket(fileno=descriptors.pop())
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for one in (ends, asks, *living.values()):
                one.close()
            os.close(waking)
            os.close(woken)
            words, folder, environment = json.loads(wanted)
            return words, folder, environment, descriptors
        for one in descriptors:
            os.close(one)
        ends.sendall(b"%d\n" % child)
        living[child] = ends


def _bury(living: dict[int, Any]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            ends = living.pop(ended[0])
            with contextlib.suppress(OSError):  # nobody asks any more
                ends.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
            ends.close()


def main() -> None:
    """Load, tend, and in a child become the program."""
    _load()
    gc.collect()
    gc.freeze()
    found = _tend(socket.socket(fileno=int(sys.argv[1])))
    if found is None:
        return
    gc.unfreeze()
    words, folder, environment, descriptors = found
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["gpu_monitor", *words]
    sys.path[0] = folder  # where `python -m` looks first
    entry()


if __name__ == "__main__":
    main()
