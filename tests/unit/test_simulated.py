"""Simulated GPUs: pure in time, plausible within the card's limits, counters that agree with the gauges."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_monitor.core.catalogue import BY_NAME, IDENTITY, METRICS, Kind, Tier
from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.model import DeviceReading, Round, Span, Status
from gpu_monitor.sources.gpu.simulated import SimulatedSource, parse_simulate
from gpu_monitor.sources.gpu.simulated_models import MODELS

MIB = 1024 * 1024
# Saturday 2026-11-21 00:00 UTC.
MIDNIGHT = 1795219200.0
WEEK = 7 * 86400.0
MOMENTS = st.floats(MIDNIGHT - 60 * 86400, MIDNIGHT + 60 * 86400)
NAMED = {metric.name for metric in METRICS} - {metric.name for metric in IDENTITY}

# Written down from NVIDIA's data sheets and the recordings (nvidia-smi -q), not from the code:
# memory in MiB, power limit, highest graphics clock; what nvidia-smi shows as N/A on that card.
CARDS = {
    "h100": (81559, 700, 1980, {"fan_speed", "retired_pages"}),
    "h200": (143771, 700, 1980, {"fan_speed", "retired_pages"}),
    "a100": (81920, 400, 1410, {"fan_speed", "retired_pages", "sm_active", "mig_mode"}),
    "l40s": (
        46068,
        350,
        2520,
        {"fan_speed", "retired_pages", "memory_temperature", "nvlink_rx", "sm_active"},
    ),
    "rtx4090": (24564, 450, 3105, {"ecc_corrected", "ecc_uncorrected", "nvlink_tx", "memory_temperature"}),
    "t4": (15360, 70, 1590, {"fan_speed", "memory_temperature", "remapped_rows", "nvlink_rx", "sm_active"}),
    "v100": (32768, 300, 1530, {"fan_speed", "remapped_rows", "sm_active"}),
    "gb10": (None, None, 3003, {"memory_used", "memory_free", "power_limit", "fan_speed", "ecc_corrected"}),
}


@cache
def world(seed: int) -> SimulatedSource:
    """Eight H100s, planned once: readings are pure, which is shown on fresh ones."""
    return SimulatedSource(8, seed=seed)


def read(source: SimulatedSource, now: float, span: Span = Span.WIDE) -> tuple[DeviceReading, ...]:
    return source.read(now, span).devices


def number(reading: DeviceReading, name: str) -> float:
    value = reading.values[name]
    assert isinstance(value, (int, float))
    return float(value)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(MOMENTS, min_size=1, max_size=6),
    MOMENTS,
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(list(Span)),
)
def test_a_reading_depends_on_nothing_but_seed_gpu_and_time(
    before: list[float], now: float, model: str, span: Span
) -> None:
    used = SimulatedSource(2, model, seed="s")
    for moment in before:
        used.read(moment, Span.WIDE)
    fresh = SimulatedSource(3, model, seed="s")
    of_each = len(MODELS[model].instances) + 1
    assert read(used, now, span) == read(fresh, now, span)[: 2 * of_each]


def test_the_same_in_another_process_and_other_under_another_seed() -> None:
    code = (
        "from gpu_monitor.sources.gpu.simulated import SimulatedSource; from gpu_monitor.core.model import Span;"
        f"print([d for d in SimulatedSource(3, 'a100', seed=7).read({MIDNIGHT + 50000.5}, Span.WIDE).devices])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = list(read(SimulatedSource(3, "a100", seed=7), MIDNIGHT + 50000.5))
    assert done.stdout.strip() == repr(here)
    other = list(read(SimulatedSource(3, "a100", seed=8), MIDNIGHT + 50000.5))
    assert {d.identity.uid for d in here}.isdisjoint(d.identity.uid for d in other)


def test_spans_agree_on_what_they_share() -> None:
    source = SimulatedSource(4, "mig-h100")
    for fast, full, wide in zip(*(read(source, MIDNIGHT + 40000, span) for span in Span), strict=True):
        assert fast.values.items() <= full.values.items()
        assert full.values == wide.values
        assert fast.processes is None and full.processes is None and wide.processes is not None
        fast_names = {m.name for m in METRICS if m.tier is Tier.FAST and m.kind is not Kind.IDENTITY}
        assert set(fast.values) | set(fast.reasons) == fast_names
        assert set(full.values) | set(full.reasons) == NAMED
        assert set(full.values).isdisjoint(full.reasons)
        assert set(full.reasons.values()) <= {"unsupported"}


@pytest.mark.parametrize("model", sorted(CARDS))
def test_a_card_stays_within_its_limits_for_a_week(model: str) -> None:
    total, limit, clock, lacks = CARDS[model]
    source = SimulatedSource(4, model)
    for step in range(0, int(WEEK), 997):
        for reading in read(source, MIDNIGHT + step):
            assert lacks <= set(reading.reasons)
            assert reading.identity.memory_total == (None if total is None else total * MIB)
            values = reading.values
            for name, value in values.items():
                metric = BY_NAME[name]
                if metric.kind is Kind.GAUGE:
                    assert isinstance(value, (int, float))
                    assert metric.low <= value <= metric.high, name
            assert number(reading, "graphics_clock") <= clock
            assert 20 <= number(reading, "temperature") <= 96
            if limit is not None:
                assert 0 < number(reading, "power_usage") <= limit * 1.001
                assert values["power_limit"] == limit
            if total is not None:
                used, free, kept = (number(reading, f"memory_{n}") for n in ("used", "free", "reserved"))
                assert used >= 0 and free >= 0
                assert used + free + kept == total * MIB
                assert used % 4096 == free % 4096 == kept % 4096 == 0
            assert reading.processes is not None
            for process in reading.processes:
                assert process.memory is not None and process.memory % 4096 == 0
                assert process.memory >= 0


def test_processes_hold_the_memory_that_is_used() -> None:
    source = SimulatedSource(4, "rtx4090")
    seen = 0
    for step in range(0, 86400, 1800):
        for reading in read(source, MIDNIGHT + step):
            assert reading.processes is not None
            assert sum(p.memory or 0 for p in reading.processes) == reading.values["memory_used"]
            seen += len(reading.processes)
    assert seen > 2 * 48


@pytest.mark.parametrize("model", ["h100", "t4", "rtx4090"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_power_and_energy_counter_agree_by_the_hour(model: str, seed: int) -> None:
    source = SimulatedSource(5, model, seed=seed)
    for hour in range(2, 24, 7):
        begin = MIDNIGHT + 2 * 86400 + hour * 3600
        first, last = (read(source, begin + second, Span.FAST) for second in (0, 3600))
        rounds = [read(source, begin + second, Span.FAST) for second in range(5, 3600, 10)]
        for gpu in range(5):
            joules = number(last[gpu], "energy") - number(first[gpu], "energy")
            watts = mean(number(devices[gpu], "power_usage") for devices in rounds)
            assert watts * 3600 == pytest.approx(joules, rel=0.01)


def test_energy_is_the_integral_of_power_to_a_hundredth_of_a_percent() -> None:
    # Simpson's rule over 0.25 s steps, through a stretch with warm-up, epochs and checkpoints.
    source = SimulatedSource(1, "h100", seed=3)
    busy = [
        h
        for h in range(24)
        if number(read(source, MIDNIGHT + WEEK + h * 3600, Span.FAST)[0], "power_usage") > 300
    ]
    begin = MIDNIGHT + WEEK + busy[0] * 3600
    watts = [number(read(source, begin + n / 4, Span.FAST)[0], "power_usage") for n in range(4 * 3600 + 1)]
    simpson = (watts[0] + watts[-1] + 4 * sum(watts[1:-1:2]) + 2 * sum(watts[2:-1:2])) * 0.25 / 3
    ends = (read(source, begin + s, Span.FAST)[0] for s in (0, 3600))
    first, last = (number(reading, "energy") for reading in ends)
    assert last - first == pytest.approx(simpson, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(MOMENTS, min_size=2, max_size=12), st.integers(0, 7))
@example([MIDNIGHT - 1e-6, MIDNIGHT, MIDNIGHT + 1e-6], 0)  # a new day
@example([MIDNIGHT + 2 * 86400 - 1e-6, MIDNIGHT + 2 * 86400], 1)  # a new week
def test_counters_never_go_back(moments: list[float], gpu: int) -> None:
    source = world(5)
    readings = [read(source, moment, Span.FULL)[gpu] for moment in sorted(moments)]
    for before, after in pairwise(readings):
        for name in ("energy", "throttle_time", "pcie_rx", "pcie_tx", "nvlink_rx", "nvlink_tx"):
            # A week's sums are added in another order than its days': equal to rounding.
            assert number(after, name) >= number(before, name) * (1 - 1e-12)


@settings(max_examples=30, deadline=None)
@given(MOMENTS, st.floats(0.01, 20000), st.integers(0, 7))
def test_counters_grow_no_faster_than_the_card_can(start: float, seconds: float, gpu: int) -> None:
    source = world(6)
    before, after = (read(source, t, Span.FULL)[gpu] for t in (start, start + seconds))
    assert 0.0 <= number(after, "energy") - number(before, "energy") + 0.002 <= 700.0 * seconds + 0.01
    assert number(after, "throttle_time") - number(before, "throttle_time") <= seconds + 0.001
    # PCIe 5 x16 moves 64 GB/s a direction, NVLink 4 450 GB/s.
    assert number(after, "pcie_rx") - number(before, "pcie_rx") <= 64e9 * seconds + 4096
    assert number(after, "nvlink_rx") - number(before, "nvlink_rx") <= 450e9 * seconds + 4096


def test_heat_follows_power_without_leaps() -> None:
    source = world(1)
    for gpu in range(8):
        for begin in (MIDNIGHT - 1800, MIDNIGHT + 40000):  # also over midnight
            heat = [number(read(source, begin + s, Span.FAST)[gpu], "temperature") for s in range(0, 3600, 5)]
            # With a lag of minutes 5 s move it by a few degrees at most.
            assert max(abs(b - a) for a, b in pairwise(heat)) <= 4


def test_a_week_holds_idle_training_serving_and_held_memory() -> None:
    source = world(0)
    idle = busy = held = serving = 0
    hottest, users = 0.0, set()
    for step in range(0, int(WEEK), 600):
        for reading in read(source, MIDNIGHT + step):
            utilization, used = number(reading, "gpu_utilization"), number(reading, "memory_used")
            idle += used == 0
            busy += utilization >= 95
            held += used > 1e9 and utilization < 5
            assert reading.processes is not None
            serving += any(p.container for p in reading.processes)
            users |= {p.user for p in reading.processes}
            hottest = max(hottest, number(reading, "temperature"))
            if used == 0:
                assert utilization == 0
                assert reading.processes == ()
    samples = 8 * WEEK / 600
    for count in (idle, busy, held, serving):
        assert count > 0.02 * samples
    assert len(users) >= 3
    assert all(re.fullmatch(r"user\d", str(user)) for user in users)


def test_some_card_is_held_back_by_power_and_some_by_heat() -> None:
    flags = 0
    for seed in range(6):
        source = world(seed)
        for step in range(0, int(WEEK), 3600):
            for reading in read(source, MIDNIGHT + step + 1234, Span.FAST):
                flags |= int(number(reading, "throttle_reasons"))
    assert flags & 0x1 and flags & 0x4 and flags & 0x20  # idle, sw_power_cap, sw_thermal_slowdown
    assert flags & ~0x25 == 0


def test_a_job_is_one_process_from_beginning_to_end() -> None:
    source = world(0)
    lives: dict[int, set[tuple[object, ...]]] = {}
    for step in range(0, 2 * 86400, 300):
        for reading in read(source, MIDNIGHT + step):
            for p in reading.processes or ():
                assert p.start_ticks is not None
                lives.setdefault(p.pid, set()).add(
                    (p.start_ticks, p.user, p.boot_id, p.ns_pid, p.job, p.container)
                )
    assert len(lives) > 8
    assert all(len(one) == 1 for one in lives.values())
    assert all(2 <= pid <= 4194304 for pid in lives)  # pid_max of 64-bit Linux


def test_a_gang_trains_together_under_one_job() -> None:
    # Seed 0 makes a gang of GPUs 4 to 7; its four processes are four ranks.
    source = world(0)
    together = 0
    for step in range(0, 86400, 1800):
        four = [reading.processes or () for reading in read(source, MIDNIGHT + step)[4:]]
        assert len({len(processes) for processes in four}) == 1
        if four[0]:
            together += 1
            assert len({p.job for processes in four for p in processes}) == 1
            pids = sorted(p.pid for processes in four for p in processes)
            assert pids == list(range(pids[0], pids[0] + 4))
    assert together > 10


def test_uids_are_marked_shaped_and_stable() -> None:
    uids = [d.identity.uid for d in read(SimulatedSource(40, "t4", seed=9), MIDNIGHT, Span.FAST)]
    assert len(set(uids)) == 40
    assert all(re.fullmatch(r"SIM-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uid) for uid in uids)
    assert [d.identity.uid for d in read(SimulatedSource(3, "h100", seed=9), MIDNIGHT)] == uids[:3]
    addresses = {d.identity.pci_bus_id for d in read(SimulatedSource(40), MIDNIGHT, Span.FAST)}
    assert len(addresses) == 40
    assert all(re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:00\.0", str(address)) for address in addresses)
    assert {d.identity.source for d in read(SimulatedSource(2), MIDNIGHT)} == {"simulated"}


def test_unified_memory_has_no_total_and_says_so() -> None:
    (reading,) = read(SimulatedSource(1, "gb10"), MIDNIGHT + 43200)
    assert (reading.identity.memory_kind, reading.identity.memory_total) == ("unified", None)
    for name in ("memory_used", "memory_free", "memory_reserved", "power_limit", "energy"):
        assert reading.reasons[name] == "unsupported"
        assert name not in reading.values


def test_mig_has_a_parent_and_its_instances() -> None:
    source = SimulatedSource(2, "mig-h100")
    for step in range(0, 86400, 3000):
        devices = read(source, MIDNIGHT + step)
        assert len(devices) == 8
        parent, *instances = devices[:4]
        assert [i.identity.mig_instance for i in instances] == ["1/0", "3/0", "9/0"]
        assert {i.identity.parent_uid for i in instances} == {parent.identity.uid}
        assert {i.identity.pci_bus_id for i in instances} == {parent.identity.pci_bus_id}
        assert parent.identity.parent_uid is None
        assert parent.values["mig_mode"] == "on"
        for device in devices[:4]:
            assert device.reasons["gpu_utilization"] == "unsupported"
        assert number(parent, "memory_used") == sum(number(i, "memory_used") for i in instances)
        assert parent.processes == ()
        assert all("power_usage" in i.reasons and "sm_active" in i.values for i in instances)
    assert len({d.identity.uid for d in devices}) == 8


def test_it_is_a_source_without_events_that_never_fails() -> None:
    source = SimulatedSource(1)
    source.probe()
    assert source.name == "simulated"
    for now in (0.0, 1.0, 4e9):  # 1970 and 2096
        found = source.read(now, Span.WIDE)
        assert isinstance(found, Round)
        assert (found.events, found.paused, found.devices[0].status) == ((), None, Status.OK)
    source.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (1, "h100")),
        ("8:a100", (8, "a100")),
        (" 4:H200 ", (4, "h200")),
        ("1024:mig-h100", (1024, "mig-h100")),
    ],
)
def test_simulate_is_parsed(text: str, expected: tuple[int, str]) -> None:
    assert parse_simulate(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "N from 1 to 1024"),
        ("0", "N from 1 to 1024"),
        ("1025", "N from 1 to 1024"),
        ("-3", "N from 1 to 1024"),
        ("8x", "N from 1 to 1024"),
        ("h100:8", "N from 1 to 1024"),
        ("8:h1000", "Did you mean h100?"),
        ("8:gtx", "rtx4090"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_help(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_simulate(text)
    assert said in str(caught.value)


def test_an_unknown_card_is_refused_by_the_source_too() -> None:
    with pytest.raises(UsageError):
        SimulatedSource(1, "h101")
