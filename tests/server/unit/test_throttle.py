"""Slowing guesses: what is free, how long one waits, what makes it forget."""

from __future__ import annotations

import pytest

from gpu_monitor.server.auth.throttle import Rule, Throttle, address_key
from tests.fakes.clock import FakeClock

RULE = Rule(free=3, longest=10.0)
KEY = ("pair", "ada", "192.0.2.1")


def test_some_failures_are_free_then_each_wait_doubles_up_to_the_longest() -> None:
    clock = FakeClock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(9):
        waits.append(throttle.wait(KEY, RULE))
        clock.advance(throttle.wait(KEY, RULE))
        throttle.failed(KEY)
    assert waits == [0, 0, 0, 1, 2, 4, 8, 10, 10]


def test_waiting_long_enough_lets_one_try() -> None:
    clock = FakeClock()
    throttle = Throttle(clock)
    for _ in range(3):
        throttle.failed(KEY)
    assert throttle.wait(KEY, RULE) == 1.0
    clock.advance(0.5)
    assert throttle.wait(KEY, RULE) == 0.5
    clock.advance(0.5)
    assert throttle.wait(KEY, RULE) == 0.0


def test_success_and_a_quiet_quarter_of_an_hour_forget() -> None:
    clock = FakeClock()
    throttle = Throttle(clock)
    for _ in range(6):
        throttle.failed(KEY, ("account", "ada"))
    throttle.succeeded(KEY)
    assert throttle.wait(KEY, RULE) == 0.0
    assert throttle.wait(("account", "ada"), RULE) > 0
    clock.advance(900.0)
    assert throttle.wait(("account", "ada"), RULE) == 0.0
    throttle.failed(("account", "ada"))
    assert throttle.wait(("account", "ada"), RULE) == 0.0


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    throttle = Throttle(FakeClock())
    for _ in range(4):
        throttle.failed(KEY)
    for number in range(20_000):
        throttle.failed(("address", str(number)))
    assert throttle.wait(KEY, RULE) == 0.0
    assert len(throttle._failures) == 20_000


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", "unknown"),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key
