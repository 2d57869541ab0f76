"""The thread that writes experiments: what has come since its last commit goes into the next one, together.

A sibling of the reports' writer. On SQLite both take turns at the one connection that writes, which is handed on
fairly: neither waits for more than one transaction of the other.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageBusy, StorageError, StorageFull
from gpu_monitor.server.ingest.writer import Failed, Overloaded
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.problems import RETRY_SECONDS
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.segment_records import PointRun
from gpu_monitor.server.store.segment_write import Outcome, Upload, Work, write_work

_LOG = logging.getLogger("writer")
QUEUED_BYTES = 64 << 20
"""Decoded bytes that may wait, with what they hold in memory."""
QUEUED = 4096
POINTS = 50_000
"""In one transaction, unless one upload alone has more: some 150 ms on SQLite, in which reports wait."""
_GROUP = 256
_ITEM_BYTES = 500
_POINT_BYTES = 120
"""What a decoded record, and a value in it, hold in memory."""
_LONGEST_WAIT = 30.0
# What a mistake of ours in one upload may raise; the thread lives on and says so.
_UNFORESEEN = (
    SQLAlchemyError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)


@dataclass(slots=True)
class _Task:
    """One request's work, and who waits for its outcome."""

    work: Work
    bytes: int
    points: int
    future: asyncio.Future[Outcome]


def points_in(work: Work) -> int:
    """Values that an upload brings."""
    if not isinstance(work, Upload):
        return 0
    return sum(
        len(item.at) * len(item.columns) for _, item in work.records.items if isinstance(item, PointRun)
    )


class ExperimentWriter:
    """Takes work from the event loop, writes it in its own thread."""

    def __init__(self, store: Store, clock: Clock, metrics: OwnMetrics) -> None:
        self._store, self._clock, self._metrics = store, clock, metrics
        self._tasks: deque[_Task] = deque()
        self._queued_bytes = self._turned_away = 0
        self._rate = 100.0
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._listeners: list[Callable[[frozenset[int]], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="experiments", daemon=True)
        self._random = random.Random()
        metrics.gauge("queue_uploads", lambda: len(self._tasks))

    def listen(self, listener: Callable[[frozenset[int]], None]) -> None:
        """Call `listener` with the ids of the experiments that a commit changed, in the writer's thread; it must be quick."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin; called in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Write what has been taken, and end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=5.0)

    async def write(self, work: Work) -> Outcome:
        """The outcome, once it is safe. Overloaded or Failed where nothing of it was written."""
        points = points_in(work)
        size = _POINT_BYTES * points
        if isinstance(work, Upload):
            size += 2 * len(work.data) + _ITEM_BYTES * len(work.records.items)
        is_too_much = len(self._tasks) >= QUEUED or self._queued_bytes > max(QUEUED_BYTES - size, 0)
        if is_too_much or self._stopping.is_set():
            self._turned_away += 1
            self._metrics.count("uploads_turned_away_total")
            raise Overloaded(self._wait_seconds())
        assert self._loop is not None
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._queued_bytes += size
        self._tasks.append(_Task(work, size, points, future))
        self._wake.set()
        return await future

    def trouble(self) -> str | None:
        """What keeps experiments from being written; None where nothing does."""
        if not self._thread.is_alive():
            return "its thread has ended: see the log of the server"
        return f"{len(self._tasks)} uploads wait, and more are turned away" if self._turned_away else None

    def _wait_seconds(self) -> int:
        spread = (len(self._tasks) + self._turned_away) / self._rate
        return 1 + round(min(self._random.uniform(0.5, 1.5) * spread, _LONGEST_WAIT))

    # --- the writer's thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while tasks := self._take():
                self._write_tasks(tasks)
            if self._stopping.is_set():
                return

    def _take(self) -> list[_Task]:
        taken: list[_Task] = []
        points = 0
        while self._tasks and (
            not taken or (len(taken) < _GROUP and points + self._tasks[0].points <= POINTS)
        ):
            task = self._tasks.popleft()
            points += task.points
            taken.append(task)
        return taken

    def _write_tasks(self, tasks: list[_Task]) -> None:
        """Write a group; where one request spoils it, each alone, so that the others do not suffer."""
        began = self._clock.monotonic()
        try:
            outcomes: list[Outcome | Exception] = list(self._commit(tasks))
        except StorageBusy as error:
            if len(tasks) > 1:  # two processes may have met at experiments that both began
                self._write_each(tasks)
                return
            outcomes = [self._say_failed(error)]
        except StorageError as error:
            outcomes = [self._say_failed(error)] * len(tasks)
        except _UNFORESEEN:
            if len(tasks) > 1:
                self._write_each(tasks)
                return
            _LOG.exception("an upload to %s cannot be written", tasks[0].work.experiment)
            self._metrics.count("write_failures_total", reason="error")
            outcomes = [Failed(500, "Internal error", "The upload could not be written; our log says why.")]
        taken = max(self._clock.monotonic() - began, 1e-6)
        self._rate += 0.2 * (min(len(tasks) / taken, 1e5) - self._rate)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, tasks, outcomes)

    def _write_each(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            self._write_tasks([task])

    def _commit(self, tasks: Sequence[_Task]) -> list[Outcome]:
        """One transaction for all of them."""
        began = self._clock.monotonic()
        with self._store.write() as connection:
            written = write_work(connection, [task.work for task in tasks], self._clock.now())
        self._metrics.observe("experiments_commit_seconds", self._clock.monotonic() - began)
        if written.changed:
            for listener in self._listeners:
                listener(written.changed)
        return written.outcomes

    def _say_failed(self, error: StorageError) -> Failed:
        _LOG.error("experiments cannot be written: %s", error.message)
        if isinstance(error, StorageFull):
            self._metrics.count("write_failures_total", reason="full")
            return Failed(507, "No room", "The disk of the database is full; nothing was stored.")
        self._metrics.count("write_failures_total", reason="storage")
        return Failed(503, "Not now", "The database cannot be used now.", RETRY_SECONDS)

    # --- the event loop again -------------------------------------------------------------------------------

    def _deliver(self, tasks: Sequence[_Task], outcomes: Sequence[Outcome | Exception]) -> None:
        self._queued_bytes -= sum(task.bytes for task in tasks)
        if not self._tasks:
            self._turned_away = 0
        for task, outcome in zip(tasks, outcomes, strict=True):
            if task.future.done():  # the request was given up meanwhile
                continue
            if isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)
