"""The agent: puts beat, store, rollup, shipping and retention together and runs until it is told to stop."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpu_monitor import __version__
from gpu_monitor.agent.beat import Beat, Hooks, Pace
from gpu_monitor.agent.changes import ChangeWatch, known_states
from gpu_monitor.agent.collect import Absence, Collection
from gpu_monitor.agent.ending import EndingClock
from gpu_monitor.agent.live import Live
from gpu_monitor.agent.recovery import Machine, begin_run, end_run, insert_run
from gpu_monitor.agent.resume import Running, resume_run
from gpu_monitor.agent.retain import Retention
from gpu_monitor.agent.rollup import Rollup
from gpu_monitor.agent.run_watch import RunWatch
from gpu_monitor.agent.schedule import Job, Schedule
from gpu_monitor.agent.store import Store
from gpu_monitor.agent.waiting import Queue
from gpu_monitor.agent.xids import XidWatch
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageFull
from gpu_monitor.core.model import Event, HostReading, Identity, Round, Span, Status
from gpu_monitor.core.ports import HostSource, ProcessLookup
from gpu_monitor.storage.orphan import keep_orphan
from gpu_monitor.storage.salvage import find_damage, recover

_LOG = logging.getLogger("agent")
_GRACE_SECONDS = 90.0
"""A period counts as closed this long after its end even where its last rows never came."""


@dataclass(frozen=True)
class Parts:
    """What an agent is made of; built by the command line, or by a test."""

    store: Store
    read: Callable[[float, Span], Round]
    host: HostSource | None
    processes: ProcessLookup | None
    rollup: Rollup
    retention: Retention
    ship: Callable[[], float] | None
    clock: Clock
    machine: Machine
    queue: Queue
    ballast: Callable[[bool], object]
    """Called with False to give the ballast file up (true if that gave room), with True to lay it down again."""
    xids: XidWatch
    watchdog: Callable[[], None] = lambda: None
    alive_seconds: float | None = None
    """How often `watchdog` is to be called at least; None: nobody watches."""
    ready: Callable[[], None] = lambda: None
    rival: Callable[[], str | None] = lambda: None
    """The pid of another agent that took the store over, None while it is ours alone."""
    live: Live | None = None
    """What tells the server of the present; None: it is not told."""
    runs: RunWatch | None = None
    """What watches the trainings that registered here; None: nobody does."""
    settle: Callable[[], None] = lambda: None
    """Writes what every start writes (node, identity, plan) into a store that was mended or is a new one."""


class Agent:
    """One agent. `run` returns when `stop` is set and everything is stored."""

    def __init__(self, parts: Parts, pace: Pace, describe: str, stop: threading.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._describe = describe
        self._pace = pace
        self._run = 0
        self._first = self._began = 0.0
        self._interval = pace.interval
        self._lost = 0
        self._stored_until = 0.0
        self._trouble: str | None = None
        self._announced = False
        self._overflows = False
        self._damaged = False
        self._rival: str | None = None
        self._until: float | None = None
        self._schedule = Schedule(parts.clock)
        self._silent: dict[str, str] = {}
        self._changes = ChangeWatch(known_states(parts.store.known_states()))
        hooks = Hooks(
            self._read,
            self._read_host,
            self._store,
            self._record,
            self._paced,
            parts.watchdog,
            parts.alive_seconds,
        )
        if parts.live is not None:
            hooks = replace(hooks, seen=parts.live.seen, watched=parts.live.watched)
        if parts.runs is not None:
            hooks = replace(hooks, seen=_both(hooks.seen, parts.runs.seen))
        self._hooks = hooks
        self._beat = Beat(pace, hooks, parts.clock, stop)

    def run(self, until: float | None = None) -> str | None:
        """Collect until stopped, or until the clock says `until`; what could not be stored, None: nothing."""
        parts = self._parts
        if until is not None:
            self._beat = Beat(self._pace, self._hooks, EndingClock(parts.clock, until), self._stop)
        first = self._beat.first()
        self._first = self._began = first
        try:
            self._run = self._begin(first)
        except StorageFull:
            if not parts.ballast(False):
                raise
            parts.store.reload()
            self._run = self._begin(first)
        self._until = until
        self._schedule.add("rollup", self._noticing(self._roll_up))
        self._schedule.add("retention", self._noticing(self._retain), first=60.0)
        self._schedule.add("check", self._check, first=300.0)
        if parts.ship is not None:
            self._schedule.add("ship", self._noticing(parts.ship))
        self._schedule.start()
        if parts.live is not None:
            parts.live.start()
        if parts.runs is not None:
            parts.runs.start()
        try:
            self._beat.run()
        finally:
            if parts.runs is not None:
                parts.runs.stop()
            if parts.live is not None:
                parts.live.stop()
            self._schedule.stop()
        return self._finish()

    def _begin(self, first: float) -> int:
        parts = self._parts
        return begin_run(
            parts.store, parts.clock, parts.machine,
            now=first, interval=self._pace.interval, pid=os.getpid(), version=__version__,
            describe=self._describe,
        )  # fmt: skip

    def _finish(self) -> str | None:
        store, clock = self._parts.store, self._parts.clock
        if not self._is_alone():
            return self._leave()
        self._drain()
        try:
            self._lost += self._parts.queue.drain(store, clock.now())
            self._roll_up()
            end_run(store, self._run, clock.now(), "stopped")
        except StorageError as error:
            _LOG.critical(
                "could not store the end of this run (%d intervals lost): %s", len(self._parts.queue), error
            )
            return (
                f"the last {len(self._parts.queue)} interval(s) and the end of this run could not be stored"
            )
        return f"{self._lost} rows were lost while the store could not be written" if self._lost else None

    def _is_alone(self) -> bool:
        """Whether the store is still ours; else the agent stops, and writes to it no more."""
        if self._rival is None:
            try:
                self._rival = self._parts.rival()
            except StorageError as error:
                _LOG.warning("%s", error)
            if self._rival is not None:
                _LOG.critical("another agent (pid %s) runs on this store: this one stops", self._rival)
                self._stop.set()
        return self._rival is None

    def _leave(self) -> str:
        """Save what only we have open; the rest is the other agent's, with what it says of the time between."""
        parts, left = self._parts, len(self._parts.queue)
        text = f"another agent (pid {self._rival}) took this store over; {left} interval(s) were not stored"
        try:
            keep_orphan(parts.store.writer, parts.clock, lambda: parts.ballast(False))
        except StorageError as error:
            return f"{text}; {error}"
        return text

    def change_pace(self, pace: Pace) -> None:
        """Take another pace as soon as intervals of both lengths begin together."""
        if pace != self._pace:
            self._pace = pace
            self._beat.change_pace(pace)

    def _paced(self, pace: Pace, at: float) -> None:
        """Another pace holds from `at` on: kept as a run that goes on, so that an hour knows what to expect."""
        parts = self._parts
        self._began, self._interval = at, pace.interval
        try:
            with parts.store.writer.transaction() as connection:
                connection.execute(
                    "UPDATE runs SET ended = ?, ended_how = 'reloaded' WHERE id = ?", (at, self._run)
                )
                self._run = insert_run(
                    connection, parts.machine, at,
                    interval=pace.interval, pid=os.getpid(), version=__version__, suspended=parts.clock.suspended(),
                )  # fmt: skip
        except StorageError as error:
            self._say_trouble(error)

    def nudge(self, job: str) -> None:
        """Run a background job soon (used when the configuration was read again)."""
        self._schedule.nudge(job)

    def _read(self, at: float, span: Span) -> Round:
        self._parts.watchdog()
        self._is_alone()
        found = self._parts.read(at, span)
        lookup = self._parts.processes
        if lookup is not None and span is Span.WIDE:
            devices = tuple(
                device
                if not device.processes
                else replace(device, processes=tuple(lookup.describe(one) for one in device.processes))
                for device in found.devices
            )
            found = replace(found, devices=devices)
        found = self._parts.xids.complete(found, span)
        changes = self._changes.events(found.devices, at)
        if changes:
            found = replace(found, events=(*found.events, *changes))
        silent = {
            d.identity.uid: d.cause or d.status.value for d in found.devices if d.status is not Status.OK
        }
        if found.paused:
            silent[""] = found.paused
        if found.events or silent or self._silent:
            self._say(found, silent)
        return found

    def _say(self, found: Round, silent: dict[str, str]) -> None:
        """Log what happened, and when a device (or all of them) stops or begins to give readings."""
        names = {device.identity.uid: _name(device.identity) for device in found.devices}
        for event in found.events:
            level = logging.INFO if event.severity == "info" else logging.WARNING
            where = names.get(event.uid, event.uid) if event.uid else "node"
            _LOG.log(level, "%s: %s", where, event.message)
        for uid, cause in silent.items():
            if self._silent.get(uid) != cause:
                _LOG.warning("%s: no readings: %s", names.get(uid, "all GPUs"), cause)
        for uid in self._silent.keys() - silent.keys():
            if not found.paused or uid == "":
                _LOG.info("%s: readings again", names.get(uid, uid or "GPUs"))
        self._silent = silent

    def _read_host(self) -> HostReading | None:
        return self._parts.host.read() if self._parts.host is not None else None

    def _store(self, collection: Collection) -> None:
        """Store an interval; where the file cannot be written it waits in memory, and what overflows is named."""
        parts = self._parts
        if parts.queue.push(collection) and not self._overflows:
            self._overflows = True
            _LOG.error("the queue in memory is full: from here on the oldest intervals are lost, and counted")
        if parts.live is not None:
            parts.live.stored(collection)
        self._drain()
        if not self._announced:
            self._announced = True
            parts.ready()
            if self._trouble is None:
                _LOG.info("recording; ask from another terminal with: gpu_monitor -sc")
        closed = collection.start + collection.interval
        before = parts.store.plan.period(closed - 1)
        if closed >= before.end and collection.until >= closed:
            self._schedule.nudge("rollup")
        if self._until is not None and collection.until >= self._until:
            self._stop.set()

    def _record(self, events: list[Event], absences: list[Absence]) -> None:
        """Events and gaps without rows go the same way."""
        self._parts.queue.note(events, absences)
        self._drain()
        self._schedule.nudge_all()

    def _drain(self) -> None:
        """Store what waits; room is made, or a damaged store mended, and then it is tried once more."""
        parts = self._parts
        if not self._is_alone() or (self._damaged and not self._mended()):
            return
        for _ in range(2):
            newest, waiting = parts.queue.newest_end(), len(parts.queue)
            try:
                lost = parts.queue.drain(parts.store, parts.clock.now())
            except StorageFull as error:
                self._say_trouble(error)
                if not parts.ballast(False):
                    return
            except StorageCorrupt as error:
                self._say_trouble(error)
                if not self._mended():
                    return
            except StorageError as error:
                self._say_trouble(error)
                return
            else:
                self._stored(newest, waiting, lost)
                return

    def _stored(self, newest: float | None, waiting: int, lost: int) -> None:
        if newest is not None:
            self._stored_until = newest
        if self._trouble is not None:
            _LOG.warning("the store can be written again: %d interval(s) that waited are stored", waiting)
        if lost:
            self._lost += lost
            _LOG.error("%d rows were lost while the store could not be written; they are gaps now", lost)
        self._trouble, self._overflows = None, False
        self._parts.ballast(True)

    def _say_trouble(self, error: StorageError) -> None:
        if self._trouble is None:
            _LOG.error("%s; %d interval(s) wait in memory", error, len(self._parts.queue))
        self._trouble = str(error)

    def _mended(self) -> bool:
        """Bring the store back in place, or begin a new one; True if it can be written again."""
        parts = self._parts
        store = parts.store
        try:
            orphan = keep_orphan(store.writer, parts.clock, lambda: parts.ballast(False))
            recover(store.writer, parts.clock)
            store.reload()
            parts.settle()
            oldest = parts.queue.oldest_start()
            upto = (self._stored_until or parts.clock.now()) if oldest is None else oldest
            running = Running(self._first, self._began, self._interval, os.getpid(), __version__)
            self._run = resume_run(store, parts.clock, parts.machine, running, upto, orphan)
        except StorageError as error:
            self._damaged = True
            self._say_trouble(error)
            return False
        self._damaged = False
        return True

    def _noticing(self, job: Job) -> Job:
        """`job`, and a damaged store that it meets is mended before the next interval is stored."""

        def run() -> float:
            try:
                return job()
            except StorageCorrupt:
                self._damaged = True
                raise

        return run

    def _check(self) -> float:
        """Look all of the store over for damage that nothing has met yet."""
        trouble = find_damage(self._parts.store.writer.path)
        if trouble is not None:
            _LOG.error("the store is damaged: %s", trouble)
            self._damaged = True
        return 86400.0

    def _roll_up(self) -> float:
        """Roll up every closed period that is marked; come back soon while there is more."""
        now = self._parts.clock.now()
        closed = max(self._stored_until, now - _GRACE_SECONDS)
        done = self._parts.rollup.run(closed, now)
        for outline in done:
            _LOG.info("rolled up %s: %d GPUs", outline.label, outline.gpus)
        if done and self._parts.ship is not None:
            self._schedule.nudge("ship")
        return 0.0 if len(done) >= 24 else 300.0

    def _retain(self) -> float:
        """Prune what is past its age."""
        removed = self._parts.retention.run(self._parts.clock.now())
        if removed:
            _LOG.info("retention removed %s", ", ".join(f"{count} {name}" for name, count in removed.items()))
        return 3600.0


def _both(
    first: Callable[[Round, float], None], second: Callable[[Round, float], None]
) -> Callable[[Round, float], None]:
    """Shows a round to both."""

    def show(found: Round, at: float) -> None:
        first(found, at)
        second(found, at)

    return show


def _name(identity: Identity) -> str:
    """`GPU 1 (NVIDIA H100 80GB HBM3)`, for the log."""
    number = identity.uid if identity.index is None else identity.index
    return f"GPU {number} ({identity.name})" if identity.name else f"GPU {number}"
