"""Rows or hours of a span as lines of text, batch by batch, in constant memory: what `export` writes.

SQLite itself makes the texts of numbers, times and names (printf), so that a month of eight GPUs takes
a second or two; only what is kept on change, and lists, are put in here. A test compares with `-sc`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from gpu_monitor.agent.ask import Asked, interval_of, processes_at, shown
from gpu_monitor.core.catalogue import BY_NAME, IDENTITY, SAMPLED, Kind, Metric
from gpu_monitor.storage.database import Row
from gpu_monitor.storage.tables import GPU_BITS, MAX_GPUS, aggregate_columns, key_floor

TIMESTAMP = "timestamp"
"""The field that holds the start of a row's interval or period."""

_BATCH = 8192
_START_BITS = 20
_CHOICES = 32
"""More GPUs than this are named here, not by a chain of comparisons in SQL."""
_HOUR_HEAD = (
    "period_seconds", "samples", "expected_samples", "coverage", "seconds", "idle_seconds", "held_idle_seconds",
    "energy_seconds",
)  # fmt: skip
_HOUR_COLUMNS = frozenset((*_HOUR_HEAD, *aggregate_columns()))
_IDENTITY = frozenset(("source", *(metric.name for metric in IDENTITY)))


class Store(Asked, Protocol):
    """What this module needs of a store."""

    def stream(self, sql: str, start: int, end: int, batch: int = 8192) -> Iterator[list[Row]]:
        """Batches of rows whose first column is an ascending key within [start, end)."""
        ...


@dataclass(frozen=True)
class Style:
    """How a row is written: what stands between fields, before each, for null, and for any other value.

    `text` of a number must be its plain decimal text.
    """

    separator: str
    label: Callable[[str], str]
    null: str
    text: Callable[[Any], str]


@dataclass(frozen=True)
class Batch:
    """Some rows in order. `places` tell groups apart, `starts` are their times, `lines` their texts."""

    places: Sequence[int]
    starts: Sequence[int]
    lines: Iterable[str]


@dataclass(frozen=True)
class _Place:
    """The GPU number of each row of a batch, its start, and how long it lasts (s)."""

    numbers: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]


_Texts = Callable[[_Place, Sequence[Any]], Iterable[str]]
"""Makes the texts of one field, given a column of raw values."""


@dataclass(frozen=True)
class _Piece:
    """A part of each line: SQL that gives it, and what makes it a text where that is not one yet."""

    sql: str
    texts: _Texts | None = None


class Extract:
    """Rows of intervals of one node, or its aggregates, with `fields` as documented."""

    def __init__(
        self,
        store: Store,
        node: int,
        fields: Sequence[str],
        style: Style,
        *,
        is_hourly: bool = False,
        is_naive: bool = False,
    ) -> None:
        self._store = store
        self._node = node
        self._style = style
        self._is_hourly = is_hourly
        self._is_naive = is_naive
        self._length = "r.period_seconds" if is_hourly else str(interval_of(store))
        self._start = "r.period" if is_hourly else f"(r.id >> {_START_BITS})"
        self._number = "r.gpu" if is_hourly else f"(r.id & {MAX_GPUS - 1})"
        self._pieces = self._joined([self._piece(name) for name in fields], fields)

    def bounds(self) -> tuple[int, int] | None:
        """First and last start of what there is of the node, None where there is nothing."""
        own = "IN (SELECT id FROM gpus WHERE node = ?)"
        if self._is_hourly:
            first = last = f"SELECT period FROM aggregates WHERE gpu {own} ORDER BY period"
        else:
            first = last = (
                f"SELECT id >> {_START_BITS} FROM samples_raw WHERE id & {MAX_GPUS - 1} {own} ORDER BY id"
            )
        sql = f"SELECT ({first} ASC LIMIT 1), ({last} DESC LIMIT 1)"
        found = self._store.rows(sql, (self._node, self._node))[0]
        return None if found[0] is None else (int(found[0]), int(found[1]))

    def batches(self, since: int, until: int) -> Iterator[Batch]:
        """What starts in [since, until) (UTC epoch), ascending."""
        bits = GPU_BITS if self._is_hourly else _START_BITS
        ends = (since << bits, until << bits) if self._is_hourly else (key_floor(since), key_floor(until))
        for rows in self._store.stream(self._sql(), *ends, _BATCH):
            keys = [row[0] for row in rows]
            starts = [key >> bits for key in keys]
            yield Batch([key >> GPU_BITS for key in keys], starts, self._lines(rows, keys, starts))

    def _lines(self, rows: list[Row], keys: list[int], starts: list[int]) -> Iterable[str]:
        if len(self._pieces) == 1 and self._pieces[0].texts is None:
            return map(itemgetter(2), rows)
        place = _Place([key & (MAX_GPUS - 1) for key in keys], starts, [row[1] for row in rows])
        columns: list[Iterable[str]] = []
        for number, piece in enumerate(self._pieces, 2):
            raw = [row[number] for row in rows]
            columns.append(raw if piece.texts is None else piece.texts(place, raw))
        return map(self._style.separator.join, zip(*columns, strict=True))

    def _sql(self) -> str:
        chosen = ", ".join(piece.sql for piece in self._pieces)
        mine = f"{self._number} IN (SELECT id FROM gpus WHERE node = {self._node})"
        if self._is_hourly:
            return (
                f"SELECT (r.period << {GPU_BITS}) | r.gpu AS place, {self._length}, {chosen} FROM aggregates r"
                f" WHERE r.period >= ?1 >> {GPU_BITS} AND r.period <= ?2 >> {GPU_BITS}"
                f" AND place >= ?1 AND place < ?2 AND {mine} ORDER BY r.period, r.gpu LIMIT ?3"
            )
        return (
            f"SELECT r.id, {self._length}, {chosen} FROM samples_raw r"
            f" WHERE r.id >= ? AND r.id < ? AND {mine} ORDER BY r.id LIMIT ?"
        )

    def _joined(self, pieces: list[_Piece], fields: Sequence[str]) -> list[_Piece]:
        """The pieces with their labels, neighbours that SQL alone can write put into one."""
        joined: list[_Piece] = []
        formats: list[str] = []
        values: list[str] = []

        def flush() -> None:
            if values:
                pattern = _quoted(self._style.separator.join(formats))
                joined.append(_Piece(f"printf({pattern}, {', '.join(values)})"))
                formats.clear()
                values.clear()

        for name, piece in zip(fields, pieces, strict=True):
            label = self._style.label(name)
            if piece.texts is None:
                formats.append(label.replace("%", "%%") + "%s")
                values.append(f"coalesce({piece.sql}, {_quoted(self._style.null)})")
            else:
                flush()
                joined.append(_Piece(piece.sql, _labelled(label, piece.texts)))
        flush()
        return joined

    def _piece(self, name: str) -> _Piece:
        """Where one field's texts come from."""
        metric = _metric(name)
        if name == TIMESTAMP:
            return _Piece(self._timestamp())
        if name in _IDENTITY:
            return self._of_gpu(name)
        if name == "processes":
            return _Piece("NULL", self._processes)
        if name == "reasons":
            return _Piece("NULL", self._reasons())
        if metric is not None and metric.kind is Kind.STATE:
            return _Piece("NULL", self._states(name))
        if metric is not None and metric.kind is Kind.FLAGS:
            return _Piece(f"r.{name}", self._flags(name))
        if self._is_hourly:
            return _Piece(f'r."{name}"' if name in _HOUR_COLUMNS else "NULL")
        if name == "seconds":
            return _Piece("r.seconds / 10.0")
        return _Piece(_number_sql(name, metric) if metric is not None and metric in SAMPLED else "NULL")

    def _timestamp(self) -> str:
        if self._is_naive:
            stamp = f"strftime('%Y-%m-%dT%H:%M:%S', {self._start}, 'unixepoch', 'localtime')"
        else:
            stamp = f"strftime('%Y-%m-%dT%H:%M:%S+00:00', {self._start}, 'unixepoch')"
        # Other texts of a style are quoted by it; a time needs what the style puts around any plain text.
        before, _, after = self._style.text("0").partition("0")
        return f"{_quoted(before)} || {stamp} || {_quoted(after)}" if before or after else stamp

    def _of_gpu(self, name: str) -> _Piece:
        rows = self._store.rows(f'SELECT id, "{name}" FROM gpus WHERE node = ?', (self._node,))
        known = {number: self._style.text(value) for number, value in rows}
        if len(known) > _CHOICES or not known:
            return _Piece("NULL", lambda place, raw: map(known.__getitem__, place.numbers))
        if len(set(known.values())) == 1:
            return _Piece(_quoted(next(iter(known.values()))))
        choices = " ".join(f"WHEN {number} THEN {_quoted(text)}" for number, text in known.items())
        return _Piece(f"CASE {self._number} {choices} END")

    def _flags(self, name: str) -> _Texts:
        known: dict[Any, str] = {}

        def texts(place: _Place, raw: Sequence[Any]) -> Iterable[str]:
            for value in set(raw) - known.keys():
                known[value] = self._style.text(shown(name, value))
            return map(known.__getitem__, raw)

        return texts

    def _states(self, name: str) -> _Texts:
        changes = _Changes(self._store, "states", "key", "value", name)
        known: dict[Any, str] = {}

        def texts(place: _Place, raw: Sequence[Any]) -> Iterator[str]:
            for number, start, length in zip(place.numbers, place.starts, place.lengths, strict=True):
                value = changes.at(number, name, start + length)
                if value not in known:
                    known[value] = self._style.text(shown(name, value))
                yield known[value]

        return texts

    def _reasons(self) -> _Texts:
        changes = _Changes(self._store, "reasons", "metric", "reason")
        return lambda place, raw: (
            self._style.text(changes.all_at(number, start + length))
            for number, start, length in zip(place.numbers, place.starts, place.lengths, strict=True)
        )

    def _processes(self, place: _Place, raw: Sequence[Any]) -> Iterator[str]:
        uids: dict[int, str] = dict(
            self._store.rows("SELECT id, uid FROM gpus WHERE node = ?", (self._node,))
        )
        margin = max(place.lengths)
        busy = {
            row[0]
            for row in self._store.rows(
                "SELECT DISTINCT uid FROM processes WHERE node = ? AND last_seen >= ? AND first_seen <= ?",
                (self._node, place.starts[0] - margin, place.starts[-1] + 2 * margin),
            )
        }
        nothing = self._style.text([])
        for number, start, length in zip(place.numbers, place.starts, place.lengths, strict=True):
            uid = uids[number]
            found = processes_at(self._store, uid, start, start + length, self._node) if uid in busy else []
            yield self._style.text(found) if found else nothing


def _metric(name: str) -> Metric | None:
    """The metric a field belongs to: itself, or without _min and _max."""
    return BY_NAME.get(name) or (BY_NAME.get(name[:-4]) if name.endswith(("_min", "_max")) else None)


def _number_sql(name: str, metric: Metric) -> str:
    """SQL for a stored number in its metric's unit: a whole one as an integer, as `round_value` gives it."""
    raw = f"r.{name}" if name == metric.name else f"coalesce(r.{name}, r.{metric.name})"
    if metric.scale < 1:
        return f"{raw} * {round(1 / metric.scale)}"
    if metric.scale == 1:
        return raw
    scale = int(metric.scale)
    return f"CASE WHEN {raw} % {scale} THEN {raw} / {scale}.0 ELSE {raw} / {scale} END"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _labelled(label: str, texts: _Texts) -> _Texts:
    return (lambda place, raw: map(label.__add__, texts(place, raw))) if label else texts


class _Changes:
    """Values kept on change, by GPU and name."""

    def __init__(self, store: Asked, table: str, key: str, value: str, only: str | None = None) -> None:
        self._times: dict[tuple[int, str], list[float]] = {}
        self._values: dict[tuple[int, str], list[Any]] = {}
        sql = f"SELECT gpu, {key}, since, {value} FROM {table} WHERE coalesce({key} = ?, 1) ORDER BY since"
        for gpu, name, since, content in store.rows(sql, (only,)):
            self._times.setdefault((gpu, name), []).append(since)
            self._values.setdefault((gpu, name), []).append(content)
        self._names: dict[int, list[str]] = {}
        for gpu, name in sorted(self._times):
            self._names.setdefault(gpu, []).append(name)

    def at(self, gpu: int, name: str, moment: float) -> Any:
        """The value in force at `moment`, None before the first."""
        times = self._times.get((gpu, name))
        place = bisect_right(times, moment) if times is not None else 0
        return self._values[gpu, name][place - 1] if place else None

    def all_at(self, gpu: int, moment: float) -> dict[str, Any]:
        """Everything in force at `moment`."""
        values = {name: self.at(gpu, name, moment) for name in self._names.get(gpu, ())}
        return {name: value for name, value in values.items() if value is not None}
