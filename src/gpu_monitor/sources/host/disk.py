"""Room on the store's file system, and bytes that went to and from the disks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

# Disks that are a file, memory, or another way to a disk that is counted under its own name.
_NOT_A_DISK = re.compile(r"(?:loop|ram|zram|fd|sr)\d+|(?:dm-|md)\d+\w*|nvme\d+c\d+n\d+")


class Room:
    """How full the file system is that holds `path`, or will hold it once it is made."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._place: str | None = None

    def read(self) -> tuple[int, int] | None:
        """Used and total bytes; None where unknown."""
        try:
            usage = shutil.disk_usage(self._place or self._find())
        except OSError:
            self._place = None
            return None
        return usage.used, usage.total

    def _find(self) -> str:
        """The path itself or the nearest folder above it that exists; kept once it is the path itself."""
        place = self._path
        while not place.exists() and place != place.parent:
            place = place.parent
        if place == self._path:
            self._place = str(place)
        return str(place)


class Disks:
    """Picks the disks whose bytes are counted once: whole disks, and nothing that lies on another.

    Partitions, device-mapper and RAID devices are left out, because the disks below them count too.
    """

    def __init__(self, sys_block: str = "/sys/block") -> None:
        self._sys_block = Path(sys_block)
        self._seen: tuple[str, ...] = ()
        self._chosen: frozenset[str] = frozenset()

    def choose(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` to sum; looked up anew only when the set of names changes."""
        seen = tuple(names)
        if seen != self._seen:
            self._chosen = frozenset(name for name in seen if self._is_counted(name))
            self._seen = seen
        return self._chosen

    def _is_counted(self, name: str) -> bool:
        if _NOT_A_DISK.fullmatch(name):
            return False
        if not self._sys_block.is_dir():
            return not _is_partition(name)
        # A `/` in a device's name is written `!` in sysfs (cciss/c0d0).
        device = self._sys_block / name.replace("/", "!")
        if not device.is_dir():
            return False
        try:
            return next((device / "slaves").iterdir(), None) is None
        except OSError:
            return True


def _is_partition(name: str) -> bool:
    return re.fullmatch(r"(?:nvme\d+n\d+|mmcblk\d+|nbd\d+)p\d+|(?:[shv]d|xvd)[a-z]+\d+", name) is not None
