"""The steps of a series, column by column: values as they are shown, times as text, holes as points without a value.

By columns and not by steps: a year of hours is 8,760 of them, and each call made for one of them costs a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from gpu_monitor.core.catalogue import Kind, Metric, throttle_names
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.span import DAY, HOUR

Agg = Literal["mean", "min", "max", "sum"]
Column = Sequence[Any]
_BASIS = 10_000
"""Coverage has four decimals."""


@dataclass(frozen=True)
class Steps:
    """Columns of the same length, in order of `starts` (UTC epoch s); what is shown, but for the times."""

    starts: Sequence[int]
    value: Column
    low: Column
    high: Column
    gpus: Column
    coverage: Column
    thinned: bool = False

    def filled(self, step: int, hole: int, nothing: float | None) -> Steps:
        """With a point that has no value, and the coverage `nothing`, at the start of whatever is longer than `hole` s."""
        starts = self.starts
        if not starts or starts[-1] - starts[0] == step * (len(starts) - 1):
            return self
        cuts = [at for at in range(1, len(starts)) if starts[at] - starts[at - 1] > hole]
        none = [None] * len(cuts)
        return Steps(
            _with(starts, cuts, [starts[at - 1] + step for at in cuts]),
            _with(self.value, cuts, none),
            _with(self.low, cuts, none),
            _with(self.high, cuts, none),
            _with(self.gpus, cuts, [0] * len(cuts)),
            _with(self.coverage, cuts, [nothing] * len(cuts)),
            self.thinned,
        )

    def times(self, begin: int) -> list[str]:
        """The starts as text, none before `begin` (UTC epoch s)."""
        starts = self.starts
        if not starts:
            return []
        if (
            len(starts) > 1
            and starts[1] - starts[0] == HOUR
            and starts[-1] - starts[0] == HOUR * (len(starts) - 1)
        ):
            days = range(starts[0] - starts[0] % DAY, starts[-1] + 1, DAY)
            hours = [hour for day in days for hour in _hours(day)]
            first = starts[0] % DAY // HOUR
            found = hours[first : first + len(starts)]
        else:
            found = [time_text(start) for start in starts]
        if starts[0] < begin:  # a step is cut off where the span begins
            found[0] = time_text(begin)
        return found


def steps_of(
    rows: Sequence[Sequence[Any]], step: int, metric: Metric, scale: float, agg: Agg, is_live: bool
) -> Steps:
    """The steps of these rows: number, how many times it joins, value, least, greatest, GPUs, seconds, possible seconds.

    `scale` is what values are multiplied with. Live minutes have no coverage.
    """
    if not rows:
        return Steps((), (), (), (), (), ())
    numbers, joined, values, lows, highs, counts, seconds, possible = zip(*rows, strict=True)
    if metric.kind is Kind.FLAGS:
        low = high = [None] * len(rows)
        value: Column = [None if mask is None else throttle_names(int(mask)) for mask in highs]
    else:
        mean = shown(metric, scale, values)
        low = mean if lows == values else shown(metric, scale, lows)
        high = mean if highs == values else shown(metric, scale, highs)
        value = {"min": low, "max": high}.get(agg, mean)
    return Steps(
        [number * step for number in numbers], value, low, high, [round(count) for count in counts],
        [None] * len(rows) if is_live else coverages(seconds, possible), max(joined) > 1,
    )  # fmt: skip


def shown(metric: Metric, scale: float, column: Iterable[Any]) -> list[Any]:
    """Values as `round_value` gives them, of numbers that were multiplied with `scale`."""
    digits = metric.decimals
    if scale == 10**digits:  # rounded first, they have no more digits than whole numbers do
        return in_units(metric, [None if value is None else round(value) for value in column])
    found = [None if value is None else round(float(value) / scale, digits) for value in column]
    return [int(one) if one is not None and one == int(one) else one for one in found]


def in_units(metric: Metric, column: Iterable[int | None]) -> list[Any]:
    """Values in the metric's unit, of whole numbers of its last digit; whole ones stay integers."""
    unit = 10**metric.decimals
    if unit == 1:
        return list(column)
    return [None if one is None else one / unit if one % unit else one // unit for one in column]


def coverages(seconds: Iterable[Any], possible: Iterable[Any]) -> list[float | None]:
    """Which part of what was possible was recorded, of each; None where nothing was possible."""
    return [
        min(1.0, round(float(some) / float(most), 4)) if most else None
        for some, most in zip(seconds, possible, strict=True)
    ]


def basis_points(column: Iterable[int | None]) -> list[float | None]:
    """Coverage that comes as a whole number of 1 / 10,000."""
    return [None if one is None else one / _BASIS for one in column]


def time_text(epoch: int) -> str:
    """`format_time` of whole seconds, at a fifth of its cost."""
    rest = epoch % DAY
    minutes, seconds = divmod(rest, 60)
    return f"{_day(epoch - rest)}{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}+00:00"


@lru_cache(4096)
def _day(midnight: int) -> str:
    return format_time(midnight)[:11]


@lru_cache(512)
def _hours(midnight: int) -> tuple[str, ...]:
    return tuple(time_text(midnight + hour * HOUR) for hour in range(24))


def _with(column: Column, cuts: Sequence[int], more: Sequence[Any]) -> list[Any]:
    """A column with one more value before each of these places."""
    found: list[Any] = []
    begin = 0
    for cut, value in zip(cuts, more, strict=True):
        found += column[begin:cut]
        found.append(value)
        begin = cut
    found += column[begin:]
    return found
