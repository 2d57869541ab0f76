"""The programs of a demonstration: real ones in processes of their own, heard line by line, ended in time."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.clock import Clock

_WORTH_SHOWING = re.compile(r"^\S+ (WARNING|ERROR|CRITICAL) ")
LINK = re.compile(r"http://\S+/open\?code=\S+")
"""The link that opens the server's pages once; no log may keep it."""
_KEPT = 8
"""Lines that are shown of a program that ended by itself."""


@dataclass(frozen=True)
class Said:
    """A program said a line."""

    program: Program
    line: str


@dataclass(frozen=True)
class Ended:
    """A program is gone, and all it said was heard."""

    program: Program
    code: int


@dataclass(frozen=True)
class Asked:
    """A signal asks for the end."""

    number: int


News = Said | Ended | Asked


class Program:
    """One `gpu_monitor`, or another module, in a process of its own; what it says goes to a file and, as news, to `hears`."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        folder: Path,
        hears: queue.SimpleQueue[News],
        more: Mapping[str, str],
        module: str = "gpu_monitor",
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.last: list[str] = []
        self._hears = hears
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=folder, env={**os.environ, **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        threading.Thread(target=self._listen, name=f"{name}-hearer", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines, self.log.open("a", encoding="utf-8") as log:
            for line in lines:
                if LINK.search(line) is None:
                    log.write(line)
                    log.flush()
                self.last = [*self.last[1 - _KEPT :], line.rstrip("\n")]
                self._hears.put(Said(self, line.rstrip("\n")))
        self._hears.put(Ended(self, self._process.wait()))

    def ask_to_end(self) -> None:
        """SIGTERM, where it still runs."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def end_by(self, deadline: float, clock: Clock) -> bool:
        """Wait until it is gone, at most until monotonic `deadline`, then kill it; whether it went by itself."""
        try:
            self._process.wait(timeout=max(0.0, deadline - clock.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True


def is_worth_showing(line: str) -> bool:
    """Whether a line of a log is for the terminal, too."""
    return _WORTH_SHOWING.match(line) is not None
