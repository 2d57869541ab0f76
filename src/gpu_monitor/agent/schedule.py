"""Background work beside the beat: rollup, shipping, retention. The only home of APScheduler."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock, real_seconds
from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.core.imports import StandIns, import_lean

_LOG = logging.getLogger("schedule")
_RETRY_SECONDS = 60.0
_INSTANCES = 100
"""APScheduler drops a run above this count, and counts a run until well after it has ended: with 1 a run asked
for at the end of another was lost. That a job runs once at a time is seen to here."""

# APScheduler asks asyncio one question and multiprocessing none, for schedulers and pools that are not ours:
# 2 MB and a tenth of a second that the agent would carry for ever.
_STAND_INS: StandIns = {
    "asyncio": {"iscoroutinefunction": inspect.iscoroutinefunction},
    "multiprocessing": {},
    "concurrent.futures.process": {"BrokenProcessPool": BrokenExecutor},
}

Job = Callable[[], float]
"""Does what is due now and returns after how many seconds of the agent's clock it wants to run again."""


class Schedule:
    """Runs jobs that say themselves when they want to run next.

    APScheduler counts on the wall clock; `nudge_all` is called when that was stepped, so no job waits
    for an hour that will come late. A job that raises is logged, counted and run again in a minute. A job
    never runs twice at a time: nudged while it runs, it runs again as soon as that run has ended.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._real = SystemClock()
        self._jobs: dict[str, Job] = {}
        self._running: set[str] = set()
        self._nudged: set[str] = set()
        self.failures = 0
        self._lock = threading.Lock()
        self.is_stopping = False
        self._scheduler = import_lean(_background_scheduler, _STAND_INS)

    def add(self, name: str, job: Job, first: float = 0.0) -> None:
        """Run `job` after `first` seconds and then as it says."""
        self._jobs[name] = job
        # A trigger that has an end would have the job removed, and APScheduler fails at that in the midst of a stop.
        self._scheduler.add_job(
            self._run, "interval", days=1, next_run_time=self._after(first), args=(name,), id=name
        )

    def _after(self, seconds: float) -> datetime:
        wait = max(0.0, real_seconds(self._clock, seconds))
        return datetime.fromtimestamp(self._real.now(), timezone.utc) + timedelta(seconds=min(wait, 86400.0))

    def start(self) -> None:
        """Begin to run jobs in background threads."""
        self._scheduler.start()

    def nudge(self, name: str) -> None:
        """Run a job as soon as may be."""
        if name not in self._jobs:
            return
        with self._lock:
            if self.is_stopping:
                return
            if name in self._running:
                self._nudged.add(name)
                return
            self._scheduler.modify_job(name, next_run_time=self._after(0.0))

    def nudge_all(self) -> None:
        """Run every job now: the wall clock was stepped."""
        for name in self._jobs:
            self.nudge(name)

    def _run(self, name: str) -> None:
        with self._lock:
            if name in self._running:
                self._nudged.add(name)
                return
            self._running.add(name)
        wait = self._wait_after(name)
        with self._lock:
            self._running.discard(name)
            if name in self._nudged:
                self._nudged.discard(name)
                wait = 0.0
            if not self.is_stopping:
                self._scheduler.modify_job(name, next_run_time=self._after(wait))

    def _wait_after(self, name: str) -> float:
        """Run the job; the seconds until it is to run again."""
        try:
            return self._jobs[name]()
        except GpuMonitorError as error:
            self.failures += 1
            _LOG.error("%s failed: %s", name, error)
        except Exception:  # noqa: BLE001 - a job must not take the agent down, whatever it is
            self.failures += 1
            _LOG.exception("%s failed", name)
        return _RETRY_SECONDS

    def stop(self) -> None:
        """Start no more jobs and wait for the one that runs.

        APScheduler waits while it holds its lock on jobs: one that asked it for anything then would wait for ever.
        """
        with self._lock:
            self.is_stopping = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)


def _background_scheduler() -> Any:
    """A scheduler of our settings."""
    from apscheduler.executors.pool import ThreadPoolExecutor  # third-party, imported lean
    from apscheduler.schedulers.background import BackgroundScheduler

    return BackgroundScheduler(
        timezone=timezone.utc,
        executors={"default": ThreadPoolExecutor(2)},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": _INSTANCES},
    )
