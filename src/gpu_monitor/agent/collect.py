"""Turns rounds of readings into one row per GPU and interval: weighted means, extremes, counter differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_monitor.core.catalogue import BY_NAME, HOST_METRICS, SAMPLED, Kind, Metric, Reason
from gpu_monitor.core.model import (
    DeviceReading,
    Event,
    GpuProcess,
    HostReading,
    Identity,
    Round,
    Spread,
    Status,
    Value,
)

_GAUGE, _TOTAL, _RATE, _FLAGS, _STATE = range(5)
_CODES = {Kind.GAUGE: _GAUGE, Kind.TOTAL: _TOTAL, Kind.RATE: _RATE, Kind.FLAGS: _FLAGS, Kind.STATE: _STATE}

# A counter may not grow faster than this per second: ten times the catalogue's largest board power for
# energy, and one second per second (with a tenth of slack) for time throttled.
_FASTEST = {"energy": 100_000.0, "throttle_time": 1.1}


@dataclass(frozen=True)
class GpuRow:
    """One GPU over one interval. `values` by column name (mean, `_min`, `_max`), unscaled; absent is null."""

    identity: Identity
    seconds: float
    values: Mapping[str, float]
    states: Mapping[str, float | int | str]
    reasons: Mapping[str, str]
    processes: tuple[GpuProcess, ...] | None


@dataclass(frozen=True)
class Collection:
    """All that one interval gave. `start` and `interval` in seconds; `until` is where its data end.

    `began`: when the readings began (anew) inside this interval; None where they go on from the one before.
    """

    start: int
    interval: int
    until: float
    gpus: tuple[GpuRow, ...]
    host: tuple[float, Mapping[str, float]] | None = None
    events: tuple[Event, ...] = ()
    absences: tuple[Absence, ...] = ()
    began: float | None = None


@dataclass(frozen=True)
class Absence:
    """A stretch without data of one GPU (`uid`) or of all (None). `end` None: it lasts."""

    start: float
    end: float | None
    cause: str
    uid: str | None = None
    detail: str | None = None


_Sums = list[float]
"""Of one gauge over one interval: weighted sum, weight, low, high, last. A list, for it is made anew each second."""


@dataclass
class _Interval:
    """What one device gave since the interval began."""

    gauges: dict[str, _Sums] = field(default_factory=dict)
    totals: dict[str, list[float]] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    readings: int = 0


_Table = dict[str, tuple[int, float, float, "tuple[str, str] | None", Metric]]
"""By name: kind, lowest and highest possible value, columns of the extremes (None: not kept), the metric."""


def _table(metrics: Iterable[Metric]) -> _Table:
    return {
        m.name: (_CODES[m.kind], m.low, m.high, (f"{m.name}_min", f"{m.name}_max") if m.spread else None, m)
        for m in metrics
        if m.kind in _CODES
    }


_GPU_TABLE: _Table = _table(BY_NAME.values())
_HOST_TABLE: _Table = _table(HOST_METRICS)


class _Track:
    """One device (or the host) across intervals: its counters go on, its sums start anew.

    An interval's first reading waits as it came: where no other follows (at one second none does) its
    values are the interval's, without sums in between.
    """

    def __init__(self, table: _Table) -> None:
        self._table = table
        self._counters: dict[str, tuple[float, float]] = {}
        self._only: tuple[Mapping[str, Value], float, float] | None = None
        self.interval = _Interval()
        self.states: dict[str, float | int | str] = {}
        self.reasons: Mapping[str, str] = {}
        self.resets: list[tuple[str, float]] = []
        self.at: float | None = None

    def add(self, values: Mapping[str, Value], reasons: Mapping[str, str], at: float, longest: float) -> None:
        """Take a reading at `at`; it stands for the time since the last one, `longest` seconds at most."""
        elapsed = 0.0 if self.at is None else max(0.0, at - self.at)
        weight = min(elapsed, longest)
        if self._only is not None:
            self.settle()
        if elapsed > longest * 2.5:
            self._counters.clear()  # what the counters did in the hole belongs to no interval
        now = self.interval
        now.seconds += weight
        now.readings += 1
        self.at = at
        self.reasons = reasons
        if now.readings == 1:
            self._only = values, weight, at
        else:
            self._sum(values, weight, at)

    def settle(self) -> None:
        """Make sums of the reading that waits, if one does."""
        if self._only is not None:
            only, self._only = self._only, None
            self._sum(*only)

    def _sum(self, values: Mapping[str, Value], weight: float, at: float) -> None:
        now = self.interval
        table, gauges = self._table, now.gauges
        for name, value in values.items():
            code, lowest, highest, _, _ = table[name]
            if code == _GAUGE:
                mean: float
                if isinstance(value, Spread):
                    mean, low, high, _ = value
                elif isinstance(value, str):
                    self._invalid(name)
                    continue
                else:
                    mean = low = high = value
                if low < lowest or high > highest:
                    self._invalid(name)
                    continue
                sums = gauges.get(name)
                if sums is None:
                    gauges[name] = [mean * weight, weight, low, high, mean]
                    continue
                sums[0] += mean * weight
                sums[1] += weight
                sums[4] = mean
                if low < sums[2]:
                    sums[2] = low
                if high > sums[3]:
                    sums[3] = high
            elif code == _STATE:
                self.states[name] = value  # type: ignore[assignment]
            elif isinstance(value, (int, float)):
                if code == _FLAGS:
                    now.flags[name] = now.flags.get(name, 0) | int(value)
                else:
                    grown = self._grown(name, value, at)
                    if grown is not None:
                        total = now.totals.setdefault(name, [0.0, 0.0])
                        total[0] += grown[0]
                        total[1] += grown[1]

    def _invalid(self, name: str) -> None:
        # The reading's own reasons are not ours to change.
        self.reasons = {**self.reasons, name: Reason.INVALID}

    def _grown(self, name: str, value: float, at: float) -> tuple[float, float] | None:
        """A counter's growth and the seconds it took, None where unknown; after a reset it counts from zero."""
        before = self._counters.get(name)
        self._counters[name] = (value, at)
        if before is None or at <= before[1]:
            return None
        growth, elapsed = float(value - before[0]), at - before[1]
        if growth < 0:
            self.resets.append((name, at))
            growth = float(value)
        fastest = _FASTEST.get(name) or self._table[name][2]
        if growth > fastest * elapsed:
            self._invalid(name)
            return None
        return growth, elapsed

    def finish(self) -> tuple[float, dict[str, float]]:
        """Seconds covered and values by column; the next interval begins."""
        now, self.interval = self.interval, _Interval()
        if self._only is not None:
            (read, _, at), self._only = self._only, None
            return now.seconds, self._alone(read, at)
        values: dict[str, float] = {}
        for name, (total, weight, low, high, last) in now.gauges.items():
            values[name] = total / weight if weight else last
            ends = self._table[name][3]
            if ends is not None:
                values[ends[0]], values[ends[1]] = low, high
        for name, (growth, elapsed) in now.totals.items():
            values[name] = growth if self._table[name][0] == _TOTAL else growth / elapsed
        values.update(now.flags)
        return now.seconds, values

    def _alone(self, read: Mapping[str, Value], at: float) -> dict[str, float]:
        """The columns of an interval with one reading; an extreme that equals the mean is left out."""
        table = self._table
        values: dict[str, float] = {}
        for name, value in read.items():
            code, lowest, highest, ends, _ = table[name]
            kind = type(value)
            if code == _GAUGE and (kind is int or kind is float):
                if lowest <= value <= highest:  # type: ignore[operator]
                    values[name] = value  # type: ignore[assignment]
                else:
                    self._invalid(name)
            elif code == _STATE:
                self.states[name] = value  # type: ignore[assignment]
            elif isinstance(value, Spread):
                mean, low, high, _ = value
                if code != _GAUGE:
                    continue
                if low < lowest or high > highest:
                    self._invalid(name)
                    continue
                values[name] = mean
                if ends is not None:
                    values[ends[0]], values[ends[1]] = low, high
            elif isinstance(value, str) or code == _GAUGE:
                if code == _GAUGE:
                    self._invalid(name)
            elif code == _FLAGS:
                values[name] = int(value)
            else:
                grown = self._grown(name, value, at)
                if grown is not None:
                    values[name] = grown[0] if code == _TOTAL else grown[0] / grown[1]
        return values

    def cut(self) -> None:
        """Forget the time of the last reading: the next one stands for nothing before it."""
        self.settle()
        self.at = None
        self._counters.clear()


class Collector:
    """Collects the rounds of one interval after another. One thread.

    `longest`: a reading stands for at most this many seconds before it.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._tracks: dict[str, _Track] = {}
        self._devices: dict[str, DeviceReading] = {}
        self._host = _Track(_HOST_TABLE)
        self._fresh: set[str] = set()
        self._processes: dict[str, tuple[GpuProcess, ...]] = {}
        self._events: list[Event] = []
        self._absent: dict[str | None, tuple[float, str]] = {}
        self._absences: list[Absence] = []
        self._last: float | None = None
        self._began: float | None = None

    def add(self, readings: Round, at: float) -> None:
        """Take one round of the moment `at` (UTC epoch)."""
        self._events += readings.events
        seen: set[str] = set()
        for reading in readings.devices:
            uid = reading.identity.uid
            seen.add(uid)
            self._devices[uid] = reading
            if reading.status is Status.OK:
                self._take(uid, reading, at)
            else:
                self._miss(uid, at, reading.cause or reading.status.value)
        cause = readings.paused
        for uid in self._devices.keys() - seen:
            self._miss(uid, at, cause or "GPU disappeared")
        if cause is not None and not self._devices:
            self._miss(None, at, cause)
        elif None in self._absent:
            self._found(None, at)
        self._last = at

    def _take(self, uid: str, reading: DeviceReading, at: float) -> None:
        track = self._tracks.get(uid)
        if track is None:
            track = self._tracks[uid] = _Track(_GPU_TABLE)
        if uid in self._absent:
            self._found(uid, at)
        track.add(reading.values, reading.reasons, at, self.longest)
        self._fresh.add(uid)
        if reading.processes is not None:
            self._processes[uid] = reading.processes

    def _miss(self, uid: str | None, at: float, cause: str) -> None:
        """The device gave nothing at `at`: its gap began with the last reading."""
        known = self._absent.get(uid)
        if known is not None and known[1] == cause:
            return
        track = self._tracks.get(uid) if uid is not None else None
        since = known[0] if known else None
        if known is not None:
            self._absences.append(Absence(known[0], at, known[1], uid))
            since = at
        elif track is not None and track.at is not None:
            since = track.at
        if since is None:
            since = at
        if track is not None:
            track.cut()
        self._absent[uid] = (since, cause)
        self._absences.append(Absence(since, None, cause, uid))

    def _found(self, uid: str | None, at: float) -> None:
        since, cause = self._absent.pop(uid)
        self._absences.append(Absence(since, at, cause, uid))

    def add_host(self, reading: HostReading, at: float) -> None:
        """Take one reading of the machine."""
        self._host.add(reading.values, {}, at, self.longest)

    def note(self, event: Event) -> None:
        """Keep an event with the next collection."""
        self._events.append(event)

    def cut(self, at: float) -> None:
        """Readings begin (anew) at `at`: none stands for anything before that."""
        for track in self._tracks.values():
            track.cut()
        self._host.cut()
        self._began = at

    @property
    def devices(self) -> Mapping[str, DeviceReading]:
        """The newest reading of each device by uid."""
        return self._devices

    def snapshot(self, start: int, interval: int) -> Collection:
        """The interval as far as it has come, without ending it (only gauges; counters have no past yet)."""
        gpus = tuple(self._row(uid, *_peek(self._tracks[uid])) for uid in self._ordered())
        host = _peek(self._host) if self._host.at is not None else None
        return Collection(start, interval, self._last or float(start), gpus, host, began=self._began)

    def close(self, start: int, interval: int) -> Collection:
        """End the interval and hand over what it gave; a device seen only at one instant covers nothing of it."""
        rows = [self._row(uid, *self._tracks[uid].finish()) for uid in self._ordered()]
        self._tell_resets()
        gpus = tuple(row for row in rows if row.seconds > 0)
        machine = self._host.finish()
        host = machine if machine[0] > 0 else None
        result = Collection(
            start,
            interval,
            self._last or float(start),
            gpus,
            host,
            tuple(self._events),
            tuple(self._absences),
            self._began,
        )
        self._began = None
        self._fresh.clear()
        self._processes.clear()
        self._events.clear()
        self._absences.clear()
        return result

    def _tell_resets(self) -> None:
        for uid, track in self._tracks.items():
            for name, at in track.resets:
                text = f"the {name} counter began anew"
                self._events.append(Event(at, "counter_reset", text, "info", uid, {"metric": name}))
            track.resets.clear()

    def _ordered(self) -> list[str]:
        """The devices that answered, in the order of their index."""

        def place(uid: str) -> tuple[int, str]:
            index = self._devices[uid].identity.index
            return (1 << 30 if index is None else index, uid)

        return sorted(self._fresh, key=place)

    def _row(self, uid: str, seconds: float, values: Mapping[str, float]) -> GpuRow:
        track = self._tracks[uid]
        return GpuRow(
            self._devices[uid].identity,
            seconds,
            values,
            track.states,
            track.reasons,
            self._processes.get(uid),
        )


def _peek(track: _Track) -> tuple[float, dict[str, float]]:
    """What `finish` would give, without ending the interval."""
    track.settle()
    kept = track.interval
    result = track.finish()
    track.interval = kept
    return result


_Plan = tuple[tuple[str, float, str | None, str | None], ...]


def _plan(metrics: tuple[Metric, ...]) -> _Plan:
    """Per metric: name, scale, and the names of its extremes where it has a spread."""
    return tuple(
        (m.name, m.scale, f"{m.name}_min" if m.spread else None, f"{m.name}_max" if m.spread else None)
        for m in metrics
    )


_GPU_PLAN, _HOST_PLAN = _plan(SAMPLED), _plan(HOST_METRICS)


def _scaled(plan: _Plan, values: Mapping[str, Any]) -> list[int | None]:
    """`values` as the integers of the store's columns, in their order (see storage.tables)."""
    row: list[int | None] = []
    put, get = row.append, values.get
    for name, scale, low, high in plan:
        value = get(name)
        if value is None:
            put(None)
            if low is not None:
                row += (None, None)
            continue
        mean = round(value * scale)
        put(mean)
        if low is None or high is None:
            continue
        least, most = get(low), get(high)
        if least is not None:
            least = round(least * scale)
        put(None if least == mean else least)
        if most is not None:
            most = round(most * scale)
        put(None if most == mean else most)
    return row


def scaled_gpu(values: Mapping[str, Any]) -> list[int | None]:
    """The columns of `samples_raw` after id and seconds."""
    return _scaled(_GPU_PLAN, values)


def scaled_host(values: Mapping[str, Any]) -> list[int | None]:
    """The columns of `hosts_raw` after id and seconds."""
    return _scaled(_HOST_PLAN, values)
