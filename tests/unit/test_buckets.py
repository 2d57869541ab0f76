"""Periods: counted from 00:00 UTC, never overlapping, a change only at a boundary common to both lengths."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.buckets import PERIOD_HOURS, Period, PeriodPlan, slot_start

DAY = 1_710_892_800  # 2024-03-20T00:00:00Z


def test_slot_is_aligned_to_utc() -> None:
    assert slot_start(DAY + 59.9, 60) == DAY
    assert slot_start(DAY + 60, 60) == DAY + 60


def test_period_of_a_moment() -> None:
    plan = PeriodPlan(((0, 6),))
    assert plan.period(DAY + 7 * 3600) == Period(DAY + 6 * 3600, 6 * 3600)


def test_change_waits_for_the_common_boundary() -> None:
    at = DAY + 10 * 3600 + 20 * 60
    plan = PeriodPlan(((0, 1),)).change(4, at)
    assert plan.hours_at(at) == 1
    assert plan.period(DAY + 11 * 3600).seconds == 3600
    assert plan.period(DAY + 12 * 3600) == Period(DAY + 12 * 3600, 4 * 3600)
    # 6 h and 4 h meet every 12 h.
    assert PeriodPlan(((0, 6),)).change(4, at).steps[-1] == (DAY + 12 * 3600, 4)


def test_a_change_taken_back_before_it_began_leaves_no_trace() -> None:
    plan = PeriodPlan().change(4, DAY + 3600 * 9 + 1)
    assert plan.change(1, DAY + 3600 * 9 + 2) == PeriodPlan()


@given(
    st.lists(st.tuples(st.sampled_from(PERIOD_HOURS), st.integers(0, 5 * 86400)), max_size=5),
    st.integers(0, 6 * 86400),
)
def test_periods_never_overlap_nor_leave_holes(changes: list[tuple[int, int]], length: int) -> None:
    plan = PeriodPlan()
    for hours, offset in sorted(changes, key=lambda change: change[1]):
        plan = plan.change(hours, DAY + offset)
    periods = plan.between(DAY, DAY + length)
    for before, after in itertools.pairwise(periods):
        assert before.end == after.start
    assert all(period.start % period.seconds == 0 for period in periods)
