# SPDX-License-Identifier: MIT
"""An experiment as it lies on disk, and one segment of it: read while it is written, by any process, in any state."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training import index as indexing
from gpu_monitor.training.alive import is_gone
from gpu_monitor.training.bytes_at import read_at
from gpu_monitor.training.pieces import FIRST, DamagedIndex, Level, Piece, level_above, level_of
from gpu_monitor.training.place import segments_in
from gpu_monitor.training.scan import Axis, Batch, Column, Scanner, Summary
from gpu_monitor.training.thinning import Thinned, bucketed, height_for
from gpu_monitor.wire.training import Alert, AnyRecord, BadRecord, Capture, Media, Note, Text, decode

EXTEND_BYTES = 1 << 16
"""An index is extended by so much of the log at least: less is read in two milliseconds."""
_CHUNK = 8 << 20
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


_Held = tuple[indexing.Block, Piece]
_Answer = TypeVar("_Answer")
_Kind = TypeVar("_Kind", Note, Media, Alert, Capture, Text)


@dataclass(frozen=True)
class Columns:
    """The points of a series in order of logging. `time`: UTC epoch seconds."""

    step: list[int]
    time: list[float]
    value: list[float]


@dataclass(frozen=True)
class Timed:
    """A record and when it was made, UTC epoch seconds."""

    time: float
    record: Any


class StoredSegment:
    """One segment: its summary, its points, and where its other records are. `refresh` reads what came since."""

    def __init__(self, log: Path, *, may_write: bool = True) -> None:
        self.log = log
        self.summary = Summary()
        self.changed = 0.0
        """When the log was last written to, UTC epoch seconds."""
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
    def is_lead(self) -> bool:
        """Whether it speaks for the whole run: of rank 0 or none, and forked from nobody."""
        about = self.summary.about
        return about is not None and about.parent is None and about.writer.rank in (None, 0)

    def refresh(self) -> None:
        """Read what was written since the last look; the index grows along where this user may write it."""
        file = os.open(self.log, _READ)
        try:
            found = os.fstat(file)
            self.changed = found.st_mtime
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


@dataclass
class StoredExperiment:
    """An experiment as its segments say it. Everything is as it was at the last `refresh`."""

    folder: Path
    segments: list[StoredSegment] = field(default_factory=list)
    said: str | None = None
    """Which experiment a name meant, in words; None where it was asked for by its id."""

    def __post_init__(self) -> None:
        if not self.segments:
            self.refresh()

    def refresh(self) -> None:
        """Read what was written since, and segments that are new. NothingFound where none is left."""
        held = {segment.log: segment for segment in self.segments}
        fresh = []
        for log in segments_in(self.folder):
            try:
                segment = held.get(log) or StoredSegment(log)
                if log in held:
                    segment.refresh()
            except FileNotFoundError:
                continue  # deleted between the look at the folder and the look into it
            fresh.append(segment)
        if not fresh:
            raise NothingFound(f"there is no experiment in {self.folder}")
        self.segments = sorted(fresh, key=lambda one: (one.started, one.log.name))

    @property
    def id(self) -> str:
        """The experiment's id: its folder's name."""
        return self.folder.name

    @property
    def name(self) -> str:
        """Its name; its id where no header was left whole."""
        return next((one.summary.about.name for one in self.segments if one.summary.about), self.id)

    @property
    def project(self) -> str:
        """Its project."""
        return next((one.summary.about.project for one in self.segments if one.summary.about), "default")

    @property
    def started(self) -> float:
        """When it first began, UTC epoch seconds."""
        return self.segments[0].started

    @property
    def last(self) -> StoredSegment:
        """The segment that speaks for the run: of those of rank 0 or none, the one that began last."""
        leads = [one for one in self.segments if one.is_lead] or self.segments
        return leads[-1]

    @property
    def status(self) -> str:
        """running, completed, failed, stopped, or crashed: it says that it runs, and its writer is gone."""
        last = self.last
        said = last.summary.status[0] if last.summary.status else "running"
        about = last.summary.about
        return "crashed" if said == "running" and is_gone(last.log, about.writer if about else None) else said

    @property
    def ended(self) -> float | None:
        """When it ended, UTC epoch seconds; of a crashed one, when it was last heard of. None while it runs."""
        last, status = self.last, self.status
        if status == "running":
            return None
        if status == "crashed" or last.summary.status is None:
            return last.changed
        return last.started + last.summary.status[1] / 1000

    @property
    def ending(self) -> dict[str, Any]:
        """What is known of its end: exit_code, signal, reason."""
        status = self.last.summary.status
        return dict(status[2]) if status else {}

    @property
    def last_step(self) -> int | None:
        """The step that the training logged last; None before the first."""
        known = [
            (one.is_lead, one.started + (one.summary.last_at or 0) / 1000, one.summary.last_step)
            for one in self.segments
            if one.summary.last_step is not None
        ]
        return max(known, key=lambda one: one[:2])[2] if known else None

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters; a later value of a name replaces."""
        return {name: value for one in self.segments for name, value in one.summary.params.items()}

    @property
    def tags(self) -> dict[str, str]:
        """Its tags."""
        merged = {key: value for one in self.segments for key, value in one.summary.tags.items()}
        return {key: value for key, value in merged.items() if value is not None}

    @property
    def simulated(self) -> bool:
        """Whether GPU readings of it are made up."""
        return any(one.summary.about is not None and one.summary.about.simulated for one in self.segments)

    @property
    def damaged(self) -> int:
        """How many lines of its logs hold no record: torn, or damaged on disk."""
        return sum(one.summary.damaged for one in self.segments)

    @property
    def points(self) -> int:
        """How many records of points it has."""
        return sum(one.summary.points for one in self.segments)

    @property
    def notes(self) -> list[Timed]:
        """Its notes (wire.training.Note), in order of time."""
        return self._timed("notes", Note)

    @property
    def media(self) -> list[Timed]:
        """Its pictures, histograms, tables, graphs, texts, artifacts, checkpoints and models (Media)."""
        return self._timed("media", Media)

    @property
    def alerts(self) -> list[Timed]:
        """Its alerts (Alert)."""
        return self._timed("alerts", Alert)

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out about the run by topic: git, command, packages ...; a later topic replaces."""
        return {
            topic: known
            for found in self._timed("facts", Capture)
            for topic, known in found.record.facts.items()
        }

    def texts(self, streams: Collection[str] | None = None) -> Iterator[Timed]:
        """Output and log text (Text), in order of time; of some streams (stdout, stderr, log) or all."""
        for found in self._timed("texts", Text):
            if streams is None or found.record.stream in streams:
                yield found

    def _timed(self, kind: str, of: type[_Kind]) -> list[Timed]:
        return self._sound(lambda: self._read_timed(kind, of))

    def _read_timed(self, kind: str, of: type[_Kind]) -> list[Timed]:
        found = [
            Timed(one.started + record.at / 1000, record)
            for one in self.segments
            for record in one.records(kind)
            if isinstance(record, of)
        ]
        return sorted(found, key=lambda one: one.time) if len(self.segments) > 1 else found

    def metric_names(self) -> list[str]:
        """The names of its metrics, sorted."""
        return sorted({name for one in self.segments for name in one.summary.names})

    def metric_facts(self, name: str) -> dict[str, Any]:
        """What is said of a metric: unit, source; empty for the training's own."""
        return next((one.summary.more[name] for one in self.segments if name in one.summary.more), {})

    def count(self, name: str) -> int:
        """How many values a metric has."""
        return self._sound(lambda: sum(one.count(name) for one in self.segments))

    def history(self, name: str) -> Columns:
        """Every point of a metric in order of logging; no points where there is no such metric."""
        return self._sound(lambda: self._history(name))

    def _history(self, name: str) -> Columns:
        parts = [(one.started, column) for one in self.segments if (column := one.column(name)) is not None]
        if len(parts) == 1:
            started, column = parts[0]
            axis = column.axis
            return Columns(list(axis.steps), _times(started, axis), list(column.values))
        step = [number for _, column in parts for number in column.axis.steps]
        time = [moment for started, column in parts for moment in _times(started, column.axis)]
        value = [number for _, column in parts for number in column.values]
        if any(later < earlier for earlier, later in itertools.pairwise(time)):
            order = sorted(range(len(time)), key=time.__getitem__)
            return Columns(
                [step[at] for at in order], [time[at] for at in order], [value[at] for at in order]
            )
        return Columns(step, time, value)

    def thinned(self, name: str, max_points: int = 1_000, axis: str = "step") -> Thinned:
        """A metric as at most `max_points` buckets, by step or by time (UTC epoch s), in order of logging."""
        return self._sound(lambda: self._thinned(name, max(1, max_points), axis))

    def _thinned(self, name: str, most: int, axis: str) -> Thinned:
        total = sum(one.count(name) for one in self.segments)
        if total <= most and most > 1:
            held = self._history(name)
            x = [float(step) for step in held.step] if axis == "step" else held.time
            return Thinned(x, held.value, held.value, held.value, False)
        if not total:
            return Thinned([], [], [], [], False)
        height = height_for(total, most)
        parts = [(one.started, level) for one in self.segments for level in one.levels(name, height)]
        return bucketed(parts, most, axis)

    def _sound(self, ask: Callable[[], _Answer]) -> _Answer:
        """An answer; where an index turns out to be damaged, from the logs themselves."""
        try:
            return ask()
        except DamagedIndex:
            for segment in self.segments:
                segment.forget_index()
            return ask()


def _times(started: float, axis: Axis) -> list[float]:
    base = axis.base
    return [started + (at + base) / 1000 for at in axis.ats]
