"""A run that is to end at a time ends then: between two readings, and while the driver gives nothing."""

from __future__ import annotations

import threading

import pytest

from gpu_monitor.agent.beat import Beat, Hooks, Pace
from gpu_monitor.agent.collect import Collection
from gpu_monitor.agent.ending import EndingClock
from gpu_monitor.core.model import DeviceReading, Identity, Round
from tests.fakes.clock import FakeClock

START = 1_710_945_000.0  # 2024-03-20T14:30:00Z, a whole minute
WORKING = Round((DeviceReading(Identity("GPU-a", "nvml"), values={"temperature": 40}),))


@pytest.mark.parametrize("round_", [WORKING, Round((), (), paused="driver hung")])
@pytest.mark.parametrize("until", [START + 3.0, START + 95.0, START + 3600.5])
def test_a_run_ends_at_its_time(round_: Round, until: float) -> None:
    clock, stop = FakeClock(now=START), threading.Event()
    stored: list[Collection] = []
    hooks = Hooks(lambda at, span: round_, lambda: None, stored.append, lambda events, gaps: None)
    Beat(Pace(600, 60.0), hooks, EndingClock(clock, until), stop).run()
    assert stop.is_set()
    assert clock.now() == until
    assert until - 60 <= stored[-1].until <= until


def test_the_reading_that_is_due_at_the_end_is_made_and_its_interval_is_whole() -> None:
    clock, stop = FakeClock(now=START), threading.Event()
    stored: list[Collection] = []

    def keep(collection: Collection) -> None:
        stored.append(collection)
        if collection.until >= START + 600:  # as the agent does
            stop.set()

    hooks = Hooks(lambda at, span: WORKING, lambda: None, keep, lambda events, gaps: None)
    Beat(Pace(60, 10.0), hooks, EndingClock(clock, START + 600), stop).run()
    assert clock.now() == START + 600
    assert [(row.start, row.gpus[0].seconds) for row in stored[1:-1]] == [
        (START + 60 * number, 60.0) for number in range(10)
    ]


def test_an_end_that_is_past_stops_at_once_and_a_stop_before_it_is_heard() -> None:
    clock, event = FakeClock(now=START), threading.Event()
    assert EndingClock(clock, START - 100).wait(event, clock.monotonic() + 60)
    assert event.is_set()
    assert clock.now() == START
    assert EndingClock(clock, START + 100).wait(event, clock.monotonic() + 600)
    assert clock.now() == START
