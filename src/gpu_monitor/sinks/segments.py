# SPDX-License-Identifier: MIT
"""Uploads one segment of an experiment from its file on disk, a request a step.

Nothing of its writer is needed, nor touched: the file only ever grows. `seg-*.sent` remembers how far each server
holds it, and whether it was told that the writer is gone. That is a cache: what the server says counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpu_monitor.sinks.blobs import Blob, BlobSender, blob_of, open_plain, read_at
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.wire.training import (
    EXPERIMENT_ID,
    RECORD_BYTES,
    SEGMENT,
    BadRecord,
    Header,
    Media,
    decode,
)

_JUMPS = 3
_MEDIA = b'["m",'
_HEADER_BYTES = 64 * 1024
_SENT_BYTES = 64 * 1024
_TOLD = "#ended"
"""After a server's address, which has no fragment: it was told that the writer is gone."""


class SegmentSender:
    """Brings a segment to a server. One thread.

    `held`: bytes the server is known to hold. `problem`: why the rest can never go as it is; None while it may.
    """

    def __init__(
        self, server: ExperimentServer, blobs: BlobSender, path: Path, *, trusts_cache: bool = True
    ) -> None:
        self.path = path
        self.experiment_id = path.parent.name
        self.segment = path.stem
        self.problem: str | None = None
        self._server = server
        self._blobs = blobs
        self._limit = RECORD_BYTES
        self._jumps = 0
        self._was_refused = False
        self._sent = read_sent(path)
        self._saved = self._sent.get(server.base, 0)
        self.held = self._saved if trusts_cache else 0
        self.least = self._saved
        """The least that the server has said to hold, where it was less than was remembered."""
        self.is_deleted_there = False
        """The server says that the experiment was deleted there: it takes nothing of it any more, and is owed nothing."""
        self.is_end_told = trusts_cache and self._told_key in self._sent
        """Whether the server took note that the writer is gone, as far as is known here."""

    @property
    def _told_key(self) -> str:
        return f"{self._server.base}{_TOLD}"

    def note_end_told(self) -> None:
        """Remember on disk that the server took note of its writer's end."""
        self.is_end_told = True
        if self._told_key not in self._sent:
            self._sent[self._told_key] = self.held
            self._write()

    def look_again(self) -> None:
        """Have the next step send the last line that the server is remembered to hold once more.

        What it answers says how far it holds the segment now: it may have been restored to an earlier day.
        """
        if not 0 < self.held <= self.size():
            self.held = 0
            return
        try:
            descriptor = open_plain(self.path)
        except OSError:
            return  # the next step says so
        try:
            begin = max(0, self.held - RECORD_BYTES)
            before = read_at(descriptor, self.held - begin, begin)
        finally:
            os.close(descriptor)
        self.held = begin + before.rfind(b"\n", 0, len(before) - 1) + 1

    def size(self) -> int:
        """Bytes of the file now, a torn tail included; 0 where it is gone."""
        return size_of(self.path)

    def step(self) -> Told | None:
        """Send what is next, one request at most; None where the server holds every whole line, or `problem` says why not."""
        if self.problem is not None or self.size() <= self.held:
            return None
        try:
            piece = self._read()
        except OSError as error:
            self.problem = f"{self.path.name} cannot be read: {error.strerror or error}"
            return None
        if not piece:
            return None
        place, blob = self._first_blob(piece)
        if blob is not None and place == 0:
            return self._blobs.step(blob, self.path.parent)
        if blob is not None:
            piece = piece[:place]
        return self._answered(
            piece, self._server.put_segment(self.experiment_id, self.segment, self.held, piece)
        )

    def save(self) -> None:
        """Remember on disk how far the server holds it; where that cannot be written, it is asked anew next time."""
        if self.held == self._saved:
            return
        self._write()

    def _write(self) -> None:
        self._sent[self._server.base] = self.held
        new = self.path.with_suffix(f".sent.{os.getpid()}")
        with contextlib.suppress(OSError):
            new.write_bytes(msgspec.json.encode(self._sent) + b"\n")
            new.replace(sent_path(self.path))
            self._saved = self.held

    def _read(self) -> bytes:
        """Whole lines from `held` on, as many as go in one request."""
        descriptor = open_plain(self.path)
        try:
            data = read_at(descriptor, self._limit, self.held)
            end = data.rfind(b"\n") + 1
            if not end and self._limit < RECORD_BYTES:
                # The server wanted less than one line at once.
                data = read_at(descriptor, RECORD_BYTES, self.held)
                end = data.find(b"\n") + 1
        finally:
            os.close(descriptor)
        if not end and len(data) >= RECORD_BYTES:
            self.problem = (
                f"{self.path.name} is damaged at {self.held}: no line ends within {RECORD_BYTES} bytes"
            )
        return data[:end]

    def _first_blob(self, piece: bytes) -> tuple[int, Blob | None]:
        """Where the first record stands whose file the server may lack, and the file."""
        for place in _media_places(piece):
            try:
                record = decode(piece[place : piece.index(b"\n", place) + 1])
            except BadRecord:
                continue
            blob = blob_of(record, self.path.parent) if isinstance(record, Media) else None
            if blob is not None and not self._blobs.is_settled(blob):
                return place, blob
        return 0, None

    def _answered(self, piece: bytes, told: Told) -> Told:
        if told.meaning is Meaning.TOO_LARGE and piece.count(b"\n") > 1:
            self._limit = max(1, len(piece) // 2)
            return Told(Meaning.ELSEWHERE, self.held)
        if told.status == 422 and not self._was_refused:
            # What was damaged on its way is right the second time.
            self._was_refused = True
            return Told(Meaning.ELSEWHERE, self.held)
        if told.meaning in (Meaning.REFUSED, Meaning.TOO_LARGE):
            self.problem = told.text
            self.is_deleted_there = told.status == 410
        if told.offset is None:
            return told
        self._was_refused = False
        return self._moved(told, told.offset)

    def _moved(self, told: Told, offset: int) -> Told:
        size = self.size()
        if offset > size:
            self.problem = (
                f"{self._server.name} holds {offset} bytes of {self.path.name}, which has {size} here"
            )
            return told
        self.least = min(self.least, offset)
        if offset < self._saved:
            self._sent.pop(self._told_key, None)  # it lost what it held, and what it was told
            self.is_end_told = False
        self._jumps = 0 if offset > self.held else self._jumps + 1
        self.held = offset
        if self._jumps > _JUMPS:
            self._jumps = 0
            return Told(Meaning.LATER, text=f"{self._server.name} takes nothing of {self.path.name}")
        return told


def _media_places(piece: bytes) -> Iterator[int]:
    """Where lines of media records begin."""
    if piece.startswith(_MEDIA):
        yield 0
    place = piece.find(b"\n" + _MEDIA)
    while place >= 0:
        yield place + 1
        place = piece.find(b"\n" + _MEDIA, place + 1)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sent_path(path: Path) -> Path:
    """Where it is remembered what servers hold of a segment."""
    return path.with_suffix(".sent")


def read_sent(path: Path) -> dict[str, int]:
    """By server, the bytes of a segment that it held when that was written; empty where nothing usable is."""
    try:
        descriptor = open_plain(sent_path(path))
    except OSError:
        return {}
    try:
        return {
            url: offset
            for url, offset in msgspec.json.decode(
                os.read(descriptor, _SENT_BYTES), type=dict[str, int]
            ).items()
            if offset >= 0
        }
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}
    finally:
        os.close(descriptor)


def read_header(path: Path) -> Header | None:
    """What a segment says of itself; None where it has no header (yet)."""
    try:
        descriptor = open_plain(path)
    except OSError:
        return None
    try:
        line, end, _ = os.read(descriptor, _HEADER_BYTES).partition(b"\n")
        record = decode(line + end)
    except (OSError, BadRecord):
        return None
    finally:
        os.close(descriptor)
    return record if isinstance(record, Header) else None


def segment_files(folder: Path) -> list[Path]:
    """The segments of an experiment's folder, the one that began first at first; none where it is no such folder.

    What was said first is heard first: a server takes the name of a run from its first header.
    """
    if not EXPERIMENT_ID.fullmatch(folder.name):
        return []
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(".log") and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []
    paths = [folder / name for name in sorted(names) if SEGMENT.fullmatch(name[: -len(".log")])]
    return sorted(paths, key=_began) if len(paths) > 1 else paths


def _began(path: Path) -> float:
    """When a segment began, UTC epoch seconds; one without a header comes last."""
    header = read_header(path)
    return float("inf") if header is None else header.about.started
