"""Scripted faults: parsed with help, and seen in readings, counters and events as a real card shows them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.model import DeviceReading, Round, Span, Status
from gpu_monitor.sources.gpu.simulated import Fault, FaultKind, SimulatedSource

# Monday 2026-11-23 12:00 UTC.
START = 1795435200.0
COUNTERS = ("energy", "throttle_time", "pcie_rx", "pcie_tx", "nvlink_rx", "nvlink_tx")


def source(*faults: str, count: int = 2) -> SimulatedSource:
    return SimulatedSource(count, faults=[Fault.parse(text, START) for text in faults])


def at(simulated: SimulatedSource, offset: float, gpu: int = 0) -> DeviceReading:
    return simulated.read(START + offset, Span.FULL).devices[gpu]


def counter(simulated: SimulatedSource, offset: float, name: str = "energy") -> float:
    value = at(simulated, offset).values[name]
    assert isinstance(value, (int, float))
    return float(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu=1 at=+10m for=5m kind=lost", Fault(FaultKind.LOST, START + 600, START + 900, 1)),
        ("kind=hung,gpu=all,at=+1h30m", Fault(FaultKind.HUNG, START + 5400, math.inf, None)),
        ("GPU=0 AT=+90s KIND=xid XID=31", Fault(FaultKind.XID, START + 90, math.inf, 0, 31)),
        (
            "kind=driver at=2026-11-23T12:30:00+00:00 for=2m",
            Fault(FaultKind.DRIVER, START + 1800, START + 1920),
        ),
        (
            "kind=asleep gpu=3 at=2026-11-23T13:30:00+01:00",
            Fault(FaultKind.ASLEEP, START + 1800, math.inf, 3),
        ),
        ("kind=counter_reset gpu=2 at=+0s", Fault(FaultKind.COUNTER_RESET, START, math.inf, 2)),
        ("kind=throttle gpu=2 at=-1m for=120", Fault(FaultKind.THROTTLE, START - 60, START + 60, 2)),
    ],
)
def test_faults_are_parsed(text: str, expected: Fault) -> None:
    assert Fault.parse(text, START) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "kind= is missing"),
        ("gpu=1 at=+1m", "kind= is missing"),
        ("gpu=1 at=+1m kind=lots", "Did you mean lost?"),
        ("gpu=1 kind=lost", "at= is missing"),
        ("at=+1m kind=lost", "gpu= is missing"),
        ("gpu=one at=+1m kind=lost", "gpu=one is no number"),
        ("gpu=1 at=soon kind=lost", "cannot read the time 'soon'"),
        ("gpu=1 at=+1m for=long kind=lost", "cannot read the duration 'long'"),
        ("gpu=1 at=+1m for=0s kind=lost", "lasts no time"),
        ("gpu=1 at=+1m for=1m kind=xid xid=31", "takes no for="),
        ("gpu=1 at=+1m for=1m kind=counter_reset", "takes no for="),
        ("gpu=1 at=+1m kind=xid", "needs the number"),
        ("gpu=1 at=+1m kind=xid xid=many", "needs the number"),
        ("gpu=1 at=+1m kind=lost xid=79", "xid= belongs to kind=xid"),
        ("gpu=1 at=+1m kind=driver", "about all GPUs"),
        ("gpu=1 gpu=2 at=+1m kind=lost", "names gpu twice"),
        ("gpu=1 at=+1m kind=lost colour=red", "unknown name 'colour'"),
        ("gpu=1 at=+1m lost", "'lost' is not NAME=VALUE"),
        ("gpu= at=+1m kind=lost", "'gpu=' is not NAME=VALUE"),
    ],
)
def test_what_is_no_fault_is_refused_with_help(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Fault.parse(text, START)
    assert said in str(caught.value)
    assert caught.value.hint


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(text: str) -> None:
    for words in (text, f"gpu=0 kind=lost at={text}", f"gpu=0 kind=lost at=+1m for={text}"):
        try:
            Fault.parse(words, START)
        except UsageError:
            pass


def test_a_fault_of_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="GPU 2, but 2 are simulated"):
        source("gpu=2 at=+1m kind=lost")


@pytest.mark.parametrize(
    ("kind", "status", "cause", "reason"),
    [
        ("lost", Status.LOST, "GPU lost", "lost"),
        ("hung", Status.HUNG, "hung in a simulated call", "hung"),
        ("asleep", Status.ASLEEP, "asleep", "asleep"),
    ],
)
def test_a_silent_gpu(kind: str, status: Status, cause: str, reason: str) -> None:
    simulated = source(f"gpu=0 at=+10m for=5m kind={kind}")
    whole = source()
    for offset in (0, 599.9, 900, 5000):
        assert at(simulated, offset).status is Status.OK
    for offset in (600, 899.9):
        silent = at(simulated, offset)
        assert (silent.status, silent.cause, silent.since, silent.values) == (status, cause, START + 600, {})
        assert set(silent.reasons.values()) == {reason}
        assert silent.identity == at(whole, offset).identity
        assert at(simulated, offset, gpu=1) == at(whole, offset, gpu=1)


def test_the_instances_of_a_lost_parent_are_lost_with_it() -> None:
    simulated = SimulatedSource(2, "mig-h100", faults=[Fault.parse("gpu=1 at=+1m kind=lost", START)])
    found = simulated.read(START + 60, Span.WIDE).devices
    assert [device.status for device in found] == [Status.OK] * 4 + [Status.LOST] * 4


def test_a_lost_gpu_logs_xid_79_and_comes_back_with_new_counters() -> None:
    simulated = source("gpu=0 at=+10m for=5m kind=lost")
    whole = source()
    rounds = [simulated.read(START + offset, Span.FAST) for offset in (0, 590, 600, 610, 900, 910)]
    assert [[event.detail["xid"] for event in found.events] for found in rounds] == [[], [], [79], [], [], []]
    (event,) = rounds[2].events
    assert (event.kind, event.time, event.severity) == ("xid", START + 600, "critical")
    assert (event.uid, event.detail["via"]) == (at(whole, 0).identity.uid, "simulated")
    for name in COUNTERS:
        assert counter(simulated, 500, name) == counter(whole, 500, name)
        grown = counter(whole, 1500, name) - counter(whole, 900, name)
        assert counter(simulated, 1500, name) == pytest.approx(grown, rel=1e-6, abs=0.01)


def test_counters_begin_anew_at_a_reset() -> None:
    simulated, whole = source("gpu=0 at=+10m kind=counter_reset"), source()
    assert counter(simulated, 600) == 0.0
    assert counter(simulated, 700) == pytest.approx(counter(whole, 700) - counter(whole, 600), abs=0.01)
    assert counter(simulated, 599) == counter(whole, 599)


def test_counters_stand_still_while_asleep() -> None:
    simulated, whole = source("gpu=0 at=+10m for=5m kind=asleep"), source()
    slept = {name: counter(whole, 900, name) - counter(whole, 600, name) for name in COUNTERS}
    for name in COUNTERS:
        assert counter(simulated, 900, name) == pytest.approx(counter(whole, 600, name), abs=0.01)
        assert counter(simulated, 2000, name) == pytest.approx(
            counter(whole, 2000, name) - slept[name], rel=1e-12
        )


def test_a_throttled_gpu_draws_half_and_says_so() -> None:
    simulated, whole = source("gpu=0 at=+10m for=5m kind=throttle"), source()
    slow, usual = at(simulated, 700), at(whole, 700)
    assert int(slow.values["throttle_reasons"]) & 0x48 == 0x48  # type: ignore[call-overload]
    assert slow.values["power_usage"] == pytest.approx(float(usual.values["power_usage"]) / 2, abs=0.01)  # type: ignore[arg-type]
    assert float(slow.values["graphics_clock"]) < float(usual.values["graphics_clock"])  # type: ignore[arg-type]
    # 300 s throttled, whatever the card did by itself; half the energy of that time.
    by_itself = counter(whole, 900, "throttle_time") - counter(whole, 600, "throttle_time")
    added = counter(simulated, 1000, "throttle_time") - counter(whole, 1000, "throttle_time")
    assert added == pytest.approx(300.0 - by_itself, abs=1e-3)
    half = (counter(whole, 900) - counter(whole, 600)) / 2
    assert counter(whole, 1000) - counter(simulated, 1000) == pytest.approx(half, rel=1e-6)
    assert at(simulated, 900).values["throttle_reasons"] == at(whole, 900).values["throttle_reasons"]


def test_a_hung_driver_pauses_everything() -> None:
    simulated = source("at=+10m for=5m kind=driver")
    paused = simulated.read(START + 700, Span.FULL)
    assert (paused.devices, paused.paused) == ((), "driver hung")
    assert simulated.read(START + 900, Span.FULL).paused is None
    assert len(simulated.read(START + 900, Span.FULL).devices) == 2


def xids(found: Round) -> list[tuple[float, object]]:
    return [(event.time - START, event.detail["xid"]) for event in found.events]


def test_each_xid_is_told_once_in_the_first_round_after_it() -> None:
    simulated = source(
        "gpu=0 at=+10s kind=xid xid=31", "gpu=1 at=+5s kind=xid xid=13", "gpu=all at=+0s kind=xid xid=94"
    )
    assert xids(simulated.read(START, Span.FAST)) == [(0, 94), (0, 94)]
    assert xids(simulated.read(START + 4.9, Span.FAST)) == []
    assert xids(simulated.read(START + 60, Span.FAST)) == [(5, 13), (10, 31)]
    assert xids(simulated.read(START + 60, Span.FAST)) == []
    assert xids(simulated.read(START + 30, Span.FAST)) == []
    assert xids(simulated.read(START + 90, Span.FAST)) == []
    # An agent that starts later has not seen what came before.
    assert xids(source("gpu=0 at=+10s kind=xid xid=31").read(START + 60, Span.FAST)) == []


def test_xids_are_told_while_the_driver_hangs() -> None:
    simulated = source("at=+1s for=5m kind=driver", "gpu=0 at=+2s kind=xid xid=119")
    simulated.read(START, Span.FAST)
    assert xids(simulated.read(START + 3, Span.FAST)) == [(2, 119)]


KINDS = st.sampled_from(["lost", "throttle", "asleep"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(KINDS, st.integers(0, 5000), st.integers(1, 3000)), max_size=4),
    st.lists(st.floats(0, 10000), min_size=2, max_size=12),
)
def test_counters_only_go_back_where_they_are_reset(
    faults: list[tuple[str, int, int]], offsets: list[float]
) -> None:
    texts = [f"gpu=0 at=+{begin}s for={length}s kind={kind}" for kind, begin, length in faults]
    simulated = source(*texts)
    resets = [begin + length for kind, begin, length in faults if kind == "lost"]
    last: tuple[float, DeviceReading] | None = None
    for offset in sorted(offsets):
        reading = at(simulated, offset)
        if reading.status is not Status.OK:
            continue
        if last is not None and not any(last[0] < moment <= offset for moment in resets):
            seconds = offset - last[0]
            for name in COUNTERS:
                grown = float(reading.values[name]) - float(last[1].values[name])  # type: ignore[arg-type]
                assert grown >= -1e-9 * abs(float(reading.values[name]))  # type: ignore[arg-type]
                if name == "throttle_time":
                    assert grown <= seconds + 0.001
        last = (offset, reading)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 10000), min_size=1, max_size=5), st.floats(0, 10000))
def test_faults_leave_readings_pure(before: list[float], offset: float) -> None:
    texts = (
        "gpu=0 at=+10m for=5m kind=lost",
        "gpu=all at=+20m for=30m kind=throttle",
        "gpu=1 at=+1h kind=counter_reset",
    )
    used = source(*texts)
    for earlier in before:
        used.read(START + earlier, Span.WIDE)
    moment = START + offset
    assert used.read(moment, Span.WIDE).devices == source(*texts).read(moment, Span.WIDE).devices
