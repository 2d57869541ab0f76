"""Follows the commits and the clock, and keeps the alerts true. Only the leading process runs it, in one thread.

What each commit touched stands in `changes`; only that is judged again. What is noticed by its absence has a
time at which to look. Alerts, what is to be told of them, and how far the changes were followed are written in
one transaction: killed at any instant, the same changes are judged again, and lead to what is there.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select

from gpu_monitor.core.clock import Clock
from gpu_monitor.server.alerts.actives import ActiveAlerts
from gpu_monitor.server.alerts.book import RuleBook
from gpu_monitor.server.alerts.evaluate import Evaluator, evaluate_server, orphans
from gpu_monitor.server.alerts.experiments import LOOK_SECONDS, evaluate_experiments
from gpu_monitor.server.alerts.judge import Found, Result
from gpu_monitor.server.alerts.queue import TouchQueue
from gpu_monitor.server.alerts.record import Audience, Recorder
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.seed import plant
from gpu_monitor.server.alerts.window import DiskUse
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.store.alert_windows import every_agent
from gpu_monitor.server.store.alerts import (
    Silence,
    active_alerts,
    list_rules,
    list_silences,
    read_state,
    setup_version,
    unreadable_rules,
    write_state,
)
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership
from gpu_monitor.server.store.schema import changes

_LOG = logging.getLogger("alerts")
_SEQ = "seq"
_AT_ONCE = 200
"""Nodes judged and written in one go: 1,600 GPUs, a transaction of some milliseconds."""
_CHANGES = 20_000
"""Changes read at once: a fleet of 10,000 nodes in the same second is one turn."""
_PAUSE_SECONDS = 2.0
"""So long in all the work of one turn is held back."""
_NOTE_SECONDS = 5.0
"""How far following the changes is noted behind what was judged, where no alert changed; it is judged twice then."""
_DISK_SECONDS = 60.0


@dataclass(frozen=True)
class Setting:
    """What an engine is given. `audience` reads who is told; `disks` measures the server's disks.

    `written` is called after each commit, with the number of its newest change (None: it has none); `pause`
    before each part of the work: it may hold back while more urgent work waits; `breathe` each millisecond of
    it: others of this process get their turn.
    """

    audience: Callable[[Connection], Audience]
    disks: Callable[[], Sequence[DiskUse]]
    written: Callable[[int | None], None]
    seeds: tuple[Rule, ...] = ()
    pause: Callable[[], None] = lambda: None
    breathe: Callable[[], None] = lambda: None


class _Heap:
    """Times at which nodes are to be looked at; of several times of a node, the one that was set last counts."""

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def set(self, agent: int, time: float | None) -> None:
        if time is None:
            self._due.pop(agent, None)
        elif self._due.get(agent) != time:
            self._due[agent] = time
            heapq.heappush(self._heap, (time, agent))

    def get(self, agent: int) -> float | None:
        return self._due.get(agent)

    def pop(self, now: float) -> list[int]:
        """The nodes whose time has come."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            time, agent = heapq.heappop(self._heap)
            if self._due.get(agent) == time:
                del self._due[agent]
                found.append(agent)
        return found

    @property
    def first(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


@dataclass
class _Memory:
    """What the leader remembers; all of it can be read again."""

    seq: int
    followed: int = -1
    noted: float = 0.0
    setup: tuple[Any, ...] = ()
    rules: dict[str, Rule] = field(default_factory=dict)
    book: RuleBook = field(default_factory=RuleBook)
    silences: list[Silence] = field(default_factory=list)
    audience: Audience = field(default_factory=Audience)
    absence: _Heap = field(default_factory=_Heap)
    other: _Heap = field(default_factory=_Heap)
    disk_at: float = 0.0
    runs_at: float = 0.0
    is_new: bool = False
    actives: ActiveAlerts = field(default_factory=ActiveAlerts)
    waiting: TouchQueue = field(default_factory=TouchQueue)
    told_unreadable: set[str] = field(default_factory=set)


class Engine:
    """The engine of one process. `lead` once, then `turn` again and again, in the thread that leads."""

    def __init__(
        self, store: Store, clock: Clock, lead: Leadership, setting: Setting, metrics: OwnMetrics
    ) -> None:
        self._store, self._clock, self._lead = store, clock, lead
        self._setting, self._metrics = setting, metrics
        self._memory = _Memory(0)

    def lead(self) -> None:
        """Begin to lead: the built-in rules and seeds are there, everything is judged once. LeadLost, StorageError."""
        now = self._clock.now()
        with self._lead.write() as connection:
            plant(connection, self._setting.seeds, now)
            noted = read_state(connection, _SEQ)
            actives = ActiveAlerts(active_alerts(connection))
        self._memory = _Memory(int(noted) if noted is not None else -1, actives=actives)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was read of the changes is judged."""
        return not self._memory.waiting

    def turn(self) -> float:
        """Follow what is new and what is due; until when (UTC epoch s) there is nothing to do unless news come."""
        memory, now = self._memory, self._clock.now()
        seq, is_more = self._news(now)
        is_written = self._recheck(now)
        touches = memory.waiting.take(now)
        # What waits still is judged again after a restart: until then it is not noted as followed.
        is_all = not memory.waiting
        agents = sorted(touches)
        evaluator = Evaluator(memory.book, memory.actives, breathe=self._setting.breathe)
        hurry_at = self._clock.monotonic() + _PAUSE_SECONDS
        for start in range(0, len(agents), _AT_ONCE):
            part = {agent: touches[agent] for agent in agents[start : start + _AT_ONCE]}
            if self._clock.monotonic() < hurry_at:
                self._setting.pause()
            with self._store.read() as connection:
                result = evaluator.evaluate(connection, part, now)
            # The last part is written together with how far the changes were followed.
            is_last = is_all and start + _AT_ONCE >= len(agents)
            is_written |= self._write(result.found, now, seq if is_last else None)
            self._remember(part, result)
        memory.seq = seq
        if is_all and seq != memory.followed:
            memory.followed = seq
            if not is_written and now - memory.noted >= _NOTE_SECONDS:
                with self._lead.write() as connection:
                    write_state(connection, _SEQ, str(seq))
                memory.noted = now
        if is_more:
            return now
        soon = [] if is_all else [now + 1.0]
        ends = [one.stop for one in memory.silences if one.stop > now]
        runs = [memory.runs_at] if memory.book.experiment else []
        times = [memory.absence.first, memory.other.first, memory.disk_at, *runs, *ends, *soon]
        return min(time for time in times if time is not None)

    def _news(self, now: float) -> tuple[int, bool]:
        """Take in which nodes to look at; the newest change that is known, and whether there are more."""
        memory = self._memory
        waiting, seq = memory.waiting, memory.seq
        with self._store.read() as connection:
            setup = setup_version(connection)
            oldest = connection.execute(select(func.min(changes.c.seq))).scalar()
            is_new = setup != memory.setup
            if is_new:
                self._set_up(connection, setup, now)
            # Rows of the last hour are kept: where some went unseen, everything is looked at.
            is_gap = oldest is not None and oldest > memory.seq + 1
            if is_new or is_gap or memory.seq < 0:
                for agent in every_agent(connection):
                    waiting.of(agent).is_due = True
            rows = connection.execute(
                select(changes.c.seq, changes.c.kind, changes.c.agent, changes.c.hour)
                .where(changes.c.seq > seq)
                .order_by(changes.c.seq)
                .limit(_CHANGES)
            ).all()
        reports = 0
        for _, kind, agent, hour in rows:
            if agent is None or kind == "alert":
                continue
            touch = waiting.of(agent)
            if kind == "report" and hour is not None:
                touch.hours.add(hour)
                reports += 1
            elif kind == "samples":
                touch.is_live = True
            elif kind == "events":
                touch.is_due = True
            else:
                touch.is_absent = True
        waiting.note(reports, now)
        for agent in memory.absence.pop(now):
            waiting.of(agent).is_absent = True
        for agent in memory.other.pop(now):
            waiting.of(agent).is_due = True
        return rows[-1][0] if rows else seq, len(rows) == _CHANGES

    def _set_up(self, connection: Connection, setup: tuple[Any, ...], now: float) -> None:
        """Take over rules, silences and channels as they are now."""
        memory = self._memory
        memory.rules = {rule.id: rule for rule in list_rules(connection)}
        memory.book = RuleBook.of(memory.rules.values())
        memory.silences = list_silences(connection, until=now)
        memory.audience = self._setting.audience(connection)
        memory.setup, memory.disk_at, memory.runs_at = setup, 0.0, 0.0
        for name, reason in unreadable_rules(connection):
            if name not in memory.told_unreadable:
                memory.told_unreadable.add(name)
                _LOG.warning("the rule %s is left out, it cannot be read: %s", name, reason)
        memory.is_new = True

    def _recheck(self, now: float) -> bool:
        """What is not about a node's news: the server's disks, rules that went, silences that ended."""
        memory = self._memory
        found: list[Found] = []
        is_new, memory.is_new = memory.is_new, False
        if is_new:
            found += orphans(memory.book, memory.actives, now)
        if now >= memory.disk_at:
            memory.disk_at = now + _DISK_SECONDS
            if memory.book.server:
                found += evaluate_server(memory.book, memory.actives, self._setting.disks(), now)
        if memory.book.experiment and now >= memory.runs_at:
            memory.runs_at = now + LOOK_SECONDS
            with self._store.read() as connection:
                found += evaluate_experiments(connection, memory.book, memory.actives, now)
        if is_new or any(one.stop <= now for one in memory.silences):
            memory.silences = [one for one in memory.silences if one.stop > now]
            recorder = self._recorder()
            with self._lead.write() as connection:
                recorder.release(connection, now)
            memory.actives.take(recorder.written)
            self._setting.written(None)
        return self._write(found, now, None)

    def _recorder(self) -> Recorder:
        memory = self._memory
        return Recorder(self._store, memory.rules, memory.silences, memory.audience, self._count)

    def _write(self, found: Sequence[Found], now: float, seq: int | None) -> bool:
        """Write what was found, and with it how far the changes were followed; whether anything was written."""
        if not found:
            return False
        recorder = self._recorder()
        with self._lead.write() as connection:
            newest = recorder.write(connection, found, now)
            if seq is not None:
                write_state(connection, _SEQ, str(seq))
        self._memory.actives.take(recorder.written)
        self._setting.written(newest)
        if seq is not None:
            self._memory.noted = now
        return seq is not None

    def _remember(self, touched: Iterable[int], result: Result) -> None:
        """When to look at these nodes again."""
        absence, other = self._memory.absence, self._memory.other
        for agent in touched:
            absence.set(agent, result.absence.get(agent))
            time, before = result.other.get(agent), other.get(agent)
            if agent not in result.full and before is not None:
                time = before if time is None else min(before, time)
            other.set(agent, time)

    def _count(self, moment: str) -> None:
        self._metrics.count("alerts_total", moment=moment)
