# SPDX-License-Identifier: MIT
"""An experiment as its segments say it: read while it is written, by any process, in any state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.alive import is_gone
from gpu_monitor.training.order import turns_of
from gpu_monitor.training.pieces import DamagedIndex
from gpu_monitor.training.place import segments_in
from gpu_monitor.training.scan import Axis
from gpu_monitor.training.stored_segment import StoredSegment
from gpu_monitor.training.thinning import Thinned, bucketed, height_for
from gpu_monitor.wire.training import RAN, Alert, Capture, Media, Note, Text

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


@dataclass
class StoredExperiment:
    """An experiment as its segments say it. Everything is as it was at the last `refresh`."""

    folder: Path
    segments: list[StoredSegment] = field(default_factory=list)
    said: str | None = None
    """Which experiment a name meant, in words; None where it was asked for by its id."""

    def __post_init__(self) -> None:
        if self.segments:
            self._arrange()
        else:
            self.refresh()

    def _arrange(self) -> None:
        """Put the segments into the order of their begin."""
        turns = turns_of({one.log.stem: (one.started, one.summary.about) for one in self.segments})
        for one in self.segments:
            one.turn = turns[one.log.stem]
        self.segments.sort(key=lambda one: (one.turn.begin, one.turn.number, one.log.name))

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
        self.segments = fresh
        self._arrange()

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
            return last.last_heard
        return last.started + last.summary.status[1] / 1000

    @property
    def ending(self) -> dict[str, Any]:
        """What is known of its end: exit_code, signal, reason."""
        status = self.last.summary.status
        return {name: known for name, known in status[2].items() if name != RAN} if status else {}

    @property
    def seconds(self) -> float | None:
        """How long it took from its begin to its end; None while it runs, and where its clocks do not tell."""
        return None if self.clock_trouble is not None else self._span()

    @property
    def clock_trouble(self) -> str | None:
        """Why it is not known how long it took, of one that has ended; None where it is known."""
        span = self._span()
        if span is None:
            return None
        if len(self.segments) == 1 and self.last.ran is not None:
            return None
        leads = [one for one in self.segments if one.is_lead] or self.segments
        if span < 0 or any(one.behind > 0 or one.was_set for one in leads):
            return "a clock was set while it ran, or between its starts"
        return None

    def _span(self) -> float | None:
        """From the first begin to the end, by the clocks as they were; of the last segment by one that nobody sets."""
        last, ended = self.last, self.ended
        if ended is None:
            return None
        return (ended if last.ran is None else last.started + last.ran) - self.started

    @property
    def reach(self) -> tuple[str, int]:
        """The segment whose records reach furthest, and its last time, ms since its start."""
        furthest = max(self.segments, key=_reached)
        return furthest.log.stem, furthest.summary.latest

    @property
    def last_step(self) -> int | None:
        """The step that the training logged last; None before the first."""
        known = [
            (one.is_lead, one.turn.begin + (one.summary.last_at or 0) / 1000, place, one.summary.last_step)
            for place, one in enumerate(self.segments)
            if one.summary.last_step is not None
        ]
        return max(known, key=lambda one: one[:3])[3] if known else None

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
        """How many lines of its logs hold no record: torn (the last one too, once its writer is gone), or damaged."""
        return sum(one.damaged for one in self.segments)

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
            (one.behind, Timed(one.started + record.at / 1000, record))
            for one in self.segments
            for record in one.records(kind)
            if isinstance(record, of)
        ]
        if len(self.segments) > 1:
            found.sort(key=lambda one: one[0] + one[1].time)
        return [one for _, one in found]

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
        parts = [(one, column) for one in self.segments if (column := one.column(name)) is not None]
        if len(parts) == 1:
            started, column = parts[0][0].started, parts[0][1]
            axis = column.axis
            return Columns(list(axis.steps), _times(started, axis), list(column.values))
        step = [number for _, column in parts for number in column.axis.steps]
        time = [moment for one, column in parts for moment in _times(one.started, column.axis)]
        value = [number for _, column in parts for number in column.values]
        moments = time
        if any(one.behind for one, _ in parts):
            moments = [moment for one, column in parts for moment in _times(one.turn.begin, column.axis)]
        if any(later < earlier for earlier, later in itertools.pairwise(moments)):
            order = sorted(range(len(time)), key=moments.__getitem__)
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


def _reached(segment: StoredSegment) -> tuple[float, int]:
    return segment.turn.begin + segment.summary.latest / 1000, segment.turn.number


def _times(started: float, axis: Axis) -> list[float]:
    base = axis.base
    return [started + (at + base) / 1000 for at in axis.ats]
