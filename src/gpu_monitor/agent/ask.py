"""Questions to a store: collections, ranges, hours. Reads only; returns plain records for output."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpu_monitor.core.buckets import Period, PeriodPlan
from gpu_monitor.core.catalogue import (
    BY_NAME,
    DEFAULT_FIELDS,
    HOST_METRICS,
    METRICS,
    Kind,
    round_value,
    throttle_names,
)
from gpu_monitor.core.errors import UsageError
from gpu_monitor.storage.database import Row
from gpu_monitor.storage.tables import (
    MAX_GPUS,
    aggregate_columns,
    key_floor,
    key_start,
    sample_columns,
    view_columns,
)

LOCAL = "local"
_EXTRA = ("source", "seconds", "reasons", "processes")
_HOURLY_EXTRA = (
    "source", "samples", "expected_samples", "coverage", "seconds", "idle_seconds", "held_idle_seconds", "energy_seconds",
)  # fmt: skip


class Asked(Protocol):
    """What a question needs of a store: the reader, or the writer inside an agent."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query."""
        ...

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """First column of the first row."""
        ...


@dataclass(frozen=True)
class Group:
    """All GPUs at one time: the unit of output. `gpus` hold the asked fields in order."""

    start: int
    gpus: tuple[Mapping[str, Any], ...]


def parse_fields(text: str | None, hourly: bool = False) -> tuple[str, ...]:
    """Field names of `--fields`: None the twelve, `all` everything, else a list; UsageError names the nearest."""
    if text is None:
        return DEFAULT_FIELDS
    known = _known_fields(hourly)
    if text.strip() == "all":
        return tuple(known)
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if not chosen:
        raise UsageError("--fields names no field", _ALL_FIELDS)
    for name in chosen:
        if name not in known:
            raise UsageError(f"unknown field {name!r}", f"{_nearest_field(name, known, hourly)}{_ALL_FIELDS}")
    return tuple(dict.fromkeys(chosen))


_ALL_FIELDS = "--fields all -f csv shows every name in its first line."


def _known_fields(hourly: bool) -> list[str]:
    extra = _HOURLY_EXTRA if hourly else _EXTRA
    return [name for metric in METRICS for name in _names(metric.name, hourly)] + list(extra)


def _nearest_field(name: str, known: Sequence[str], hourly: bool) -> str:
    """What may be meant by a name that is none, as a sentence; empty where nothing comes near."""
    if name in _known_fields(not hourly):
        return (
            "It is a field of rows, not of aggregates. "
            if hourly
            else "It is a field of aggregates: add --hourly. "
        )
    word = name.lower().replace(".", "_").replace("-", "_")
    parts = set(word.split("_"))
    # Of nvidia-smi's utilization.gpu and our gpu_utilization no letter stands in the same place.
    turned = [one for one in known if set(one.split("_")) == parts]
    close = turned or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    within = close or [one for one in known if len(word) > 2 and word in one]
    return f"Did you mean {within[0]}? " if within else ""


def _names(name: str, hourly: bool) -> list[str]:
    metric = BY_NAME[name]
    wide = metric.kind in (Kind.GAUGE, Kind.RATE) if hourly else metric.spread
    return [name, f"{name}_min", f"{name}_max"] if wide else [name]


def node_number(store: Asked, name: str | None) -> int:
    """The number of the node called `name` (None: the local one); UsageError lists those there are."""
    if name is None:
        return 1
    nodes = store.rows("SELECT id, name FROM nodes ORDER BY id")
    for number, known in nodes:
        if known == name or (number == 1 and name == LOCAL):
            return int(number)
    raise UsageError(
        f"the store knows no node {name!r}", f"It knows: {', '.join(known for _, known in nodes) or 'none'}."
    )


class Samples:
    """Rows of intervals of one node, with `fields` as documented."""

    def __init__(self, store: Asked, node: int, fields: Sequence[str]) -> None:
        self._store = store
        self._node = node
        self._fields = tuple(fields)
        self._interval = interval_of(store)
        self._gpus = {
            row[0]: row for row in store.rows("SELECT * FROM gpus WHERE node = ? ORDER BY id", (node,))
        }
        self._states = _Changes(store, "states", "key", "value") if self._needs(Kind.STATE) else None
        self._reasons = _Changes(store, "reasons", "metric", "reason") if "reasons" in self._fields else None
        kinds = (Kind.IDENTITY, Kind.STATE)
        sampled = [
            name for name in self._fields if _metric(name) and BY_NAME[_metric(name)].kind not in kinds
        ]
        expressions = {e.rsplit(" AS ", 1)[1]: e.rsplit(" AS ", 1)[0] for e in view_columns(_SAMPLED)}
        self._columns = sampled
        chosen = "".join(f", {expressions[name]}" for name in sampled)
        self._sql = (
            f"SELECT r.id, r.seconds / 10.0{chosen} FROM samples_raw r"
            f" WHERE r.id >= ? AND r.id < ? AND r.id & {MAX_GPUS - 1} IN (SELECT id FROM gpus WHERE node = {node})"
            " ORDER BY r.id"
        )

    def _needs(self, kind: Kind) -> bool:
        return any(name in BY_NAME and BY_NAME[name].kind is kind for name in self._fields)

    def between(self, start: float, end: float) -> list[Group]:
        """Groups whose interval starts in [start, end), ascending."""
        return list(
            grouped(self._store.rows(self._sql, (key_floor(_up(start)), key_floor(_up(end)))), self._record)
        )

    def last_start(self) -> int | None:
        """Start of the newest stored interval of this node."""
        return self._edge("DESC", 1 << 62, "<")

    def nearest(self, moment: float) -> int | None:
        """Start of the stored interval that holds `moment`, else of the one that begins nearest to it."""
        below = self._edge("DESC", key_floor(int(moment) + 1), "<")
        above = self._edge("ASC", key_floor(int(moment) + 1), ">=")
        if below is not None and moment < below + self._interval:
            return below
        found = [start for start in (below, above) if start is not None]
        return min(found, key=lambda start: abs(start - moment)) if found else None

    def _edge(self, order: str, key: int, comparison: str) -> int | None:
        if not self._gpus:
            return None
        # The local node's GPUs change rarely; walking the key in order finds the first row of ours at once.
        value = self._store.value(
            f"SELECT id FROM samples_raw WHERE id {comparison} ? AND id & {MAX_GPUS - 1}"
            f" IN ({','.join(str(number) for number in self._gpus)}) ORDER BY id {order} LIMIT 1",
            (key,),
        )
        return None if value is None else key_start(value)

    def _record(self, row: Row) -> Mapping[str, Any]:
        key, seconds, *values = row
        start, number = key_start(key), key & (MAX_GPUS - 1)
        given = dict(zip(self._columns, values, strict=True))
        record: dict[str, Any] = {}
        for name in self._fields:
            record[name] = self._field(name, given, number, start, seconds)
        return record

    def _field(self, name: str, given: Mapping[str, Any], number: int, start: int, seconds: float) -> Any:
        if name in given:
            return shown(_metric(name), given[name])
        if name in _GPU_COLUMN:
            return self._gpus[number][_GPU_COLUMN[name]]
        if name == "seconds":
            return seconds
        if name == "reasons" and self._reasons is not None:
            return self._reasons.all_at(number, start + self._interval)
        if name == "processes":
            return processes_at(self._store, self._gpus[number][2], start, start + self._interval, self._node)
        if self._states is not None:
            return shown(name, self._states.at(number, name, start + self._interval))
        return None


def grouped(rows: list[Row], record: Any) -> Iterator[Group]:
    """Rows (key first, ascending) as one group per interval and clock era."""
    current: int | None = None
    gathered: list[Mapping[str, Any]] = []
    for row in rows:
        place = row[0] >> 16
        if current is not None and place != current:
            yield Group(current >> 4, tuple(gathered))
            gathered = []
        current = place
        gathered.append(record(row))
    if current is not None:
        yield Group(current >> 4, tuple(gathered))


class Machine:
    """What was recorded of the machine around the GPUs, by interval or by period."""

    def __init__(self, store: Asked, hourly: bool) -> None:
        self._store = store
        self._hourly = hourly
        names = aggregate_columns(HOST_METRICS) if hourly else sample_columns(HOST_METRICS)
        extra = ("samples", "expected_samples", "coverage", "seconds") if hourly else ("seconds",)
        self.fields = (*names, *extra)
        columns = ", ".join(self.fields)
        by_period = (
            f"SELECT period, {columns} FROM host_aggregates WHERE period >= ? AND period < ? ORDER BY period"
        )
        self._sql = by_period if hourly else f"SELECT start, {columns} FROM ({_HOST_ROWS})"

    def last_start(self) -> int | None:
        """Start of the newest interval or period."""
        sql = (
            "SELECT max(period) FROM host_aggregates"
            if self._hourly
            else "SELECT max(id) >> 20 FROM hosts_raw"
        )
        found = self._store.value(sql)
        return None if found is None else int(found)

    def between(self, start: float, end: float) -> list[tuple[int, dict[str, Any]]]:
        """(start, values by name) of what starts in [start, end), ascending."""
        bounds = (start, end) if self._hourly else (key_floor(_up(start)), key_floor(_up(end)))
        rows = self._store.rows(self._sql, bounds)
        return [(row[0], self._record(row[1:])) for row in rows]

    def _record(self, row: Row) -> dict[str, Any]:
        return {
            name: value if name not in _HOST_OF or value is None else round_value(_HOST_OF[name], value)
            for name, value in zip(self.fields, row, strict=True)
        }


class Hours:
    """Aggregates of one node."""

    def __init__(self, store: Asked, node: int, fields: Sequence[str]) -> None:
        self._store = store
        self._node = node
        self._fields = tuple(fields)
        self._states = _Changes(store, "states", "key", "value")
        columns = {row[1] for row in store.rows("PRAGMA table_info(aggregates)")}
        self._columns = [name for name in self._fields if name in columns]
        chosen = "".join(f', a."{name}"' for name in self._columns)
        self._sql = (
            f"SELECT a.period, a.gpu, a.period_seconds, g.*{chosen} FROM aggregates a JOIN gpus g ON g.id = a.gpu"
            " WHERE a.period >= ? AND a.period < ? AND g.node = ? ORDER BY a.period, a.gpu"
        )

    def between(self, start: float, end: float) -> list[Group]:
        """Groups of the periods that start in [start, end), ascending."""
        groups: dict[int, list[Mapping[str, Any]]] = {}
        for row in self._store.rows(self._sql, (start, end, self._node)):
            groups.setdefault(row[0], []).append(self._record(row))
        return [Group(start, tuple(gpus)) for start, gpus in groups.items()]

    def _record(self, row: Row) -> Mapping[str, Any]:
        period, number, seconds = row[:3]
        gpu, values = row[3 : 3 + _GPU_WIDTH], row[3 + _GPU_WIDTH :]
        given = dict(zip(self._columns, values, strict=True))
        record: dict[str, Any] = {}
        for name in self._fields:
            if name in given:
                record[name] = shown(_metric(name), given[name])
            elif name in _GPU_COLUMN:
                record[name] = gpu[_GPU_COLUMN[name]]
            else:
                record[name] = shown(name, self._states.at(number, name, period + seconds))
        return record


class _Changes:
    """Values kept on change, asked by GPU and time."""

    def __init__(self, store: Asked, table: str, key: str, value: str) -> None:
        self._steps: dict[tuple[int, str], list[tuple[float, Any]]] = {}
        for gpu, name, since, content in store.rows(
            f"SELECT gpu, {key}, since, {value} FROM {table} ORDER BY since"
        ):
            self._steps.setdefault((gpu, name), []).append((since, content))

    def at(self, gpu: int, name: str, moment: float) -> Any:
        """The value in force at `moment`, None before the first."""
        found = None
        for since, content in self._steps.get((gpu, name), ()):
            if since > moment:
                break
            found = content
        return found

    def all_at(self, gpu: int, moment: float) -> dict[str, Any]:
        """Everything in force at `moment`."""
        names = sorted(name for number, name in self._steps if number == gpu)
        values = {name: self.at(gpu, name, moment) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def processes_at(store: Asked, uid: str, start: int, end: int, node: int) -> list[dict[str, Any]]:
    """Processes on a GPU in the interval [start, end): those that the reading at its end, or one within it, saw."""
    names = ("pid", "user", "command", "memory", "container", "job", "experiment_id")
    rows = store.rows(
        f"SELECT {', '.join(names)} FROM processes WHERE node = ? AND uid = ? AND first_seen <= ? AND last_seen > ?"
        " ORDER BY pid",
        (node, uid, end, start),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def shown(name: str, value: Any) -> Any:
    """A stored value as it is printed: rounded, flags as names."""
    if value is None or not name:
        return value
    metric = BY_NAME.get(name)
    if metric is None or isinstance(value, str):
        return value
    if metric.kind is Kind.FLAGS:
        return throttle_names(int(value))
    return round_value(metric, value)


def load_plan(store: Asked) -> PeriodPlan:
    """The period lengths that held, as the store keeps them."""
    text = store.value("SELECT value FROM meta WHERE key = 'period_plan'")
    if not text:
        return PeriodPlan()
    return PeriodPlan(tuple((int(a), int(b)) for a, b in (step.split(":") for step in str(text).split(","))))


def plan_text(plan: PeriodPlan) -> str:
    """A plan as it is kept in the store."""
    return ",".join(f"{since}:{hours}" for since, hours in plan.steps)


def interval_of(store: Asked) -> int:
    """The collection interval of the newest run, 60 where there was none."""
    return int(store.value("SELECT interval_seconds FROM runs ORDER BY id DESC LIMIT 1") or 60)


def recorded_span(store: Asked, node: int) -> tuple[float, float] | None:
    """From when to when a node has rows or hours; None where it has none."""
    own = f"(SELECT id FROM gpus WHERE node = {int(node)})"
    rows = f"SELECT id >> 20 AS start FROM samples_raw WHERE id & {MAX_GPUS - 1} IN {own} ORDER BY id {{}} LIMIT 1"
    first = store.value(rows.format("ASC"))
    last = store.value(rows.format("DESC"))
    hours = store.rows(
        f"SELECT min(period), max(period + period_seconds) FROM aggregates WHERE gpu IN {own}"
    )[0]
    starts = [float(value) for value in (first, hours[0]) if value is not None]
    ends = [float(value) for value in (last, hours[1]) if value is not None]
    return (min(starts), max(ends)) if starts else None


def absences(store: Asked, node: int, start: float, end: float) -> list[tuple[str, str, float]]:
    """(which GPU in words, cause, since when) for each gap of one GPU that touches [start, end)."""
    rows = store.rows(
        'SELECT uid, cause, start FROM gaps WHERE node = ? AND uid IS NOT NULL AND start < ? AND coalesce("end", 1e12) > ?'
        " ORDER BY start",
        (node, end, start),
    )
    names: dict[str, int | None] = dict(
        store.rows('SELECT uid, "index" FROM gpus WHERE node = ? ORDER BY id', (node,))
    )
    return [
        (f"GPU {names[uid]} ({uid})" if names.get(uid) is not None else uid, cause, at)
        for uid, cause, at in rows
    ]


def holds_played(store: Asked) -> bool:
    """Whether this machine's rows are simulated or replayed."""
    sql = "SELECT 1 FROM gpus WHERE node = 1 AND source IN ('simulated', 'replay') LIMIT 1"
    return store.value(sql) is not None


def period_at(store: Asked, moment: float) -> Period:
    """The aggregation period that contains `moment`."""
    return load_plan(store).period(moment)


def _metric(name: str) -> str:
    """The metric a column belongs to: itself, or without _min and _max; empty where it is none."""
    if name in BY_NAME:
        return name
    base = name[:-4] if name.endswith(("_min", "_max")) else ""
    return base if base in BY_NAME else ""


def _up(moment: float) -> int:
    whole = int(moment)
    return whole if whole == moment else whole + 1


_HOST_OF = {
    name: metric
    for metric in HOST_METRICS
    for name in (metric.name, f"{metric.name}_min", f"{metric.name}_max")
}
_HOST_ROWS = (
    f"SELECT r.id >> 20 AS start, r.seconds / 10.0 AS seconds, {', '.join(view_columns(HOST_METRICS))}"
    " FROM hosts_raw r WHERE r.id >= ? AND r.id < ? ORDER BY r.id"
)
_SAMPLED = tuple(m for m in METRICS if m.kind not in (Kind.IDENTITY, Kind.STATE))
_GPU_COLUMN = {
    "uid": 2, "source": 3, "name": 4, "pci_bus_id": 5, "memory_total": 6, "index": 7, "serial": 8, "minor_number": 9,
    "parent_uid": 10, "mig_instance": 11, "memory_kind": 12,
}  # fmt: skip
_GPU_WIDTH = 14
"""Columns of `gpus`: id, node, the eleven of an identity, first_seen."""
