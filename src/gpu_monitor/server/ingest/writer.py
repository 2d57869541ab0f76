"""The one thread that writes reports: whatever has come since its last commit goes into the next one, together.

Small reports are read here too, right before they are written: read in the event loop, each was cold again by then,
and the two threads took the interpreter from each other more often. Answers go back to the event loop only after
the commit, all of a group at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError, StorageFull
from gpu_monitor.server.ingest.release import release_due
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.problems import RETRY_SECONDS
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.write import Answer, Committed, GroupRecorder, Submission
from gpu_monitor.server.store.write_live import LiveBatch
from gpu_monitor.wire.intake import Malformed

_LOG = logging.getLogger("writer")
Work = Submission | LiveBatch
Result = Answer | Refusal | None
"""None: live samples that were taken."""

QUEUED = 4096
"""Reports that may wait: some seconds of the slowest disk we know."""
QUEUED_BYTES = 64 << 20
_GROUP = 512
"""Reports in one transaction: beyond that nothing is gained, and the first ones wait."""
_ROW_BYTES = 1200
"""What a shaped row of a report with many of them holds, as measured: far more than its JSON."""
_HEAVY = 2048
"""Rows from which a request is written alone, and never two of them before one that is lighter: an hour of 64 GPUs,
each with 30 processes, stays below."""
_GROUP_ROWS = 16_384
READ_HERE = 48 << 10
"""Bytes of a report that is read here: 20 GPUs, and never as many rows as are heavy."""
_RELEASE_SECONDS = 30.0
_LONGEST_WAIT = 30.0
_SWITCH_SECONDS = 0.003
_COLLECTED = (20_000, 20, 20)
# What a mistake of ours in one report may raise; the thread lives on and says so.
_UNFORESEEN = (
    SQLAlchemyError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)


class Overloaded(Exception):
    """More has come than can be written: try again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"busy; try again after {seconds} s")
        self.seconds = seconds


class Failed(Exception):
    """Nothing of this was written; how to answer. The reason is in our log."""

    def __init__(self, status: int, title: str, text: str, retry_seconds: int | None = None) -> None:
        super().__init__(text)
        self.status, self.title = status, title
        self.headers = {} if retry_seconds is None else {"Retry-After": str(retry_seconds)}


@dataclass(slots=True)
class _Task:
    """What one request brought, and who waits for the answers."""

    work: Sequence[Work]
    bytes: int
    rows: int
    count: int
    future: asyncio.Future[list[Result]]
    read: Callable[[], Submission] | None = None
    """What gives the work, where it is still to be read."""
    fault: Exception | None = None
    """Why it could not be read; then there is no work."""

    def settle(self) -> None:
        """Read what is still to be read."""
        read, self.read = self.read, None
        if read is None:
            return
        try:
            self.work = (read(),)
        except Malformed as error:
            self.fault = Malformed(error.field, error.reason)  # without the frames that hold the body
        except _UNFORESEEN as error:
            self.fault = error
        self.rows = sum(map(_rows_of, self.work))


Outcome = list[Result] | Exception


def _rows_of(work: Work) -> int:
    if isinstance(work, LiveBatch):
        return len(work.kept)
    shaped = work.shaped
    return len(shaped.gpus) + len(shaped.gaps) + len(shaped.events) + len(shaped.processes)


class GroupWriter:
    """Takes work from the event loop, writes it in its own thread."""

    def __init__(self, store: Store, clock: Clock, metrics: OwnMetrics) -> None:
        self._store, self._clock, self._metrics = store, clock, metrics
        self._recorder = GroupRecorder()
        self._tasks: deque[_Task] = deque()
        self._heavy: deque[_Task] = deque()
        self._was_heavy = False
        self._queued = self._queued_bytes = self._turned_away = 0
        self._rate = 1000.0
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._listeners: list[Callable[[Committed], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._random = random.Random()
        metrics.gauge("queue_reports", lambda: self._queued)
        metrics.gauge("queue_bytes", lambda: self._queued_bytes)

    def listen(self, listener: Callable[[Committed], None]) -> None:
        """Call `listener` after each commit that changed something, in the writer's thread; it must be quick."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin; called in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        # Each statement lets go of the interpreter's lock, some fifteen times a group, and a busy event loop gives it
        # back after this: by default 5 ms. At 1 ms the two take it from each other twice as often, for a tenth of
        # the CPU of a report.
        sys.setswitchinterval(_SWITCH_SECONDS)
        # A report is some thousand small objects that no cycle holds: looking for cycles at every 700 of them took
        # a tenth of the time.
        gc.freeze()
        gc.set_threshold(*_COLLECTED)
        self._thread.start()

    def stop(self) -> None:
        """Write what has been taken, and end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=5.0)

    async def write(self, work: Sequence[Work], size: int) -> list[Result]:
        """The answers, once all of `work` is safe. Overloaded or Failed where nothing of it was written.

        `size`: decoded bytes it came from.
        """
        rows = sum(map(_rows_of, work))
        return await self._put(_Task(work, size + _ROW_BYTES * rows, rows, len(work), self._future()))

    async def read_and_write(self, read: Callable[[], Submission], size: int) -> tuple[Submission, Result]:
        """The report that `read` gives, called in the writer's thread, and its answer once it is safe.

        `size`: bytes it is read from, at most `READ_HERE`. Malformed as `read` raises it; else as `write`.
        """
        task = _Task((), size, 0, 1, self._future(), read)
        (result,) = await self._put(task)
        submission = task.work[0]
        assert isinstance(submission, Submission)
        return submission, result

    def _future(self) -> asyncio.Future[list[Result]]:
        assert self._loop is not None
        return self._loop.create_future()

    async def _put(self, task: _Task) -> list[Result]:
        size = task.bytes
        if (
            self._queued + task.count > QUEUED
            or self._queued_bytes > max(QUEUED_BYTES - size, 0)  # one that fills it all is taken for itself
            or self._stopping.is_set()
        ):
            self._turned_away += task.count
            self._metrics.count("turned_away_total", task.count)
            raise Overloaded(self._wait_seconds())
        self._queued += task.count
        self._queued_bytes += size
        (self._heavy if task.rows > _HEAVY else self._tasks).append(task)
        if not self._wake.is_set():
            self._wake.set()
        return await task.future

    def trouble(self) -> str | None:
        """What keeps reports from being written; None where nothing does."""
        if not self._thread.is_alive():
            return "its thread has ended: see the log of the server"
        return f"{self._queued} reports wait, and more are turned away" if self._turned_away else None

    def _wait_seconds(self) -> int:
        """Long enough for what waits and for all who were sent away since, each at a moment of its own."""
        spread = (self._queued + self._turned_away) / self._rate
        return 1 + round(min(self._random.uniform(0.5, 1.5) * spread, _LONGEST_WAIT))

    # --- the writer's thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        due = 0.0
        while True:
            self._clock.wait(self._wake, due)
            self._wake.clear()
            if self._clock.monotonic() >= due:
                due = self._clock.monotonic() + _RELEASE_SECONDS
                self._release()
            while tasks := self._take():
                self._write_tasks(tasks)
            if self._stopping.is_set():
                return

    def _take(self) -> list[_Task]:
        """What is written next, together: heavy ones by themselves, and light ones between any two of them."""
        if self._heavy and not (self._was_heavy and self._tasks):
            self._was_heavy = True
            return [self._heavy.popleft()]
        self._was_heavy = False
        taken: list[_Task] = []
        size = rows = 0
        for _ in range(len(self._tasks)):  # what comes while these are read waits for the next group
            task = self._tasks[0]
            task.settle()
            if taken and (size + task.count > _GROUP or rows + task.rows > _GROUP_ROWS):
                break
            size += task.count
            rows += task.rows
            taken.append(self._tasks.popleft())
        return taken

    def _write_tasks(self, tasks: list[_Task]) -> None:
        """Write a group; where one request spoils it, each alone, so that the others do not suffer."""
        began = self._clock.monotonic()
        try:
            outcomes: list[Outcome] = list(self._commit(tasks))
        except StorageError as error:
            outcomes = [self._say_failed(error)] * len(tasks)
        except _UNFORESEEN:
            if len(tasks) > 1:
                for task in tasks:
                    self._write_tasks([task])
                return
            _LOG.exception("a request with %d parts cannot be written", len(tasks[0].work))
            self._metrics.count("write_failures_total", reason="error")
            outcomes = [Failed(500, "Internal error", "The report could not be written; our log says why.")]
        count = sum(task.count for task in tasks)
        taken = max(self._clock.monotonic() - began, 1e-6)
        self._rate += 0.2 * (min(count / taken, 1e5) - self._rate)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, tasks, outcomes, count)

    def _commit(self, tasks: Sequence[_Task]) -> list[list[Result]]:
        """One transaction for all of them; no work of one that could not be read."""
        if not any(task.work for task in tasks):
            return [[] for _ in tasks]
        began = self._clock.monotonic()
        reports = [one for task in tasks for one in task.work if isinstance(one, Submission)]
        live = [one for task in tasks for one in task.work if isinstance(one, LiveBatch)]
        now = self._clock.now()
        times = {row.time for one in live for row in one.kept}
        self._store.make_room({one.shaped.intake.hour for one in reports}, times, now=now)
        try:
            with self._store.write() as connection:
                written = self._recorder.write_group(connection, reports, now, live)
        except BaseException:
            self._recorder.undo()
            raise
        self._recorder.keep()
        self._metrics.observe("commit_seconds", self._clock.monotonic() - began)
        self._tell(written.committed)
        answers, refusals = iter(written.answers), iter(written.live)
        return [
            [next(answers) if isinstance(one, Submission) else next(refusals) for one in task.work]
            for task in tasks
        ]

    def _tell(self, committed: Committed | None) -> None:
        if committed is not None:
            for listener in self._listeners:
                listener(committed)

    def _release(self) -> None:
        """Take up early reports whose time has come."""
        try:
            while released := release_due(self._store, self._recorder, self._clock.now()):
                for committed in released:
                    self._tell(committed)
        except (StorageError, *_UNFORESEEN):
            self._recorder.undo()
            _LOG.exception("early reports cannot be taken up now; tried again in %.0f s", _RELEASE_SECONDS)

    def _say_failed(self, error: StorageError) -> Failed:
        _LOG.error("reports cannot be written: %s", error.message)
        if isinstance(error, StorageFull):
            self._metrics.count("write_failures_total", reason="full")
            return Failed(507, "No room", "The disk of the database is full; nothing was stored.")
        self._metrics.count("write_failures_total", reason="storage")
        return Failed(503, "Not now", "The database cannot be used now.", RETRY_SECONDS)

    # --- the event loop again -------------------------------------------------------------------------------

    def _deliver(self, tasks: Sequence[_Task], outcomes: Sequence[Outcome], count: int) -> None:
        self._queued -= count
        self._queued_bytes -= sum(task.bytes for task in tasks)
        if not self._queued:
            self._turned_away = 0
        for task, outcome in zip(tasks, outcomes, strict=True):
            if task.future.done():  # the request was given up meanwhile
                continue
            if task.fault is not None:
                task.future.set_exception(task.fault)
            elif isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)
