"""Which experiment a process says it belongs to, by the files the SDK writes (design section 8).

A registration is a small JSON file in a folder everybody may write to, so nothing in it is believed
that the kernel does not confirm: its owner must be the process's user, and pid, start and boot must
be the process's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.config.training import REGISTRY, SHARED_REGISTRY
from gpu_monitor.sources.host.registrations import Registration, read_registration, scan_folder


@dataclass(frozen=True)
class Asker:
    """The process an experiment is looked for: its user, and the triple that names it on this host."""

    uid: int
    pids: tuple[int, ...]
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
        self._files: dict[str, Registration] = {}

    def find(self, asker: Asker) -> str | None:
        """First by the name the SDK gives its file, which no flood of other files can hide."""
        try:
            changed = self._path.stat().st_mtime_ns
        except OSError:
            return None
        for pid in asker.pids:
            registration = read_registration(self._path / f"{pid}-{asker.start_ticks}.json")
            if registration is not None and _is_for(registration, asker):
                return registration.experiment_id
        if changed != self._scanned_at:
            self._files = scan_folder(self._path, self._files)
            self._scanned_at = changed
        for kept in self._files.values():
            if _is_for(kept, asker):
                return kept.experiment_id
        return None


def _is_for(registration: Registration, asker: Asker) -> bool:
    return (
        registration.owner == asker.uid
        and registration.pid in asker.pids
        and registration.start_ticks == asker.start_ticks
        and (registration.boot_id is None or asker.boot_id is None or registration.boot_id == asker.boot_id)
    )
