"""Background jobs: never in the way of a stop."""

from __future__ import annotations

import threading

from gpu_monitor.agent.schedule import Schedule
from gpu_monitor.core.clock import SystemClock
from tests.e2e.waiting import until


def test_a_job_that_ends_while_everything_stops_does_not_hold_the_stop() -> None:
    schedule = Schedule(SystemClock())
    started, release = threading.Event(), threading.Event()

    def job() -> float:
        started.set()
        release.wait(30)
        schedule.nudge("other")
        return 60.0

    schedule.add("job", job)
    schedule.add("other", lambda: 60.0, first=3600.0)
    schedule.start()
    assert started.wait(30)
    stopping = threading.Thread(target=schedule.stop, daemon=True)
    stopping.start()
    until(lambda: schedule.is_stopping, "the stop began")
    release.set()
    stopping.join(30)
    assert not stopping.is_alive()


def test_a_job_nudged_while_it_runs_runs_again_at_once() -> None:
    schedule = Schedule(SystemClock())
    started, release, again, passed = (threading.Event() for _ in range(4))

    def job() -> float:
        if started.is_set():
            again.set()
        else:
            started.set()
            release.wait(30)
        return 3600.0

    def pass_by() -> float:
        passed.set()
        return 3600.0

    schedule.add("job", job)
    schedule.add("other", pass_by, first=3600.0)
    schedule.start()
    try:
        assert started.wait(30)
        schedule.nudge("job")
        schedule.nudge("other")
        assert passed.wait(30)  # so the nudge before it has been dealt with, too
        assert not again.is_set()  # one at a time
        release.set()
        assert again.wait(5), "the nudge was lost: the job waits for its hour"
    finally:
        release.set()
        schedule.stop()


def test_a_job_that_wants_to_run_on_at_once_is_never_dropped() -> None:
    schedule = Schedule(SystemClock())
    done, runs = threading.Event(), 0

    def job() -> float:
        nonlocal runs
        runs += 1
        if runs == 200:
            done.set()
        return 0.0 if runs < 200 else 3600.0

    schedule.add("job", job)
    schedule.start()
    try:
        assert done.wait(30), f"run {runs} was the last"
    finally:
        schedule.stop()


def test_nudged_from_many_threads_a_job_never_runs_beside_itself() -> None:
    schedule = Schedule(SystemClock())
    alone, beside, runs = threading.Lock(), 0, 0

    def job() -> float:
        nonlocal beside, runs
        if alone.acquire(blocking=False):
            runs += 1
            alone.release()
        else:
            beside += 1
        return 3600.0

    schedule.add("job", job)
    schedule.start()

    def nudge() -> None:
        for _ in range(50):
            schedule.nudge("job")

    threads = [threading.Thread(target=nudge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    before = runs
    schedule.nudge("job")
    try:
        until(lambda: runs > before, "the last nudge was heard")
    finally:
        schedule.stop()
    assert beside == 0
