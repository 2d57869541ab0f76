"""The sped-up clock of simulations: it waits for a busy agent, up to the very present."""

from __future__ import annotations

import threading

import pytest

from gpu_monitor.core.clock import FastClock

NOW = 1_700_000_000.0


class Hand:
    """A real clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return NOW + self.at

    def monotonic(self) -> float:
        return self.at

    def suspended(self) -> float:
        return 0.0

    def wait(self, event: threading.Event, deadline: float) -> bool:
        return event.is_set()


def going(start: float, speed: float) -> tuple[FastClock, Hand]:
    hand = Hand()
    clock = FastClock(start, speed, hand)
    clock.wait(threading.Event(), clock.monotonic())  # it stands still until it is first waited on
    return clock, hand


def test_far_behind_it_runs_at_its_speed() -> None:
    clock, hand = going(NOW - 86400, 3600.0)
    hand.at = 10.0
    assert clock.now() == pytest.approx(NOW - 86400 + 36000)


@pytest.mark.parametrize("busy", [0.1, 0.5, 2.0, 4.0])
def test_an_agent_that_is_busy_near_the_present_is_waited_for(busy: float) -> None:
    clock, hand = going(NOW - 600, 7200.0)
    deadline = clock.monotonic() + 60
    hand.at = busy  # the agent comes late to its next wait
    assert clock.wait(threading.Event(), deadline) is False
    assert clock.monotonic() == pytest.approx(deadline, abs=0.01)
    assert clock.now() == pytest.approx(NOW - 540, abs=0.01)


def test_it_arrives_and_goes_on_at_the_pace_of_the_real_clock() -> None:
    clock, hand = going(NOW - 86400, 7200.0)
    hand.at = 30.0
    assert clock.now() == NOW + 30
    hand.at = 31.5
    assert clock.now() == NOW + 31.5


def test_at_the_real_speed_it_stays_as_far_behind_as_it_began() -> None:
    clock, hand = going(NOW - 100, 1.0)
    hand.at = 1000.0
    assert clock.now() == pytest.approx(NOW + 900)
