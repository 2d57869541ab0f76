"""Rows of a recorded log as intervals: mean by time, min, max, last state. Pure.

A reading stands from its time to the next reading of its GPU, where that comes within two of the
log's own steps; before a longer hole, and at the end of the log, it stands for one step. Means are
weighted by that. Min and max are of the readings whose time lies in the interval, so that a value
which only reaches into it by a millisecond does not set its extremes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpu_monitor.core.buckets import slot_start
from gpu_monitor.core.catalogue import BY_NAME, METRICS, Kind
from gpu_monitor.core.model import Status
from gpu_monitor.sources.recorded.rows import RecordedRow, RecordedValue

_STATES = frozenset(metric.name for metric in METRICS if metric.kind is Kind.STATE)
_FLAGS = frozenset(metric.name for metric in METRICS if metric.kind is Kind.FLAGS)
_TOTALS = frozenset(metric.name for metric in METRICS if metric.kind is Kind.TOTAL)
_SLIVER = 0.05
"""Share of an interval that a reading must reach into it to make a row of it by itself."""
_HOUR = 3600
_TOLERANCE = 0.9
"""A log that was to write every 60 s has a median step of up to a few per cent more or less."""
REACH_STEPS = 2.0
READ_ONCE = "counter read once"
"""The reason of a counter's growth where there is no second reading to take it from."""


def interval_for(step: float, interval: int) -> int:
    """Length of the intervals a log is kept in: the store's own, or for a coarser log the part of an hour
    that is nearest to its step (an hour at most), so that each interval holds about one reading."""
    if step * _TOLERANCE <= interval:
        return interval
    parts = [seconds for seconds in range(interval, _HOUR + 1) if _HOUR % seconds == 0]
    return min(parts, key=lambda seconds: abs(seconds - step), default=interval)


@dataclass(frozen=True)
class BinnedInterval:
    """One GPU over one interval of a log. `seconds` it covers of it; values by column, in catalogue units.

    `files`: whose readings lie in it (see `Binner.file`), in order; where none does, whose reaches into it.
    """

    start: int
    seconds: float
    values: dict[str, float]
    states: dict[str, RecordedValue]
    reasons: dict[str, str]
    files: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class LostStretch:
    """A GPU said to be lost from `start` to `end` (UTC epoch)."""

    start: float
    end: float


@dataclass(slots=True)
class _Gauge:
    sum: float = 0.0
    weight: float = 0.0
    low: float | None = None
    high: float | None = None
    spill: float = 0.0

    def add(self, value: float, weight: float, is_inside: bool) -> None:
        self.sum += value * weight
        self.weight += weight
        self.spill = value
        if is_inside:
            if self.low is None or value < self.low:
                self.low = value
            if self.high is None or value > self.high:
                self.high = value

    def mean(self) -> float:
        return self.sum / self.weight if self.weight > 0 else self.spill


@dataclass
class _Open:
    """The interval being filled; `file` gave the reading that opened it."""

    start: int
    file: int
    seconds: float = 0.0
    readings: int = 0
    gauges: dict[str, _Gauge] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    states: dict[str, RecordedValue] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)

    def grow(self, growth: dict[str, float], weight: float) -> None:
        """Add what counters grew by in `weight` seconds, given their growth a second."""
        for name, rate in growth.items():
            self.totals[name] = self.totals.get(name, 0.0) + rate * weight

    def add(self, row: RecordedRow, weight: float, is_inside: bool, file: int) -> None:
        self.seconds += weight
        self.readings += is_inside
        if is_inside and file not in self.files:
            self.files.append(file)
        gauges = self.gauges
        for name, value in row.values.items():
            if name in _STATES:
                self.states[name] = value
            elif isinstance(value, str):
                continue
            elif name in _TOTALS:
                self.reasons[name] = READ_ONCE
            elif name in _FLAGS:
                self.flags[name] = self.flags.get(name, 0) | int(value)
            else:
                gauge = gauges.get(name)
                if gauge is None:
                    gauge = gauges[name] = _Gauge()
                gauge.add(value, weight, is_inside)
        if row.reasons:
            self.reasons.update(row.reasons)

    def close(self) -> BinnedInterval:
        values: dict[str, float] = {name: gauge.mean() for name, gauge in self.gauges.items()}
        for name, gauge in self.gauges.items():
            if BY_NAME[name].spread:
                values[f"{name}_min"] = gauge.spill if gauge.low is None else gauge.low
                values[f"{name}_max"] = gauge.spill if gauge.high is None else gauge.high
        values.update(self.flags)
        values.update(self.totals)
        reasons = {name: reason for name, reason in self.reasons.items() if name not in values}
        files = tuple(self.files) or (self.file,)
        return BinnedInterval(self.start, self.seconds, values, self.states, reasons, files)


class Binner:
    """The rows of one GPU, in order of time, as intervals of `interval` seconds.

    `step` is the log's own, `file` its number; both may be changed for another log that goes on.
    """

    def __init__(self, interval: int, step: float, file: int = 0) -> None:
        self.interval = interval
        self.step = step
        self.file = file
        self._last: RecordedRow | None = None
        self._last_file = file
        self._open: _Open | None = None
        self._lost_since: float | None = None
        self.lost: list[LostStretch] = []

    @property
    def last_time(self) -> float | None:
        """Time of the newest row, None before the first."""
        return None if self._last is None else self._last.time

    def add(self, row: RecordedRow) -> Iterator[BinnedInterval]:
        """Take a row later than the one before; gives the intervals it completes."""
        last, self._last = self._last, row
        if last is not None:
            apart = row.time - last.time
            is_near = apart <= REACH_STEPS * self.step
            growth = _growth(last, row, apart) if is_near else {}
            yield from self._stand(last, last.time + (apart if is_near else self.step), growth)
        self._last_file = self.file

    def finish(self) -> Iterator[BinnedInterval]:
        """End the log: the last row stands for one step; gives what is left."""
        last, self._last = self._last, None
        if last is not None:
            yield from self._stand(last, last.time + self.step, {})
        if self._lost_since is not None and last is not None:
            self._found(last.time + self.step)
        yield from self._turn(None)

    def _stand(self, row: RecordedRow, until: float, growth: dict[str, float]) -> Iterator[BinnedInterval]:
        """Let `row` stand from its time to `until`, while counters grow by `growth` a second."""
        if row.status is Status.LOST:
            self._lost_since = row.time if self._lost_since is None else self._lost_since
            return
        self._found(row.time)
        start = slot_start(row.time, self.interval)
        first = start
        while start < until:
            if self._open is None or self._open.start != start:
                yield from self._turn(start)
            weight = min(until, start + self.interval) - max(row.time, start)
            if self._open is not None:
                self._open.add(row, weight, start == first, self._last_file)
                self._open.grow(growth, weight)
            start += self.interval

    def _turn(self, start: int | None) -> Iterator[BinnedInterval]:
        """Close the open interval and open the one from `start`."""
        done, self._open = self._open, None if start is None else _Open(start, self._last_file)
        if done is not None and (done.readings or done.seconds >= _SLIVER * self.interval):
            yield done.close()

    def _found(self, at: float) -> None:
        if self._lost_since is not None:
            self.lost.append(LostStretch(self._lost_since, at))
            self._lost_since = None


def _growth(before: RecordedRow, after: RecordedRow, apart: float) -> dict[str, float]:
    """By how much a second the counters grew between two rows; one that began anew counts from zero."""
    found: dict[str, float] = {}
    for name in _TOTALS & before.values.keys() & after.values.keys():
        first, second = before.values[name], after.values[name]
        if isinstance(first, str) or isinstance(second, str):
            continue
        found[name] = (second - first if second >= first else second) / apart
    return found
