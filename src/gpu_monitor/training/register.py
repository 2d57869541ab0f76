# SPDX-License-Identifier: MIT
"""Registers a run on its machine, so that an agent knows whose GPUs it uses and sees when it vanishes.

A small file, `<pid>-<start ticks>.json`, in a folder that the service makes for everybody, else in one of the user's
own. Nothing in it is believed that the kernel does not confirm. Children know the experiment by their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_monitor.config.load import environment, set_environment
from gpu_monitor.config.training import EXPERIMENT_ID, REGISTRY, SHARED_REGISTRY, own_directories, state_place
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.training.identity import Process, find_process, start_ticks
from gpu_monitor.training.parts import Options
from gpu_monitor.training.recorder import Recorder

MOST_BYTES = 4096
"""A longer file is no registration for whoever reads it."""
_FOLDER = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_MOST_OLD, _OLD_SECONDS = 200, 7 * 86400.0
"""Files that are looked at in the user's own folder, and the age at which one of a vanished run goes."""


class Registration:
    """A run's registration, from its making to `close`. A process that is killed leaves its file: that is its use."""

    def __init__(self, experiment_id: str, path: Path | None) -> None:
        self.path = path
        self._experiment_id = experiment_id
        self._pid = os.getpid()
        self._is_over = False
        self._before = environment(EXPERIMENT_ID)
        set_environment(EXPERIMENT_ID, experiment_id)

    def renew(self, about: dict[str, Any]) -> None:
        """Say this instead from now on; where that cannot be written, what was said stays."""
        if self.path is not None and os.getpid() == self._pid and not self._is_over:
            with contextlib.suppress(OSError):
                self.path = self.path.parent / _write(self.path.parent, self.path.stem, _encoded(about))

    def close(self, timeout: float) -> str | None:
        """Take the registration away; nothing of it is ever missed, so there are no words."""
        if os.getpid() != self._pid:
            return None
        self._is_over = True
        if environment(EXPERIMENT_ID) == self._experiment_id:
            set_environment(EXPERIMENT_ID, self._before)
        if self.path is not None:
            # Somebody may have tidied up, or another run of this process have taken the file over.
            with contextlib.suppress(OSError, ValueError):
                if json.loads(self.path.read_bytes())["experiment_id"] == self._experiment_id:
                    self.path.unlink()
        return None


def start(recorder: Recorder, options: Options) -> Registration:
    """Register the run of a recorder. Where no folder is to be had, its children know it all the same."""
    process = find_process()
    about = {
        "experiment_id": recorder.experiment_id,
        "pid": os.getpid(),
        "start_ticks": process.start_ticks,
        "boot_id": process.boot_id,
        "ns_pid": process.ns_pid,
        "pid_ns": process.pid_ns,
        "segment": recorder.segment,
        "folder": str(recorder.folder.absolute()),
        "name": recorder.run.name,
        "project": recorder.run.project,
        "server": options.settings.server,
    }
    made = Registration(recorder.experiment_id, register(about, process, folders(SystemClock().now())))
    recorder.on_move = lambda: made.renew({**about, "segment": recorder.segment})
    return made


def folders(now: float, shared: Path = Path(SHARED_REGISTRY), runtime: Path | None = None) -> Iterator[Path]:
    """Where a run may register, in order: the folder that the service made, then the user's own, which is made here."""
    if _is_shared(shared):
        yield shared
    if not hasattr(os, "getuid"):
        return
    if runtime is not None:
        yield from _folder(runtime, now)
        return
    for own in own_directories():
        yield from _folder(own, now)
    state = state_place()
    if state is not None:
        with contextlib.suppress(OSError):
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield from _folder(state, now)


def _folder(own: Path, now: float) -> Iterator[Path]:
    """The folder in a directory of the user's own; none in another's, or where it cannot be made."""
    place = own / REGISTRY
    with contextlib.suppress(OSError):
        if own.stat().st_uid == os.getuid():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            _tidy(place, now)
            yield place


def register(about: dict[str, Any], process: Process, places: Iterator[Path]) -> Path | None:
    """Write the file into the first folder that takes it; its path, None where none does or there is no /proc."""
    if process.start_ticks is None:
        return None
    data = _encoded(about)
    name = f"{about['pid']}-{process.start_ticks}"
    for folder in places:
        with contextlib.suppress(OSError):
            return folder / _write(folder, name, data)
    return None


def _encoded(about: dict[str, Any]) -> bytes:
    """JSON that fits; names and paths go first where they are too long, never what names the process."""
    known = {key: value for key, value in about.items() if value is not None}
    for key in ("", "name", "project", "folder"):
        known.pop(key, None)
        data = json.dumps(known).encode()
        if len(data) <= MOST_BYTES:
            break
    return data


def _write(folder: Path, name: str, data: bytes) -> str:
    """Write a file so that it is there whole or not at all; its name. Other users may write into the folder, too."""
    place = os.open(folder, _FOLDER)
    try:
        new = f".{name}.{os.urandom(6).hex()}"
        file = os.open(new, _NEW, 0o644, dir_fd=place)
        try:
            try:
                os.write(file, data)
            finally:
                os.close(file)
            return _renamed(place, new, name)
        except OSError:
            os.unlink(new, dir_fd=place)
            raise
    finally:
        os.close(place)


def _renamed(place: int, new: str, name: str) -> str:
    """Give the file its name; another where somebody else's file has that one: readers look at all."""
    for final in (f"{name}.json", f"{name}-{os.urandom(4).hex()}.json"):
        try:
            os.rename(new, final, src_dir_fd=place, dst_dir_fd=place)
        except PermissionError:
            continue
        return final
    raise PermissionError(f"somebody else has {name}.json")


def _is_shared(folder: Path) -> bool:
    """Whether a folder is one for everybody, in which nobody may take away another's file but the service, whose it is.

    Only root makes folders in /run, so there is nobody else whose it could be.
    """
    try:
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and stat.S_IMODE(about.st_mode) & 0o1777 == 0o1777


def _tidy(folder: Path, now: float) -> None:
    """Take away what runs left here that were killed long ago. A young one is an agent's to look at, and a process
    that is not seen here may live in another pid namespace."""
    with os.scandir(folder) as entries:
        for _, entry in zip(range(_MOST_OLD), entries, strict=False):
            pid, _, ticks = entry.name.removesuffix(".json").partition("-")
            is_old = now - entry.stat(follow_symlinks=False).st_mtime > _OLD_SECONDS
            if is_old and pid.isdecimal() and ticks.isdecimal() and start_ticks(int(pid)) != int(ticks):
                Path(entry.path).unlink()
