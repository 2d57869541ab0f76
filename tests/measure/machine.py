"""Which machine a figure is from."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What a reader needs to judge a figure."""

    date: str
    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    sqlite: str
    load: str
    steadiness: float

    def lines(self) -> list[str]:
        """One line a fact."""
        return [
            f"date: {self.date}",
            f"processor: {self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB",
            f"kernel: {self.kernel}",
            f"Python {self.python}, SQLite {self.sqlite}",
            f"at the start: load average {self.load}; {steady(self.steadiness)}",
        ]


def steadiness(pieces: int = 25) -> float:
    """How many times its best CPU time a fixed piece of work takes in the middle: 1.0 on a machine of our own.

    Neighbours on the same cores (and on the same host) take cache and speed away, and every figure of CPU
    with them: at 2.0 a program is charged about twice what it would be alone.
    """
    taken = []
    for _ in range(pieces):
        began = time.thread_time_ns()
        kept = {number % 97: (number, str(number)) for number in range(15_000)}
        taken.append(time.thread_time_ns() - began)
        time.sleep(0.02 if kept else 0)
    return statistics.median(taken) / min(taken)


def steady(factor: float) -> str:
    """The same in words."""
    return f"a fixed piece of work took {factor:.1f} times its best CPU time"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def this_machine() -> Machine:
    """The machine that this runs on, now."""
    return Machine(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu_name(),
        cores=os.cpu_count() or 0,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        load=" ".join(f"{one:.2f}" for one in os.getloadavg()),
        steadiness=steadiness(),
    )
