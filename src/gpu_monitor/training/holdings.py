# SPDX-License-Identifier: MIT
"""What an experiment's own records say it holds: media records of some kinds, from all its segments.

Segments only grow, so each reading goes on where the one before stopped; lines of other kinds are not decoded.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpu_monitor.training.place import segments_in
from gpu_monitor.wire.training import RECORD_BYTES, BadRecord, Header, Media, decode

_MEDIA = b'["m",'


@dataclass(frozen=True)
class Held:
    """One media record, with the segment that says it and when (UTC epoch seconds)."""

    segment: str
    time: float
    media: Media


@dataclass
class _Position:
    """How far a segment was read, and when it started (None: its header was not read yet)."""

    offset: int = 0
    started: float | None = None
    held: list[Held] = field(default_factory=list)


class Holdings:
    """The media records of some kinds in one experiment's folder. Safe for threads, and after a fork."""

    def __init__(self, folder: Path, kinds: frozenset[str]) -> None:
        self.folder = folder
        self._kinds = kinds
        self._positions: dict[str, _Position] = {}
        self._mutex = threading.Lock()
        self._readers: set[int] = set()
        self._process = os.getpid()

    def read(self) -> list[Held]:
        """All that whole records say now, each segment's in its order. A folder that is not there holds nothing."""
        if self._process != os.getpid():
            self._mutex, self._readers, self._process = threading.Lock(), set(), os.getpid()
        thread = threading.get_ident()
        if (
            thread in self._readers
        ):  # a signal handler, in the middle of a read of this thread: it reads for itself
            return Holdings(self.folder, self._kinds).read()
        self._readers.add(thread)
        try:
            with self._mutex:
                return self._read()
        finally:
            self._readers.discard(thread)

    def _read(self) -> list[Held]:
        for path in segments_in(self.folder):
            # A segment that vanishes now (its experiment is being deleted) holds what was read.
            with contextlib.suppress(FileNotFoundError):
                self._read_on(path)
        return [held for name in sorted(self._positions) for held in self._positions[name].held]

    def _read_on(self, path: Path) -> None:
        position = self._positions.setdefault(path.stem, _Position())
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= position.offset:
                return
            file.seek(position.offset)
            left = b""
            while chunk := file.read(RECORD_BYTES):
                data = left + chunk
                end = data.rfind(b"\n") + 1
                left = data[end:]
                if end:
                    self._take(path.stem, position, data[:end])
                    position.offset += end

    def _take(self, segment: str, position: _Position, data: bytes) -> None:
        if position.started is None:
            position.started = _started(data[: data.find(b"\n") + 1])
        for line in _media_lines(data):
            with contextlib.suppress(BadRecord):
                record = decode(line)
                if isinstance(record, Media) and record.kind in self._kinds:
                    position.held.append(Held(segment, position.started + record.at / 1000, record))


def _media_lines(data: bytes) -> Iterator[bytes]:
    """The lines in `data`, which holds whole ones, that say they are media."""
    at = 0
    while True:
        if not data.startswith(_MEDIA, at):
            at = data.find(b"\n" + _MEDIA, at) + 1
            if not at:
                return
        end = data.find(b"\n", at) + 1
        yield data[at:end]
        at = end


def _started(line: bytes) -> float:
    """When the segment that begins with this line started; 0.0 where its header is damaged."""
    try:
        header = decode(line)
    except BadRecord:
        return 0.0
    return header.about.started if isinstance(header, Header) else 0.0
