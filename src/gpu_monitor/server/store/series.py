"""Series: one metric over time, of a GPU, a node, or a group; from live minutes or from hours.

Times are put into steps of one length. A step that joins several times keeps the least and the greatest
reading, so thinning hides no peak; it is said (`thinned`). Where nothing was recorded there is a point
without a value, so that no line is drawn across it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
)

from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Kind, Metric, round_value, throttle_names
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.schema import (
    FLEET_UNITS,
    LIVE_METRICS,
    aggregates,
    fleet_hours,
    gpus,
    has_extremes,
    host_hours,
    samples,
    scale_of,
)
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.targets import Target

Agg = Literal["mean", "min", "max", "sum"]
Source = Literal["minutes", "hours"]

IDLE_METRICS = tuple(
    Metric(name, "s", Kind.TOTAL, text, high=DAY, decimals=1)
    for name, text in (
        ("idle_seconds", "time with utilisation below 5 %"),
        ("held_idle_seconds", "idle time with device memory held"),
    )
)
"""What an hour says beside the metrics of the catalogue."""
HOST_PREFIX = "host."
KNOWN: dict[str, Metric] = {
    **{metric.name: metric for metric in (*SAMPLED, *IDLE_METRICS)},
    **{f"{HOST_PREFIX}{metric.name}": metric for metric in HOST_METRICS},
}
"""Every metric that has a series, by the name to ask for."""
LIVE = frozenset(metric.name for metric in LIVE_METRICS)
IN_FLEET_HOURS = frozenset(
    ("gpu_utilization", "memory_utilization", "power_usage", "temperature", "memory_used")
)
_TOTALS_IN_FLEET_HOURS = frozenset(("energy", "idle_seconds", "held_idle_seconds"))
_MULTIPLES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 48, 60, 72, 96, 120, 168, 240, 336, 480, 720, 1440)


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, column by column; all columns are equally long. `time` is the start of the step.

    `value` is what `agg` makes of the step, null where nothing is known; `min` and `max` what it ranged
    over; `gpus` how many gave a value at once; `coverage` which part of the step's time was recorded of
    the GPUs that gave anything.
    """

    metric: str
    unit: str
    time: tuple[str, ...]
    value: tuple[float | int | list[str] | None, ...]
    min: tuple[float | int | None, ...]
    max: tuple[float | int | None, ...]
    gpus: tuple[int, ...]
    coverage: tuple[float | None, ...]
    thinned: bool


class SeriesPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one series, as CSV has it."""

    metric: str
    unit: str
    time: str
    value: float | int | list[str] | None
    min: float | int | None
    max: float | int | None
    gpus: int
    coverage: float | None


def points(series: Series) -> Iterator[SeriesPoint]:
    """The steps of a series, one by one."""
    columns = (series.time, series.value, series.min, series.max, series.gpus, series.coverage)
    for time, value, low, high, count, coverage in zip(*columns, strict=True):
        yield SeriesPoint(
            metric=series.metric, unit=series.unit, time=time, value=value, min=low, max=high, gpus=count,
            coverage=coverage,
        )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One metric (a name of KNOWN) of a target over a span, in steps of `step` seconds that begin at UTC multiples."""

    name: str
    target: Target
    span: Span
    step: int
    agg: Agg
    source: Source
    simulated: bool

    @property
    def metric(self) -> Metric:
        """Its row of the catalogue."""
        return KNOWN[self.name]

    @property
    def is_total(self) -> bool:
        """Whether it adds up over time."""
        return self.metric.kind is Kind.TOTAL

    @property
    def is_one_row(self) -> bool:
        """Whether there is at most one row for each time."""
        places, agents = self.target.places, self.target.agents
        if self.name.startswith(HOST_PREFIX):
            return agents is not None and len(agents) == 1
        return places is not None and len(places) == 1

    @property
    def is_plain(self) -> bool:
        """Whether a step holds one time only, so that nothing need be joined."""
        if self.source == "minutes":
            return self.step == 1 and self.is_one_row
        return self.step == HOUR

    @property
    def is_summed_up(self) -> bool:
        """Whether the fleet's own hours answer it, with no look at a single GPU."""
        if self.source == "minutes" or not self.target.is_whole_contracts or self.agg in ("min", "max"):
            return False
        return self.name in IN_FLEET_HOURS or self.name in _TOTALS_IN_FLEET_HOURS


def step_for(span: Span, base: int, max_points: int) -> int:
    """The least round multiple of `base` seconds that cuts the span into at most `max_points` steps."""
    for multiple in _MULTIPLES:
        if span.seconds <= base * multiple * (max_points - 1):
            return base * multiple
    days = -(-span.seconds // (DAY * max(1, max_points - 1)))
    return max(base, int(days) * DAY)


def series(connection: Connection, question: Question) -> Series:
    """The answer; without a point where nothing is known at all."""
    each, scale = _per_time(question)
    per_step = question.step if question.source == "minutes" else question.step // HOUR
    if question.is_plain:
        query = each.order_by(each.selected_columns.at)
    else:
        inner = each.subquery()
        bucket = inner.c.at // per_step
        query = select(bucket, *_joined(question, inner)).group_by(bucket).order_by(bucket)
    return _Shaper(question, scale).shape(connection.execute(query).all())


def _joined(question: Question, inner: Any) -> list[ColumnElement[Any]]:
    """The columns of a step from those of its times, in the order of `_Step` after the bucket."""
    value = inner.c.value
    if question.agg == "sum" and not question.is_total:
        mean: ColumnElement[Any] = func.avg(value)
    elif question.agg == "sum" or question.is_total:
        mean = func.sum(value)
    else:
        mean = func.sum(value * inner.c.weight) / func.sum(case((value.is_not(None), inner.c.weight)))
    return [
        func.count(),
        mean,
        func.min(inner.c.low),
        func.max(inner.c.high),
        func.max(inner.c.gpus),
        func.max(inner.c.rows),
        func.sum(inner.c.seconds),
    ]


def _per_time(question: Question) -> tuple[Select[Any], float]:
    """A query with one row for each time, in the order of `_Step`, and what its values are multiplied with."""
    if question.is_summed_up:
        return _fleet_hours(question), scale_of(question.metric) / FLEET_UNITS.get(question.metric.name, 1)
    if question.name.startswith(HOST_PREFIX):
        table: FromClause = host_hours
    else:
        table = samples if question.source == "minutes" else aggregates
    query = _of_one(question, table) if question.is_one_row else _of_rows(question, table)
    return query, float(scale_of(question.metric))


def _inside(question: Question, table: FromClause) -> tuple[ColumnElement[Any], ColumnElement[bool]]:
    """The column that tells the time, and the condition that it is in the span."""
    span = question.span
    if table is samples:
        at: ColumnElement[Any] = samples.c.time
        return at, and_(at >= int(-(-span.since // 1)), at < span.until)
    at = table.c.hour
    return at, and_(at >= span.first_hour, at < span.end_hour)


def _readings(question: Question, table: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Value, least and greatest reading of a row."""
    metric = question.metric
    value: ColumnElement[Any] = table.c[metric.name]
    if not has_extremes(metric) or f"{metric.name}_lo" not in table.c:
        return value, value, value
    low = value - func.coalesce(table.c[f"{metric.name}_lo"], 0)
    return value, low, value + func.coalesce(table.c[f"{metric.name}_hi"], 0)


def _of_one(question: Question, table: FromClause) -> Select[Any]:
    """Rows of one GPU or host, where there is one for each time."""
    at, inside = _inside(question, table)
    value, low, high = _readings(question, table)
    query = select(
        at.label("at"),
        literal(1).label("times"),
        value.label("value"),
        low.label("low"),
        high.label("high"),
        case((value.is_(None), 0), else_=1).label("gpus"),
        literal(1).label("rows"),
        table.c.seconds.label("seconds"),
        cast(table.c.seconds, Double).label("weight"),
    )
    return _restricted(query, question, table).where(inside)


def _of_rows(question: Question, table: FromClause) -> Select[Any]:
    """Sums over the GPUs of each time, of hours or of live minutes."""
    at, inside = _inside(question, table)
    value, low, high = _readings(question, table)
    # Floats: a day of 10,000 GPUs' bytes times tenths of seconds passes 64 bits, and SQLite then fails.
    weight = func.sum(case((value.is_not(None), cast(table.c.seconds, Double))))
    total = func.sum(cast(value, Double))
    if question.agg == "sum":
        shown: tuple[ColumnElement[Any], ...] = (total, total, total)
    elif question.is_total:
        shown = (total / func.nullif(func.count(value), 0), func.min(low), func.max(high))
    else:
        weighted = func.sum(cast(value, Double) * table.c.seconds)
        shown = (weighted / func.nullif(weight, 0.0), func.min(low), func.max(high))
    query = select(
        at.label("at"),
        literal(1).label("times"),
        shown[0].label("value"),
        shown[1].label("low"),
        shown[2].label("high"),
        func.count(value).label("gpus"),
        func.count().label("rows"),
        func.sum(table.c.seconds).label("seconds"),
        weight.label("weight"),
    ).where(inside)
    return _restricted(query, question, table).group_by(at)


def _restricted(query: Select[Any], question: Question, table: FromClause) -> Select[Any]:
    target = question.target
    if table is host_hours:
        return query.where(table.c.agent.in_(target.agents or ()))
    if target.places is not None:
        return query.where(
            or_(*(and_(table.c.agent == agent, table.c.gpu == gpu) for agent, gpu in target.places))
        )
    joined = query.join(gpus, and_(gpus.c.agent == table.c.agent, gpus.c.ordinal == table.c.gpu))
    if not question.simulated:
        joined = joined.where(gpus.c.simulated.is_(False))
    if target.agents is not None:
        joined = joined.where(table.c.agent.in_(target.agents))
    if target.model is not None:
        joined = joined.where(gpus.c.name == target.model)
    return joined


def _fleet_hours(question: Question) -> Select[Any]:
    """The same of the fleet's own hours. Extremes are those of hourly values: it keeps no readings."""
    table, name = fleet_hours, question.metric.name
    at, inside = _inside(question, table)
    conditions = [inside]
    if question.target.contracts is not None:
        conditions.append(table.c.contract.in_(question.target.contracts))
    if not question.simulated:
        conditions.append(table.c.simulated.is_(False))
    seconds, rows = func.sum(table.c.seconds), func.sum(table.c.gpus)
    weight: ColumnElement[Any]
    if name in IN_FLEET_HOURS:
        weighted = cast(func.sum(table.c[f"{name}_sum"]), Double)
        weight = func.nullif(cast(func.sum(table.c[f"{name}_seconds"]), Double), 0.0)
        # How many gave it: their part of the recorded time. What they came to at once: that many means.
        count: ColumnElement[Any] = rows * weight / func.nullif(seconds, 0)
        value = weighted / weight if question.agg != "sum" else weighted * rows / func.nullif(seconds, 0)
    else:
        count = func.sum(table.c.energy_rows) if name == "energy" else rows
        weight = cast(func.nullif(count, 0), Double)
        value = cast(func.sum(table.c[name]), Double)
        value = case((weight > 0, value)) if question.agg == "sum" else value / weight
    query = select(
        at.label("at"),
        literal(1).label("times"),
        value.label("value"),
        value.label("low"),
        value.label("high"),
        func.coalesce(count, 0).label("gpus"),
        rows.label("rows"),
        seconds.label("seconds"),
        weight.label("weight"),
    )
    return query.where(*conditions).group_by(at)


class _Shaper:
    """Makes the columns of a series from its steps."""

    def __init__(self, question: Question, scale: float) -> None:
        self._question, self._scale = question, scale
        self._metric = question.metric
        self._days: dict[int, str] = {}

    def shape(self, rows: Sequence[Any]) -> Series:
        """The series of these steps."""
        question, step, target = self._question, self._question.step, self._question.target
        unit = HOUR if question.is_plain and question.source == "hours" else step
        hole = max(step, target.spacing) if question.source == "minutes" else step
        is_flags = self._metric.kind is Kind.FLAGS
        found: list[tuple[Any, ...]] = []
        before: int | None = None
        thinned = False
        for bucket, times, value, low, high, gpu_count, row_count, seconds, *_ in rows:
            start = bucket * unit
            if before is not None and start - before > hole:
                found.append((self._time(before + step), None, None, None, 0, 0.0))
            thinned = thinned or times > 1
            if is_flags:
                shown: Any = None if high is None else throttle_names(int(high))
                low = high = None
            else:
                shown = self._shown(value)
            found.append(
                (
                    self._time(start), shown, self._shown(low), self._shown(high), round(gpu_count),
                    self._coverage(float(seconds), row_count, start),
                )
            )  # fmt: skip
            before = start
        columns: Any = list(zip(*found, strict=True)) or [()] * 6
        return Series(
            metric=question.name, unit=self._metric.unit, time=columns[0], value=columns[1], min=columns[2],
            max=columns[3], gpus=columns[4], coverage=columns[5], thinned=thinned,
        )  # fmt: skip

    def _time(self, epoch: int) -> str:
        midnight = epoch - epoch % DAY
        day = self._days.get(midnight)
        if day is None:
            day = self._days[midnight] = format_time(midnight)[:11]
        minutes, seconds = divmod(epoch - midnight, 60)
        return f"{day}{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}+00:00"

    def _shown(self, value: float | None) -> float | int | None:
        if value is None:
            return None
        return round_value(self._metric, float(value) / self._scale)

    def _coverage(self, seconds: float, rows: int, start: int) -> float | None:
        span, step = self._question.span, self._question.step
        possible = min(span.until, start + step) - max(span.since, start)
        if self._question.source == "hours":
            # A whole period counts where it begins in the span.
            possible = min(max(possible, HOUR), step)
        elif step < self._question.target.interval:
            possible = self._question.target.interval
        possible *= rows
        return min(1.0, round(seconds / 10 / possible, 4)) if possible > 0 else None
