"""The values of an experiment's metrics along an axis, thinned out in the database where there are too many.

A bucket of the axis that joins several points has their mean, and keeps the least and the greatest of them, so that
thinning hides no peak. A value that is not finite is no less one: the mean of what holds a NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Integer,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    select,
)

from gpu_monitor.server.store.experiment_list import Number, shown_value
from gpu_monitor.server.store.schema_experiments import INFINITY, MINUS_INFINITY, NAN, points, series

Axis = Literal["step", "relative", "time"]

_HUGE = 1e250
"""Beyond this a sum of values may pass 64 bits, which PostgreSQL refuses: they are added in parts of _PART."""
_PART = 1e-20
_EXACT = 2**52
"""Steps farther apart than this are not told apart as floating-point numbers."""


class MetricSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, column by column; all columns are equally long.

    `x`: steps, seconds since the start of the experiment, or seconds since 1970 UTC. Where `thinned`, each item is
    a stretch of the axis: `x` is where its first point lies, `value` the mean of them, `min` and `max` what they
    range over. `points`: how many there are in the range; `not_finite`: how many of them are NaN or infinite.
    """

    name: str
    unit: str | None
    x: list[float | int]
    value: list[Number]
    min: list[Number]
    max: list[Number]
    points: int
    not_finite: int
    thinned: bool


class MetricRow(msgspec.Struct, frozen=True):
    """One item of one metric, as CSV has it."""

    name: str
    x: float | int
    value: Number
    min: Number
    max: Number


@dataclass(frozen=True)
class Range:
    """What is asked of an axis: [since, until) in its unit, None without end; `origin`: from where `relative` counts."""

    axis: Axis
    origin: float
    since: float | int | None = None
    until: float | int | None = None

    @property
    def column(self) -> ColumnElement[Any]:
        """What lies along the axis."""
        return points.c.step if self.axis == "step" else points.c.time

    @property
    def zero(self) -> float | int:
        """What is taken off a stored place to be the shown one."""
        return self.origin if self.axis == "relative" else 0

    def conditions(self) -> list[ColumnElement[bool]]:
        """Those that hold inside."""
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(self.column >= self.since + self.zero)
        if self.until is not None:
            found.append(self.column < self.until + self.zero)
        return found


@dataclass(frozen=True)
class _Extent:
    """What there is of one series in a range."""

    points: int
    low: float | int
    high: float | int


def find_series(connection: Connection, experiment: int, names: Sequence[str]) -> list[Any]:
    """The rows of `series` with these names, in their order; those that are not there are left out."""
    query = select(series).where(series.c.experiment == experiment, series.c.name.in_(names))
    held = {row.name: row for row in connection.execute(query)}
    return [held[name] for name in names if name in held]


def read_metrics(
    connection: Connection, rows: Sequence[Any], asked: Range, max_points: int
) -> list[MetricSeries]:
    """The metrics of these rows of `series`, each with at most `max_points` items."""
    extents = _extents(connection, [row.id for row in rows], asked)
    small = [row.id for row in rows if row.id in extents and extents[row.id].points <= max_points]
    whole = _whole(connection, small, asked)
    found = []
    for row in rows:
        extent = extents.get(row.id)
        if extent is None or row.id in whole:
            found.append(_as_it_is(row, whole.get(row.id, []), asked))
        else:
            found.append(_thinned(connection, row, extent, asked, max_points))
    return found


def metric_items(found: Iterable[MetricSeries]) -> list[MetricRow]:
    """The items of series, one by one."""
    return [
        MetricRow(one.name, *item)
        for one in found
        for item in zip(one.x, one.value, one.min, one.max, strict=True)
    ]


def _extents(connection: Connection, ids: list[int], asked: Range) -> dict[int, _Extent]:
    column = asked.column
    query = select(points.c.series, func.count(), func.min(column), func.max(column))
    query = query.where(points.c.series.in_(ids), *asked.conditions()).group_by(points.c.series)
    return {row[0]: _Extent(*row[1:]) for row in connection.execute(query)}


def _whole(connection: Connection, ids: list[int], asked: Range) -> dict[int, list[tuple[Any, ...]]]:
    """Every point of these series, in the order of the axis; of one place in the order in which they came."""
    if not ids:
        return {}
    query = (
        select(points.c.series, asked.column, points.c.value, points.c.special)
        .where(points.c.series.in_(ids), *asked.conditions())
        .order_by(points.c.series, asked.column, points.c.ordinal)
    )
    found: dict[int, list[tuple[Any, ...]]] = {id: [] for id in ids}
    for id, place, value, special in connection.execute(query):
        found[id].append((place, value, special))
    return found


def _as_it_is(row: Any, held: list[tuple[Any, ...]], asked: Range) -> MetricSeries:
    values = [_number(value, special) for _, value, special in held]
    return MetricSeries(
        name=row.name, unit=row.unit, x=[_place(place, asked) for place, _, _ in held], value=values, min=values,
        max=values, points=len(held), not_finite=sum(special is not None for _, _, special in held), thinned=False,
    )  # fmt: skip


def _thinned(connection: Connection, row: Any, extent: _Extent, asked: Range, most: int) -> MetricSeries:
    is_huge = any(one is not None and abs(one) > _HUGE for one in (row.min_value, row.max_value))
    buckets = connection.execute(_bucket_query(connection, row, extent, asked, most, is_huge)).all()
    shown = [_Bucket.of(one, is_huge, row.specials > 0) for one in buckets]
    return MetricSeries(
        name=row.name,
        unit=row.unit,
        x=[_place(one.first, asked) for one in buckets],
        value=[one.mean for one in shown],
        min=[one.low for one in shown],
        max=[one.high for one in shown],
        points=extent.points,
        not_finite=sum(one.held - one.finite for one in buckets),
        thinned=True,
    )


def _bucket_query(
    connection: Connection, row: Any, extent: _Extent, asked: Range, most: int, is_huge: bool
) -> Select[Any]:
    place = cast(asked.column, Double) - literal(float(extent.low), Double)
    bucket = place / literal(_width(extent, asked.axis, most), Double)
    if connection.dialect.name != "sqlite":
        bucket = func.floor(bucket)  # there a cast rounds
    if extent.high - extent.low >= _EXACT:
        bucket = case((bucket >= most, float(most - 1)), else_=bucket)  # rounding put the last one beyond
    columns = [
        cast(bucket, Integer).label("bucket"),
        func.min(asked.column).label("first"),
        func.count().label("held"),
        func.count(points.c.value).label("finite"),
        func.min(points.c.value).label("low"),
        func.max(points.c.value).label("high"),
    ]
    if is_huge:
        beyond = func.abs(points.c.value) > _HUGE
        columns.append(func.sum(case((beyond, points.c.value * _PART), else_=0.0)).label("parts"))
        columns.append(func.sum(case((beyond, 0.0), else_=points.c.value)).label("total"))
    else:
        columns.append(func.sum(points.c.value).label("total"))
    if row.specials > 0:
        for kind, name in ((NAN, "nans"), (INFINITY, "highest"), (MINUS_INFINITY, "lowest")):
            columns.append(func.count(case((points.c.special == kind, 1))).label(name))
    inside = and_(points.c.series == row.id, *asked.conditions())
    return select(*columns).where(inside).group_by("bucket").order_by("bucket")


def _width(extent: _Extent, axis: Axis, most: int) -> float:
    """How long a bucket is, so that there are at most so many; whole steps on the axis of steps."""
    if axis == "step":
        return float(max(1, -(-(int(extent.high) - int(extent.low) + 1) // most)))
    # A little longer, so that the last point is in the last bucket and not beyond it.
    return (extent.high - extent.low) / most * (1 + 1e-9) or 1.0


@dataclass(frozen=True)
class _Bucket:
    """The mean, least and greatest of a bucket."""

    mean: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, row: Any, is_huge: bool, has_specials: bool) -> _Bucket:
        total = row.total
        mean = None if not row.finite else total / row.finite
        if is_huge and mean is not None:
            mean = min(max(mean + row.parts / row.finite / _PART, row.low), row.high)
        nans, highest, lowest = (row.nans, row.highest, row.lowest) if has_specials else (0, 0, 0)
        if mean is None or nans or highest or lowest:
            return cls(
                _mixed(nans, highest, lowest),
                _least(row.low, highest, lowest),
                _most(row.high, highest, lowest),
            )
        return cls(mean, row.low, row.high)


def _mixed(nans: int, highest: int, lowest: int) -> Number:
    if nans or (highest and lowest):
        return "NaN"
    return "Infinity" if highest else "-Infinity" if lowest else "NaN"


def _least(low: float | None, highest: int, lowest: int) -> Number:
    if lowest:
        return "-Infinity"
    return low if low is not None else "Infinity" if highest else "NaN"


def _most(high: float | None, highest: int, lowest: int) -> Number:
    if highest:
        return "Infinity"
    return high if high is not None else "-Infinity" if lowest else "NaN"


def _number(value: float | None, special: int | None) -> Number:
    found = shown_value(value, special)
    return "NaN" if found is None else found


def _place(stored: float | int, asked: Range) -> float | int:
    """Where a point lies as it is shown; times to the millisecond in which they were written."""
    return stored if asked.axis == "step" else round(stored - asked.zero, 3)
