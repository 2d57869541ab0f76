"""One experiment with everything that was said of it but its points, its output and its files."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Table, func, literal, select

from gpu_monitor.server.store.experiment_list import (
    Experiment,
    Number,
    experiment_fields,
    shown_value,
    tags_of,
)
from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema_experiments import captures, notes, params, run_alerts, segments, series
from gpu_monitor.server.store.values import raw_json, stamp

Column = ColumnElement[Any]
_MOST = {"params": 5000, "metrics": 2000, "notes": 500, "alerts": 500, "facts": 500, "segments": 500}
"""Of each in one answer; `cut` names what there was more of."""
_TEXTS = {
    "params": ("value",),
    "notes": ("text",),
    "alerts": ("text",),
    "facts": ("body",),
    "segments": ("gpus", "proof"),
}
"""The columns of each that may be long."""


class MetricPoint(msgspec.Struct, frozen=True):
    """One value of a metric."""

    value: Number
    step: int | None
    time: str | None


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """What a metric came to. `min` and `max` are of finite values; `not_finite` counts the others.

    `source`: `sdk` where the SDK read it by itself, null where the script logged it.
    """

    name: str
    unit: str | None
    source: str | None
    points: int
    last: MetricPoint | None
    min: MetricPoint | None
    max: MetricPoint | None
    not_finite: int
    first_not_finite_step: int | None


class Note(msgspec.Struct, frozen=True):
    """What somebody wrote down; `author` null: the script."""

    time: str
    text: str
    author: str | None


class RunAlert(msgspec.Struct, frozen=True):
    """What the script, or who watched it, found that a person should know of."""

    time: str
    level: str
    title: str
    text: str


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One writer of the experiment: a start of the process, a rank, a forked child; and how much of it is here.

    `damaged`: lines whose check is wrong; `not_shown`: records that are held and not shown: of kinds that this server does
    not know, or more than one experiment has of something.
    """

    segment: str
    started: str
    last_heard: str
    bytes: int
    damaged: int
    not_shown: int
    status: str
    host: str
    pid: int
    user: str | None
    rank: int | None
    boot_id: str | None
    start_ticks: int | None
    ns_pid: int | None
    python: str | None
    version: str | None
    gpus: list[str] | None
    simulated: bool
    resumed: bool
    parent: str | None
    proof: Any = None


class ExperimentDetail(Experiment, frozen=True, kw_only=True):
    """An experiment, whole. `facts`: what was captured, by topic. `proof`: how it is known that it crashed.

    `thinned`: since when old points are thinned out; null: all are there. `cut` names lists that were too long.
    """

    params: dict[str, Any]
    metrics: list[Metric]
    notes: list[Note]
    alerts: list[RunAlert]
    facts: dict[str, Any]
    segments: list[SegmentRow]
    proof: Any
    created: str
    created_by: str
    thinned: str | None
    bytes: int
    cut: list[str]


def experiment_detail(connection: Connection, row: Any, now: float) -> ExperimentDetail:
    """The whole of one experiment, a row of `experiment_rows`."""
    cut: list[str] = []

    def some(table: Table, name: str, key: Column, *order: Column) -> list[Any]:
        """The rows of a table, as many as an answer has room for; `key` tells them apart within the experiment."""
        of_it = table.c.experiment == row.id
        lengths = [func.coalesce(func.length(table.c[text]), 0) for text in _TEXTS[name]]
        sized = select(key, sum(lengths, literal(0))).where(of_it).order_by(*order)
        places = [(one[0], one[1]) for one in connection.execute(sized.limit(_MOST[name] + 1))]
        kept = fitting(places[: _MOST[name]])
        if len(kept) < len(places):
            cut.append(name)
        return list(connection.execute(select(table).where(of_it, key.in_(kept)).order_by(*order)))

    metrics = list(connection.execute(metric_rows(row.id).limit(_MOST["metrics"] + 1)))
    if len(metrics) > _MOST["metrics"]:
        cut.append("metrics")
    newest_notes = (notes.c.time.desc(), notes.c.id.desc())
    newest_alerts = (run_alerts.c.time.desc(), run_alerts.c.id.desc())
    by_start = (segments.c.started, segments.c.id)
    return ExperimentDetail(
        **experiment_fields(row, tags_of(connection, [row.id]).get(row.id, {}), now),
        params={
            one.name: raw_json(one.value) for one in some(params, "params", params.c.name, params.c.name)
        },
        metrics=[metric_of(one) for one in metrics[: _MOST["metrics"]]],
        notes=[
            Note(_stamp(one.time), one.text, one.author)
            for one in some(notes, "notes", notes.c.id, *newest_notes)
        ],
        alerts=[
            RunAlert(_stamp(one.time), one.level, one.title, one.text)
            for one in some(run_alerts, "alerts", run_alerts.c.id, *newest_alerts)
        ],
        facts={
            one.topic: raw_json(one.body)
            for one in some(captures, "facts", captures.c.topic, captures.c.topic)
        },
        segments=[_segment(one) for one in some(segments, "segments", segments.c.id, *by_start)],
        proof=raw_json(row.proof),
        created=_stamp(row.created),
        created_by=row.created_by,
        thinned=stamp(row.thinned),
        bytes=row.bytes,
        cut=cut,
    )


def metric_rows(experiment: int) -> Select[Any]:
    """The metrics of an experiment, by name: those of the script before those that the SDK read by itself."""
    by_script = series.c.source.is_(None).desc()
    return select(series).where(series.c.experiment == experiment).order_by(by_script, series.c.name)


def metric_of(row: Any) -> Metric:
    """A row of `series` as it is answered."""
    last = shown_value(row.last_value, row.last_special)
    return Metric(
        name=row.name, unit=row.unit, source=row.source, points=row.points,
        last=None if last is None else MetricPoint(last, row.last_step, stamp(row.last_time)),
        min=_extreme(row.min_value, row.min_step, row.min_time), max=_extreme(row.max_value, row.max_step, row.max_time),
        not_finite=row.specials, first_not_finite_step=row.special_step,
    )  # fmt: skip


def _extreme(value: float | None, step: int | None, time: float | None) -> MetricPoint | None:
    return None if value is None else MetricPoint(value, step, stamp(time))


def _segment(row: Any) -> SegmentRow:
    return SegmentRow(
        segment=row.name, started=_stamp(row.started), last_heard=_stamp(round(row.last_heard, 3)), bytes=row.bytes,
        damaged=row.damaged, not_shown=row.unknown, status=row.status, host=row.host, pid=row.pid, user=row.user,
        rank=row.rank,
        boot_id=row.boot_id, start_ticks=row.start_ticks, ns_pid=row.ns_pid, python=row.python, version=row.version,
        gpus=raw_json(row.gpus), simulated=row.simulated, resumed=row.resumed, parent=row.parent,
        proof=raw_json(row.proof),
    )  # fmt: skip


def _stamp(epoch: float) -> str:
    return stamp(epoch) or ""
