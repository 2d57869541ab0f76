"""Builds the report of one period from the store.

What a report says depends on the rows of its period alone, never on when it is built: gaps and
processes are clipped to the period, states are those at its end, and the node is described as the
run of that time was. So two builds of an unchanged period give the same bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from gpu_monitor.agent.identity import id_at
from gpu_monitor.agent.rollup import interval_changes
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.catalogue import (
    HOST_METRICS,
    IDENTITY,
    METRICS,
    SAMPLED,
    Kind,
    Metric,
    round_value,
    throttle_names,
)
from gpu_monitor.core.times import format_time
from gpu_monitor.storage.database import Row
from gpu_monitor.storage.tables import aggregate_columns
from gpu_monitor.wire.telemetry import (
    SCHEMA,
    Entry,
    EventPart,
    GapPart,
    NodePart,
    ProcessPart,
    Report,
)

LOCAL_NODE = 1
_COVER = ("samples", "expected_samples", "coverage", "seconds")
_IDLE = ("idle_seconds", "held_idle_seconds", "energy_seconds")
_DECIMALS = {"coverage": 4, "seconds": 1, "idle_seconds": 1, "held_idle_seconds": 1, "energy_seconds": 1}
_MADE_UP = ("simulated", "replay")
"""Sources that make `node.simulated` true: their rows are no reading of this machine at that time."""


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


_GPU_COLUMNS = (*(metric.name for metric in IDENTITY), *_COVER, *_IDLE, *aggregate_columns())
_GPU_SQL = f"""SELECT g.id, g.source, {", ".join(f'g."{m.name}"' for m in IDENTITY)},
    {", ".join("a." + name for name in (*_COVER, *_IDLE, *aggregate_columns()))}
    FROM aggregates a JOIN gpus g ON g.id = a.gpu
    WHERE a.period = ? AND g.node = ? ORDER BY g.uid, g.source, g.id"""
_HOST_SQL = (
    f"SELECT {_quoted([*_COVER, *aggregate_columns(HOST_METRICS)])} FROM host_aggregates WHERE period = ?"
)


def has_content(connection: sqlite3.Connection, node: int, period: Period) -> bool:
    """Whether there is anything to tell of the period: an aggregate, a gap or an event."""
    found = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM aggregates a JOIN gpus g ON g.id = a.gpu WHERE a.period = :start AND g.node = :node)"
        " OR :node = 1 AND EXISTS (SELECT 1 FROM host_aggregates WHERE period = :start)"
        " OR EXISTS (SELECT 1 FROM events WHERE node = :node AND time >= :start AND time < :end)"
        ' OR EXISTS (SELECT 1 FROM gaps WHERE node = :node AND start < :end AND coalesce("end", :end) > :start)',
        {"node": node, "start": period.start, "end": period.end},
    )
    return bool(found.fetchone()[0])


def build(
    connection: sqlite3.Connection,
    node: int,
    period: Period,
    *,
    report_id: str = "",
    revision: int = 0,
    contract_number: str = "",
) -> Report:
    """The report of `period`, as the store knows it. `node` is the store's number of the node."""
    interval = _interval(connection, node, period)
    return Report(
        schema=SCHEMA,
        report_id=report_id,
        revision=revision,
        contract_number=contract_number,
        node=_node(connection, node, period),
        aggregation_time=format_time(period.start),
        period_seconds=period.seconds,
        collection_interval_seconds=interval,
        gpus=[_gpu(connection, row, period) for row in connection.execute(_GPU_SQL, (period.start, node))],
        host=_host(connection, period) if node == LOCAL_NODE else None,
        gaps=list(_gaps(connection, node, period)),
        events=list(_events(connection, node, period)),
        processes=list(_processes(connection, node, period, interval)),
    )


def _interval(connection: sqlite3.Connection, node: int, period: Period) -> int:
    """The collection interval in force at the period's end."""
    changes = interval_changes(connection, node)
    return next((seconds for since, seconds in reversed(changes) if since < period.end), changes[0][1])


def _node(connection: sqlite3.Connection, node: int, period: Period) -> NodePart:
    name = connection.execute("SELECT name FROM nodes WHERE id = ?", (node,)).fetchone()
    simulated = connection.execute(
        f"SELECT EXISTS (SELECT 1 FROM gpus WHERE node = ? AND source IN {_MADE_UP})", (node,)
    ).fetchone()
    hostname, system, version = (
        _of_run(connection, column, period) if node == LOCAL_NODE else None
        for column in ("hostname", "os", "version")
    )
    driver = connection.execute(
        "SELECT value FROM states WHERE key = 'driver_version' AND since <= ? AND gpu IN"
        " (SELECT id FROM gpus WHERE node = ?) ORDER BY since DESC, gpu LIMIT 1",
        (period.end, node),
    ).fetchone()
    return NodePart(
        id=id_at(connection, node, period.end),
        hostname=hostname or (name[0] if name else None),
        simulated=bool(simulated[0]),
        os=system,
        agent_version=version,
        driver_version=None if driver is None or driver[0] is None else str(driver[0]),
    )


def _of_run(connection: sqlite3.Connection, column: str, period: Period) -> str | None:
    """What the last run that began before the period's end (else the first one) says."""
    found = connection.execute(
        f"SELECT {column} FROM runs WHERE {column} IS NOT NULL ORDER BY started >= ?,"
        " CASE WHEN started < ? THEN -started ELSE started END LIMIT 1",
        (period.end, period.end),
    ).fetchone()
    return None if found is None else str(found[0])


def _gpu(connection: sqlite3.Connection, row: Row, period: Period) -> Entry:
    number, source, *values = row
    given = dict(zip(_GPU_COLUMNS, values, strict=True))
    given.update(_latest(connection, "states", "key", "value", number, period))
    entry: Entry = {}
    for metric in METRICS:
        entry.update(_columns(metric, given))
    entry["source"] = source
    entry.update({name: _plain(name, given[name]) for name in (*_COVER, *_IDLE)})
    reasons = _latest(connection, "reasons", "metric", "reason", number, period)
    entry["reasons"] = {
        name: why for name, why in reasons.items() if why is not None and entry.get(name) is None
    }
    return entry


def _host(connection: sqlite3.Connection, period: Period) -> Entry | None:
    row = connection.execute(_HOST_SQL, (period.start,)).fetchone()
    if row is None:
        return None
    given = dict(zip((*_COVER, *aggregate_columns(HOST_METRICS)), row, strict=True))
    entry: Entry = {}
    for metric in HOST_METRICS:
        entry.update(_columns(metric, given))
    entry.update({name: _plain(name, given[name]) for name in _COVER})
    return entry


def _columns(metric: Metric, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metric under its own name, and its extremes where an hour keeps them."""
    value = given.get(metric.name)
    if metric.kind is Kind.FLAGS:
        yield metric.name, None if value is None else throttle_names(int(value))
        return
    spread = metric in SAMPLED or metric in HOST_METRICS
    names = [metric.name]
    if spread and metric.kind in (Kind.GAUGE, Kind.RATE):
        names += [f"{metric.name}_min", f"{metric.name}_max"]
    for name in names:
        found = given.get(name)
        measured = spread and isinstance(found, (int, float))
        yield name, round_value(metric, found) if measured else found


def _plain(name: str, value: float | None) -> float | int | None:
    decimals = _DECIMALS.get(name)
    return value if value is None or decimals is None else round(float(value), decimals)


def _latest(
    connection: sqlite3.Connection, table: str, key: str, value: str, gpu: int, period: Period
) -> dict[str, Any]:
    """What is kept on change, as it stood at the period's end.

    Rows are stamped with the end of the interval that showed them, so the end itself belongs to the period.
    """
    rows = connection.execute(
        f"SELECT {key}, {value}, max(since) FROM {table} WHERE gpu = ? AND since <= ? GROUP BY {key} ORDER BY {key}",
        (gpu, period.end),
    )
    return {name: content for name, content, _ in rows}


def _gaps(connection: sqlite3.Connection, node: int, period: Period) -> Iterator[GapPart]:
    rows = connection.execute(
        'SELECT uid, max(start, :start), min(coalesce("end", :end), :end), cause, detail FROM gaps WHERE node = :node'
        ' AND start < :end AND coalesce("end", :end) > :start ORDER BY 2, 3, uid, cause, id',
        {"node": node, "start": period.start, "end": period.end},
    )
    for uid, start, end, cause, detail in rows:
        yield GapPart(
            uid=uid,
            start=format_time(start),
            end=format_time(end),
            seconds=round(float(end - start), 3),
            cause=cause,
            detail=detail,
        )


def _events(connection: sqlite3.Connection, node: int, period: Period) -> Iterator[EventPart]:
    rows = connection.execute(
        "SELECT time, uid, kind, severity, message, detail FROM events WHERE node = ? AND time >= ? AND time < ?"
        " ORDER BY time, id",
        (node, period.start, period.end),
    )
    for time, uid, kind, severity, message, detail in rows:
        yield EventPart(
            time=format_time(time),
            uid=uid,
            kind=kind,
            severity=severity,
            message=message,
            detail=_detail(detail),
        )


def _detail(text: str | None) -> Any:
    """What the event's row holds as JSON; a text that is none is sent as that text."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        return text


_PROCESS_COLUMNS = (
    "start_ticks", "boot_id", "ns_pid", "user", "command", "container", "job", "experiment_id",
)  # fmt: skip
_PROCESS_SQL = f"""SELECT uid, pid, kind, first_seen, last_seen, memory, memory_max, {", ".join(_PROCESS_COLUMNS)}
    FROM processes WHERE node = ? AND first_seen < ? AND last_seen >= ? ORDER BY first_seen, uid, pid, kind, id"""


def _processes(
    connection: sqlite3.Connection, node: int, period: Period, interval: int
) -> Iterator[ProcessPart]:
    """Who was on the GPUs. A sighting is stamped with the end of its interval, so half an interval is taken
    off to find the period it belongs to; whoever was there in the last interval is there until the end.

    A process that goes on goes on changing its row, so its memory is left to the report it ends in.
    """
    half = interval / 2
    rows = connection.execute(_PROCESS_SQL, (node, period.end + half, period.start + half))
    for uid, pid, kind, first, last, memory, memory_max, *rest in rows:
        ended = last < period.end - half
        yield ProcessPart(
            uid=uid,
            pid=pid,
            kind=kind,
            first_seen=format_time(min(first, period.end)),
            last_seen=format_time(last if ended else period.end),
            ended=ended,
            memory=memory if ended else None,
            memory_max=memory_max if ended else None,
            **dict(zip(_PROCESS_COLUMNS, rest, strict=True)),
        )
