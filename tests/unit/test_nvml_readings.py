"""From what the child sends to the records of the core."""

from __future__ import annotations

import pytest

from gpu_monitor.core.catalogue import METRICS, SAMPLED, STATES, Kind
from gpu_monitor.core.model import GpuProcess, Identity, Span, Spread, Status
from gpu_monitor.sources.gpu.nvml.readings import Shaper, ThrottleTimes, absent, identity_of

CARD = Identity("GPU-1", "nvml")


def shape(values: dict[str, object], reasons: dict[str, str] | None = None, span: Span = Span.FULL):  # type: ignore[no-untyped-def]
    return Shaper().reading(CARD, (dict(values), dict(reasons or {}), None), span, 0.0)


def test_identity_keeps_the_childs_order() -> None:
    sent = ("GPU-1", "H100", "00000000:0A:00.0", 80, 3, "123", 2, "GPU-0", "1/0", "dedicated")
    assert identity_of(sent) == Identity(
        "GPU-1", "nvml", "H100", "00000000:0A:00.0", 80, 3, "123", 2, "GPU-0", "1/0", "dedicated"
    )


@pytest.mark.parametrize(
    ("name", "possible", "impossible"),
    [
        ("gpu_utilization", [0, 100], [101, -1]),
        ("temperature", [-50, 0, 200], [201, 255, -51]),
        ("power_usage", [0.0, 10_000.0], [10_000.1, (2**32 - 1) / 1000]),
        ("memory_used", [0, 2**44], [2**44 + 1, 2**64 - 1]),
        ("fan_speed", [0, 105, 250], [251]),
        ("performance_state", [0, 15], [16, 32]),
        ("energy", [0.0, 1e12], [-1.0]),
        ("sm_active", [0.0, 100.0], [float("nan"), float("inf"), 100.5]),
        ("pcie_rx", [0, 2**62], [-1]),
    ],
)
def test_bounds(name: str, possible: list[float], impossible: list[float]) -> None:
    for value in possible:
        assert shape({name: value}).values[name] == value
    for value in impossible:
        reading = shape({name: value})
        assert name not in reading.values
        assert reading.reasons[name] == "invalid"


def test_a_spread_is_judged_by_its_ends() -> None:
    assert shape({"gpu_utilization": (50.0, 0.0, 100.0, 7)}).values["gpu_utilization"] == Spread(
        50, 0, 100, 7
    )
    assert shape({"gpu_utilization": (50.0, 0.0, 101.0, 7)}).reasons["gpu_utilization"] == "invalid"
    assert shape({"power_usage": (50.0, -1.0, 90.0, 7)}).reasons["power_usage"] == "invalid"


def test_what_the_child_did_not_mention_is_unsupported() -> None:
    reading = shape({"temperature": 40}, {"energy": "denied"})
    names = {metric.name for metric in SAMPLED + STATES}
    assert names == {metric.name for metric in METRICS if metric.kind is not Kind.IDENTITY}
    assert set(reading.values) == {"temperature"}
    assert reading.reasons == {
        name: "denied" if name == "energy" else "unsupported" for name in names - {"temperature"}
    }
    fast = shape({"temperature": 40}, span=Span.FAST)
    assert set(fast.reasons) == {
        "memory_used",
        "gpu_utilization",
        "memory_utilization",
        "power_usage",
        "graphics_clock",
        "energy",
        "throttle_reasons",
        "throttle_time",
    }


def test_processes() -> None:
    shaped = Shaper().reading(CARD, ({}, {}, [(7, "compute", None), (8, "graphics", 9)]), Span.WIDE, 0.0)
    assert shaped.processes == (GpuProcess(7, "compute", None), GpuProcess(8, "graphics", 9))
    assert shape({}).processes is None


def test_a_device_that_does_not_answer_gives_the_reason_for_every_metric() -> None:
    for status in (Status.LOST, Status.HUNG, Status.ASLEEP):
        reading = absent(CARD, status, "why", 5.0)
        assert (reading.cause, reading.since, reading.values) == ("why", 5.0, {})
        assert set(reading.reasons) == {metric.name for metric in SAMPLED + STATES}
        assert set(reading.reasons.values()) == {status.value}


def test_throttled_seconds() -> None:
    times = ThrottleTimes()
    assert times.add("a", (100.0, 7.0), 0.0) == 0.0
    assert times.add("a", (103.0, 9.0), 10.0) == 5.0
    assert times.add("b", (1.0, 1.0), 10.0) == 0.0
    # Both for 8 of 10 seconds: at most 10 of them were throttled.
    assert times.add("a", (111.0, 17.0), 20.0) == 15.0
    # The first counter began anew.
    assert times.add("a", (2.0, 18.0), 30.0) == 18.0
    # Another driver tells by other reasons: nothing is known of the time between.
    assert times.add("a", (50.0, 1.0, 0.0, 0.0), 40.0) == 18.0
    assert times.add("a", (51.0, 1.0, 0.0, 0.5), 50.0) == 19.5
