# SPDX-License-Identifier: MIT
"""Uploads one segment of an experiment from its file on disk, a request a step.

Nothing of its writer is needed, nor touched: the file only ever grows. `seg-*.sent` remembers how far each server
holds it (`sent`). That is a cache: what the server says counts. It is never taken at its word for bytes that were
not sent: where it holds more than is known here, all of that is sent once more, and it compares.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_monitor.sinks.blobs import Blob, BlobSender, blob_of, open_plain, read_at
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.sinks.sent import OWED, Sent, crc32_of, read_sent, write_sent
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
_TAIL_BYTES = 64
"""Of what was sent last, compared before more is sent: a line's check is among them."""


class SegmentSender:
    """Brings a segment to a server. One thread.

    `held`: bytes the server is known to hold, as they are here. `problem`: why the rest cannot go as it is; None
    while it may. `mend`: of one that is being written: asked to put the file in order, before what was read of it is
    sent, and when it is gone, shorter or another than what was sent.
    """

    def __init__(
        self,
        server: ExperimentServer,
        blobs: BlobSender,
        path: Path,
        *,
        trusts_cache: bool = True,
        mend: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.experiment_id = path.parent.name
        self.segment = path.stem
        self.problem: str | None = None
        self._server = server
        self._blobs = blobs
        self._mend = mend
        self._limit = RECORD_BYTES
        self._jumps = 0
        self._was_refused = False
        self._saved = read_sent(path).get(server.base)
        known = self._saved if trusts_cache else None
        self.held = known.offset if known else 0
        self.least = self.held
        """The least that the server has said to hold, where it was less than was remembered."""
        self.there = 0
        """The most that the server has said to hold: more than the file has, where that was cut short."""
        self.is_deleted_there = False
        """The server says that the experiment was deleted there: it takes nothing of it any more, and is owed nothing."""
        self.is_end_told = known is not None and known.is_end_told
        """Whether the server was told that the segment's writer vanished."""
        self.is_other = False
        """Whether the file was found to be another than the one that was uploaded: cut short, or changed."""
        self._crc = known.crc32 if known else 0
        self._tail = b""
        self._is_checked = self.held == 0
        self._due: deque[int] = deque(known.owed if known else ())
        self._owed: dict[int, str] = {}
        self._seen_to = 0
        """Records up to here went before: of their files it is known what became of them."""
        self._face: tuple[int, int] | None = None

    @property
    def owed_files(self) -> set[str]:
        """The files that records name which the server holds, and that it does not hold: digests, or where the record
        begins where it was not looked at yet."""
        return {*self._owed.values(), *(f"{self.segment}@{place}" for place in self._due)}

    @property
    def has_files_to_send(self) -> bool:
        """Whether records went whose files are still to be sent."""
        return bool(self._due)

    def look_again(self) -> None:
        """Have the next step send the last line that the server is remembered to hold once more.

        What it answers says how far it holds the segment now: it may have been restored to an earlier day.
        """
        if not self.held or not self._check():
            return
        try:
            begin = max(0, self.held - RECORD_BYTES)
            before = self._bytes(begin, self.held - begin)
        except OSError:
            return  # the next step says so
        self._seen_to = self.held
        self._go_to(begin + before.rfind(b"\n", 0, len(before) - 1) + 1)

    def try_files_again(self) -> None:
        """Have the next steps ask once more for the files that are owed."""
        self._due.extend(place for place in self._owed if place not in self._due)
        self._owed.clear()

    def size(self) -> int:
        """Bytes of the file now, a torn tail included; 0 where it is gone."""
        return size_of(self.path)

    def left(self) -> int:
        """Bytes of whole lines that the server is not known to hold; a torn tail is nobody's."""
        start, last, end = self.held, self.held, self.size()
        try:
            while start < end and (data := self._bytes(start, RECORD_BYTES)):
                found = data.rfind(b"\n") + 1
                last = start + found if found else last
                start += len(data)
        except OSError:
            return max(0, end - self.held)
        return last - self.held

    def step(self) -> Told | None:
        """Send what is next, one request at most: records first, files where there are none to send.

        None where the server holds every whole line and all that can be had of its files, or `problem` says why not.
        """
        if not self._is_in_order():
            return None
        try:
            piece = self._read()
        except OSError as error:
            self._refuse(f"{self.path.name} cannot be read: {error.strerror or error}")
            return None
        if not piece:
            return self._owed_file() if self.problem is None else None
        if not self._is_genuine(piece):
            return Told(Meaning.ELSEWHERE, self.held)
        return self._answered(
            piece, self._server.put_segment(self.experiment_id, self.segment, self.held, piece)
        )

    def note_end_told(self) -> None:
        """The server has taken note that the segment's writer vanished: remember it on disk."""
        self.is_end_told = True
        self.save()

    def save(self) -> None:
        """Remember on disk how far the server holds it; where that cannot be written, it is asked anew next time."""
        if not self._is_checked or (self.is_other and self.problem is not None):
            return  # what is remembered says each time that the file is another one now
        owed = sorted({*self._owed, *self._due})
        is_known = self.held > 0 and len(owed) <= OWED
        now = Sent(self.held, self._crc, tuple(owed), self.is_end_told) if is_known else None
        if now == self._saved:
            return
        others = {url: one for url, one in read_sent(self.path).items() if url != self._server.base}
        if write_sent(self.path, others if now is None else {**others, self._server.base: now}):
            self._saved = now

    # --- whether it is still the file that was sent ---------------------------------------------------------------

    def _is_in_order(self) -> bool:
        """Whether there may be something to send."""
        face = _face(self.path)
        if face is None:
            if self.held == 0 and self._face is None:
                return False  # not written yet
            face = self._mended()
            if face is None:
                self._refuse(f"{self.path.name} is gone")
                return False
        if self.problem is not None:
            if self.is_deleted_there or self._face is None:
                return False
            if face[0] == self._face[0] and face[1] >= self._face[1]:
                return False  # the same file, grown at most: its problem is the same
            self.problem, self._was_refused = None, False
            self._start_over()
        self._face = face
        if not self._is_checked:
            return self._check() or _face(self.path) is not None
        if face[1] < self.held:
            self._is_changed()
        return _face(self.path) is not None

    def _check(self) -> bool:
        """Whether the file still begins with what is remembered to be sent; where it does not, all is sent again."""
        if not self._is_checked:
            self._is_checked = True
            if crc32_of(self.path, self.held) != self._crc:
                self.is_other = True
                self._start_over()
                return False
            self._go_to(self.held)
        return True

    def _is_changed(self) -> None:
        """The file is no longer the one that was sent: have it put in order, and send all of it again."""
        self.is_other = True
        self._mended()
        self._start_over()

    def _is_genuine(self, piece: bytes) -> bool:
        """Whether what was just read is what its writer put there.

        A file that was cut before it was read is shorter than its writer knows, whatever was added since; asked now, the
        writer takes that away to a segment of its own. What it had to say must not be here, too.
        """
        if self._mend is None:
            return True
        self._mend()
        return self.size() >= self.held + len(piece)

    def _mended(self) -> tuple[int, int] | None:
        """Have the file put in order; its face then."""
        if self._mend is not None:
            self._mend()
        return _face(self.path)

    def _start_over(self) -> None:
        """Nothing of it is known to be held."""
        self._go_to(0)
        self._due.clear()

    def _go_to(self, offset: int) -> None:
        """The server is known to hold so much, not more than before or than the file has."""
        crc = crc32_of(self.path, offset)
        if crc is None:
            offset = crc = 0
        self.held, self._crc = offset, crc
        self._owed = {place: sha256 for place, sha256 in self._owed.items() if place < offset}
        try:
            first = max(0, offset - _TAIL_BYTES)
            self._tail = self._bytes(first, offset - first) if offset else b""
        except OSError:
            self._tail = b""

    def _refuse(self, why: str) -> None:
        """It cannot go on with the file as it is."""
        self.problem = why
        self._face = _face(self.path) or (-1, 0)

    # --- what is sent ---------------------------------------------------------------------------------------------

    def _bytes(self, start: int, size: int) -> bytes:
        descriptor = open_plain(self.path)
        try:
            return read_at(descriptor, size, start)
        finally:
            os.close(descriptor)

    def _read(self) -> bytes:
        """Whole lines from `held` on, as many as go in one request."""
        if self.size() <= self.held:
            return b""
        before = len(self._tail)
        data = self._bytes(self.held - before, before + self._limit)
        if data[:before] != self._tail:
            self._is_changed()
            before, data = 0, self._bytes(0, self._limit)
        data = data[before:]
        end = data.rfind(b"\n") + 1
        if not end and self._limit < RECORD_BYTES:
            # The server wanted less than one line at once.
            data = self._bytes(self.held, RECORD_BYTES)
            end = data.find(b"\n") + 1
        if not end and len(data) >= RECORD_BYTES:
            self._refuse(
                f"{self.path.name} is damaged at {self.held}: no line ends within {RECORD_BYTES} bytes"
            )
        return data[:end]

    def _blobs_in(self, piece: bytes) -> Iterator[tuple[int, Blob]]:
        """The files that records name, and where the records begin."""
        for place in _media_places(piece):
            end = piece.find(b"\n", place) + 1
            try:
                record = decode(piece[place:end])
            except BadRecord:
                continue
            blob = blob_of(record, self.path.parent) if isinstance(record, Media) else None
            if blob is not None:
                yield place, blob

    def _owed_file(self) -> Told | None:
        """Send, or ask for, the next file that a record names which went before; None where none is left."""
        while self._due:
            place = self._due[0]
            try:
                data = self._bytes(place, RECORD_BYTES) if place < self.held else b""
            except OSError as error:
                self._refuse(f"{self.path.name} cannot be read: {error.strerror or error}")
                return None
            blob = next((one for _, one in self._blobs_in(data[: data.find(b"\n") + 1])), None)
            if blob is not None and not self._blobs.is_settled(blob):
                return self._blobs.step(blob, self.path.parent)
            if blob is not None and blob.sha256 in self._blobs.problems:
                self._owed[place] = blob.sha256
            self._due.popleft()
        return None

    def _answered(self, piece: bytes, told: Told) -> Told:
        if told.meaning is Meaning.TOO_LARGE and piece.count(b"\n") > 1:
            self._limit = max(1, len(piece) // 2)
            return Told(Meaning.ELSEWHERE, self.held)
        if told.status == 422 and not self._was_refused:
            # What was damaged on its way is right the second time.
            self._was_refused = True
            return Told(Meaning.ELSEWHERE, self.held)
        if told.meaning in (Meaning.REFUSED, Meaning.TOO_LARGE):
            self._refuse(self._reason(told))
            self.is_deleted_there = told.status == 410
        if told.offset is None:
            return told
        self._was_refused = False
        return self._moved(piece, told, told.offset)

    def _reason(self, told: Told) -> str:
        if told.status != 422 or not (self.is_other or self.there > self.held):
            return told.text
        return (
            f"{self.path.name} is not what was uploaded any more, from byte {self.held:,} on: it was cut short or "
            f"changed here ({told.text.rstrip('.')})"
        )

    def _moved(self, piece: bytes, told: Told, offset: int) -> Told:
        """The server says how far it holds the segment. What it was not sent here is not taken for held."""
        self.there = max(self.there, offset)
        self.least = min(self.least, offset)
        before = self.held
        if offset < before:
            # It was brought back from an earlier day; its files may have been, too.
            self._go_to(offset)
            self._blobs.forget()
            self._seen_to = 0
            self.there, self.is_end_told = offset, False
            self._due = deque(self._media_before(offset))
            self._owed.clear()
        else:
            piece = piece[: offset - before]
            for place, blob in self._blobs_in(piece):
                if blob.sha256 in self._blobs.problems:
                    self._owed[before + place] = blob.sha256
                elif before + place >= self._seen_to and not self._blobs.is_settled(blob):
                    self._due.append(before + place)
            self.held, self._crc = before + len(piece), zlib.crc32(piece, self._crc)
            self._tail = (self._tail + piece)[-_TAIL_BYTES:]
        self._jumps = 0 if self.held > before else self._jumps + 1
        if self._jumps > _JUMPS:
            self._jumps = 0
            return Told(Meaning.LATER, text=f"{self._server.name} takes nothing of {self.path.name}")
        return told

    def _media_before(self, end: int) -> Iterator[int]:
        """Where the media records among the first `end` bytes begin."""
        start = 0
        while start < end:
            data = self._bytes(start, min(RECORD_BYTES, end - start))
            size = data.rfind(b"\n") + 1 or len(data)
            if not size:
                return
            yield from (start + place for place in _media_places(data[:size]))
            start += size


def _face(path: Path) -> tuple[int, int] | None:
    """Which file it is and its bytes; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size


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
