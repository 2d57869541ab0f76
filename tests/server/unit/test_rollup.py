"""The fleet's hours: sums that can be taken off again without a trace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.server.store.rollup import NEEDED, SUM_COLUMNS, FleetKey, Sums, fleet_part, merge

VALUE = st.none() | st.integers(0, 2**40)
ROWS = st.lists(st.tuples(st.booleans(), st.tuples(*[VALUE] * len(NEEDED))), max_size=6)
REPORT = st.tuples(st.integers(0, 3), st.integers(1, 2), st.sampled_from([3600, 7200]), st.booleans(), ROWS)


@given(st.lists(REPORT, max_size=6), st.lists(REPORT, max_size=6))
def test_what_is_taken_off_leaves_what_the_others_add(kept: list, gone: list) -> None:  # type: ignore[type-arg]
    wanted: dict[FleetKey, Sums] = {}
    for one in kept:
        merge(wanted, fleet_part(*one))
    found: dict[FleetKey, Sums] = {}
    for one in [*gone, *kept]:
        merge(found, fleet_part(*one))
    for one in gone:
        merge(found, fleet_part(*one), -1)
    nothing = [0] * len(SUM_COLUMNS)
    assert {key: sums for key, sums in found.items() if sums != nothing} == {
        key: sums for key, sums in wanted.items() if sums != nothing
    }


@given(ROWS)
def test_rows_in_two_reports_add_up_to_those_in_one(rows: list) -> None:  # type: ignore[type-arg]
    whole = fleet_part(1, 1, 3600, False, rows)
    halves: dict[FleetKey, Sums] = {}
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        merge(halves, fleet_part(1, 1, 3600, False, part))
    halves[1, 1, False][0] -= 1  # one report more
    assert whole == {key: sums for key, sums in halves.items() if key in whole}


def test_sums_worked_out_by_hand() -> None:
    order = dict.fromkeys(NEEDED)
    first = {
        **order,
        "seconds": 100,
        "idle_seconds": 10,
        "energy": 7,
        "power_usage": 5,
        "memory_used": 3 << 20,
    }
    second = {**order, "seconds": 50, "power_usage": 11, "temperature": 2, "memory_used": (1 << 20) - 1}
    rows = [(False, tuple(first.values())), (False, tuple(second.values()))]
    (sums,) = fleet_part(9, 1, 3600, False, rows).values()
    found = {name: value for name, value in zip(SUM_COLUMNS, sums, strict=True) if value}
    assert found == {
        "reports": 1, "gpus": 2, "seconds": 150, "period_seconds": 7200, "idle_seconds": 10, "energy": 7,
        "energy_rows": 1, "power_usage_sum": 5 * 100 + 11 * 50, "power_usage_seconds": 150, "temperature_sum": 100,
        "temperature_seconds": 50, "memory_used_sum": 300, "memory_used_seconds": 150,
    }  # fmt: skip
