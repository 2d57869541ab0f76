"""Xid messages in the kernel log: a pure parser of lines, and a reader of /dev/kmsg."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpu_monitor.core.clock import Clock, SystemClock

# NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.
# Old drivers leave out `PCI:`; under MIG the instance follows the address (`GPU-I:05`).
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-7])?)"
    r"(?:[ ,]+GPU-I:(?P<instance>\w+))?[^)]*\): (?P<xid>\d{1,5})(?:, *(?P<rest>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_PID = re.compile(r"pid='?(?P<pid>\d+|<unknown>)'?(?:, *|$)")
_NAME = re.compile(r"name=(?P<name>.*?)(?:, |,?$)")
_PCI = re.compile(r"(?:PCI:)?([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE)
# Out of memory: Killed process 4711 (python) total-vm:... ; Memory cgroup out of memory: Killed process ...
_KILLED = re.compile(
    rb"(?:[Mm]emory cgroup )?[Oo]ut of memory(?: \(oom_kill_allocating_task\))?: Killed process (\d+)"
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")

# No record is longer: CONSOLE_EXT_LOG_MAX, later PRINTK_MESSAGE_MAX, in the kernel's printk.
_RECORD_BYTES = 8192
# One round stays short even while the kernel log is flooded; the rest is read in the next one.
_RECORDS_PER_READ = 2000


@dataclass(frozen=True)
class KernelXid:
    """One Xid message. `pci` as NVML writes it (`00000000:3B:00.0`); `time` is UTC epoch or None.

    `instance` is the MIG GPU instance where the message names one.
    """

    time: float | None
    pci: str
    xid: int
    pid: int | None
    process: str | None
    text: str
    instance: str | None = None


def canonical_pci(text: str) -> str | None:
    """A PCI address as NVML writes it, `00000000:3B:00.0`; None where `text` is none."""
    match = _PCI.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):08X}:{bus.upper()}:{device.upper()}.{function or '0'}"


def parse_xid(line: str, time: float | None = None) -> KernelXid | None:
    """The Xid message in one line of dmesg, journalctl, syslog or /dev/kmsg; None where there is none."""
    match = _XID.search(line)
    if match is None:
        return None
    pci = canonical_pci(match["pci"])
    if pci is None:
        return None
    rest = (match["rest"] or "").strip()
    pid: int | None = None
    process: str | None = None
    if found := _PID.match(rest):
        pid = int(found["pid"]) if found["pid"].isdigit() else None
        rest = rest[found.end() :]
    if found := _NAME.match(rest):
        process = None if found["name"] in ("<unknown>", "") else found["name"]
        rest = rest[found.end() :]
    return KernelXid(time, pci, int(match["xid"]), pid, process, rest.strip(), match["instance"])


def parse_record(record: bytes, now: float, monotonic: float) -> KernelXid | None:
    """The Xid message in one record of /dev/kmsg (`6,1234,5678901,-;text`).

    Its stamp, microseconds of the monotonic clock, becomes UTC through `now` and `monotonic`, the two
    clocks read together; it never lies after `now`. Records that a program wrote into the kernel log
    are passed over: only the kernel can use facility 0.
    """
    head, separator, message = record.partition(b";")
    fields = head.split(b",")
    if not separator or len(fields) < 3 or b"Xid" not in message:
        return None
    try:
        priority, stamp = int(fields[0]), int(fields[2])
    except ValueError:
        return None
    if priority >> 3 != 0:
        return None
    # After the first line come its KEY=value properties; unprintable bytes of the text are escaped.
    text = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), message.split(b"\n", 1)[0])
    return parse_xid(text.decode("utf-8", "replace"), min(now, now - (monotonic - stamp / 1e6)))


def parse_killed(record: bytes) -> int | None:
    """The pid in a record of /dev/kmsg that tells of a process killed for want of memory; None where it tells of none."""
    head, separator, message = record.partition(b";")
    priority = head.split(b",")[0]
    if not separator or not priority.isdigit() or int(priority) >> 3 != 0:
        return None
    match = _KILLED.match(message.split(b"\n", 1)[0])
    return int(match[1]) if match else None


class KernelLog:
    """What the kernel logs from the moment it is opened: Xid messages, or who was killed for want of memory.

    Where the log cannot be read (containers, no CAP_SYSLOG) `reason` says why and nothing is read.
    Reading takes one system call when nothing is new.
    """

    def __init__(
        self,
        path: str = "/dev/kmsg",
        clock: Clock | None = None,
        read: Callable[[int, int], bytes] = os.read,
    ) -> None:
        self.reason: str | None = None
        self.overruns = 0
        self._clock = clock or SystemClock()
        self._read = read
        self._fd: int | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except AttributeError:
            self.reason = "this system has no readable kernel log"
        except OSError as error:
            if self._fd is None:
                self.reason = f"cannot read {path}: {error.strerror or error}"
            # Else a pipe, which has no position: it is read from where it is.

    def read(self) -> list[KernelXid]:
        """The Xid messages since the last call, oldest first; empty where there are none or no access.

        Messages that were overwritten before they could be read are counted in `overruns`.
        """
        now, monotonic = self._clock.now(), self._clock.monotonic()
        found = (parse_record(record, now, monotonic) for record in self._records())
        return [xid for xid in found if xid is not None]

    def read_killed(self) -> list[int]:
        """Processes that the kernel killed for want of memory since the last call, by their pids on this machine."""
        found = (parse_killed(record) for record in self._records())
        return [pid for pid in found if pid is not None]

    def _records(self) -> Iterator[bytes]:
        """The records since the last call."""
        if self._fd is None:
            return
        for _ in range(_RECORDS_PER_READ):
            try:
                chunk = self._read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                self.overruns += 1  # the ring went round; the next read gives the oldest record left
                continue
            except OSError as error:
                self.reason = f"the kernel log stopped answering: {error.strerror or error}"
                self.close()
                break
            if not chunk:
                break
            yield chunk

    def close(self) -> None:
        """Close the log; further reads give nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class XidDeduplicator:
    """Lets one Xid through once, though NVML and the kernel log both tell of it.

    Two reports of the same Xid of the same GPU are one when their times are less than `window`
    seconds apart. Times may come in any order. Pure: it reads no clock.
    """

    def __init__(self, window: float = 5.0) -> None:
        self.window = window
        self._admitted: dict[tuple[str, int], list[float]] = {}

    def is_new(self, gpu: str, xid: int, time: float) -> bool:
        """Whether this report is the first of its Xid; `gpu` is any name both reporters use for the GPU."""
        times = self._admitted.setdefault((gpu, xid), [])
        if any(abs(time - other) < self.window for other in times):
            return False
        times.append(time)
        newest = max(times)
        # Reports of the two ways arrive within one interval, of which the longest allowed is an hour.
        self._admitted[(gpu, xid)] = [other for other in times if newest - other < 3600.0 + self.window]
        return True
