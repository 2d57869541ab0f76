"""Uploads what a vanished run of the agent's own user left on disk, a request at a time, as far as it goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning
from gpu_monitor.sinks.patience import Patience
from gpu_monitor.sinks.segments import SegmentSender, segment_files
from gpu_monitor.sources.host.registrations import Registration

PACE_SECONDS = 0.2
"""Between two requests: 5 MiB/s at most, so that what runs beside it keeps its line."""
MOST_BYTES = 256 << 20
"""Of one run; what is beyond it is left to `gpu_monitor sync` and the run's next start."""
_TRIES = 4


class RunUpload:
    """One run's folder on its way to a server. One thread."""

    def __init__(self, server: ExperimentServer, folder: Path) -> None:
        self._server = server
        self._blobs = BlobSender(server)
        self._senders = [SegmentSender(server, self._blobs, path) for path in _own_files(folder)]
        self._patience = Patience()
        self._begun = sum(sender.held for sender in self._senders)

    def step(self) -> float | None:
        """One request; seconds until the next, None where no more goes: all is there, or it cannot be."""
        while self._senders:
            sender = self._senders[0]
            told = sender.step()
            if told is None or told.meaning is Meaning.ABSENT:
                sender.save()
                self._senders.pop(0)
                continue
            if told.is_for_all:
                pause = self._patience.failed(told)
                if told.meaning is Meaning.UNAUTHORISED or self._patience.failures >= _TRIES:
                    break
                return pause
            self._patience.succeeded()
            if sender.held + self._blobs.sent_bytes - self._begun > MOST_BYTES:
                break
            return PACE_SECONDS
        for sender in self._senders:
            sender.save()
        self._server.close()
        return None


def open_upload(one: Registration, open_server: Callable[[], ExperimentServer | None]) -> RunUpload | None:
    """The upload of what a run left; None where it is another user's, its folder is none, or there is no server."""
    folder = _own_folder(one)
    if folder is None or not _own_files(folder):
        return None
    server = open_server()
    return None if server is None else RunUpload(server, folder)


def _own_folder(one: Registration) -> Path | None:
    """The run's folder where file and folder belong to our own user, and no link stands in for it."""
    if one.folder is None or not hasattr(os, "getuid") or one.owner != os.getuid():
        return None
    folder = Path(one.folder)
    if not folder.is_absolute() or ".." in folder.parts or folder.name != one.experiment_id:
        return None
    return folder if _is_own(folder, stat.S_ISDIR) else None


def _own_files(folder: Path) -> list[Path]:
    return [path for path in segment_files(folder) if _is_own(path, stat.S_ISREG)]


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    return is_kind(about.st_mode) and about.st_uid == os.getuid()
