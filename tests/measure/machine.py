"""Which machine a figure is from."""

from __future__ import annotations

import os
import platform
import sqlite3
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

    def lines(self) -> list[str]:
        """One line a fact."""
        return [
            f"date: {self.date}",
            f"processor: {self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB",
            f"kernel: {self.kernel}",
            f"Python {self.python}, SQLite {self.sqlite}",
            f"load average at the start: {self.load}",
        ]


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
    )
