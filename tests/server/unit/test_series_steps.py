"""Steps of series: what the fleet's own hours say in whole numbers, holes, and times, against figures worked out here."""

from __future__ import annotations

from datetime import datetime, timezone
from fractions import Fraction

import pytest
from sqlalchemy import insert

from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.server.auth.principal import ANONYMOUS
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import EVERYONE, fleet_hours
from gpu_monitor.server.store.series import Question, Series, series
from gpu_monitor.server.store.span import Span
from gpu_monitor.server.store.steps import Steps, in_units, shown
from gpu_monitor.server.store.targets import find_target

FIRST = 480_000
# Hour, seconds recorded, seconds with a temperature, sum of tenths of degrees times tenths of seconds, GPUs' periods (s).
HOURS = (
    (FIRST, 36_000, 36_000, 36_000 * 613, 3600),
    (FIRST + 1, 72_000, 36_000, 36_000 * -13 - 25_000, 7200),  # -1.37 °C: below 0, rounded away from it
    (FIRST + 2, 108_001, 108_001, 108_001 * 400 + 54_001, 10_800),
    (FIRST + 4, 18_000, 0, 0, 3600),  # nobody told it; the hour before is missing
    (FIRST + 5, 40_000, 20_000, 20_000 * 2000 + 7, 14_400),
)


def write_hours(store: Store) -> None:
    zeros = {column.name: 0 for column in fleet_hours.c}
    rows = [
        {
            **zeros, "hour": hour, "contract": EVERYONE, "simulated": False, "gpus": period // 3600, "seconds": seconds,
            "period_seconds": period, "temperature_sum": total, "temperature_seconds": known,
        }
        for hour, seconds, known, total, period in HOURS
    ]  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(fleet_hours), rows)


def ask(store: Store, name: str, since: float, until: float) -> Series:
    with store.read() as connection:
        target = find_target(connection, ANONYMOUS, "fleet", "")
        assert target is not None
        return series(
            connection, Question(name, target, Span(since, until), 3600, "mean", "hours", simulated=False)
        )


def stamp(hour: int) -> str:
    return datetime.fromtimestamp(hour * 3600, timezone.utc).isoformat()


def test_the_fleets_own_hours_in_whole_numbers(store: Store) -> None:
    write_hours(store)
    found = ask(store, "temperature", FIRST * 3600, (FIRST + 6) * 3600)
    told: dict[int, tuple[object, ...]] = {}
    for hour, seconds, known, total, period in HOURS:
        mean = float(round(Fraction(total, known * 10), 1)) if known else None
        count = round(Fraction(period * known, seconds * 3600))
        told[hour] = mean, count, float(min(Fraction(1), round(Fraction(seconds, period * 10), 4)))
    told[FIRST + 3] = None, 0, 0
    assert found.time == [stamp(FIRST + number) for number in range(6)]
    assert [(*row,) for row in zip(found.value, found.gpus, found.coverage, strict=True)] == [
        told[FIRST + number] for number in range(6)
    ]
    assert found.value[:4] == [61.3, -1.4, 40.1, None]
    assert found.min == found.max == found.value
    assert found.extremes_of == "steps"


def test_a_fleet_without_hours_has_no_points(store: Store) -> None:
    found = ask(store, "temperature", FIRST * 3600, (FIRST + 6) * 3600)
    assert (list(found.time), list(found.value), list(found.coverage)) == ([], [], [])


def test_what_is_divided_by_a_unit_goes_the_long_way_to_the_same(store: Store) -> None:
    """Memory is summed in MiB: hours in which 3 GiB were held all the time."""
    zeros = {column.name: 0 for column in fleet_hours.c}
    row = {
        **zeros, "hour": FIRST, "contract": EVERYONE, "gpus": 1, "seconds": 36_000, "period_seconds": 3600,
        "memory_used_sum": 3 * 1024 * 36_000, "memory_used_seconds": 36_000,
    }  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(fleet_hours), [{**row, "simulated": False}])
    found = ask(store, "memory_used", FIRST * 3600, (FIRST + 1) * 3600)
    assert (list(found.value), list(found.gpus), list(found.coverage)) == ([3 << 30], [1], [1.0])


def test_every_hole_is_one_point_and_lines_do_not_cross_it() -> None:
    starts = [0, 60, 240, 300, 900]
    steps = Steps(starts, list("abcde"), [1] * 5, [2] * 5, [1] * 5, [0.5] * 5).filled(60, 90, None)
    assert list(steps.starts) == [0, 60, 120, 240, 300, 360, 900]
    assert list(steps.value) == ["a", "b", None, "c", "d", None, "e"]
    assert list(steps.gpus) == [1, 1, 0, 1, 1, 0, 1]
    assert list(steps.coverage) == [0.5, 0.5, None, 0.5, 0.5, None, 0.5]
    whole = Steps([0, 60, 120], *[["x"] * 3] * 5)
    assert whole.filled(60, 60, None) is whole


@pytest.mark.parametrize(
    "starts", [range(1_727_996_400, 1_728_180_000, 3600), [1_728_000_000, 1_728_000_061]]
)
def test_times_are_text_and_none_lies_before_the_span(starts: range | list[int]) -> None:
    steps = Steps(starts, *[[None] * len(starts)] * 5)
    expected = [datetime.fromtimestamp(start, timezone.utc).isoformat() for start in starts]
    assert steps.times(0) == expected
    assert steps.times(starts[0]) == expected
    begin = starts[0] + 5
    assert steps.times(begin) == [datetime.fromtimestamp(begin, timezone.utc).isoformat(), *expected[1:]]
    assert steps.times(0) == expected  # what is kept for the next answer is not written to


def test_whole_values_stay_whole() -> None:
    power, memory = BY_NAME["power_usage"], BY_NAME["memory_used"]
    assert in_units(power, [30_000, 30_001, None, -50]) == [300, 300.01, None, -0.5]
    assert in_units(memory, [7, None]) == [7, None]
    assert shown(power, 100, [30_000.4, 12.5, None]) == [300, 0.12, None]
    assert shown(memory, 0.5, [3.0, None]) == [6, None]
    assert [type(one) for one in shown(power, 1, [2.0, 2.004, 2.126])] == [int, int, float]
