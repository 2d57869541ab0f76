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
