"""The machine around the GPUs: from /proc on Linux, elsewhere through psutil."""

from __future__ import annotations

import sys

from gpu_monitor.core.model import HostReading
from gpu_monitor.core.ports import HostSource
from gpu_monitor.sources.host.cpu import CpuTimes, busy_percent, load_average, sum_times
from gpu_monitor.sources.host.disk import Disks, Room
from gpu_monitor.sources.host.linux import LinuxHost
from gpu_monitor.sources.host.memory import read_memory
from gpu_monitor.sources.host.network import Interfaces


def open_host(store_path: str) -> HostSource:
    """The reader for this system; `store_path` is the file or folder whose file system is reported."""
    return LinuxHost(store_path) if sys.platform.startswith("linux") else PsutilHost(store_path)


class PsutilHost:
    """Reads the machine (core.ports.HostSource): CPU, memory, disks, network, load.

    `store_path` is the file or folder whose file system is reported. CPU utilisation covers the time
    since the call before, so the first call has none. What the system does not give is absent.
    """

    def __init__(self, store_path: str = ".") -> None:
        self._room = Room(store_path)
        self._cpu: CpuTimes | None = None
        self._disks = Disks()
        self._interfaces = Interfaces()

    def read(self) -> HostReading:
        """One reading; never raises for what the system refuses."""
        memory = read_memory()
        disk_used, disk_total = self._room.read() or (None, None)
        disk_read, disk_written = self._disk_bytes()
        received, sent = self._network_bytes()
        values: dict[str, float | None] = {
            "cpu_utilization": self._cpu_percent(),
            "load_1m": load_average(),
            "memory_used": memory.used,
            "memory_total": memory.total,
            "swap_used": memory.swap_used,
            "disk_used": disk_used,
            "disk_total": disk_total,
            "disk_read": disk_read,
            "disk_write": disk_written,
            "network_rx": received,
            "network_tx": sent,
        }
        return HostReading({name: value for name, value in values.items() if value is not None})

    def _cpu_percent(self) -> float | None:
        import psutil  # third-party; loaded on first use

        try:
            times = psutil.cpu_times()
        except (psutil.Error, OSError, RuntimeError):
            return None
        after = sum_times(times._fields, times)
        before, self._cpu = self._cpu, after
        return busy_percent(before, after)

    def _disk_bytes(self) -> tuple[int | None, int | None]:
        import psutil  # third-party; loaded on first use

        try:
            disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        except (psutil.Error, OSError, RuntimeError, NotImplementedError):
            return None, None
        chosen = self._disks.choose(disks)
        if not chosen:
            return None, None
        counted = [disks[name] for name in chosen]
        return sum(disk.read_bytes for disk in counted), sum(disk.write_bytes for disk in counted)

    def _network_bytes(self) -> tuple[int | None, int | None]:
        import psutil  # third-party; loaded on first use

        try:
            interfaces = psutil.net_io_counters(pernic=True, nowrap=False) or {}
        except (psutil.Error, OSError, RuntimeError, NotImplementedError):
            return None, None
        chosen = self._interfaces.choose(interfaces)
        if not chosen:
            return None, None
        counted = [interfaces[name] for name in chosen]
        return sum(nic.bytes_recv for nic in counted), sum(nic.bytes_sent for nic in counted)
