# SPDX-License-Identifier: MIT
"""Who writes: host, user, process, rank, and the GPUs it sees, found without a library and without a CUDA context."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import pwd

from gpu_monitor import __version__
from gpu_monitor.config.load import environment
from gpu_monitor.wire.training import Writer

_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_GPUS = "/proc/driver/nvidia/gpus"
_LARGEST = 65_536


@dataclass(frozen=True)
class Process:
    """What names a process for good on a machine: boot, pid and start; each None where the system does not tell."""

    boot_id: str | None
    start_ticks: int | None
    ns_pid: int | None
    parent_ticks: int | None = None
    pid_ns: int | None = None
    """The number of its pid namespace: who is in the same one sees it."""


def find_process(proc: str = "/proc") -> Process:
    """This process as the kernel knows it."""
    boot_id = _read(f"{proc}/sys/kernel/random/boot_id")
    status = _read(f"{proc}/self/status") or ""
    spaces = re.search(r"^NSpid:\s+(.+)$", status, re.MULTILINE)
    return Process(
        boot_id=boot_id.strip() if boot_id else None,
        start_ticks=start_ticks("self", proc),
        ns_pid=int(spaces[1].split()[-1]) if spaces else None,
        pid_ns=_inode(f"{proc}/self/ns/pid"),
    )


def start_ticks(pid: int | str, proc: str = "/proc") -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process or no /proc."""
    said = _read(f"{proc}/{pid}/stat")
    # The command in brackets may hold anything; field 22 is the 20th after it.
    fields = said.rpartition(")")[2].split() if said else []
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None


def find_writer() -> Writer:
    """The writer that a header names."""
    process = find_process()
    return Writer(
        host=host_name(),
        pid=os.getpid(),
        user=user_name(),
        boot_id=process.boot_id,
        start_ticks=process.start_ticks,
        ns_pid=process.ns_pid,
        rank=find_rank(),
        python=sys.version.split()[0],
        version=__version__,
    )


def host_name() -> str:
    """The name this machine gives itself."""
    if sys.platform == "win32":
        return environment("COMPUTERNAME") or "unknown"
    return os.uname().nodename or "unknown"


def find_rank() -> int | None:
    """This process's number among those of one training, as its launcher says; None where none does."""
    return _number(_RANKS)


def find_local_rank() -> int | None:
    """This process's number among those of one training on this machine; None where no launcher says."""
    return _number(_LOCAL_RANKS)


def find_world_size() -> int | None:
    """How many processes train together; None where no launcher says so."""
    return _number(_SIZES)


def shared_key() -> str | None:
    """What all processes of one distributed start have in common and no other start has; None where that is not known.

    A Slurm step, on all its nodes; else the launcher that is the parent of all ranks of one machine.
    """
    if (find_world_size() or 1) < 2 or find_rank() is None:
        return None
    job, step = environment("SLURM_JOB_ID"), environment("SLURM_STEP_ID")
    if job is not None and step is not None and environment("SLURM_PROCID") is not None:
        words = (
            "slurm",
            environment("SLURM_CLUSTER_NAME") or "",
            job,
            step,
            environment("SLURM_JOB_START_TIME") or "",
        )
    else:
        parent = os.getppid()
        boot_id, ticks = find_process().boot_id, start_ticks(parent)
        if boot_id is None or ticks is None:
            return None
        words = ("parent", boot_id, str(parent), str(ticks), "")
    return "\0".join(words)


def find_gpus(proc: str = _GPUS) -> list[str] | None:
    """The uids of the GPUs that this process sees; None where that is not known.

    From CUDA_VISIBLE_DEVICES where it holds uids, and from the driver's own files. Numbers in it are places in an
    order that only CUDA knows, unless that is by PCI address or all GPUs are visible.
    """
    chosen = environment("CUDA_VISIBLE_DEVICES")
    words = [word.strip() for word in (chosen or "").split(",") if word.strip()]
    if words and all(word.startswith(("GPU-", "MIG-")) and len(word) >= 40 for word in words):
        return words
    held = _gpus_by_address(proc)
    if held is None:
        return None
    if chosen is None:
        return held
    if environment("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" and all(word.isdecimal() for word in words):
        places = [int(word) for word in words]
        return [held[place] for place in places] if all(place < len(held) for place in places) else None
    return None


def _gpus_by_address(folder: str) -> list[str] | None:
    try:
        addresses = sorted(entry.name for entry in Path(folder).iterdir())
    except OSError:
        return None
    found = []
    for address in addresses:
        match = re.search(
            r"^GPU UUID:\s+(GPU-[0-9a-f-]+)$", _read(f"{folder}/{address}/information") or "", re.MULTILINE
        )
        if match is None:
            return None
        found.append(match[1])
    return found or None


def _number(names: tuple[str, ...]) -> int | None:
    for name in names:
        text = environment(name)
        if text is not None and text.isdecimal():
            return int(text)
    return None


def user_name() -> str | None:
    """The name of the user as whom this process runs, its number where that has no name; None where neither is known.

    The environment is asked first, for a user database may be a slow server.
    """
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        if found := environment(name):
            return found
    if sys.platform == "win32":
        return None
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _inode(path: str) -> int | None:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None


def _read(path: str) -> str | None:
    """The text of a small file of the system; None where it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    try:
        return os.read(file, _LARGEST).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(file)
