"""The host from /proc: hand-made files with the sums worked out beside them, and the real ones against psutil."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from gpu_monitor.sources.host.disk import Disks
from gpu_monitor.sources.host.linux import LinuxHost, ProcFile, parse_diskstats, parse_net_dev, parse_stat
from gpu_monitor.sources.host.network import Interfaces

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NOT RUN: /proc is Linux's")

DISKSTATS = b"""   8       0 sda 100 0 2000 5 50 0 4000 9 0 0 0 0 0 0 0 0 0
   8       1 sda1 90 0 1900 5 50 0 4000 9 0 0 0 0 0 0 0 0 0
   7       0 loop0 1 0 8 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 259       0 nvme0n1 10 0 100 1 1 0 30 1 0 0 0
"""
NET = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo frame
    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0
  eth0:1000 5 0 0 0 0 0 0 2000 6 0 0 0 0 0 0
docker0: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
"""


def test_cpu_counts_waiting_for_a_disk_as_idle_and_a_guest_once() -> None:
    times = parse_stat(b"cpu  100 10 40 800 50 5 5 10 60 0\ncpu0 1 1 1 1\nintr 5\n")
    assert times is not None
    assert times.total == 100 + 10 + 40 + 800 + 50 + 5 + 5 + 10
    assert times.busy == 100 + 10 + 40 + 5 + 5 + 10
    assert parse_stat(b"nonsense\n") is None


def test_whole_disks_are_counted_once(tmp_path: Path) -> None:
    for name in ("sda", "nvme0n1", "loop0"):
        (tmp_path / name / "slaves").mkdir(parents=True)
    assert parse_diskstats(DISKSTATS, Disks(str(tmp_path))) == ((2000 + 100) * 512, (4000 + 30) * 512)
    assert parse_diskstats(b"", Disks(str(tmp_path))) is None


def test_loopback_and_bridges_do_not_count(tmp_path: Path) -> None:
    assert parse_net_dev(NET, Interfaces(str(tmp_path))) == (1000, 2000)
    assert parse_net_dev(NET[:60], Interfaces(str(tmp_path))) is None


def test_a_reading_of_hand_made_files(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "stat").write_text("cpu  100 0 0 900 0 0 0 0 0 0\n")
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n"
    )
    host = LinuxHost(str(tmp_path), str(tmp_path))
    first = host.read().values
    assert "cpu_utilization" not in first
    assert (first["memory_used"], first["memory_total"], first["swap_used"]) == (
        600 * 1024,
        1000 * 1024,
        30 * 1024,
    )
    assert "network_rx" not in first
    (tmp_path / "stat").write_text("cpu  130 0 0 970 0 0 0 0 0 0\n")
    assert host.read().values["cpu_utilization"] == pytest.approx(30.0)


def test_a_file_longer_than_one_read_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 3_000_000)
    assert ProcFile(path).read() == b"x" * 3_000_000
    assert ProcFile(tmp_path / "missing").read() is None


def test_the_real_machine_agrees_with_psutil() -> None:
    host = LinuxHost("/")
    host.read()
    values, memory = host.read().values, psutil.virtual_memory()
    assert values["memory_total"] == memory.total
    assert abs(values["memory_used"] - (memory.total - memory.available)) < 0.05 * memory.total
    assert values["disk_total"] == psutil.disk_usage("/").total
    counted = psutil.net_io_counters(pernic=True, nowrap=False)
    chosen = Interfaces().choose(counted)
    if chosen:
        received = sum(counted[name].bytes_recv for name in chosen)
        assert 0 <= received - values["network_rx"] < 100_000_000
