"""From rounds to rows: every expected number worked out by hand beside the test."""

from __future__ import annotations

import pytest

from gpu_monitor.agent.collect import Absence, Collector
from gpu_monitor.core.model import DeviceReading, HostReading, Identity, Round, Spread, Status, Value

GPU = Identity("GPU-a", "nvml", "Card", index=0)


def round_of(
    values: dict[str, Value], status: Status = Status.OK, cause: str | None = None, **extra: str
) -> Round:
    return Round((DeviceReading(GPU, status, values, extra, cause=cause),))


def test_mean_is_weighted_by_the_time_each_reading_stands_for() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"power_usage": 999.0}), 0)  # stands for nothing: there is nothing before it
    collector.add(round_of({"power_usage": 100.0}), 10)
    collector.add(round_of({"power_usage": 200.0}), 40)
    row = collector.close(0, 60).gpus[0]
    assert row.seconds == 40
    assert row.values["power_usage"] == pytest.approx((100 * 10 + 200 * 30) / 40)
    assert (row.values["power_usage_min"], row.values["power_usage_max"]) == (100, 999)


def test_one_reading_is_its_own_mean() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"temperature": 40}), 5)
    row = collector.snapshot(0, 60).gpus[0]
    assert (row.seconds, row.values["temperature"]) == (0, 40)


def test_spread_of_the_drivers_own_samples() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"gpu_utilization": 0}), 0)
    collector.add(round_of({"gpu_utilization": Spread(50.0, 10, 90, 60)}), 10)
    collector.add(round_of({"gpu_utilization": Spread(70.0, 60, 80, 60)}), 20)
    values = collector.close(0, 60).gpus[0].values
    assert values["gpu_utilization"] == 60
    assert (values["gpu_utilization_min"], values["gpu_utilization_max"]) == (0, 90)


def test_unknown_is_skipped_and_zero_is_counted() -> None:
    collector = Collector(longest=30)
    for at, values in ((0, {}), (10, {"gpu_utilization": 0}), (20, {}), (30, {"gpu_utilization": 30})):
        collector.add(round_of(dict(values)), at)
    row = collector.close(0, 60).gpus[0]
    assert row.values["gpu_utilization"] == 15  # (0 * 10 + 30 * 10) / 20
    assert row.seconds == 30
    assert "temperature" not in row.values


def test_impossible_values_are_null_with_the_reason() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"gpu_utilization": 101, "temperature": 255, "power_usage": 4294967.295}), 0)
    collector.add(round_of({"gpu_utilization": 101, "temperature": 255, "power_usage": 4294967.295}), 10)
    row = collector.close(0, 60).gpus[0]
    assert dict(row.values) == {}
    assert row.reasons == {"gpu_utilization": "invalid", "temperature": "invalid", "power_usage": "invalid"}


def test_energy_is_the_growth_of_the_counter_and_a_reset_counts_from_zero() -> None:
    collector = Collector(longest=30)
    for at, joules in ((0, 5000.0), (10, 6000.0), (20, 400.0), (30, 1400.0)):
        collector.add(round_of({"energy": joules}), at)
    closed = collector.close(0, 60)
    assert closed.gpus[0].values["energy"] == 1000 + 400 + 1000
    assert [event.kind for event in closed.events] == ["counter_reset"]


def test_the_counter_goes_on_into_the_next_interval() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"energy": 100.0, "pcie_rx": 1e9}), 0)
    collector.add(round_of({"energy": 200.0, "pcie_rx": 2e9}), 10)
    first = collector.close(0, 10).gpus[0].values
    collector.add(round_of({"energy": 350.0, "pcie_rx": 6e9}), 20)
    second = collector.close(10, 10).gpus[0].values
    assert (first["energy"], second["energy"]) == (100, 150)
    assert (first["pcie_rx"], second["pcie_rx"]) == (1e8, 4e8)


def test_a_counter_that_jumps_beyond_reason_is_invalid() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"energy": 0.0}), 0)
    collector.add(round_of({"energy": 1e12}), 10)
    row = collector.close(0, 10).gpus[0]
    assert "energy" not in row.values
    assert row.reasons["energy"] == "invalid"


def test_flags_gather_over_the_interval() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"throttle_reasons": 0x4}), 0)
    collector.add(round_of({"throttle_reasons": 0x40}), 10)
    assert collector.close(0, 60).gpus[0].values["throttle_reasons"] == 0x44
    collector.add(round_of({"throttle_reasons": 0}), 20)
    assert collector.close(60, 60).gpus[0].values["throttle_reasons"] == 0


def test_a_device_that_hangs_has_one_gap_from_its_last_reading() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"temperature": 40}), 10)
    collector.add(round_of({}, Status.HUNG, "hung in nvmlDeviceGetTemperature"), 20)
    collector.add(round_of({}, Status.HUNG, "hung in nvmlDeviceGetTemperature"), 30)
    collector.add(round_of({"temperature": 41}), 40)
    closed = collector.close(0, 60)
    cause = "hung in nvmlDeviceGetTemperature"
    assert closed.absences == (Absence(10, None, cause, "GPU-a"), Absence(10, 40, cause, "GPU-a"))
    assert closed.gpus == ()  # two single instants; nothing in between is claimed


def test_causes_that_change_are_gaps_of_their_own() -> None:
    collector = Collector(longest=30)
    collector.add(round_of({"temperature": 40}), 0)
    collector.add(round_of({}, Status.LOST, "GPU is lost"), 10)
    collector.add(Round((), paused="driver hung"), 20)
    spans = [(a.start, a.end, a.cause) for a in collector.close(0, 60).absences if a.end is not None]
    assert spans == [(0, 20, "GPU is lost")]


def test_no_device_at_all_is_a_gap_of_the_node() -> None:
    collector = Collector(longest=30)
    collector.add(Round((), paused="no driver"), 10)
    collector.add(round_of({"temperature": 40}), 20)
    assert [(a.start, a.end, a.uid) for a in collector.close(0, 60).absences] == [
        (10, None, None),
        (10, 20, None),
    ]


def test_a_late_reading_stands_for_no_more_than_the_longest_stretch() -> None:
    collector = Collector(longest=25)
    collector.add(round_of({"temperature": 40}), 0)
    collector.add(round_of({"temperature": 50}), 55)
    assert collector.close(0, 60).gpus[0].seconds == 25


def test_energy_over_a_hole_is_not_claimed() -> None:
    collector = Collector(longest=25)
    collector.add(round_of({"energy": 0.0}), 0)
    collector.add(round_of({"energy": 9000.0}), 100)  # more than 2.5 times the longest stretch
    collector.add(round_of({"energy": 9500.0}), 110)
    assert collector.close(0, 120).gpus[0].values["energy"] == 500


def test_host_counters_become_rates() -> None:
    collector = Collector(longest=60)
    collector.add_host(HostReading({"network_rx": 1000.0, "memory_used": 5.0}), 0)
    collector.add_host(HostReading({"network_rx": 7000.0, "memory_used": 7.0}), 60)
    host = collector.close(0, 60).host
    assert host is not None
    assert host[1]["network_rx"] == 100
    assert host[1]["memory_used"] == 7
