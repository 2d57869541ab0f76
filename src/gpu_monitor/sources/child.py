# SPDX-License-Identifier: MIT
"""A child process that may hang or crash, seen from the agent: frames with a deadline, progress, last words.

Started with `subprocess` as a fresh interpreter, never forked from the agent. What can block or refuse to
die is on the other side; nothing here waits longer than it is told to.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gpu_monitor
from gpu_monitor.core.clock import process_seconds
from gpu_monitor.sources.frames import BrokenFrame, Inbox, pack

if sys.platform == "win32":
    import _winapi
    import msvcrt
    import threading

    def _wait_for_pipe(descriptor: int, seconds: float) -> bool:
        """Whether an anonymous pipe can be read within `seconds`; Windows has no call that waits for that."""
        handle = msvcrt.get_osfhandle(descriptor)
        deadline = process_seconds() + seconds
        pause = threading.Event()
        while True:
            try:
                if _winapi.PeekNamedPipe(handle, 0)[0]:
                    return True
            except BrokenPipeError:
                return True  # the read that follows says that it ended
            if process_seconds() >= deadline:
                return False
            pause.wait(0.005)

else:
    import fcntl
    import select

_LAST_WORDS = 2000
_NOISE_LIMIT = 256 * 1024
"""What a chatty library may have said before it is forgotten, in bytes."""

# -I and -S keep the environment and site-packages out: a quarter of a bare interpreter's start and memory.
# Ours come behind the standard library, which an old back-port in site-packages must not replace.
_BOOT = (
    "import sys; sys.path += sys.argv[1].split({separator!r}); from {module} import main; main(*sys.argv[2:])"
)


class Ended(Exception):
    """The child is gone, or no longer speaks our language."""


class Process(Protocol):
    """An operating system process that was started for us."""

    pid: int

    def kill(self) -> None:
        """Ask the system to end it; it may not obey."""
        ...

    def wait(self, seconds: float) -> int | None:
        """Its exit status (negative: the signal) once it has ended, None if it has not by then."""
        ...


@dataclass(frozen=True)
class Wiring:
    """What a process is started with: descriptors for its standard streams, and those it keeps besides."""

    stdin: int
    stdout: int
    stderr: int
    keep: tuple[int, ...]
    environment: Mapping[str, str] | None = None


class Launcher(Protocol):
    """Starts processes."""

    def start(self, command: Sequence[str], wiring: Wiring) -> Process:
        """Start `command`. Raises OSError where the system cannot."""
        ...


class _Started:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def kill(self) -> None:
        self._popen.kill()

    def wait(self, seconds: float) -> int | None:
        if seconds <= 0:
            return self._popen.poll()
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


class SystemLauncher:
    """Processes of this machine."""

    def start(self, command: Sequence[str], wiring: Wiring) -> Process:
        """Start `command`; its descriptors are those of `wiring` and no others."""
        environment = {**os.environ, **wiring.environment} if wiring.environment else None
        return _Started(
            subprocess.Popen(
                command,
                stdin=wiring.stdin,
                stdout=wiring.stdout,
                stderr=wiring.stderr,
                pass_fds=wiring.keep,
                env=environment,
            )
        )


def module_paths(*modules: str) -> list[str]:
    """The folders an interpreter without site-packages needs for our package and these modules.

    Finds them without importing them; one that is not installed adds nothing.
    """
    folders = [str(Path(gpu_monitor.__file__).parent.parent)]
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            folders.append(str(Path(spec.origin).parent))
    return list(dict.fromkeys(folders))


def command_for(module: str, paths: Sequence[str], *arguments: str) -> list[str]:
    """The command line of an isolated interpreter that calls `main(*arguments)` of `module`."""
    boot = _BOOT.format(separator=os.pathsep, module=module)
    return [sys.executable, "-I", "-S", "-c", boot, os.pathsep.join(paths), *arguments]


def _memory_file(name: str) -> int:
    """A file that no directory shows and no other disk can fill up (in memory where the system has that)."""
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile  # where it is needed: three milliseconds at the start of a training

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Child:
    """One child that runs `main(board, lifeline, …)` of `module`. Not thread-safe.

    `board_bytes`: size of the progress board, memory that the child writes and `board` reads at any time.
    """

    def __init__(
        self,
        module: str,
        paths: Sequence[str],
        launcher: Launcher,
        board_bytes: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._inbox = Inbox()
        self._noise = _memory_file("gpu_monitor-child-stderr")
        child_in, self._to = os.pipe()
        self._from, child_out = os.pipe()
        opened = [child_in, child_out]
        try:
            keep, names = self._shared(board_bytes, opened)
            command = command_for(module, paths, *names)
            wiring = Wiring(child_in, child_out, self._noise, keep, environment)
            self._process = launcher.start(command, wiring)
        except BaseException:
            self._close_own()
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self.pid = self._process.pid
        self.status: int | None = None
        """Exit status once it is known to have ended."""
        self._watch_input()

    def _shared(self, board_bytes: int, opened: list[int]) -> tuple[tuple[int, ...], tuple[str, str]]:
        """The board and the lifeline: what the child keeps, and how it is told of them."""
        self._lifeline = -1
        if sys.platform == "win32":
            name = f"gpu_monitor-{os.getpid()}-{id(self)}"
            self._board = mmap.mmap(-1, board_bytes, tagname=name)
            return (), (name, "-1")
        else:  # noqa: RET505 (mypy reads only one of the two)
            board = _memory_file("gpu_monitor-child-board")
            opened.append(board)
            os.ftruncate(board, board_bytes)
            self._board = mmap.mmap(board, board_bytes)
            # What the child and its library say is kept up to a limit: writes go to the end, wherever it is.
            flags = fcntl.fcntl(self._noise, fcntl.F_GETFL)
            fcntl.fcntl(self._noise, fcntl.F_SETFL, flags | os.O_APPEND)
            lifeline, self._lifeline = os.pipe()
            opened.append(lifeline)
            return (board, lifeline), (str(board), str(lifeline))

    def _watch_input(self) -> None:
        if sys.platform != "win32":
            os.set_blocking(self._from, False)
            self._poll = select.poll()
            self._poll.register(self._from, select.POLLIN)

    # ---------------------------------------------------------------- talking

    def send(self, message: object) -> None:
        """Hand over a request. Raises Ended. Requests are small and answered one by one: the pipe has room."""
        frame = pack(message)
        try:
            os.write(self._to, frame)
        except BrokenPipeError:
            raise Ended from None

    def receive(self, seconds: float) -> Any | None:
        """The next message, or None if none comes within `seconds`. Raises Ended."""
        deadline = process_seconds() + seconds
        while True:
            try:
                found = self._inbox.take()
            except BrokenFrame as error:
                raise Ended(str(error)) from None
            if found is not None:
                return found[0]
            if not self._wait_for_input(max(0.0, deadline - process_seconds())):
                return None
            try:
                piece = os.read(self._from, 262144)
            except BlockingIOError:
                continue
            if not piece:
                raise Ended
            self._inbox.add(piece)

    def _wait_for_input(self, seconds: float) -> bool:
        if sys.platform == "win32":
            return _wait_for_pipe(self._from, seconds)
        else:  # noqa: RET505
            return bool(self._poll.poll(seconds * 1000))

    # ---------------------------------------------------------------- ending

    def kill(self) -> None:
        """Ask the system to end it."""
        if self.status is None:
            self._process.kill()

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, waiting up to `seconds` for it."""
        if self.status is None:
            self.status = self._process.wait(seconds)
        return self.status is not None

    def close(self) -> None:
        """Let go of pipes and memory; a child that still runs ends when it notices."""
        if self._to >= 0:
            self._close_own()
            self.has_ended()

    def _close_own(self) -> None:
        for descriptor in (self._to, self._from, self._noise, getattr(self, "_lifeline", -1)):
            if descriptor >= 0:
                os.close(descriptor)
        self._to = self._from = self._noise = self._lifeline = -1
        if hasattr(self, "_board"):
            self._board.close()

    # ---------------------------------------------------------------- looking

    def board(self) -> bytes:
        """The progress board as it is now."""
        return self._board[:]

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        size = os.fstat(self._noise).st_size
        start = max(0, size - _LAST_WORDS)
        if sys.platform == "win32":
            os.lseek(self._noise, start, os.SEEK_SET)
            raw = os.read(self._noise, _LAST_WORDS)
        else:
            raw = os.pread(self._noise, _LAST_WORDS, start)
        return raw.decode("utf-8", "replace").strip()

    def forget_noise(self) -> None:
        """Keep what a chatty library writes within its limit."""
        if os.fstat(self._noise).st_size > _NOISE_LIMIT:
            os.ftruncate(self._noise, 0)
