"""Experiments side by side: which parameters and tags differ, and what each metric came to in each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, select

from gpu_monitor.core.compare import Best, best_is, differs
from gpu_monitor.server.store.experiment_detail import Metric, MetricPoint, metric_of
from gpu_monitor.server.store.experiment_list import Experiment, shown_value
from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema_experiments import params, points, series, tags
from gpu_monitor.server.store.values import raw_json, stamp

METRICS = 500
"""Metrics of one comparison, where none is named."""
_PARAMS = 5000


class ComparedParam(msgspec.Struct, frozen=True):
    """A parameter: its values in the order of the experiments, null where it was not set."""

    name: str
    differs: bool
    values: list[Any]


class ComparedTag(msgspec.Struct, frozen=True):
    """A tag, likewise."""

    name: str
    differs: bool
    values: list[str | None]


class ComparedMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric: what it came to in each experiment, null where it was not logged.

    `best_is`: whether the least or the greatest value counts as best, by its name or as was asked; null: neither is
    known to, and `best` holds nothing. `at`: the value at the step that was asked for, or the last one before it.
    """

    name: str
    unit: str | None
    best_is: Literal["min", "max"] | None
    best: list[MetricPoint | None]
    last: list[MetricPoint | None]
    min: list[MetricPoint | None]
    max: list[MetricPoint | None]
    at: list[MetricPoint | None] | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments side by side, in the order in which they were named.

    `left_out`: metrics beyond what is shown. `cut` names what an answer had no room for: `params`, `tags`.
    """

    experiments: list[Experiment]
    params: list[ComparedParam]
    tags: list[ComparedTag]
    metrics: list[ComparedMetric]
    left_out: int
    cut: list[str]


def compare_params(connection: Connection, rows: Sequence[int]) -> tuple[list[ComparedParam], bool]:
    """Every parameter that any of the experiments has, by name, and whether some were left out for want of room."""
    length = func.sum(func.length(params.c.value))
    sized = select(params.c.name, length).where(params.c.experiment.in_(rows)).group_by(params.c.name)
    places = [(row[0], int(row[1])) for row in connection.execute(sized.order_by(params.c.name))]
    names = fitting(places[:_PARAMS])
    query = select(params).where(params.c.experiment.in_(rows), params.c.name.in_(names))
    held: dict[str, dict[int, str]] = {name: {} for name in names}
    for row in connection.execute(query):
        held[row.name][row.experiment] = row.value
    found = []
    for name, written in held.items():
        texts = [written.get(row) for row in rows]
        values = [_Missing if text is None else json.loads(text) for text in texts]
        found.append(ComparedParam(name, differs(values), [raw_json(text) for text in texts]))
    return found, len(names) < len(places)


def compare_tags(connection: Connection, rows: Sequence[int]) -> tuple[list[ComparedTag], bool]:
    """Every tag that any of the experiments has, by key, likewise."""
    length = func.sum(func.length(tags.c.value))
    there = and_(tags.c.experiment.in_(rows), tags.c.value.is_not(None))
    sized = select(tags.c.key, length).where(there).group_by(tags.c.key).order_by(tags.c.key)
    places = [(row[0], int(row[1])) for row in connection.execute(sized)]
    keys = fitting(places)
    held: dict[str, dict[int, str]] = {key: {} for key in keys}
    for row in connection.execute(select(tags).where(there, tags.c.key.in_(keys))):
        held[row.key][row.experiment] = row.value
    found = []
    for key, by_row in held.items():
        values = [by_row.get(row) for row in rows]
        found.append(ComparedTag(key, differs(values), values))
    return found, len(keys) < len(places)


def compare_metrics(
    connection: Connection,
    rows: Sequence[int],
    names: Sequence[str] | None,
    goals: Mapping[str, Best],
    step: int | None,
) -> tuple[list[ComparedMetric], int]:
    """The named metrics (None: all that there are, METRICS at most), and how many more there are."""
    if names is None:
        named = select(series.c.name).where(series.c.experiment.in_(rows)).group_by(series.c.name)
        by_script = func.count(series.c.source)
        found = list(connection.execute(named.order_by(by_script, series.c.name)).scalars())
        names, left_out = found[:METRICS], max(0, len(found) - METRICS)
    else:
        left_out = 0
    query = select(series).where(series.c.experiment.in_(rows), series.c.name.in_(names))
    held: dict[tuple[str, int], Any] = {}
    for row in connection.execute(query):
        held[row.name, row.experiment] = row
    at = {} if step is None else _values_at(connection, rows, names, step)
    compared = []
    for name in names:
        of_it = [held.get((name, row)) for row in rows]
        metrics = [None if one is None else metric_of(one) for one in of_it]
        goal = goals.get(name) or best_is(name)
        unit = next((one.unit for one in metrics if one is not None and one.unit), None)
        compared.append(
            ComparedMetric(
                name=name, unit=unit, best_is=goal, best=[_best(one, goal) for one in metrics],
                last=[None if one is None else one.last for one in metrics],
                min=[None if one is None else one.min for one in metrics],
                max=[None if one is None else one.max for one in metrics],
                at=None if step is None else [None if one is None else at.get(one.id) for one in of_it],
            )
        )  # fmt: skip
    return compared, left_out


class _Missing:
    """Stands for a parameter that was not set, which is another thing than one set to null."""


def _best(metric: Metric | None, goal: Best | None) -> MetricPoint | None:
    if metric is None or goal is None:
        return None
    return metric.min if goal == "min" else metric.max


def _values_at(
    connection: Connection, rows: Sequence[int], names: Sequence[str], step: int
) -> dict[int, MetricPoint]:
    """The last value at or before a step, by the series: a look into the index for each."""

    def last(column: ColumnElement[Any]) -> Any:
        inner = select(column).where(points.c.series == series.c.id, points.c.step <= step)
        inner = inner.order_by(points.c.step.desc(), points.c.ordinal.desc()).limit(1)
        return inner.correlate(series).scalar_subquery()

    query = select(
        series.c.id,
        last(points.c.step).label("step"),
        last(points.c.time).label("time"),
        last(points.c.value).label("value"),
        last(points.c.special).label("special"),
    ).where(series.c.experiment.in_(rows), series.c.name.in_(names))
    found = {}
    for row in connection.execute(query):
        value = shown_value(row.value, row.special)
        if value is not None:
            found[row.id] = MetricPoint(value, row.step, stamp(row.time))
    return found
