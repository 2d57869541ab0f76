"""Rolls the rows of closed periods up into one aggregate per GPU, from the data, as often as needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from gpu_monitor.core.buckets import Period
from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Kind, Metric
from gpu_monitor.core.tally import HELD_BYTES, IDLE_BELOW
from gpu_monitor.core.times import format_time
from gpu_monitor.storage.database import Row, Writer, insert_sql
from gpu_monitor.storage.tables import MAX_GPUS, aggregate_columns, key_floor, unscaled

_HEAD = (
    "period", "gpu", "period_seconds", "samples", "expected_samples", "coverage", "seconds",
    "idle_seconds", "held_idle_seconds", "energy_seconds",
)  # fmt: skip
_COLUMNS = [*_HEAD, *aggregate_columns()]
_HOST_COLUMNS = [
    "period", "period_seconds", "samples", "expected_samples", "coverage", "seconds", *aggregate_columns(HOST_METRICS),
]  # fmt: skip


def _upsert(table: str, columns: list[str], keys: int) -> str:
    """SQL that writes an aggregate, the first `keys` columns naming it.

    Rows may be gone again when an hour is rolled up once more (past their age, or lost with a bad page):
    what was found from more of them stays.
    """
    names = ", ".join(f"{name} = excluded.{name}" for name in columns[keys:])
    conflict = f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {names}"
    return f"{insert_sql(table, columns)} {conflict} WHERE excluded.samples >= {table}.samples"


_AGGREGATES = _upsert("aggregates", _COLUMNS, 2)
_HOSTS = _upsert("host_aggregates", _HOST_COLUMNS, 1)


def _mean(raw: str) -> str:
    """Mean of a stored column weighted by the seconds each row covers, plain where none covers any."""
    weight = f"nullif(sum(CASE WHEN {raw} IS NOT NULL THEN r.seconds END), 0)"
    return f"coalesce(sum({raw} * r.seconds) * 1.0 / {weight}, avg({raw}))"


def _expressions(metrics: tuple[Metric, ...]) -> list[str]:
    """SQL for `aggregate_columns(metrics)`, in order; FLAGS as the list of distinct masks."""
    found: list[str] = []
    for metric in metrics:
        raw = f"r.{metric.name}"
        if metric.kind is Kind.FLAGS:
            found.append(f"group_concat(DISTINCT {raw})")
        elif metric.kind is Kind.TOTAL:
            found.append(_decimal(metric, f"sum({raw})"))
        else:
            found.append(_decimal(metric, _mean(raw)))
            low = f"min(coalesce({raw}_min, {raw}))" if metric.spread else f"min({raw})"
            high = f"max(coalesce({raw}_max, {raw}))" if metric.spread else f"max({raw})"
            found += [_decimal(metric, low), _decimal(metric, high)]
    return found


def _decimal(metric: Metric, value: str) -> str:
    """`value` (in stored units) in the metric's unit, rounded to its decimals; whole numbers as integers."""
    scaled = value if metric.scale == 1 else f"({value}) / {float(metric.scale)!r}"
    rounded = f"round({scaled}, {metric.decimals})"
    return f"CAST({rounded} AS INTEGER)" if metric.decimals == 0 else rounded


def _gpu_sql() -> str:
    utilization = unscaled(next(m for m in SAMPLED if m.name == "gpu_utilization"), "gpu_utilization")
    memory = unscaled(next(m for m in SAMPLED if m.name == "memory_used"), "memory_used")
    idle = f"{utilization} < {IDLE_BELOW}"
    return f"""SELECT max(g.id), count(*), sum(r.seconds) / 10.0,
        CASE WHEN count(r.gpu_utilization) THEN sum(CASE WHEN {idle} THEN r.seconds ELSE 0 END) / 10.0 END,
        CASE WHEN count(r.gpu_utilization) AND count(r.memory_used) THEN
            sum(CASE WHEN {idle} AND {memory} >= {HELD_BYTES} THEN r.seconds ELSE 0 END) / 10.0 END,
        CASE WHEN count(r.energy) THEN sum(CASE WHEN r.energy IS NOT NULL THEN r.seconds ELSE 0 END) / 10.0 END,
        {", ".join(_expressions(SAMPLED))}
        FROM samples_raw r JOIN gpus g ON g.id = r.id & {MAX_GPUS - 1}
        WHERE r.id >= ? AND r.id < ? AND g.node = ? GROUP BY g.uid, g.source ORDER BY 1"""


_GPU_SQL = _gpu_sql()
_HOST_SQL = f"""SELECT count(*), sum(r.seconds) / 10.0, {", ".join(_expressions(HOST_METRICS))}
    FROM hosts_raw r WHERE r.id >= ? AND r.id < ?"""
_FLAG_AT = next(n for n, name in enumerate(aggregate_columns()) if name == "throttle_reasons")


def expected_rows(start: int, end: int, changes: list[tuple[float, int]]) -> int:
    """How many interval starts lie in [start, end), where `changes` are (since, interval), ascending.

    The first interval length holds from the beginning of time.
    """
    total, until = 0, end
    for number in range(len(changes) - 1, -1, -1):
        since, interval = changes[number]
        begin = max(start, int(since)) if number else start
        if begin < until:
            total += (until - 1) // interval - (begin - 1) // interval
            until = begin
    return total


@dataclass(frozen=True)
class Outline:
    """What a rollup of one period did."""

    period: Period
    gpus: int

    @property
    def label(self) -> str:
        """The period for messages: its start in UTC and its length."""
        return f"{format_time(self.period.start)} ({self.period.seconds // 3600} h)"


Refresh = Callable[[sqlite3.Connection, int, Period, float], None]
"""Called in the same transaction once a period's aggregates are written: connection, node, period, now."""


class Rollup:
    """Rolls up what is marked and closed. Running it twice changes nothing."""

    def __init__(self, writer: Writer, refresh: Refresh, done: Callable[[int], None]) -> None:
        self._writer = writer
        self._refresh = refresh
        self._done = done

    def run(self, closed_until: float, now: float, node: int | None = None, limit: int = 24) -> list[Outline]:
        """Roll up at most `limit` marked periods that end by `closed_until`, oldest first, each in its transaction."""
        rows = self._writer.rows(
            "SELECT node, start, seconds FROM periods WHERE dirty = 1 AND start + seconds <= ?"
            " AND node = coalesce(?, node) ORDER BY start LIMIT ?",
            (closed_until, node, limit),
        )
        return [self._one(number, Period(start, seconds), now) for number, start, seconds in rows]

    def _one(self, node: int, period: Period, now: float) -> Outline:
        with self._writer.transaction() as connection:
            outline = roll_up(connection, node, period)
            connection.execute(
                "UPDATE periods SET dirty = 0 WHERE node = ? AND start = ?", (node, period.start)
            )
            self._refresh(connection, node, period, now)
            self._done(period.start)
        return outline


def interval_changes(connection: sqlite3.Connection, node: int) -> list[tuple[float, int]]:
    """(since, interval seconds) of a node, ascending: of its runs, or of its imports."""
    if node == 1:
        return list(connection.execute("SELECT started, interval_seconds FROM runs ORDER BY started")) or [
            (0.0, 60)
        ]
    steps = connection.execute(
        "SELECT max(1, round(min(step))) FROM imports WHERE node = ?", (node,)
    ).fetchone()
    return [(0.0, int(steps[0] or 60))]


def roll_up(connection: sqlite3.Connection, node: int, period: Period) -> Outline:
    """Write the aggregates of one period from its rows; a GPU renumbered since keeps one, under its new number."""
    bounds = (key_floor(period.start), key_floor(period.end))
    expected = expected_rows(period.start, period.end, interval_changes(connection, node))
    rows = [_row(period, expected, row) for row in connection.execute(_GPU_SQL, (*bounds, node))]
    numbers = [row[1] for row in rows]
    marks = ",".join("?" * len(numbers))
    connection.execute(
        f"DELETE FROM aggregates WHERE period = ? AND gpu NOT IN ({marks}) AND gpu IN (SELECT o.id FROM gpus o JOIN gpus n"
        f" ON n.uid = o.uid AND n.source = o.source AND n.node = o.node WHERE n.id IN ({marks}))",
        (period.start, *numbers, *numbers),
    )
    connection.executemany(_AGGREGATES, rows)
    if node == 1:
        host = connection.execute(_HOST_SQL, bounds).fetchone()
        if host[0]:
            coverage = min(1.0, round(host[1] / period.seconds, 4))
            head = (period.start, period.seconds, host[0], expected, coverage, host[1])
            connection.execute(_HOSTS, (*head, *host[2:]))
    return Outline(period, len(rows))


def _row(period: Period, expected: int, row: Row) -> Row:
    gpu, samples, seconds, idle, held, energy_seconds, *values = row
    mask = 0
    for text in str(values[_FLAG_AT]).split(",") if values[_FLAG_AT] is not None else ():
        mask |= int(text)
    values[_FLAG_AT] = None if values[_FLAG_AT] is None else mask
    coverage = min(1.0, round(seconds / period.seconds, 4))
    return (
        period.start,
        gpu,
        period.seconds,
        samples,
        expected,
        coverage,
        seconds,
        idle,
        held,
        energy_seconds,
        *values,
    )
