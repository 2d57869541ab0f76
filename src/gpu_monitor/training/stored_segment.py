# SPDX-License-Identifier: MIT
"""One segment as it lies on disk: read while it is written, by any process, in any state."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gpu_monitor.training import index as indexing
from gpu_monitor.training.alive import is_gone
from gpu_monitor.training.bytes_at import read_at
from gpu_monitor.training.order import Turn
from gpu_monitor.training.pieces import FIRST, DamagedIndex, Level, Piece, level_above, level_of
from gpu_monitor.training.scan import Batch, Column, Scanner, Summary
from gpu_monitor.wire.training import RAN, AnyRecord, BadRecord, decode

EXTEND_BYTES = 1 << 16
"""An index is extended by so much of the log at least: less is read in two milliseconds."""
_CHUNK = 8 << 20
_SLACK_SECONDS = 1.0
"""So far apart two clocks, or the times of records of several threads, are without one having been set."""
_SLEWED = 1_000
"""A clock that is made to run right is off by one second in so many at most (500 ppm, RFC 5905)."""
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""A named pipe of that name would be waited for until somebody writes to it."""
_Held = tuple[indexing.Block, Piece]


class StoredSegment:
    """One segment: its summary, its points, and where its other records are. `refresh` reads what came since."""

    def __init__(self, log: Path, *, may_write: bool = True) -> None:
        self.log = log
        self.summary = Summary()
        self.changed = 0.0
        """When the log was last written to, UTC epoch seconds."""
        self.turn = Turn(0.0, 0)
        """Where it stands among the others of its experiment, which sets it."""
        self._size = 0
        self._may_write = may_write
        self._may_read_index = True
        """False: the one that lies there is damaged, and not this user's to replace."""
        self._index: indexing.Index | None = None
        self._tail = Batch(0, 0)
        self.refresh()

    @property
    def started(self) -> float:
        """When the segment began, UTC epoch seconds; where its header is lost, when its log was last written to."""
        about = self.summary.about
        return about.started if about else self.changed

    @property
    def last_heard(self) -> float:
        """When its last points were logged, UTC epoch seconds: a file's own time, which stands in for it where there are
        none, changes when it is copied."""
        if self.summary.about and self.summary.latest > 0:
            return self.started + self.summary.latest / 1000
        return max(self.started, self.changed)

    @property
    def behind(self) -> float:
        """Seconds that its clock was behind those of segments that came before, as far as that is known; else 0.0."""
        return self.turn.begin - self.started

    @property
    def ran(self) -> float | None:
        """Seconds from its begin to its end by a clock that nobody sets; None where its end does not say so."""
        found = self.summary.status[2].get(RAN) if self.summary.status else None
        is_known = isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found < math.inf
        return float(found) if is_known and found is not None else None

    @property
    def damaged(self) -> int:
        """How many of its lines hold no record; with a last one that is torn, once nobody is there to complete it."""
        return self.summary.damaged + (self._size > self._tail.end and not self._is_written())

    def _is_written(self) -> bool:
        """Whether somebody may still be writing it."""
        said = self.summary.status[0] if self.summary.status else "running"
        about = self.summary.about
        return said == "running" and not is_gone(self.log, about.writer if about else None)

    @property
    def was_set(self) -> bool:
        """Whether its wall clock is known to have been set while it ran."""
        status, ran = self.summary.status, self.ran
        at = status[1] if status and status[0] != "running" else None
        is_back = (self.changed - self.started) * 1000 if at is None else at
        if self.summary.latest - is_back > _SLACK_SECONDS * 1000:
            return True
        return at is not None and ran is not None and abs(at / 1000 - ran) > _SLACK_SECONDS + ran / _SLEWED

    @property
    def is_lead(self) -> bool:
        """Whether it speaks for the whole run: of rank 0 or none, and forked from nobody."""
        about = self.summary.about
        return about is not None and about.parent is None and about.writer.rank in (None, 0)

    def refresh(self) -> None:
        """Read what was written since the last look; the index grows along where this user may write it."""
        file = os.open(self.log, _READ)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(f"{self.log} is no file")
            self.changed, self._size = found.st_mtime, found.st_size
            if found.st_size < self._tail.end:
                self._index, self._tail, self.summary = None, Batch(0, 0), Summary()
            if self._tail.end == 0:
                self._begin(file, found.st_size)
            self._read_on(file, found.st_size)
        finally:
            os.close(file)

    def _begin(self, file: int, size: int) -> None:
        if not self._may_read_index:
            return
        self._index = indexing.open_index(self.log, file, size)
        if self._index is not None:
            directory = self._index.directory
            self.summary = directory.summary
            self._tail = Batch(directory.covered, directory.covered)

    def _read_on(self, file: int, size: int) -> None:
        length = _CHUNK
        while self._tail.end < size:
            data = read_at(file, length, self._tail.end)
            batch = Scanner(self.summary).scan(data, self._tail.end)
            if batch.end == batch.start:
                if len(data) < length:
                    return
                length *= 2  # a stretch without a newline: no line is so long, but the next one may be whole
                continue
            self._tail = indexing.join([self._tail, batch])
            if self._may_write and self._tail.end - self._tail.start >= EXTEND_BYTES:
                self._extend(file, size)

    def _extend(self, file: int, size: int) -> None:
        seal = indexing.seal_of(file, self._tail.end)
        if not indexing.extend(self.log, self._index, self._tail, self.summary, seal):
            self._may_write = False
            return
        fresh = indexing.open_index(self.log, file, size)
        if fresh is not None and fresh.directory.covered == self._tail.end:
            self._index, self._tail = fresh, Batch(self._tail.end, self._tail.end)

    def column(self, name: str) -> Column | None:
        """The points of a series; None where it has none."""
        found = [self._points(part) for part in self._parts(name)]
        return indexing.join_columns(found) if found else None

    def count(self, name: str) -> int:
        """How many points a series has."""
        return sum(
            len(part.values) if isinstance(part, Column) else part[1].count for part in self._parts(name)
        )

    def levels(self, name: str, height: int | None) -> list[Level]:
        """Entries of the pyramid, in order; single points with `height` None."""
        return [self._level(part, height) for part in self._parts(name)]

    def _level(self, part: _Held | Column, height: int | None) -> Level:
        if not isinstance(part, Column) and height is not None:
            block, piece = part
            index = self._open_index()
            axis = index.table(block).axes[piece.axis]
            for lower in range(height, -1, -1):
                level = level_of(axis, piece, index.read, lower)
                if level is not None:
                    return level
        return level_above(self._points(part), 1 if height is None else FIRST)

    def _points(self, part: _Held | Column) -> Column:
        return part if isinstance(part, Column) else self._open_index().column(*part)

    def _open_index(self) -> indexing.Index:
        if self._index is None:
            raise DamagedIndex("there is no index any more")
        return self._index

    def _parts(self, name: str) -> list[_Held | Column]:
        """Pieces in the index, then the points after it."""
        try:
            series = self.summary.names.index(name)
        except ValueError:
            return []
        found: list[_Held | Column] = []
        if self._index is not None:
            for block in self._index.directory.blocks:
                piece = self._index.table(block).pieces.get(series)
                if piece is not None:
                    found.append((block, piece))
        if series in self._tail.columns:
            found.append(self._tail.columns[series])
        return found

    def records(self, kind: str) -> Iterator[AnyRecord]:
        """The records of a kind (scan.KINDS) in order; what was damaged since is left out."""
        places: list[tuple[int, int]] = []
        if self._index is not None:
            for block in self._index.directory.blocks:
                places += self._index.table(block).places.get(kind, [])
        places += self._tail.places.get(kind, [])
        if not places:
            return
        file = os.open(self.log, _READ)
        try:
            for offset, length in places:
                try:
                    yield decode(read_at(file, length, offset))
                except BadRecord:
                    continue
        finally:
            os.close(file)

    def forget_index(self) -> None:
        """Read the log itself, for the index turned out to be damaged; it is made again where this user may."""
        self._index, self._tail, self.summary = None, Batch(0, 0), Summary()
        try:
            if self._may_write:
                indexing.index_path(self.log).unlink(missing_ok=True)
        except OSError:
            self._may_write = False
        self._may_read_index = self._may_write
        self.refresh()
