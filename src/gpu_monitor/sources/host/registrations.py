"""The files by which trainings say that they run: read without trust, from folders that anybody may write to.

A registration is a small JSON file (`training/register.py`). Its owner is what the kernel says of the file; nothing
else in it is believed until the kernel confirms it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.sources.host.proc_files import EXPERIMENT_ID

_LONGEST_FILE = 4096
"""A registration has ten short fields; anything longer is not one of ours."""
MOST_FILES = 1024
"""More processes with experiments than this do not share one machine's GPUs."""
_SETTLED_NS = 1_000_000_000
"""A folder that changed less than this ago may have changed once more at the same stamp."""


@dataclass(frozen=True)
class Registration:
    """What one file says. `owner`: the uid of the file; `mark`: inode, stamp and size, which name its content.

    `pid` is the process's own view of it, in its own namespace; `pid_ns` the number of that namespace.
    """

    path: Path
    owner: int
    mark: tuple[int, int, int]
    experiment_id: str
    pid: int
    start_ticks: int
    boot_id: str | None = None
    ns_pid: int | None = None
    pid_ns: int | None = None
    segment: str | None = None
    folder: str | None = None


def read_registration(path: Path) -> Registration | None:
    """One file, if it is a plain small one of ours; links, pipes and devices are never opened for reading."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LONGEST_FILE:
            return None
        return _parse(os.read(descriptor, _LONGEST_FILE), path, about)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def mark_of(about: os.stat_result) -> tuple[int, int, int]:
    """What changes whenever another content stands under the name."""
    return about.st_ino, about.st_mtime_ns, about.st_size


def _parse(content: bytes, path: Path, about: os.stat_result) -> Registration | None:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    experiment_id, pid, ticks = said.get("experiment_id"), _whole(said, "pid"), _whole(said, "start_ticks")
    boot_id = said.get("boot_id")
    if not isinstance(experiment_id, str) or not EXPERIMENT_ID.fullmatch(experiment_id):
        return None
    if pid is None or ticks is None or not (boot_id is None or isinstance(boot_id, str)):
        return None
    segment, folder = said.get("segment"), said.get("folder")
    return Registration(
        path, about.st_uid, mark_of(about), experiment_id, pid, ticks, boot_id,
        _whole(said, "ns_pid"), _whole(said, "pid_ns"),
        segment if isinstance(segment, str) else None, folder if isinstance(folder, str) else None,
    )  # fmt: skip


def _whole(said: dict[str, Any], name: str) -> int | None:
    found = said.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**63 else None


class RegistrationFolders:
    """All registrations in some folders; one that has not changed costs one `stat`. One thread.

    A `*` in a place stands for every name at that point (`/run/user/*/...`).
    """

    def __init__(self, places: tuple[str, ...]) -> None:
        self._places = tuple(dict.fromkeys(places))
        self._held: dict[Path, tuple[int | None, dict[str, Registration]]] = {}

    def look(self, now: float) -> list[Registration]:
        """The registrations there are now (`now`: UTC epoch s); those that cannot be read are left out."""
        found: list[Registration] = []
        held: dict[Path, tuple[int | None, dict[str, Registration]]] = {}
        for folder in self._folders():
            known = self._held.get(folder, (None, {}))
            try:
                changed = folder.stat().st_mtime_ns
            except OSError:
                continue
            if changed != known[0]:
                is_settled = now * 1e9 - changed > _SETTLED_NS
                known = (changed if is_settled else None, scan_folder(folder, known[1]))
            held[folder] = known
            found += known[1].values()
        self._held = held
        return found

    def _folders(self) -> Iterator[Path]:
        for place in self._places:
            before, star, after = place.partition("*")
            if not star:
                yield Path(place)
                continue
            with contextlib.suppress(OSError), os.scandir(before) as entries:
                names = [entry.name for _, entry in zip(range(MOST_FILES), entries, strict=False)]
                yield from (Path(f"{before}{name}{after}") for name in names)


def scan_folder(folder: Path, before: dict[str, Registration]) -> dict[str, Registration]:
    """What stands in a folder; files that are as they were are not read again."""
    found: dict[str, Registration] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(found) >= MOST_FILES:
                    break
                if not entry.name.endswith(".json") or not entry.is_file(follow_symlinks=False):
                    continue
                known = before.get(entry.name)
                mark = mark_of(entry.stat(follow_symlinks=False))
                one = known if known and known.mark == mark else read_registration(Path(entry.path))
                if one is not None:
                    found[entry.name] = one
    except OSError:
        return found  # removed meanwhile: the next look begins anew
    return found


def is_still_there(one: Registration) -> bool:
    """Whether the file is there as it was read: its owner has not taken it away, nor replaced it."""
    try:
        return mark_of(one.path.lstat()) == one.mark
    except OSError:
        return False


def remove_registration(one: Registration) -> bool:
    """Take the file away; False where that may not be."""
    if not is_still_there(one):
        return True
    try:
        one.path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
