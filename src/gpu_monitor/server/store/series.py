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
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Integer,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Kind, Metric
from gpu_monitor.server.store.gather import gather
from gpu_monitor.server.store.schema import (
    EVERYONE,
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
from gpu_monitor.server.store.steps import Agg, Steps, basis_points, in_units, steps_of
from gpu_monitor.server.store.targets import Target

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
    """One metric, column by column; all columns are equally long. `time` is the start of the step, not before `since`.

    `value_is` says in words what `value` is, and `extremes_of` what `min` and `max` are of: `readings` of single
    GPUs, or whole `steps` (means or sums of all GPUs at one time). `value` is what `agg` makes of the step, null
    where nothing is known; `min` and `max` what it ranged over; `gpus` how many gave a value at once; `coverage`
    which part of the time was recorded of the GPUs that gave anything (null for live minutes, which promise nothing).
    A sum of powers or the like is what was recorded, spread over the whole step: with half of the time missing it
    is half as much.
    """

    metric: str
    unit: str
    value_is: str
    extremes_of: Literal["readings", "steps"]
    time: Sequence[str]
    value: Sequence[float | int | list[str] | None]
    min: Sequence[float | int | None]
    max: Sequence[float | int | None]
    gpus: Sequence[int]
    coverage: Sequence[float | None]
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
    def slot(self) -> int:
        """Seconds of one time: of a period, of an interval; of one GPU's minutes as they come, one."""
        if self.source == "hours":
            return self.target.period
        return 1 if self.is_one_row else self.target.interval

    @property
    def extremes_of(self) -> Literal["readings", "steps"]:
        """What the least and greatest are of."""
        return "steps" if self.agg == "sum" or self.is_summed_up else "readings"

    @property
    def value_is(self) -> str:
        """What a value is, in words."""
        if self.metric.kind is Kind.FLAGS:
            return "names that held at any time of the step"
        if self.agg in ("min", "max"):
            return f"{'least' if self.agg == 'min' else 'greatest'} reading of any GPU"
        over = "total of the step" if self.is_total else "mean over the step"
        if self.is_one_row:
            return over
        return f"{over}, {'sum of all GPUs' if self.agg == 'sum' else 'mean per GPU'}"

    @property
    def is_summed_up(self) -> bool:
        """Whether the fleet's own hours answer it, with no look at a single GPU."""
        if self.source == "minutes" or not self.target.is_whole_contracts or self.agg in ("min", "max"):
            return False
        return self.name in IN_FLEET_HOURS or self.name in _TOTALS_IN_FLEET_HOURS

    @property
    def is_kept_as_asked(self) -> bool:
        """Whether each step is one row of the fleet's own hours: one owner's real GPUs, their mean by the hour."""
        return (
            self.is_summed_up
            and self.agg == "mean"
            and self.name in IN_FLEET_HOURS
            and self.name not in FLEET_UNITS
            and self.step == self.slot == HOUR
            and not self.simulated
            and (self.target.contracts is None or len(self.target.contracts) == 1)
        )


_SHOWN = 8
"""The first columns of a slot are shown; the others are for joining slots."""


def step_for(span: Span, base: int, max_points: int) -> int:
    """The least round multiple of `base` seconds that cuts the span into at most `max_points` steps."""
    for multiple in _MULTIPLES:
        if span.seconds <= base * multiple * (max_points - 1):
            return base * multiple
    days = -(-span.seconds // (DAY * max(1, max_points - 1)))
    return max(base, int(days) * DAY)


def series(connection: Connection, question: Question) -> Series:
    """The answer; without a point where nothing is known at all."""
    step, is_live = question.step, question.source == "minutes"
    found = _fleet_steps(connection, question) if question.is_kept_as_asked else _steps(connection, question)
    hole = max(step, question.target.spacing) if is_live else step
    found = found.filled(step, hole, None if is_live else 0.0)
    return Series(
        metric=question.name, unit=question.metric.unit, value_is=question.value_is,
        extremes_of=question.extremes_of, time=found.times(int(-(-question.span.since // 1))), value=found.value,
        min=found.low, max=found.high, gpus=found.gpus, coverage=found.coverage, thinned=found.thinned,
    )  # fmt: skip


def _steps(connection: Connection, question: Question) -> Steps:
    each, scale = _per_slot(question)
    if question.step == question.slot:
        columns = list(each.selected_columns)[:_SHOWN]
        query = each.with_only_columns(*columns).order_by(each.selected_columns.at)
    else:
        inner = each.subquery()
        bucket = inner.c.at // (question.step // question.slot)
        query = select(bucket, *_joined(question, inner)).group_by(bucket).order_by(bucket)
    rows = connection.execute(query).all()
    is_live = question.source == "minutes"
    return steps_of(rows, question.step, question.metric, scale, question.agg, is_live)


def _joined(question: Question, inner: Any) -> list[ColumnElement[Any]]:
    """The columns of a step from those of its slots, in the order of `_per_slot`."""
    value = inner.c.value
    if question.is_total:
        joined: ColumnElement[Any] = func.sum(value)
    elif question.agg == "sum":
        joined = func.avg(value)
    else:
        joined = cast(func.sum(inner.c.weighted), Double) / func.nullif(func.sum(inner.c.weight), 0)
    return [
        func.count(),
        joined,
        func.min(inner.c.low),
        func.max(inner.c.high),
        func.max(inner.c.gpus),
        func.sum(inner.c.seconds),
        func.sum(inner.c.possible),
    ]


def _per_slot(question: Question) -> tuple[Select[Any], float]:
    """A query with one row for each slot, and what its values are multiplied with.

    at (its number), how many it is (1), value, least and greatest, GPUs that gave one, seconds recorded and
    possible; and for means over time the seconds for which the value is known, and their sum of values.
    """
    if question.is_summed_up:
        return _fleet_hours(question), scale_of(question.metric) / FLEET_UNITS.get(question.metric.name, 1)
    if question.name.startswith(HOST_PREFIX):
        table: FromClause = host_hours
    else:
        table = samples if question.source == "minutes" else aggregates
    query = _of_one(question, table) if question.is_one_row else _of_rows(question, table)
    return query, float(scale_of(question.metric))


def _inside(question: Question, table: FromClause) -> tuple[ColumnElement[Any], ColumnElement[bool]]:
    """The number of a row's slot, and the condition that the row is in the span."""
    span = question.span
    if table is samples:
        time: ColumnElement[Any] = samples.c.time
        slot = question.slot
        inside = and_(time >= int(-(-span.since // 1)), time < span.until)
    else:
        time, slot = table.c.hour, question.slot // HOUR
        inside = and_(time >= span.first_hour, time < span.end_hour)
    return time if slot == 1 else time // slot, inside


def _readings(question: Question, table: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Value, least and greatest reading of a row."""
    metric = question.metric
    value: ColumnElement[Any] = table.c[metric.name]
    if not has_extremes(metric) or f"{metric.name}_lo" not in table.c:
        return value, value, value
    low = value - func.coalesce(table.c[f"{metric.name}_lo"], 0)
    return value, low, value + func.coalesce(table.c[f"{metric.name}_hi"], 0)


def _period(table: FromClause) -> ColumnElement[Any]:
    """Tenths of seconds of a row's period: what was recorded by its coverage. Of live samples, themselves."""
    seconds = cast(table.c.seconds, Double)
    if table is samples:
        return seconds
    return seconds * 10_000.0 / func.nullif(cast(table.c.coverage, Double), 0.0)


def _of_one(question: Question, table: FromClause) -> Select[Any]:
    """Rows of one GPU or host, where there is one for each time."""
    at, inside = _inside(question, table)
    value, low, high = _readings(question, table)
    query = select(
        at.label("at"),
        literal(1).label("slots"),
        value.label("value"),
        low.label("low"),
        high.label("high"),
        case((value.is_(None), 0), else_=1).label("gpus"),
        table.c.seconds.label("seconds"),
        _period(table).label("possible"),
        case((value.is_not(None), table.c.seconds)).label("weight"),
        (cast(value, Double) * table.c.seconds).label("weighted"),
    )
    return _restricted(query, question, table).where(inside)


def _of_rows(question: Question, table: FromClause) -> Select[Any]:
    """Sums over the GPUs of each slot, of hours or of live minutes."""
    at, inside = _inside(question, table)
    value, low, high = _readings(question, table)
    is_known = value.is_not(None)
    # Floats: a day of 10,000 GPUs' bytes times tenths of seconds passes 64 bits, and SQLite then fails.
    weight = func.sum(case((is_known, cast(table.c.seconds, Double))))
    weighted = func.sum(cast(value, Double) * table.c.seconds)
    count = func.sum(case((is_known, _period(table)), else_=0.0)) / (question.slot * 10.0)
    if question.is_total:
        total = func.sum(cast(value, Double))
        shown = total if question.agg == "sum" else total / func.nullif(count, 0.0)
    else:
        shown = (
            weighted / (question.slot * 10.0)
            if question.agg == "sum"
            else weighted / func.nullif(weight, 0.0)
        )
    is_sum = question.agg == "sum"
    query = select(
        at.label("at"),
        literal(1).label("slots"),
        shown.label("value"),
        (shown if is_sum else func.min(low)).label("low"),
        (shown if is_sum else func.max(high)).label("high"),
        func.coalesce(count, 0.0).label("gpus"),
        func.sum(table.c.seconds).label("seconds"),
        func.sum(_period(table)).label("possible"),
        weight.label("weight"),
        weighted.label("weighted"),
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
    if target.instances:
        joined = joined.where(tuple_(table.c.agent, table.c.gpu).not_in(target.instances))
    if target.model is not None:
        joined = joined.where(gpus.c.name == target.model)
    return joined


def _fleet_hours(question: Question) -> Select[Any]:
    """The same of the fleet's own hours. Extremes are those of hourly values: it keeps no readings."""
    table, name = fleet_hours, question.metric.name
    at, inside = _inside(question, table)
    owners = (EVERYONE,) if question.target.contracts is None else question.target.contracts
    conditions = [inside, table.c.contract.in_(owners)]
    if not question.simulated:
        conditions.append(table.c.simulated.is_(False))
    # One owner's real GPUs are one row an hour; others are added up.
    is_one = len(owners) == 1 and not question.simulated and question.slot == HOUR

    def total(column: str) -> ColumnElement[Any]:
        return table.c[column] if is_one else func.sum(table.c[column])

    seconds, possible = total("seconds"), total("period_seconds") * 10
    slot = question.slot * 10.0
    value: ColumnElement[Any]
    weight: ColumnElement[Any]
    weighted: ColumnElement[Any] = literal(None)
    if name in IN_FLEET_HOURS:
        weighted, known = total(f"{name}_sum"), total(f"{name}_seconds")
        weight = cast(func.nullif(known, 0), Double)
        # How many gave it: their part of the recorded time.
        count: ColumnElement[Any] = possible * weight / func.nullif(seconds, 0) / slot
        value = case((known > 0, weighted / slot)) if question.agg == "sum" else weighted / weight
    else:
        rows = total("energy_rows") if name == "energy" else total("gpus")
        count = possible * cast(rows, Double) / func.nullif(total("gpus"), 0) / slot
        weight = cast(func.nullif(rows, 0), Double)
        value = case((rows > 0, cast(total(name), Double)))
        value = value if question.agg == "sum" else value / count
    query = select(
        at.label("at"),
        literal(1).label("slots"),
        value.label("value"),
        value.label("low"),
        value.label("high"),
        func.coalesce(count, 0).label("gpus"),
        seconds.label("seconds"),
        possible.label("possible"),
        weight.label("weight"),
        weighted.label("weighted"),
    ).where(*conditions)
    return query if is_one else query.group_by(at)


def _fleet_steps(connection: Connection, question: Question) -> Steps:
    """Means per GPU by the hour as the fleet's own hours keep them, rounded by the database in whole numbers.

    The same as `_fleet_hours` says with floats, at a quarter of the time: a year by the hour is a page's chart.
    """
    table, name = fleet_hours, question.metric.name
    at, inside = _inside(question, table)
    owner = EVERYONE if question.target.contracts is None else question.target.contracts[0]
    total, known, seconds, period = (
        table.c[f"{name}_sum"],
        table.c[f"{name}_seconds"],
        table.c.seconds,
        table.c.period_seconds,
    )
    # Integer division cuts towards 0, so what is divided is made positive first.
    mean = (2 * total + known + 2 * known * _SHIFT) // func.nullif(2 * known, 0, type_=BigInteger) - _SHIFT
    part = func.round(cast(period, Double) * known / func.nullif(seconds, 0) / HOUR)
    count = case((known == seconds, (period + HOUR // 2) // HOUR), else_=cast(part, Integer))
    covered = (2000 * seconds + period) // func.nullif(2 * period, 0, type_=BigInteger)
    query = (
        select(
            at.label("at"),
            mean.label("mean"),
            func.coalesce(count, 0).label("gpus"),
            case((covered > 10_000, 10_000), else_=covered).label("coverage"),
        )
        .where(inside, table.c.contract == owner, table.c.simulated.is_(False))
        .order_by(at)
    )
    numbers, means, counts, coverages = gather(connection, query)
    value = in_units(question.metric, means)
    return Steps([number * HOUR for number in numbers], value, value, value, counts, basis_points(coverages))


_SHIFT = 1_000_000
"""In last digits of a metric: no mean lies so far below 0."""
