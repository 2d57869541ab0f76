# SPDX-License-Identifier: MIT
"""The records of a segment, line by line: what is damaged is counted and skipped, and never touched."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpu_monitor.wire.training import (
    NOT_FINITE,
    About,
    BadRecord,
    Header,
    Params,
    Points,
    PointSet,
    Series,
    Status,
    Tag,
    decode,
)

KINDS = {b"n": "notes", b"m": "media", b"x": "texts", b"e": "alerts", b"c": "facts"}
"""Kinds of records that are kept by their place in the log, and read again when they are asked for."""
_KNOWN = frozenset(b'"%c"' % kind for kind in b"hsgpatz")
_LATEST = 253_402_300_799
"""The last second of the year 9999, UTC epoch: a later begin is none."""
_CHECK = len(b',"00000000"]\n')
_points: msgspec.json.Decoder[Points] = msgspec.json.Decoder(Points)


class Summary(msgspec.Struct, omit_defaults=True):
    """What a segment says from its begin to a place in it. A tag that is None was taken away.

    `status`: (status, at, more) of its writer's last word.

    `damaged`: lines that hold no record. `last_step`: of the training's last points, `last_at`: the greatest time of
    these; None before the first. `latest`: the greatest time of any points, and of the status.
    """

    about: About | None = None
    params: dict[str, Any] = {}
    tags: dict[str, str | None] = {}
    status: tuple[str, int, dict[str, Any]] | None = None
    last_step: int | None = None
    last_at: int | None = None
    latest: int = 0
    points: int = 0
    damaged: int = 0
    names: list[str] = []
    """By the number of a series."""
    more: dict[str, dict[str, Any]] = {}
    """What a series says besides its name, where it says something."""
    sets: list[list[int]] = []


class Axis(msgspec.Struct):
    """Steps of points, and times: `base` and what is in `ats`, ms since the segment's start. In order of logging.

    Series of one set share it.
    """

    steps: Sequence[int]
    ats: Sequence[int]
    base: int = 0


class Column(msgspec.Struct):
    """The points of one series."""

    axis: Axis
    values: Sequence[float]


Places = list[tuple[int, int]]
"""Where records lie in a log: offset and length."""


class Batch(msgspec.Struct):
    """What a stretch of a log holds: points by series, and the places of other records by kind."""

    start: int
    end: int
    columns: dict[int, Column] = {}
    places: dict[str, Places] = {}


class _Rows:
    """Points of one set as they come."""

    __slots__ = ("ats", "axis", "is_training", "order", "rows", "steps", "width")

    def __init__(self, width: int, is_training: bool) -> None:
        self.width = width
        self.is_training = is_training
        self.steps: list[int] = []
        self.ats: list[int] = []
        self.order: list[int] = []
        self.rows: list[list[Any]] = []
        self.axis = Axis(self.steps, self.ats)


class Scanner:
    """Reads lines of one segment into `summary`, and points and places into a batch."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def scan(self, data: bytes, start: int) -> Batch:
        """The batch of the whole lines of `data`, which lies at `start` in the log; a torn tail is left for later."""
        summary = self.summary
        rows: dict[int, _Rows] = {}
        places: dict[str, Places] = {}
        crc32, read_points = zlib.crc32, _points.decode
        at, count, last = 0, 0, None
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at : end + 1]
            place, at = at, end + 1
            if line[-_CHECK:] != b',"%08x"]\n' % crc32(line[:-_CHECK]):
                summary.damaged += 1
                continue
            if line.startswith(b'["p",'):
                try:
                    points = read_points(line)
                    held = rows.get(points.set) or self._rows(rows, points.set)
                except (msgspec.MsgspecError, ValueError, IndexError):
                    summary.damaged += 1
                    continue
                if len(points.values) != held.width:
                    summary.damaged += 1
                    continue
                held.steps.append(points.step)
                held.ats.append(points.at)
                held.rows.append(points.values)
                held.order.append(count)
                count += 1
                if held.is_training:
                    last = points
            else:
                self._take(line, start + place, places)
        if last is not None:
            summary.last_step = last.step
        self._note_times(rows)
        summary.points += count
        return Batch(start, start + at, _columns(rows, summary), places)

    def _note_times(self, rows: dict[int, _Rows]) -> None:
        """Keep the greatest times: the clock may have been set back since."""
        summary = self.summary
        for held in rows.values():
            if held.ats:
                greatest = max(held.ats)
                summary.latest = max(summary.latest, greatest)
                if held.is_training:
                    summary.last_at = greatest if summary.last_at is None else max(summary.last_at, greatest)

    def _rows(self, rows: dict[int, _Rows], number: int) -> _Rows:
        if number < 0:
            raise IndexError(number)
        series, summary = self.summary.sets[number], self.summary
        is_own = any(summary.more.get(summary.names[one], {}).get("source") != "sdk" for one in series)
        held = rows[number] = _Rows(len(series), is_own)
        return held

    def _take(self, line: bytes, offset: int, places: dict[str, Places]) -> None:
        """Any record that is no point."""
        kind = KINDS.get(line[2:3])
        if kind is not None and line[3:4] == b'"':
            places.setdefault(kind, []).append((offset, len(line)))
            return
        summary = self.summary
        try:
            record = decode(line)
        except BadRecord:
            # Whole, so it is of a kind that only a newer version knows, or no record of the kind it says.
            summary.damaged += line[1:4] in _KNOWN
            return
        if isinstance(record, Header):
            if not 0 <= record.about.started <= _LATEST:
                summary.damaged += 1
                return
            summary.about = summary.about or record.about
        elif isinstance(record, Series):
            self._take_series(record)
        elif isinstance(record, PointSet):
            self._take_set(record)
        elif isinstance(record, Params):
            summary.params.update(record.params)
        elif isinstance(record, Tag):
            summary.tags[record.key] = record.value
        elif isinstance(record, Status):
            summary.status = (record.status, record.at, record.more)
            summary.latest = max(summary.latest, record.at)

    def _take_series(self, record: Series) -> None:
        summary = self.summary
        if record.number != len(summary.names):
            summary.damaged += 1
            return
        summary.names.append(record.name)
        if record.more:
            summary.more[record.name] = record.more

    def _take_set(self, record: PointSet) -> None:
        summary = self.summary
        if record.number != len(summary.sets) or not all(
            0 <= one < len(summary.names) for one in record.series
        ):
            summary.damaged += 1
            return
        summary.sets.append(record.series)


def _columns(rows: dict[int, _Rows], summary: Summary) -> dict[int, Column]:
    """Rows of sets as columns of series; a series in several sets in its order of logging."""
    parts: dict[int, list[tuple[_Rows, Sequence[Any]]]] = {}
    for number, held in rows.items():
        if held.rows:
            for series, values in zip(summary.sets[number], zip(*held.rows, strict=True), strict=True):
                parts.setdefault(series, []).append((held, values))
    return {series: _joined(found) for series, found in parts.items()}


def _joined(parts: list[tuple[_Rows, Sequence[Any]]]) -> Column:
    if len(parts) == 1:
        held, values = parts[0]
        return Column(held.axis, _numbers(values))
    merged = sorted(
        (order, step, at, value)
        for held, values in parts
        for order, step, at, value in zip(held.order, held.steps, held.ats, _numbers(values), strict=True)
    )
    _, steps, ats, numbers = zip(*merged, strict=True)
    return Column(Axis(list(steps), list(ats)), array("d", numbers))


def _numbers(values: Iterable[Any]) -> array[float]:
    try:
        return array("d", values)
    except (TypeError, OverflowError):
        return array("d", [_number(value) for value in values])


def _number(value: Any) -> float:
    """One value; what is neither a number nor a name of one is not a number."""
    if isinstance(value, str):
        return NOT_FINITE.get(value, float("nan"))
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
