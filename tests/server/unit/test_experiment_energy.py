"""Energy and utilisation of a stay on a GPU: figures worked out by hand from the rows of reports and live minutes."""

from __future__ import annotations

import pytest
from sqlalchemy import insert

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.experiment_energy import Account, account
from gpu_monitor.server.store.experiment_gpus import Stay
from gpu_monitor.server.store.schema import samples
from tests.server.watched import HOUR, NOW, Watched

FIRST = int(NOW) // HOUR - 3
START = float(FIRST * HOUR)


@pytest.fixture
def fleet(store: Store) -> Watched:
    made = Watched(store)
    made.add_node()
    return made


def minutes(fleet: Watched, start: float, count: int, watts: int, used: int) -> None:
    """So many live minutes of this power and utilisation."""
    fleet.store.make_room(times=[int(start)], now=fleet.clock.now())
    rows = [
        {
            "time": int(start) + 60 * number, "agent": fleet.agent, "gpu": 0, "seconds": 600,
            "power_usage": watts * 100, "gpu_utilization": used * 10,
        }
        for number in range(count)
    ]  # fmt: skip
    with fleet.store.write() as connection:
        connection.execute(insert(samples), rows)


def of(fleet: Watched, since: float, until: float) -> Account:
    """The account of one stay."""
    with fleet.store.read() as connection:
        return account(connection, (fleet.agent, 0), [Stay(since, until, "process")])


def test_whole_hours_have_the_energy_of_the_counter(fleet: Watched) -> None:
    for number in range(2):
        fleet.report(FIRST + number, energy=36_000_000, energy_seconds=36_000, gpu_utilization=500)
    found = of(fleet, START, START + 2 * HOUR)
    # 3.6 MJ an hour are 1 kWh each.
    assert found.energy_kwh == pytest.approx(2.0)
    assert (found.utilization, found.coverage) == (50.0, 1.0)
    assert (found.is_estimated, found.is_prorated, found.reason) == (False, False, None)


def test_the_edges_are_of_live_minutes_and_estimated(fleet: Watched) -> None:
    fleet.report(FIRST, energy=36_000_000, energy_seconds=36_000, gpu_utilization=500)
    minutes(fleet, START + HOUR, 30, 400, 100)
    found = of(fleet, START, START + 1.5 * HOUR)
    # 1 kWh, and 400 W for half an hour.
    assert found.energy_kwh == pytest.approx(1.2)
    assert found.utilization == pytest.approx((50 * 60 + 100 * 30) / 90)
    assert (found.is_estimated, found.is_prorated, found.reason) == (True, False, None)


def test_an_edge_without_minutes_is_prorated(fleet: Watched) -> None:
    fleet.report(FIRST, energy=36_000_000, energy_seconds=36_000, gpu_utilization=500)
    found = of(fleet, START + HOUR / 2, START + HOUR)
    assert found.energy_kwh == pytest.approx(0.5)
    assert (found.is_estimated, found.is_prorated) == (False, True)


def test_what_the_counter_does_not_tell_is_power_times_seconds(fleet: Watched) -> None:
    fleet.report(FIRST, power_usage=30_000, gpu_utilization=500)
    found = of(fleet, START, START + HOUR)
    assert found.energy_kwh == pytest.approx(0.3)
    assert (found.is_estimated, found.is_prorated) == (True, False)


def test_unknown_is_null_with_a_reason(fleet: Watched) -> None:
    found = of(fleet, START, START + HOUR)
    assert (found.energy_kwh, found.utilization, found.coverage) == (None, None, 0.0)
    assert found.reason == "nothing was recorded in that time"
    fleet.report(FIRST)
    found = of(fleet, START, START + HOUR)
    assert (found.energy_kwh, found.coverage, found.reason) == (None, 1.0, "the GPU told no power")
    fleet.report(FIRST + 1, energy=36_000_000, energy_seconds=36_000)
    found = of(fleet, START, START + 2 * HOUR)
    assert found.energy_kwh == pytest.approx(1.0)
    assert found.reason == "unknown for 50% of the time"
