# SPDX-License-Identifier: MIT
"""Intervals and periods: where a moment belongs, and when a period is closed. Pure maths."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

PERIOD_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)


def slot_start(now: float, interval: int) -> int:
    """Start of the collection interval that holds `now` (UTC multiples of `interval` seconds)."""
    return int(now // interval) * interval


@dataclass(frozen=True)
class Period:
    """One aggregation period, [start, start + seconds), UTC epoch."""

    start: int
    seconds: int

    @property
    def end(self) -> int:
        """First second after the period."""
        return self.start + self.seconds


@dataclass(frozen=True)
class PeriodPlan:
    """Which period length held from when on: ((from epoch, hours), ...), ascending, first from 0."""

    steps: tuple[tuple[int, int], ...] = ((0, 1),)

    def hours_at(self, moment: float) -> int:
        """Length in force at `moment`."""
        hours = self.steps[0][1]
        for since, length in self.steps:
            if since <= moment:
                hours = length
        return hours

    def period(self, moment: float) -> Period:
        """The period that holds `moment`."""
        seconds = self.hours_at(moment) * 3600
        return Period(int(moment // seconds) * seconds, seconds)

    def change(self, hours: int, now: float) -> PeriodPlan:
        """The plan after asking for `hours` at `now`: it begins at the next boundary common to both."""
        kept = tuple(step for step in self.steps if step[0] <= now) or self.steps[:1]
        current = PeriodPlan(kept).hours_at(now)
        if current == hours:
            return PeriodPlan(kept)
        common = lcm(current, hours) * 3600
        begin = -int(-now // common) * common
        return PeriodPlan((*kept, (begin, hours)))

    def between(self, start: float, end: float) -> list[Period]:
        """All periods that touch [start, end), ascending."""
        periods: list[Period] = []
        moment = start
        while moment < end:
            period = self.period(moment)
            periods.append(period)
            moment = period.end
        return periods
