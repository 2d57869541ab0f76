"""Whether a process that registered lives, and how it ended, by what the kernel tells anybody."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.sources.host.proc_files import parse_stat, parse_status
from gpu_monitor.sources.host.registrations import Registration

if sys.platform != "win32":
    import fcntl

_FIRST_PID_NS = 0xEFFFFFFC
"""The number of the namespace that sees every process (PROC_PID_INIT_INO in the kernel's proc_ns.h)."""
# struct pidfd_info of Linux 6.13, with exit codes since 6.15 (include/uapi/linux/pidfd.h).
_INFO_BYTES, _INFO_EXIT, _EXIT_CODE_AT = 64, 1 << 3, 60
_GET_INFO = (3 << 30) | (_INFO_BYTES << 16) | (0xFF << 8) | 11
_UNIFIED = re.compile(r"^0::(/.*)$", re.MULTILINE)
_KILLED = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_LONGEST = 65_536


@dataclass
class Life:
    """A process that was found: its pid on this machine, and its pidfd, None where there can be none."""

    pid: int
    start_ticks: int
    pidfd: int | None
    group: Path | None = None
    """Its control group's memory.events; None where that is not known."""
    kills: int | None = None
    """How often the kernel killed in that group for want of memory, at the last look."""

    def close(self) -> None:
        """Let go of the pidfd."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class Lives:
    """Finds registered processes among those of this machine. One thread.

    `most_pidfds`: of more processes than that each look asks whether they live.
    """

    def __init__(self, proc: str = "/proc", most_pidfds: int = 128, groups: str = "/sys/fs/cgroup") -> None:
        self._proc = Path(proc)
        self._groups = Path(groups)
        self._most = most_pidfds
        self._pidfds = 0
        self._boot_id = _text(self._proc / "sys/kernel/random/boot_id").strip() or None
        self._pid_ns = _number_of(self._proc / "self/ns/pid")
        self._uid = os.getuid() if hasattr(os, "getuid") else -1
        self._all: dict[tuple[int, int], list[tuple[int, int | None]]] | None = None

    def begin_look(self) -> None:
        """Forget the list of all processes, which is made where a look needs it."""
        self._all = None

    def find(self, one: Registration) -> Life | None:
        """The process that a registration is of and whose user owns the file; None where there is none that we see."""
        if not self._is_of_this_boot(one):
            return None
        for pid, uid in self._candidates(one):
            if uid != one.owner:
                continue
            pidfd = self._open(pid)
            life = Life(pid, one.start_ticks, pidfd, self._group_of(pid))
            # Asked once more: the pid may have become another's before the pidfd was opened.
            if self.is_alive(life):
                life.kills = _kills(life.group)
                return life
            self.release(life)
        return None

    def is_gone_for_sure(self, one: Registration) -> bool:
        """Whether a process that was never seen alive here is gone: nobody like it is there, and we would see it."""
        if not self._is_of_this_boot(one) or one.boot_id is None or not self._sees(one):
            return False
        return not any(self._is_living(pid, one.start_ticks) for pid, _ in self._candidates(one))

    def is_alive(self, life: Life) -> bool:
        """Whether it lives. One that has ended and waits for its parent is gone."""
        if life.pidfd is not None and select.select([life.pidfd], [], [], 0)[0]:
            return False
        return self._is_living(life.pid, life.start_ticks)

    def _is_living(self, pid: int, start_ticks: int) -> bool:
        said = _bytes(self._proc / str(pid) / "stat")
        stat = parse_stat(said)
        if stat is None or stat.start_ticks != start_ticks:
            return False
        if said[said.rfind(b")") + 2 : said.rfind(b")") + 3] not in (b"Z", b"X"):
            return True
        # A program whose first thread is over may go on in others.
        try:
            return sum(1 for _ in (self._proc / str(pid) / "task").iterdir()) > 1
        except OSError:
            return False

    def watch_memory(self, life: Life) -> None:
        """Take note of how often its control group was killed in until now."""
        life.kills = _kills(life.group)

    def cause(self, life: Life, patience_ms: int) -> dict[str, Any]:
        """How it ended, as far as the kernel says: `signal` or `exit_code`, and `oom`.

        The kernel tells once the parent has taken note, for which `patience_ms` are waited.
        """
        found = {} if life.pidfd is None else _exit_of(life.pidfd, patience_ms)
        before, after = life.kills, _kills(life.group)
        was_killed = found.get("signal") in (None, "SIGKILL") and "exit_code" not in found
        if was_killed and before is not None and after is not None and after > before:
            found["oom"] = True
        return found

    def release(self, life: Life) -> None:
        """Close what is open of it."""
        self._pidfds -= life.pidfd is not None
        life.close()

    def _open(self, pid: int) -> int | None:
        if self._pidfds >= self._most or not hasattr(os, "pidfd_open"):
            return None
        try:
            found = os.pidfd_open(pid)
        except OSError:
            return None
        self._pidfds += 1
        return found

    def _is_of_this_boot(self, one: Registration) -> bool:
        return one.boot_id is None or self._boot_id is None or one.boot_id == self._boot_id

    def _sees(self, one: Registration) -> bool:
        """Whether a living process of that registration could not be hidden from us."""
        is_below = self._pid_ns == _FIRST_PID_NS or (one.pid_ns is not None and one.pid_ns == self._pid_ns)
        # Where /proc is mounted with hidepid, only our own are seen.
        return is_below and (one.owner == self._uid or bool(_bytes(self._proc / "1/stat")))

    def _candidates(self, one: Registration) -> list[tuple[int, int | None]]:
        """Living processes that started at that tick and are called so in their own namespace, with their users."""
        wanted = one.pid if one.ns_pid is None else one.ns_pid
        stat = parse_stat(_bytes(self._proc / str(one.pid) / "stat"))
        if stat is not None and stat.start_ticks == one.start_ticks:
            ids = parse_status(_text(self._proc / str(one.pid) / "status"))
            if ids.ns_pid in (None, wanted):
                return [(one.pid, ids.uid)]
        if self._all is None:
            self._all = self._list_all()
        return self._all.get((wanted, one.start_ticks), [])

    def _list_all(self) -> dict[tuple[int, int], list[tuple[int, int | None]]]:
        """The processes in namespaces of their own: by pid there and start, the pid here and the user."""
        found: dict[tuple[int, int], list[tuple[int, int | None]]] = {}
        try:
            names = [entry.name for entry in self._proc.iterdir()]
        except OSError:
            return found
        for name in names:
            if not name.isdecimal():
                continue
            ids = parse_status(_text(self._proc / name / "status"))
            if ids.ns_pid is None or ids.ns_pid == int(name):
                continue
            stat = parse_stat(_bytes(self._proc / name / "stat"))
            if stat is not None:
                found.setdefault((ids.ns_pid, stat.start_ticks), []).append((int(name), ids.uid))
        return found

    def _group_of(self, pid: int) -> Path | None:
        match = _UNIFIED.search(_text(self._proc / str(pid) / "cgroup"))
        if match is None or match[1] == "/" or ".." in match[1]:
            return None
        return self._groups / match[1].lstrip("/") / "memory.events"


def _exit_of(pidfd: int, patience_ms: int) -> dict[str, Any]:
    """The exit status that a pidfd tells of anybody's process (Linux 6.15); empty where it does not."""
    waiting = select.poll()
    waiting.register(pidfd, 0)  # POLLHUP alone: the parent has taken note
    waiting.poll(patience_ms)
    told = bytearray(struct.pack("=QQ", _INFO_EXIT, 0).ljust(_INFO_BYTES, b"\0"))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, told)
    except OSError:
        return {}
    if not struct.unpack_from("=Q", told)[0] & _INFO_EXIT:
        return {}
    (status,) = struct.unpack_from("=i", told, _EXIT_CODE_AT)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in signal.Signals.__members__.values()
        return {"signal": signal.Signals(number).name if known else str(number)}
    return {"exit_code": os.WEXITSTATUS(status)}


def _kills(group: Path | None) -> int | None:
    match = _KILLED.search(_text(group)) if group is not None else None
    return int(match[1]) if match else None


def _number_of(link: Path) -> int | None:
    try:
        return link.stat().st_ino
    except OSError:
        return None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")
