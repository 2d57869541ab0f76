"""What a process and all its descendants cost: CPU time and memory, read from outside. Linux only.

CPU comes from each process' own CPU clock: nanoseconds from the scheduler, the same sums as in
/proc/PID/task/*/schedstat, and with the threads that have ended already, which schedstat forgets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

KIB = 1024


def cpu_seconds(pid: int) -> float | None:
    """CPU time of one process with all threads it ever had; None once it is gone."""
    try:
        # clock_getcpuclockid(3): the clock of a process is its inverted pid above CPUCLOCK_SCHED (2).
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        return None


@dataclass(frozen=True)
class Memory:
    """Memory of a set of processes, in bytes.

    `pss`: as the kernel counts it, where a page that others map too counts in part. `alone`: as if no
    other process of the machine mapped the same files (another Python beside ours makes PSS look small):
    what is private to each, and each mapped file once with the most that one of them holds of it.
    """

    pss: int
    alone: int
    by_process: tuple[tuple[str, int], ...]

    @property
    def mb(self) -> float:
        """`alone` in MB (10^6 bytes)."""
        return self.alone / 1e6


@dataclass
class _Mapping:
    rss: int = 0
    pss: int = 0
    anonymous: int = 0


def read_smaps(text: str) -> tuple[int, int, dict[str, int]]:
    """(PSS, anonymous bytes, file-backed resident bytes by mapping) of one /proc/PID/smaps."""
    pss = anonymous = 0
    files: dict[str, int] = {}
    key, found = "", _Mapping()

    def take() -> None:
        nonlocal pss, anonymous
        pss += found.pss
        anonymous += found.anonymous
        if key and found.rss > found.anonymous:
            files[key] = files.get(key, 0) + found.rss - found.anonymous

    for line in text.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            take()
            # "start-end perms offset dev inode path": the same part of the same file is the same mapping.
            key, found = f"{words[3]}:{words[4]}:{words[2]}:{words[1]}", _Mapping()
        elif words[0] == "Rss:":
            found.rss = int(words[1]) * KIB
        elif words[0] == "Pss:":
            found.pss = int(words[1]) * KIB
        elif words[0] == "Anonymous:":
            found.anonymous = int(words[1]) * KIB
    take()
    return pss, anonymous, files


def memory_of(pids: Iterable[int]) -> Memory:
    """Memory of the processes `pids`; one that ends meanwhile counts nothing."""
    pss = private = 0
    files: dict[str, int] = {}
    each = []
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps").read_text()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        own, anonymous, mapped = read_smaps(text)
        pss += own
        private += anonymous
        each.append((f"{name} {pid}", own))
        for key, size in mapped.items():
            files[key] = max(files.get(key, 0), size)
    return Memory(pss, private + sum(files.values()), tuple(each))


class ProcessTree:
    """A process and its descendants, those that have ended since included. Poll it now and then."""

    def __init__(self, pid: int) -> None:
        self.root = pid
        self._spent: dict[tuple[int, float], float] = {}
        self._known: dict[int, psutil.Process] = {pid: psutil.Process(pid)}

    def pids(self) -> list[int]:
        """The processes that are there now; a child stays one of ours when its parent dies."""
        for known in list(self._known.values()):
            try:
                for child in known.children(recursive=True):
                    self._known.setdefault(child.pid, child)
            except psutil.NoSuchProcess:
                continue
        self._known = {pid: one for pid, one in self._known.items() if one.is_running()}
        return list(self._known)

    def cpu_seconds(self) -> float:
        """CPU time of all of them so far; of one that has ended, as it was at the last poll."""
        for pid in self.pids():
            spent = cpu_seconds(pid)
            if spent is not None:
                self._spent[(pid, self._known[pid].create_time())] = spent
        return sum(self._spent.values())

    def by_process(self) -> list[tuple[str, float]]:
        """CPU time of each so far, named by its role (root or child) and pid."""
        return [
            (f"{'agent' if pid == self.root else 'child'} {pid}", spent)
            for (pid, _), spent in self._spent.items()
        ]

    def memory(self) -> Memory:
        """Memory of all that are there now."""
        return memory_of(self.pids())

    def resident(self) -> int:
        """Resident bytes of all that are there now, added up (shared pages count in each)."""
        total = 0
        for pid in self.pids():
            try:
                total += self._known[pid].memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total
