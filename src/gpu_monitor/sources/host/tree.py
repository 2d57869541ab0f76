"""A process and all that descend from it: how many cores they keep busy and how much memory they hold (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST = 4096
"""Processes of one tree that are looked at."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class TreeUse:
    """`cores`: processors kept busy since the reading before, None for the first one. `memory`: resident bytes, where
    pages that processes share count in each. `processes`: how many there are."""

    cores: float | None
    memory: int
    processes: int


class Tree:
    """Reads one process and its descendants."""

    def __init__(self, pid: int, proc_root: str = "/proc") -> None:
        self._pid = pid
        self._root = Path(proc_root)
        self._before: dict[tuple[int, int], int] = {}
        self._at: float | None = None

    def read(self, moment: float) -> TreeUse | None:
        """Use since the reading before. `moment`: monotonic seconds. None where the process is gone, or there is no /proc.

        A process that ended between two readings takes with it what it used since the first of them.
        """
        ticks: dict[tuple[int, int], int] = {}
        memory = 0
        for pid in self._pids():
            found = _stat(self._root / str(pid) / "stat")
            if found is not None:
                used, start, pages = found
                ticks[(pid, start)] = used
                memory += pages * _PAGE
        if not ticks:
            return None
        cores = None
        if self._at is not None and moment > self._at:
            grown = sum(used - self._before.get(key, 0) for key, used in ticks.items())
            cores = max(0.0, grown / _TICKS / (moment - self._at))
        self._before, self._at = ticks, moment
        return TreeUse(cores, memory, len(ticks))

    def _pids(self) -> Iterator[int]:
        waiting, seen = [self._pid], {self._pid, os.getpid()}  # not what it costs to look
        while waiting and len(seen) < _MOST:
            pid = waiting.pop()
            yield pid
            for child in self._children(pid):
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)

    def _children(self, pid: int) -> list[int]:
        """Each thread has the children that it started."""
        found: list[int] = []
        try:
            for task in (self._root / str(pid) / "task").iterdir():
                found += [int(word) for word in (task / "children").read_bytes().split()]
        except OSError:
            return found  # a thread or the process ended meanwhile, or the kernel does not list children
        return found


def _stat(path: Path) -> tuple[int, int, int] | None:
    """Ticks used, start in ticks, resident pages."""
    try:
        fields = path.read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 22:
        return None
    return int(fields[11]) + int(fields[12]), int(fields[19]), int(fields[21])
