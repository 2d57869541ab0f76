"""The machine around the GPUs, read from /proc through files that stay open: a fifth of what psutil takes."""

from __future__ import annotations

import os
from pathlib import Path

from gpu_monitor.core.model import HostReading
from gpu_monitor.sources.host.cpu import CpuTimes, busy_percent, load_average
from gpu_monitor.sources.host.disk import Disks, Room
from gpu_monitor.sources.host.memory import parse_meminfo
from gpu_monitor.sources.host.network import Interfaces

_SECTOR_BYTES = 512
"""The unit of /proc/diskstats, whatever the disk's own is (kernel documentation, iostats)."""
_LONGEST = 1 << 16
"""What is asked for at a time. The whole of a file may be longer: it is read in steps."""
_MOST_STEPS = 64
_HALF_PAGE = 2048
"""The kernel fills a page with whole lines before it hands it out (seq_file): less than half of one is the end,
for no line of these files is as long as the other half."""
_GUEST = 8
"""From the ninth on the fields of /proc/stat's cpu line (guest, guest_nice) are in user and nice already."""


class ProcFile:
    """One file of /proc, opened once and read anew at each `read`; None where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def read(self) -> bytes | None:
        """The whole text now."""
        try:
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            text = os.pread(self._handle, _LONGEST, 0)
            if len(text) < _HALF_PAGE:
                return text
            for _ in range(_MOST_STEPS):  # the kernel hands out a page or so at a time
                piece = os.pread(self._handle, _LONGEST, len(text))
                if not piece:
                    return text
                text += piece
            return text
        except OSError:
            self.close()
            return None

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class LinuxHost:
    """Reads the machine (core.ports.HostSource): CPU, memory, disks, network, load.

    `store_path` is the file or folder whose file system is reported. CPU utilisation covers the time
    since the call before, so the first call has none. What the system does not give is absent.
    """

    def __init__(self, store_path: str = ".", proc_root: str = "/proc") -> None:
        root = Path(proc_root)
        self._stat = ProcFile(root / "stat")
        self._meminfo = ProcFile(root / "meminfo")
        self._diskstats = ProcFile(root / "diskstats")
        self._net = ProcFile(root / "net" / "dev")
        self._room = Room(store_path)
        self._disks = Disks()
        self._interfaces = Interfaces()
        self._cpu: CpuTimes | None = None

    def read(self) -> HostReading:
        """One reading; never raises for what the system refuses."""
        values: dict[str, float] = {}
        busy, load = self._cpu_percent(), load_average()
        if busy is not None:
            values["cpu_utilization"] = busy
        if load is not None:
            values["load_1m"] = load
        self._add_memory(values)
        room = self._room.read()
        if room is not None:
            values["disk_used"], values["disk_total"] = room
        text = self._diskstats.read()
        moved = None if text is None else parse_diskstats(text, self._disks)
        if moved is not None:
            values["disk_read"], values["disk_write"] = moved
        text = self._net.read()
        moved = None if text is None else parse_net_dev(text, self._interfaces)
        if moved is not None:
            values["network_rx"], values["network_tx"] = moved
        return HostReading(values)

    def _cpu_percent(self) -> float | None:
        text = self._stat.read()
        after = None if text is None else parse_stat(text)
        if after is None:
            return None
        before, self._cpu = self._cpu, after
        return busy_percent(before, after)

    def _add_memory(self, values: dict[str, float]) -> None:
        text = self._meminfo.read()
        memory = None if text is None else parse_meminfo(text.decode("ascii", "replace"))
        if memory is None:
            return
        for name, amount in (
            ("memory_used", memory.used), ("memory_total", memory.total), ("swap_used", memory.swap_used)
        ):  # fmt: skip
            if amount is not None:
                values[name] = amount


def parse_stat(text: bytes) -> CpuTimes | None:
    """Busy and total clock ticks of all processors, from /proc/stat; None where the first line is not theirs."""
    words = text[: text.find(b"\n")].split()
    if len(words) < 5 or words[0] != b"cpu":
        return None
    ticks = [int(word) for word in words[1 : 1 + _GUEST]]
    total = sum(ticks)
    idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
    return CpuTimes(float(total - idle), float(total))


def parse_diskstats(text: bytes, disks: Disks) -> tuple[int, int] | None:
    """Bytes read and written on all disks since boot, from /proc/diskstats; None where there is none."""
    split = [line.split(None, 10) for line in text.splitlines()]
    rows = {words[2].decode(): words for words in split if len(words) >= 10}
    chosen = disks.choose(rows)
    if not chosen:
        return None
    read = sum(int(rows[name][5]) for name in chosen)
    return read * _SECTOR_BYTES, sum(int(rows[name][9]) for name in chosen) * _SECTOR_BYTES


def parse_net_dev(text: bytes, interfaces: Interfaces) -> tuple[int, int] | None:
    """Bytes received and sent on all interfaces since boot, from /proc/net/dev; None where there is none."""
    rows: dict[str, list[bytes]] = {}
    for line in text.splitlines()[2:]:
        name, colon, figures = line.rpartition(b":")
        if colon:
            rows[name.strip().decode()] = figures.split()
    chosen = [name for name in interfaces.choose(rows) if len(rows[name]) >= 9]
    if not chosen:
        return None
    return sum(int(rows[name][0]) for name in chosen), sum(int(rows[name][8]) for name in chosen)
