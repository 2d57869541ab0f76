"""Which experiment a process says it belongs to, by the files the SDK writes (design section 8).

A registration is a small JSON file in a folder everybody may write to, so nothing in it is believed
that the kernel does not confirm: its owner must be the process's user, and pid, start and boot must
be the process's own.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.config.training import REGISTRY, SHARED_REGISTRY
from gpu_monitor.sources.host.proc_files import EXPERIMENT_ID

# A registration has four short fields; anything longer is not one of ours.
_LONGEST_FILE = 4096
# More processes with experiments than this do not share one machine's GPUs.
_MOST_FILES = 1024


@dataclass(frozen=True)
class Asker:
    """The process an experiment is looked for: its user, and the triple that names it on this host."""

    uid: int
    pids: tuple[int, ...]
    start_ticks: int
    boot_id: str | None


@dataclass(frozen=True)
class _Registration:
    owner: int
    experiment_id: str
    pid: int
    start_ticks: int
    boot_id: str | None


SHARED_FOLDER = SHARED_REGISTRY
USER_FOLDER = f"/run/user/{{uid}}/{REGISTRY}"
"""`$XDG_RUNTIME_DIR` as systemd sets it; `{uid}` is the user of the process that is looked for."""

# Users of one machine who run something on its GPUs; beyond it their folders are looked up anew.
_MOST_USERS = 256


class Registry:
    """Reads registrations from `places`, each a folder, with `{uid}` for the user of the process.

    Files that have not changed are not read again.
    """

    def __init__(self, places: tuple[str, ...] = (SHARED_FOLDER, USER_FOLDER)) -> None:
        self._places = places
        self._folders: dict[str, _Folder] = {}

    def find(self, asker: Asker) -> str | None:
        """The experiment that a trustworthy registration gives `asker`; None where there is none."""
        for place in self._places:
            if found := self._folder(place.replace("{uid}", str(asker.uid))).find(asker):
                return found
        return None

    def _folder(self, path: str) -> _Folder:
        folder = self._folders.get(path)
        if folder is None:
            if len(self._folders) >= _MOST_USERS:
                self._folders.clear()
            folder = self._folders[path] = _Folder(Path(path))
        return folder


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._scanned_at: int | None = None
        self._files: dict[str, tuple[tuple[int, int, int], _Registration | None]] = {}

    def find(self, asker: Asker) -> str | None:
        """First by the name the SDK gives its file, which no flood of other files can hide."""
        try:
            changed = self._path.stat().st_mtime_ns
        except OSError:
            return None
        for pid in asker.pids:
            registration = self._read(f"{pid}-{asker.start_ticks}.json")
            if registration is not None and _is_for(registration, asker):
                return registration.experiment_id
        if changed != self._scanned_at:
            self._scan()
            self._scanned_at = changed
        for _, kept in self._files.values():
            if kept is not None and _is_for(kept, asker):
                return kept.experiment_id
        return None

    def _scan(self) -> None:
        """Read what is new among the first files of the folder."""
        before, self._files = self._files, {}
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if len(self._files) >= _MOST_FILES:
                        break
                    if not entry.name.endswith(".json") or not entry.is_file(follow_symlinks=False):
                        continue
                    about = entry.stat(follow_symlinks=False)
                    mark = (about.st_ino, about.st_mtime_ns, about.st_size)
                    known = before.get(entry.name)
                    registration = known[1] if known and known[0] == mark else self._read(entry.name)
                    self._files[entry.name] = (mark, registration)
        except OSError:
            return  # removed meanwhile: the next look begins anew

    def _read(self, name: str) -> _Registration | None:
        """One file, if it is a plain small one; links, pipes and devices are never opened for reading."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path / name, flags)
        except OSError:
            return None
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_size > _LONGEST_FILE:
                return None
            content = os.read(descriptor, _LONGEST_FILE)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return _parse(content, about.st_uid)


def _parse(content: bytes, owner: int) -> _Registration | None:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    experiment_id, boot_id = said.get("experiment_id"), said.get("boot_id")
    pid, start_ticks = said.get("pid"), said.get("start_ticks")
    if not isinstance(experiment_id, str) or not EXPERIMENT_ID.fullmatch(experiment_id):
        return None
    if not isinstance(pid, int) or not isinstance(start_ticks, int):
        return None
    if boot_id is not None and not isinstance(boot_id, str):
        return None
    return _Registration(owner, experiment_id, pid, start_ticks, boot_id)


def _is_for(registration: _Registration, asker: Asker) -> bool:
    return (
        registration.owner == asker.uid
        and registration.pid in asker.pids
        and registration.start_ticks == asker.start_ticks
        and (registration.boot_id is None or asker.boot_id is None or registration.boot_id == asker.boot_id)
    )
