"""What waits to be judged: reports in a rush for each other, live minutes and deadlines never."""

from __future__ import annotations

from gpu_monitor.server.alerts.judge import Touch
from gpu_monitor.server.alerts.queue import TouchQueue


def test_without_a_rush_everything_is_taken_at_once() -> None:
    queue = TouchQueue()
    queue.of(1).hours.add(7)
    queue.of(2).is_live = True
    queue.note(99, 1000.0)
    assert queue.take(1000.0) == {1: Touch({7}), 2: Touch(is_live=True)}
    assert not queue


def test_in_a_rush_hours_wait_ten_seconds_and_are_judged_together() -> None:
    queue = TouchQueue()
    for second in range(10):
        queue.of(1).hours.add(second)
        queue.note(100, 1000.0 + second)
        assert queue.take(1000.0 + second) == {}
        assert len(queue) == 1
    queue.note(100, 1010.0)
    assert queue.take(1010.0) == {1: Touch(set(range(10)))}
    assert not queue


def test_in_a_rush_live_minutes_and_what_is_due_do_not_wait() -> None:
    queue = TouchQueue()
    queue.of(1).hours.add(7)
    queue.of(1).is_live = True
    queue.of(2).is_absent = True
    queue.of(3).is_due = True
    queue.of(3).hours.add(7)
    queue.note(500, 1000.0)
    assert queue.take(1000.0) == {
        1: Touch(is_live=True),
        2: Touch(is_absent=True),
        3: Touch({7}, is_due=True),
    }
    # The rush is over: what waited is judged at the next turn.
    queue.note(0, 1001.0)
    assert queue.take(1001.0) == {1: Touch({7})}


def test_a_rush_is_told_by_what_comes_in_a_second() -> None:
    queue = TouchQueue()
    queue.note(0, 1000.0)
    queue.of(1).hours.add(7)
    queue.note(150, 1002.0)  # 75 a second
    assert queue.take(1002.0) == {1: Touch({7})}
