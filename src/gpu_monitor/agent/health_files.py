"""The store as files, for `gpu_monitor doctor`: whole or damaged, whose, how large, with how much room."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from gpu_monitor.agent.health import Check, ok, problem, size_text, warning
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageCorrupt, StorageError
from gpu_monitor.storage.check import quick_check, shape_of
from gpu_monitor.storage.locks import agent_path, lock_path

_CHECK_SECONDS = 5.0
_WAL_MANY = 64 << 20
"""The agent's log is cut back at 4 MB; one of this size has not been checkpointed for days."""
_DISK_WARNING, _DISK_PROBLEM = 1 << 30, 100 << 20
"""A year of eight GPUs takes about 0.5 GB; below 100 MB any other program may fill the rest in a minute."""


def check_files(path: Path, clock: Clock) -> Iterator[Check]:
    """The store as a file: its size, whether it is whole, its log, who may do what, room on its disk."""
    try:
        shape = shape_of(path, clock)
    except StorageError as error:
        yield problem("store", error.message, error.hint or "Check database.file.")
        return
    yield ok("store", f"{path}, {size_text(shape.size)}, {size_text(shape.free)} of it free")
    yield _integrity(path, clock)
    yield _log_size(path)
    yield _ownership(path)
    yield from _modes(path)
    yield _room(path.parent)


def _integrity(path: Path, clock: Clock) -> Check:
    try:
        found = quick_check(path, clock, _CHECK_SECONDS)
    except StorageCorrupt as error:
        return problem("integrity", error.message, error.hint or "")
    except StorageError as error:
        return warning("integrity", error.message, error.hint or "Try again.")
    if found is None:
        return ok("integrity", f"no damage found in the {_CHECK_SECONDS:.0f} s that were taken to look")
    if found:
        advice = "Restart the agent: it moves the file aside, keeps it, and salvages its rows."
        return problem("integrity", f"the file is damaged: {found[0]}", advice)
    return ok("integrity", "SQLite's quick check finds the file whole")


def _log_size(path: Path) -> Check:
    log = path.with_name(path.name + "-wal")
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return ok("write-ahead log", "none")
    except OSError as error:
        return warning(
            "write-ahead log", f"cannot look at {log}: {error.strerror}", "Ask as the agent's user."
        )
    if size > _WAL_MANY:
        advice = "A program that reads the store for hours keeps it from being cut: close it."
        return warning("write-ahead log", f"{log} has grown to {size_text(size)}", advice)
    return ok("write-ahead log", size_text(size))


def _family(path: Path) -> list[Path]:
    """The store and the files of ours beside it that exist."""
    names = [path.name + end for end in ("", "-wal", "-shm", ".node.json", ".token.json")]
    found = [path.with_name(name) for name in names] + [lock_path(path), agent_path(path)]
    return [one for one in found if one.exists()]


def _ownership(path: Path) -> Check:
    owners = {one: one.stat().st_uid for one in _family(path)}
    owner = owners[path]
    strange = [one for one, uid in owners.items() if uid != owner]
    if strange:
        names = " ".join(str(one) for one in strange)
        return problem(
            "ownership",
            f"{strange[0].name} belongs to user {owners[strange[0]]}, the store to user {owner}",
            f"The agent cannot open it. Run: sudo chown {owner} {names}",
        )
    return ok("ownership", f"all files belong to user {owner}")


def _modes(path: Path) -> Iterator[Check]:
    folder = path.parent
    mode = folder.stat().st_mode
    if mode & 0o002 and not mode & stat.S_ISVTX:
        yield warning("permissions", f"anybody may replace the files in {folder}", f"Run: chmod o-w {folder}")
    if os.name == "nt":
        return
    for one in _family(path):
        allowed = stat.S_IMODE(one.stat().st_mode)
        if one in (lock_path(path), agent_path(path)) and allowed & 0o077:
            text = f"{one} can be opened by others, who could hold the agent up"
            yield warning("permissions", text, f"Run: chmod 600 {one}")
        elif allowed & 0o022:
            yield warning("permissions", f"{one} can be changed by others", f"Run: chmod go-w {one}")


def _room(folder: Path) -> Check:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return warning("disk", f"cannot look at {folder}: {error.strerror}", "Ask as the agent's user.")
    text = f"{size_text(usage.free)} free of {size_text(usage.total)} where the store is"
    if usage.free < _DISK_PROBLEM:
        return problem("disk", text, "Free space now: what cannot be stored waits in memory, for hours only.")
    if usage.free < _DISK_WARNING:
        return warning("disk", text, "Free space, or set database.max_mb.")
    return ok("disk", text)
