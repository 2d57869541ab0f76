"""Host metrics: hand-made readings with values worked out by hand, and the real machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_monitor.core.catalogue import HOST_METRICS, Kind
from gpu_monitor.sources.host import machine
from gpu_monitor.sources.host.cpu import CpuTimes, busy_percent, sum_times
from gpu_monitor.sources.host.disk import Disks, Room
from gpu_monitor.sources.host.memory import Memory, parse_meminfo, read_memory
from gpu_monitor.sources.host.network import Interfaces
from gpu_monitor.sources.host.reading import PsutilHost

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the real /proc of Linux")

LINUX_CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


def test_cpu_time_counts_a_guest_once_and_waiting_as_idle() -> None:
    # busy = 10 + 1 + 5 + 0.5 + 0.5 + 1 = 18; idle = 70 + 12 = 82; the guest's 4 + 0.5 are in user and nice.
    times = sum_times(LINUX_CPU, (10, 1, 5, 70, 12, 0.5, 0.5, 1, 4, 0.5))
    assert (times.busy, times.total) == (18.0, 100.0)
    windows = sum_times(("user", "system", "idle", "interrupt", "dpc"), (10, 5, 80, 3, 2))
    assert (windows.busy, windows.total) == (20.0, 100.0)


def test_cpu_percent_is_of_the_time_between() -> None:
    assert busy_percent(None, CpuTimes(18, 100)) is None
    assert busy_percent(CpuTimes(18, 100), CpuTimes(18, 100)) is None
    assert busy_percent(CpuTimes(18, 100), CpuTimes(21, 112)) == 25.0
    assert busy_percent(CpuTimes(18, 100), CpuTimes(17.9, 112)) == 0.0
    assert busy_percent(CpuTimes(18, 100), CpuTimes(10, 90)) is None


MEMINFO = """MemTotal:       65842412 kB
MemFree:         1203456 kB
MemAvailable:   49152000 kB
Buffers:          512000 kB
SwapCached:            0 kB
SwapTotal:       8388604 kB
SwapFree:        8000000 kB
HugePages_Total:       0
"""


def test_meminfo() -> None:
    # used = (65842412 - 49152000) * 1024, swap = (8388604 - 8000000) * 1024
    assert parse_meminfo(MEMINFO) == Memory(17090981888, 67422629888, 397930496)


def test_meminfo_without_swap_lines_or_estimate() -> None:
    assert parse_meminfo("MemTotal: 100 kB\nMemAvailable: 40 kB\n") == Memory(61440, 102400, None)
    assert parse_meminfo("MemTotal: 100 kB\nMemFree: 40 kB\n") is None
    assert parse_meminfo("") is None


def test_unreadable_meminfo_is_unknown(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux reads /proc/meminfo")
    assert read_memory(str(tmp_path)) == Memory(None, None, None)


def block(root: Path, name: str, below: tuple[str, ...] = (), partitions: tuple[str, ...] = ()) -> None:
    device = root / name
    (device / "slaves").mkdir(parents=True)
    for lower in below:
        (device / "slaves" / lower).symlink_to(root / lower)
    for partition in partitions:
        (device / partition).mkdir()


def test_disks_are_counted_once(tmp_path: Path) -> None:
    block(tmp_path, "sda", partitions=("sda1", "sda2"))
    block(tmp_path, "nvme0n1", partitions=("nvme0n1p1",))
    block(tmp_path, "dm-0", below=("sda2",))
    block(tmp_path, "md127", below=("sda", "nvme0n1"))
    block(tmp_path, "bcache0", below=("sda",))
    for name in ("loop0", "zram0", "ram1", "sr0", "nvme0c0n1"):
        block(tmp_path, name)
    block(tmp_path, "cciss!c0d0")
    names = ["sda", "sda1", "sda2", "nvme0n1", "nvme0n1p1", "nvme0c0n1", "dm-0", "md127", "bcache0"]
    names += ["loop0", "zram0", "ram1", "sr0", "cciss/c0d0"]
    assert Disks(str(tmp_path)).choose(names) == {"sda", "nvme0n1", "cciss/c0d0"}


def test_a_disk_that_comes_is_counted_from_then_on(tmp_path: Path) -> None:
    block(tmp_path, "sda")
    disks = Disks(str(tmp_path))
    assert disks.choose(["sda"]) == {"sda"}
    block(tmp_path, "sdb")
    assert disks.choose(["sda", "sdb"]) == {"sda", "sdb"}
    assert disks.choose(["sdb"]) == {"sdb"}


def test_without_sysfs_names_decide(tmp_path: Path) -> None:
    names = [
        "sda",
        "sda1",
        "nvme0n1",
        "nvme0n1p2",
        "vda",
        "vda1",
        "xvda",
        "xvda3",
        "mmcblk0",
        "mmcblk0p1",
        "dm-3",
        "loop7",
    ]
    chosen = Disks(str(tmp_path / "absent")).choose(names)
    assert chosen == {"sda", "nvme0n1", "vda", "xvda", "mmcblk0"}
    assert Disks(str(tmp_path / "absent")).choose(["disk0", "PhysicalDrive1"]) == {"disk0", "PhysicalDrive1"}


def test_interfaces_with_hardware_are_counted(tmp_path: Path) -> None:
    for name in ("eth0", "eth1", "ib0"):
        (tmp_path / name / "device").mkdir(parents=True)
    names = ["lo", "eth0", "eth1", "ib0", "bond0", "docker0", "veth12ab@if5", "eth0.100", "wg0", "br-12"]
    assert Interfaces(str(tmp_path)).choose(names) == {"eth0", "eth1", "ib0"}


def test_without_hardware_the_outermost_are_counted(tmp_path: Path) -> None:
    names = ["lo", "eth0", "docker0", "cni0", "veth1", "wg0", "tun0"]
    assert Interfaces(str(tmp_path)).choose(names) == {"eth0"}
    mac = ["lo0", "gif0", "stf0", "en0", "en1", "awdl0", "llw0", "utun3", "bridge0", "ap1"]
    assert Interfaces(str(tmp_path)).choose(mac) == {"en0", "en1"}
    assert Interfaces(str(tmp_path)).choose(["Ethernet", "Wi-Fi", "Loopback Pseudo-Interface 1"]) == {
        "Ethernet",
        "Wi-Fi",
    }


def test_room_of_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    room = Room(str(tmp_path / "not" / "yet" / "store.db"))
    for _ in range(2):
        found = room.read()
        assert found is not None
        assert found[1] == usage.total
        assert abs(found[0] - usage.used) < 2**30  # others write to this disk meanwhile
    (tmp_path / "not" / "yet").mkdir(parents=True)
    (tmp_path / "not" / "yet" / "store.db").touch()
    assert room.read() is not None
    shutil.rmtree(tmp_path / "not")
    room.read()
    assert room.read() is not None


@linux_only
def test_the_real_machine() -> None:
    host = PsutilHost("/")
    first = host.read().values
    assert "cpu_utilization" not in first
    ticks = cpu_ticks()
    while cpu_ticks() < ticks + 20:  # some work of our own, until the kernel has counted it
        sum(range(100_000))
    second = host.read().values
    assert 0.0 < second["cpu_utilization"] <= 100.0
    known = {metric.name: metric for metric in HOST_METRICS}
    assert set(second) <= set(known)
    for name, value in second.items():
        metric = known[name]
        if metric.kind is Kind.GAUGE:
            assert metric.low <= value <= metric.high, name
        else:
            assert value >= first[name], name
    total = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    assert second["memory_total"] == total
    assert 0 < second["memory_used"] < total
    usage = os.statvfs("/")
    assert second["disk_total"] == usage.f_blocks * usage.f_frsize


def cpu_ticks() -> int:
    """Busy ticks of the machine: user, nice and system of the first line of /proc/stat."""
    with open("/proc/stat") as file:
        return sum(int(word) for word in file.readline().split()[1:4])


def received_bytes() -> int | None:
    cards = [path for path in Path("/sys/class/net").iterdir() if (path / "device").exists()]
    return sum(int((path / "statistics/rx_bytes").read_text()) for path in cards) if cards else None


def disk_read_bytes() -> int | None:
    """Field 3 of a disk's stat file is sectors read, of 512 bytes (kernel documentation, block/stat)."""
    others = re.compile(r"sr|fd|nvme\d+c|loop|ram|zram|dm-|md")
    disks = [path for path in Path("/sys/block").iterdir() if not others.match(path.name)]
    return sum(int((path / "stat").read_text().split()[2]) * 512 for path in disks) if disks else None


@linux_only
def test_the_bytes_of_the_real_machine_agree_with_sysfs() -> None:
    before = received_bytes(), disk_read_bytes()
    values = PsutilHost("/").read().values
    after = received_bytes(), disk_read_bytes()
    if before[0] is None and before[1] is None:
        pytest.skip("this machine shows neither network cards nor disks")
    if before[0] is not None and after[0] is not None:
        assert before[0] <= values["network_rx"] <= after[0]
    if before[1] is not None and after[1] is not None:
        assert before[1] <= values["disk_read"] <= after[1]


@linux_only
def test_reading_the_host_does_not_load_psutil_before_it_is_used() -> None:
    code = (
        "import sys, gpu_monitor.sources.host.reading, gpu_monitor.sources.host.processes;"
        "import gpu_monitor.sources.host.machine as m; m.boot_id(), m.machine_id(), m.boot_time();"
        "print('psutil' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@linux_only
def test_this_machine_and_boot() -> None:
    assert machine.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    started = machine.boot_time()
    assert started is not None
    assert started == pytest.approx(time.time() - uptime, abs=5.0)


def test_ids_that_are_none(tmp_path: Path) -> None:
    assert machine.boot_id(str(tmp_path)) is None
    assert machine.machine_id((str(tmp_path / "absent"),)) is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="Windows and macOS keep it elsewhere")
def test_machine_id_files(tmp_path: Path) -> None:
    first, second = tmp_path / "machine-id", tmp_path / "dbus"
    second.write_text("0123456789abcdef0123456789abcdef\n")
    files = (str(first), str(second))
    for unusable in ("uninitialized\n", "", "0123456789ABCDEF", "0123456789abcdef0123456789abcdef00"):
        first.write_text(unusable)
        assert machine.machine_id(files) == "0123456789abcdef0123456789abcdef"
    first.write_text("f" * 32 + "\n")
    assert machine.machine_id(files) == "f" * 32
