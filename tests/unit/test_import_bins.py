"""Rows of a log as intervals: what each second of an interval was worth, and no second twice."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.agent.import_bins import BinnedInterval, Binner, LostStretch, interval_for
from gpu_monitor.core.model import Status
from gpu_monitor.sources.recorded.rows import RecordedDevice, RecordedRow

DEVICE = RecordedDevice(index=0)


def row(time: float, power: float | None = None, **values: float | int | str) -> RecordedRow:
    """A row at `time`; a power of None is unsupported."""
    known = dict(values) if power is None else {"power_usage": power, **values}
    return RecordedRow(time, DEVICE, known, {} if power is not None else {"power_usage": "unsupported"})


def lost(time: float) -> RecordedRow:
    """A row of a GPU that is lost."""
    return RecordedRow(time, DEVICE, {}, {"power_usage": "lost"}, status=Status.LOST)


def bins(rows: Iterable[RecordedRow], interval: int = 60, step: float = 5.0) -> list[BinnedInterval]:
    """All intervals of `rows`."""
    binner = Binner(interval, step)
    found = [one for each in rows for one in binner.add(each)]
    return found + list(binner.finish())


def test_finer_rows_are_averaged_by_the_time_they_stand() -> None:
    # 100 W for 10 s, 400 W for 5 s, 100 W for 5 s (the last row, one step), all in one minute.
    (one,) = bins([row(600, 100.0), row(610, 400.0), row(615, 100.0)])
    assert (one.start, one.seconds) == (600, 20.0)
    assert one.values["power_usage"] == pytest.approx((100 * 10 + 400 * 5 + 100 * 5) / 20)
    assert (one.values["power_usage_min"], one.values["power_usage_max"]) == (100.0, 400.0)


def test_a_reading_is_shared_between_the_intervals_it_stands_in() -> None:
    first, second = bins([row(658, 100.0), row(663, 400.0)])
    assert (first.start, first.seconds, first.values["power_usage"]) == (600, 2.0, 100.0)
    assert (second.start, second.seconds) == (660, 8.0)
    assert second.values["power_usage"] == pytest.approx((100 * 3 + 400 * 5) / 8)
    # 100 W was read in the minute before: it weighs here, and sets no extreme.
    assert (second.values["power_usage_min"], second.values["power_usage_max"]) == (400.0, 400.0)


def test_an_interval_names_the_files_whose_readings_lie_in_it() -> None:
    # File 3's last reading, at 718 s, reaches into the minute from 720 s, where only file 4 has one.
    binner = Binner(60, 5.0, file=3)
    found = [one for time in (658, 663, 718) for one in binner.add(row(time, 100.0))]
    binner.file = 4
    found += [one for time in (721, 726) for one in binner.add(row(time, 100.0))]
    binner.file = 5
    found += [*binner.add(row(731, 100.0)), *binner.finish()]
    assert [(one.start, one.files) for one in found] == [(600, (3,)), (660, (3,)), (720, (4, 5))]


def test_a_reading_that_only_reaches_into_an_interval_makes_it_its_files() -> None:
    binner = Binner(60, 10.0, file=2)
    list(binner.add(row(655, 100.0)))
    assert [(one.start, one.files) for one in binner.finish()] == [(600, (2,)), (660, (2,))]


def test_a_hole_is_not_filled() -> None:
    found = bins([row(600, 100.0), row(605, 100.0), row(1200, 300.0)])
    assert [(one.start, one.seconds) for one in found] == [(600, 10.0), (1200, 5.0)]


def test_a_late_row_within_two_steps_leaves_no_hole() -> None:
    (one,) = bins([row(600, 100.0), row(609.9, 100.0)])
    assert one.seconds == pytest.approx(14.9)


def test_a_sliver_makes_no_interval_of_its_own() -> None:
    found = bins([row(600.007, 100.0)], step=60.0)
    assert [(one.start, one.seconds) for one in found] == [(600, pytest.approx(59.993))]


def test_an_interval_covered_by_the_row_before_it_is_kept() -> None:
    # Steps of 60.1 s: the minute from 660 holds no reading's time, but is covered for 59.9 s of it.
    found = bins([row(659.95, 100.0), row(720.05, 200.0)], step=60.1)
    assert [one.start for one in found] == [600, 660, 720]
    assert found[1].seconds == 60.0
    assert found[1].values["power_usage"] == found[1].values["power_usage_max"] == 100.0


def test_coarser_rows_fill_longer_intervals() -> None:
    assert interval_for(5.0, 60) == 60
    assert interval_for(60.04, 60) == 60
    assert interval_for(65.0, 60) == 60
    assert interval_for(300.2, 60) == 300
    assert interval_for(290.0, 60) == 300
    assert interval_for(7200.0, 60) == 3600
    assert interval_for(10.0, 1) == 10
    found = bins([row(600, 100.0), row(900, 200.0), row(1200, 300.0)], interval=300, step=300.0)
    assert [(one.start, one.seconds, one.values["power_usage"]) for one in found] == [
        (600, 300.0, 100.0),
        (900, 300.0, 200.0),
        (1200, 300.0, 300.0),
    ]


def test_nulls_weigh_nothing_and_keep_their_reason() -> None:
    (one,) = bins([row(600, 100.0), row(605), row(610, 100.0)])
    assert one.values["power_usage"] == 100.0
    assert one.reasons == {}
    (one,) = bins([row(600, gpu_utilization=5), row(605, gpu_utilization=5)])
    assert one.reasons == {"power_usage": "unsupported"}
    assert "power_usage" not in one.values


def test_flags_gather_and_states_are_the_last() -> None:
    (one,) = bins(
        [
            row(600, 1.0, throttle_reasons=0x4, driver_version="1"),
            row(605, 1.0, throttle_reasons=0x40, driver_version="2"),
        ]
    )
    assert one.values["throttle_reasons"] == 0x44
    assert one.states == {"driver_version": "2"}


def test_counters_give_their_growth_to_the_seconds_they_grew_in() -> None:
    # 10 s throttled between 16:50 and 17:10 of the clock, then 3 s since the counter began anew at 17:20.
    first, second = bins(
        [
            row(650, 1.0, throttle_time=100.0),
            row(670, 1.0, throttle_time=110.0),
            row(680, 1.0, throttle_time=3.0),
        ],
        step=20.0,
    )
    assert first.values["throttle_time"] == pytest.approx(5.0)
    assert second.values["throttle_time"] == pytest.approx(8.0)
    (alone,) = bins([row(600, 1.0, throttle_time=100.0)])
    assert "throttle_time" not in alone.values
    assert alone.reasons == {"throttle_time": "counter read once"}
    assert first.reasons == second.reasons == {}


def test_a_lost_gpu_leaves_a_stretch_and_no_values() -> None:
    binner = Binner(60, 5.0)
    rows = [row(600, 100.0), lost(605), lost(610), row(615, 100.0), lost(620)]
    found = [one for each in rows for one in binner.add(each)] + list(binner.finish())
    assert [(one.start, one.seconds) for one in found] == [(600, 10.0)]
    assert binner.lost == [LostStretch(605, 615), LostStretch(620, 625)]


@given(
    st.lists(
        st.tuples(st.floats(min_value=0.05, max_value=400), st.integers(min_value=0, max_value=700)),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([1, 10, 60, 300]),
    st.floats(min_value=0.1, max_value=120),
)
def test_every_second_is_worth_what_stood_then(
    steps: list[tuple[float, int]], interval: int, step: float
) -> None:
    """Energy and seconds over all intervals are those of the rows, but for slivers; means lie within."""
    time, rows = 1_000_000.0, []
    for after, power in steps:
        time += after
        rows.append(row(time, float(power)))
    seconds = joules = 0.0
    for this, following in zip(rows, [*rows[1:], None], strict=True):
        apart = step if following is None else following.time - this.time
        stands = apart if apart <= 2 * step else step
        seconds += stands
        joules += stands * float(this.values["power_usage"])
    found = bins(rows, interval, step)
    assert [one.start for one in found] == sorted({one.start for one in found})
    missing = seconds - sum(one.seconds for one in found)
    slivers = 0.05 * interval * (len(rows) + 1)
    assert -1e-6 <= missing <= slivers
    stored = sum(one.seconds * one.values["power_usage"] for one in found)
    assert joules - stored == pytest.approx(0, abs=700 * missing + 1e-3)
    for one in found:
        assert one.start % interval == 0
        assert one.seconds <= interval + 1e-6
        assert 0 <= one.values["power_usage_min"] <= one.values["power_usage_max"] <= 700
