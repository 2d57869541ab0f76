# SPDX-License-Identifier: MIT
"""Content of media beside the segments: files named by their digest, whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.training.drafts import sync_folder

FOLDER = "media"
_DRAFT = ".tmp-"
_STALE_SECONDS = 86_400.0
"""A draft this old is no longer being written: whoever wrote it was killed."""
_ENDINGS = {
    "image/png": ".png",
    "text/plain; charset=utf-8": ".txt",
    "application/json": ".json",
    "application/vnd.plotly.v1+json": ".json",
}


@dataclass(frozen=True)
class Blob:
    """A stored file. `size` in bytes, `type` MIME, `file` relative to the experiment's folder."""

    sha256: str
    size: int
    type: str
    file: str

    def more(self) -> dict[str, Any]:
        """What a media record says of it."""
        return {"sha256": self.sha256, "size": self.size, "type": self.type, "file": self.file}


class Blobs:
    """The blobs in one experiment's folder. Any thread; several processes may write the same one at once."""

    def __init__(self, experiment: Path, clock: Clock | None = None) -> None:
        self._folder = experiment / FOLDER
        self._clock: Clock = clock or SystemClock()
        self._is_swept = False

    def put(self, content: bytes, type_: str) -> Blob:
        """Store `content`, once however often it is put. It is on the disk when this returns.

        OSError where it cannot be stored; nothing is left behind then.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{sha256}{_ENDINGS[type_]}"
        blob = Blob(sha256, len(content), type_, f"{FOLDER}/{name}")
        target = self._folder / name
        if _size(target) == len(content):
            return blob
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        draft = self._folder / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)
        return blob

    def _sweep(self) -> None:
        """Remove, once, what killed processes left."""
        if self._is_swept:
            return
        self._is_swept = True
        oldest = self._clock.now() - _STALE_SECONDS
        for path in self._folder.glob(f"{_DRAFT}*"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process removed it first


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
