# SPDX-License-Identifier: MIT
"""The segment that an event file becomes: the same events make the same bytes, and more events only append."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_monitor.training.names import LONGEST, cleaned
from gpu_monitor.training.tensorboard.events import Event
from gpu_monitor.wire.training import (
    MEMBERS,
    RECORD_BYTES,
    SCHEMA,
    SERIES,
    About,
    AnyRecord,
    BadRecord,
    Capture,
    Header,
    Media,
    Params,
    Points,
    PointSet,
    Series,
    Status,
    Tag,
    decode,
    encode,
    whole_lines,
    written,
)

_LATEST = float(1 << 36)
"""UTC epoch seconds: a time beyond it, before 1970 or that is no number is a mistake of the writer."""
_MOST_SETS = 4_096
"""Combinations of metrics that are put down as such; others are written one by one."""
_BYTES = "bytes"
"""In the last status: up to which byte the event file was read."""


@dataclass
class Segment:
    """The lines of one segment, and what later lines build on."""

    started: float
    lines: list[bytes] = field(default_factory=list)
    offset: int = 0
    """Up to which byte the event file is in it."""
    at: int = 0
    too_long: int = 0
    """Records that no line can hold."""
    _series: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Tag to the series' number and name."""
    _sets: dict[tuple[int, ...], int] = field(default_factory=dict)
    _members: int = 0
    """Series in all sets together."""
    _taken: dict[str, int] = field(default_factory=dict)
    """The names of metrics, and the number that was last put behind one to tell it from others."""

    @classmethod
    def begin(cls, about: About, facts: Mapping[str, Any]) -> Segment:
        """A new one."""
        segment = cls(about.started)
        segment._put(Header(SCHEMA, about))
        segment._put(Tag(0, "source", "tensorboard"))
        segment._put(Capture(0, {"tensorboard": dict(facts)}))
        return segment

    @classmethod
    def read(cls, content: bytes) -> Segment:
        """One that was written before, to go on with; BadRecord where it does not begin as ours do."""
        lines = list(whole_lines(content))
        header = decode(lines[0]) if lines else None
        if not isinstance(header, Header):
            raise BadRecord("it does not begin with a header")
        segment = cls(header.about.started, lines)
        for line in lines:
            segment._learn(decode(line))
        return segment

    def _learn(self, record: AnyRecord) -> None:
        if isinstance(record, Series):
            self._series[str(record.more.get("tag", record.name))] = record.number, record.name
            self._taken[record.name] = 1
        elif isinstance(record, PointSet):
            self._sets[tuple(record.series)] = record.number
            self._members += len(record.series)
        elif isinstance(record, Status):
            self.offset, self.at = int(record.more.get(_BYTES, 0)), record.at

    def take(self, event: Event, pictures: Iterable[Mapping[str, Any]]) -> None:
        """Append what an event says. `pictures`: what the media records of its pictures hold, in their order.

        Scalars must have room (`with_room`). An event without a right time (`is_time`) has that of the one before.
        """
        if is_time(event.time):
            self.at = round((event.time - self.started) * 1000)
        for values in _without_repeats(event.scalars):
            for part in self._in_sets(values):
                self._put(
                    Points(self.at, event.step, self._set_of(part), [written(value) for _, value in part])
                )
        for tag, text in event.texts:
            self._put(Media(self.at, event.step, "text", tag[:LONGEST], {"data": text}))
        for picture, more in zip(event.pictures, pictures, strict=True):
            self._put(Media(self.at, event.step, "image", picture.tag[:LONGEST], dict(more)))
        if event.params:
            self._put(Params(self.at, event.params))

    def end(self, offset: int) -> None:
        """Say how far the file is in it. Event files do not tell how their run ended: it counts as completed."""
        self.offset = offset
        self._put(Status(self.at, "completed", {"reason": "imported from TensorBoard", _BYTES: offset}))

    def with_room(self, scalars: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Those whose metrics have room: a segment has SERIES of them at most."""
        if len(self._series) + len(scalars) <= SERIES:
            return scalars
        new: dict[str, None] = {}
        room = SERIES - len(self._series)
        for tag, _ in scalars:
            if tag not in self._series and len(new) < room:
                new[tag] = None
        return [one for one in scalars if one[0] in self._series or one[0] in new]

    def _in_sets(self, values: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
        """Values as they are written together: one by one where there are too many combinations."""
        is_known = tuple(self._series.get(tag, (-1, ""))[0] for tag, _ in values) in self._sets
        fits = len(self._sets) < _MOST_SETS and self._members + len(values) <= MEMBERS - SERIES
        return [values] if is_known or fits or len(values) == 1 else [[one] for one in values]

    def _set_of(self, values: list[tuple[str, float]]) -> int:
        key = tuple(self._number_of(tag) for tag, _ in values)
        if key not in self._sets:
            self._sets[key] = len(self._sets)
            self._members += len(key)
            self._put(PointSet(self._sets[key], list(key)))
        return self._sets[key]

    def _number_of(self, tag: str) -> int:
        if tag not in self._series:
            name = self._name_of(tag)
            self._series[tag] = len(self._series), name
            self._put(Series(self._series[tag][0], name, {"tag": tag} if name != tag else {}))
        return self._series[tag][0]

    def _name_of(self, tag: str) -> str:
        """The metric's name for a tag; with a number behind it where another tag has the same."""
        name = found = cleaned(tag)
        while found in self._taken:
            self._taken[name] = self._taken.get(name, 1) + 1
            found = f"{name[: LONGEST - 8]}_{self._taken[name]}"
        self._taken[found] = 1
        return found

    def _put(self, record: AnyRecord) -> None:
        line = encode(record)
        if len(line) <= RECORD_BYTES:
            self.lines.append(line)
        elif isinstance(record, Media):
            cut = str(record.more.get("data", ""))[: RECORD_BYTES // 8]
            self.lines.append(
                encode(Media(record.at, record.step, record.kind, record.name, {"data": cut, "cut": True}))
            )
        else:
            self.too_long += 1


def is_time(time: float) -> bool:
    """Whether an event's time can be one: after 1970, not thousands of years from now, and a number."""
    return 0 < time < _LATEST


def _without_repeats(scalars: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Scalars of one event as records of points: a tag that comes again begins another one."""
    found: list[list[tuple[str, float]]] = []
    held: set[str] = set()
    for tag, value in scalars:
        if not found or tag in held:
            found.append([])
            held.clear()
        held.add(tag)
        found[-1].append((tag, value))
    return found
