# SPDX-License-Identifier: MIT
"""Uploads the files that media records name: once per content, in pieces, from where the server stands."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.wire.training import RECORD_BYTES, SHA256, Media

_JUMPS = 3
"""Answers in a row that send us elsewhere without progress; more is no conversation."""
_SMALL = 64 << 10
"""Bytes of a file that is sent without asking whether it is held: the question would cost as much."""
_PLAIN = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)


@dataclass(frozen=True)
class Blob:
    """A file of an experiment. `path`: where it should lie. `may_go`: a policy may have removed it since."""

    sha256: str
    size: int
    path: Path
    may_go: bool = False


def blob_of(record: Media, folder: Path) -> Blob | None:
    """The file that a record names within the experiment's folder; None where it names none that may be read."""
    more: dict[str, Any] = record.more
    sha256, size, file = more.get("sha256"), more.get("size"), more.get("file")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256) or not isinstance(file, str):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return None
    parts = PurePosixPath(file).parts
    if not parts or file.startswith("/") or ".." in parts or "\\" in file or "\0" in file:
        return None
    return Blob(sha256, size, folder.joinpath(*parts), may_go=record.kind == "checkpoint")


def open_plain(path: Path, within: Path | None = None) -> int:
    """A descriptor of a plain file for reading; OSError for links, pipes, devices, and what links out of `within`."""
    if within is not None and not path.parent.resolve().is_relative_to(within.resolve()):
        raise OSError(f"{path} lies outside of {within}")
    descriptor = os.open(path, _PLAIN)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file")
    return descriptor


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes at an offset; fewer only at the end of the file. No lock of Python's is held meanwhile."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


class BlobSender:
    """Sends one file at a time, a request a step; remembers what the server holds. One thread.

    `problems`: files that were left out, and why; `sent_bytes` and `sent_files` count what went.
    """

    def __init__(self, server: ExperimentServer) -> None:
        self._server = server
        self._held: set[str] = set()
        self._blob: Blob | None = None
        self._offset = 0
        self._limit = RECORD_BYTES
        self._jumps = 0
        self._gone: set[str] = set()
        self.problems: dict[str, str] = {}
        self.sent_bytes = 0
        self.sent_files = 0

    def is_settled(self, blob: Blob) -> bool:
        """Whether the server holds it, or it cannot be sent at all."""
        return blob.sha256 in self._held or blob.sha256 in self.problems or blob.sha256 in self._gone

    def forget(self) -> None:
        """The server may have lost what it held: ask anew for each file."""
        self._held.clear()
        self._blob = None

    def try_again(self) -> None:
        """Send once more what was left out."""
        self.problems.clear()
        self._blob = None

    def step(self, blob: Blob, folder: Path) -> Told:
        """One request for a blob that is not settled; HELD once it is. `folder`: the experiment's, which it lies in."""
        if self._blob is None or self._blob.sha256 != blob.sha256:
            offset = 0
            if blob.size > _SMALL:
                told = self._server.find_blob(blob.sha256)
                if told.meaning is Meaning.HELD:
                    self._held.add(blob.sha256)
                if told.meaning is not Meaning.ELSEWHERE:
                    return self._refused(blob, told) if told.meaning is Meaning.REFUSED else told
                offset = told.offset or 0
            self._blob, self._offset, self._jumps = blob, offset, 0
        return self._put(blob, folder)

    def _put(self, blob: Blob, folder: Path) -> Told:
        try:
            descriptor = open_plain(blob.path, folder)
        except OSError as error:
            if blob.may_go and isinstance(error, FileNotFoundError):
                self._gone.add(blob.sha256)
                self._blob = None
                return Told(Meaning.HELD, text=f"{blob.path.name} was removed before it was sent")
            return self._leave(blob, f"{blob.path.name} cannot be read: {error.strerror or error}")
        try:
            if os.fstat(descriptor).st_size != blob.size:
                return self._leave(blob, f"{blob.path.name} was changed after it was logged")
            piece = read_at(descriptor, self._limit, self._offset)
        except OSError as error:
            return self._leave(blob, f"{blob.path.name} cannot be read: {error.strerror}")
        finally:
            os.close(descriptor)
        return self._answered(blob, piece, self._server.put_blob(blob.sha256, blob.size, self._offset, piece))

    def _answered(self, blob: Blob, piece: bytes, told: Told) -> Told:
        if told.meaning is Meaning.TOO_LARGE and len(piece) > 1:
            self._limit = max(1, len(piece) // 2)
            return Told(Meaning.ELSEWHERE, self._offset)
        if told.meaning in (Meaning.REFUSED, Meaning.TOO_LARGE):
            return self._refused(blob, told)
        if told.offset is None:
            return told
        before, self._offset = self._offset, min(told.offset, blob.size)
        self.sent_bytes += max(0, self._offset - before)
        self._jumps = 0 if self._offset > before else self._jumps + 1
        if told.offset >= blob.size and told.meaning is Meaning.HELD:
            self._held.add(blob.sha256)
            self._blob, self.sent_files = None, self.sent_files + 1
        elif self._jumps > _JUMPS:
            self._blob = None
            return Told(Meaning.LATER, text=f"{self._server.name} takes nothing of {blob.path.name}")
        return told

    def _refused(self, blob: Blob, told: Told) -> Told:
        return self._leave(blob, f"{blob.path.name}: {told.text}")

    def _leave(self, blob: Blob, why: str) -> Told:
        """Go on without this file: its record says what it was, and where it lies."""
        self.problems[blob.sha256] = why
        self._blob = None
        return Told(Meaning.HELD, text=why)
