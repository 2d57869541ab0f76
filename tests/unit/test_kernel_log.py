"""Kernel log lines in their many shapes, and a reader of /dev/kmsg held to its promises."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.sources.host.kernel_log import (
    KernelLog,
    KernelXid,
    XidDeduplicator,
    canonical_pci,
    parse_record,
    parse_xid,
)
from tests.recordings import recording

SHAPES = [
    (
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
        ("00000000:3B:00.0", 79, 1234, "python", "GPU has fallen off the bus.", None),
    ),
    (  # Before drivers named processes.
        "[...] NVRM: Xid (0000:03:00): 14, Channel 00000001",
        ("00000000:03:00.0", 14, None, None, "Channel 00000001", None),
    ),
    (
        "May 6 00:38:27 box kernel: [ 4909.922970] NVRM: Xid (0000:01:00): 13, 0005 00000000 0000502d",
        ("00000000:01:00.0", 13, None, None, "0005 00000000 0000502d", None),
    ),
    (
        "[6781741.548779] NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off.",
        ("00000000:91:00.0", 79, None, None, "GPU has fallen off.", None),
    ),
    (
        "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu.",
        ("00000000:10:1C.0", 63, 1896, None, "Row Remapper: New row marked for remapping, reset gpu.", None),
    ),
    (
        "NVRM: Xid (PCI:0000:07:00 GPU-I:05): 43, pid=77, name=a, b, Ch 00000008",
        ("00000000:07:00.0", 43, 77, "a", "b, Ch 00000008", "05"),
    ),
    (
        "NVRM: Xid (PCI:0001:00:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        (
            "00000001:00:00.0",
            154,
            None,
            None,
            "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
            None,
        ),
    ),
    ("NVRM: Xid (PCI:0000:65:00): 62, 0000(0000) 00000000 00000000",
     ("00000000:65:00.0", 62, None, None, "0000(0000) 00000000 00000000", None)),
    ("NVRM: Xid (PCI:0000:01:00): 45", ("00000000:01:00.0", 45, None, None, "", None)),
    ("NVRM: Xid (PCI:0000:01:00): 45, pid=9, name=x", ("00000000:01:00.0", 45, 9, "x", "", None)),
    (
        "NVRM: Xid (PCI:00010000:c1:00.0): 31, pid=12, name=pt main, Ch 1, intr 0. MMU Fault: GPC2 faulted",
        ("00010000:C1:00.0", 31, 12, "pt main", "Ch 1, intr 0. MMU Fault: GPC2 faulted", None),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), SHAPES)
def test_shapes(line: str, expected: tuple[str, int, int | None, str | None, str, str | None]) -> None:
    pci, xid, pid, process, text, instance = expected
    assert parse_xid(line, 5.0) == KernelXid(5.0, pci, xid, pid, process, text, instance)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: GPU 0000:91:00.0: GPU has fallen off the bus.",
        "nvidia-nvswitch1: SXid (PCI:0000:06:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
        "NVRM: Xid (PCI:xxxx:01:00): 79, nonsense",
        "NVRM: Xid (PCI:0000:01:00) 79",
        "somebody wrote Xid (PCI:0000:01:00): 79, in a mail",
    ],
)
def test_other_lines_are_no_xid(line: str) -> None:
    assert parse_xid(line) is None


@given(st.text(max_size=200))
def test_no_line_breaks_the_parser(line: str) -> None:
    parse_xid(line)
    parse_xid("NVRM: Xid (PCI:0000:3b:00): 79, " + line)
    parse_record(line.encode("utf-8", "surrogatepass"), 1.0, 1.0)


def test_the_recorded_hang_holds_five_xid_119() -> None:
    log = recording("errors/gpud_dmesg_xid119.log").read_text()
    found = [xid for line in log.splitlines() if (xid := parse_xid(line))]
    # Counted by eye in the file: lines at 16:24:18, :24, :30, 16:27:12 and 16:30:13.
    assert [(x.pci, x.xid, x.pid, x.process) for x in found] == [
        ("00000000:9B:00.0", 119, 2024380, "nvidia-smi"),
        ("00000000:9B:00.0", 119, 2024380, "nvidia-smi"),
        ("00000000:9B:00.0", 119, 2024380, "nvidia-smi"),
        ("00000000:9B:00.0", 119, 1263500, "cache_mgr_main"),
        ("00000000:9B:00.0", 119, 1240590, "gpud"),
    ]
    assert found[-1].text == (
        "Timeout after 6s of waiting for RPC response from GPU4 GSP! "
        "Expected function 76 (GSP_RM_CONTROL) (0x20803032 0x58c)."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0000:3b:00", "00000000:3B:00.0"),
        ("PCI:0000:3b:00", "00000000:3B:00.0"),
        ("00000000:3B:00.0", "00000000:3B:00.0"),
        ("0000:3b:1f.7", "00000000:3B:1F.7"),
        ("3b:00", None),
        ("", None),
    ],
)
def test_pci_addresses_have_one_form(text: str, expected: str | None) -> None:
    assert canonical_pci(text) == expected


def record(stamp_us: int, text: bytes, priority: int = 4) -> bytes:
    return b"%d,812,%d,-;%s\n" % (priority, stamp_us, text)


LOST = b"NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus."


def test_a_kernel_stamp_becomes_utc() -> None:
    # Booted 1000 s ago on the monotonic clock, now 1_700_000_000; the stamp is 990 s after boot.
    found = parse_record(record(990_000_000, LOST), now=1_700_000_000.0, monotonic=1000.0)
    assert found is not None
    assert found.time == pytest.approx(1_699_999_990.0, abs=1e-6)


def test_a_stamp_never_lies_ahead_of_now() -> None:
    found = parse_record(record(2_000_000_000, LOST), now=500.0, monotonic=1000.0)
    assert found is not None
    assert found.time == 500.0


def test_what_a_program_wrote_into_the_kernel_log_is_no_xid() -> None:
    # printk's ABI: facility 0 is the kernel's alone; a write to /dev/kmsg gets facility 1 (8 = 1 << 3).
    assert parse_record(record(1, LOST, priority=12), 1.0, 1.0) is None
    assert parse_record(record(1, LOST, priority=3), 1.0, 1.0) is not None


def test_properties_and_escapes_of_a_record() -> None:
    raw = (
        record(1, LOST.replace(b"python", rb"p\xc3\xa9\x09y"))
        + b" SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0\n"
    )
    found = parse_record(raw, 1.0, 1.0)
    assert found is not None
    assert found.process == "pé\ty"
    assert found.text == "GPU has fallen off the bus."


@pytest.mark.parametrize("raw", [b"", b";", b"4,1;" + LOST, b"x,1,2,-;" + LOST, b"4,1,y,-;" + LOST])
def test_a_damaged_record_is_passed_over(raw: bytes) -> None:
    assert parse_record(raw, 1.0, 1.0) is None


class Ring:
    """A kernel log that answers as /dev/kmsg does: a record, an errno, or EAGAIN at its end."""

    def __init__(self, *answers: bytes | int) -> None:
        self.answers = list(answers)
        self.reads = 0

    def __call__(self, fd: int, size: int) -> bytes:
        self.reads += 1
        answer = self.answers.pop(0) if self.answers else errno.EAGAIN
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        assert len(answer) <= size
        return answer


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Ring], KernelLog]]:
    logs: list[KernelLog] = []

    def start(ring: Ring) -> KernelLog:
        path = tmp_path / "kmsg"
        path.touch()
        log = KernelLog(str(path), read=ring)
        logs.append(log)
        return log

    yield start
    for log in logs:
        log.close()


def test_an_empty_log_costs_one_read(opened: Callable[[Ring], KernelLog]) -> None:
    ring = Ring()
    log = opened(ring)
    assert log.read() == []
    assert ring.reads == 1
    assert log.reason is None


def test_records_are_read_in_order_across_an_overrun(opened: Callable[[Ring], KernelLog]) -> None:
    ring = Ring(
        record(1, b"usb 1-1: new device"),
        record(2, LOST),
        errno.EPIPE,
        record(9, LOST.replace(b"79,", b"154,")),
    )
    log = opened(ring)
    assert [found.xid for found in log.read()] == [79, 154]
    assert log.overruns == 1
    assert log.read() == []


def test_a_flood_is_read_in_bounded_portions_and_nothing_is_dropped(
    opened: Callable[[Ring], KernelLog],
) -> None:
    ring = Ring(*[record(n, LOST) for n in range(5000)])
    log = opened(ring)
    portions = [len(log.read()) for _ in range(4)]
    assert portions == [2000, 2000, 1000, 0]


def test_a_log_that_breaks_says_so_and_stays_quiet(opened: Callable[[Ring], KernelLog]) -> None:
    ring = Ring(errno.EIO, record(1, LOST))
    log = opened(ring)
    assert log.read() == []
    assert log.reason is not None and "stopped answering" in log.reason
    assert log.read() == []
    assert ring.reads == 1


def test_no_access_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    log = KernelLog(str(tmp_path / "absent"))
    assert log.reason is not None and "No such file" in log.reason
    assert log.read() == []
    log.close()


def test_a_pipe_is_read_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    log = KernelLog(str(path))
    assert log.reason is None
    assert log.read() == []
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        before = SystemClock().now()
        os.write(writer, record(int(SystemClock().monotonic() * 1e6), LOST))
        (found,) = log.read()
        assert found.time is not None
        assert before - 1.0 <= found.time <= SystemClock().now()
        assert log.read() == []
    finally:
        os.close(writer)
        log.close()


@pytest.mark.skipif(
    not os.access("/dev/kmsg", os.R_OK | os.W_OK), reason="/dev/kmsg is not ours to read and write"
)
def test_the_real_kernel_log_is_read_from_now_on_and_forgeries_are_passed_over() -> None:
    log = KernelLog()
    if log.reason is not None:
        pytest.skip(log.reason)
    try:
        with open("/dev/kmsg", "wb", buffering=0) as writer:
            writer.write(b"<4>gpu_monitor test: NVRM: Xid (PCI:ffff:3b:00): 79, forged by a program\n")
        assert [found for found in log.read() if found.pci.startswith("0000FFFF")] == []
        assert log.reason is None
    finally:
        log.close()


def test_one_xid_told_twice_is_one() -> None:
    seen = XidDeduplicator()
    assert seen.is_new("00000000:3B:00.0", 79, 100.0)
    assert not seen.is_new("00000000:3B:00.0", 79, 104.9)
    assert not seen.is_new("00000000:3B:00.0", 79, 95.1)
    assert seen.is_new("00000000:3B:00.0", 79, 105.0)
    assert seen.is_new("00000000:3B:00.0", 79, 95.0)


def test_another_gpu_or_number_is_another_xid() -> None:
    seen = XidDeduplicator()
    assert seen.is_new("a", 79, 100.0)
    assert seen.is_new("b", 79, 100.0)
    assert seen.is_new("a", 154, 100.0)


def test_the_recorded_timeouts_six_seconds_apart_are_three() -> None:
    # 16:24:18, 16:24:24 and 16:24:30 in the recording, each told by both ways.
    seen = XidDeduplicator()
    told = [seen.is_new("9b", 119, t) for t in (18.0, 18.4, 24.0, 24.3, 30.0, 30.2)]
    assert told == [True, False, True, False, True, False]


@given(st.lists(st.floats(0, 1e5), max_size=50))
def test_reports_of_the_second_way_add_nothing(times: list[float]) -> None:
    first = XidDeduplicator()
    for time in times:
        first.is_new("gpu", 31, time)
    # Hours apart entries may be forgotten, so only those near the newest are promised.
    recent = [t for t in times if max(times) - t < 3600]
    admitted_again = [t for t in recent if first.is_new("gpu", 31, t)]
    assert admitted_again == []
