"""Judges nodes by the rules: looks for suspects, reads their windows, and judges those. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil

from sqlalchemy import Connection

from gpu_monitor.server.alerts.actives import ActiveAlerts, Actives
from gpu_monitor.server.alerts.book import Entry, RuleBook
from gpu_monitor.server.alerts.judge import Found, Judge, Result, Touch
from gpu_monitor.server.alerts.state import CHANGED, Subject, View, finish, settle
from gpu_monitor.server.alerts.suspects import Mark, Search, find_marks
from gpu_monitor.server.alerts.window import DiskUse, ServerWindow
from gpu_monitor.server.store.alert_windows import (
    HOUR,
    LONGEST_PERIOD,
    GpuFacts,
    Histories,
    NodeFacts,
    load_gpus,
    load_happenings,
    load_holes,
    load_hosts,
    load_hours,
    load_live,
    load_live_happenings,
    load_nodes,
    load_receipts,
)

SERVER = "server"
"""The subject of alerts about the server itself."""
_MARGIN_SECONDS = 600.0
"""Deep windows reach so much further back than the longest duration: the reading before a stretch is seen, too."""
_SHALLOW_SECONDS = 300.0
"""Of most GPUs so few live minutes tell all: that a condition does not hold, or since when it does."""
_DEEP_AT_ONCE = 20
"""Nodes whose whole windows are read at once: some 10,000 readings of an hour."""
_BREATH = 20
"""Nodes, and GPUs that are judged, between two breaths: about a millisecond."""
Suspects = dict[int, list[tuple[GpuFacts, list[Entry]]]]


class Evaluator:
    """Judges by one book. `search` finds the suspects; `breathe` is called each millisecond or so."""

    def __init__(
        self,
        book: RuleBook,
        actives: ActiveAlerts,
        search: Search = find_marks,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self._book, self._actives, self._search, self._breathe = book, actives, search, breathe
        self._work = 0

    def evaluate(self, connection: Connection, touches: Mapping[int, Touch], now: float) -> Result:
        """Judge these nodes and their GPUs: by the last minutes; by whole windows where those do not tell enough."""
        result = self._evaluate(connection, touches, now, _SHALLOW_SECONDS)
        deep = sorted(result.shallow)
        if deep:
            result.found = [one for one in result.found if one.subject.agent not in result.shallow]
            for agent in deep:
                result.absence.pop(agent, None)
                result.other.pop(agent, None)
        for start in range(0, len(deep), _DEEP_AT_ONCE):
            part = {agent: touches[agent] for agent in deep[start : start + _DEEP_AT_ONCE]}
            result.take(self._evaluate(connection, part, now, None))
        return result

    def _evaluate(
        self, connection: Connection, touches: Mapping[int, Touch], now: float, reach: float | None
    ) -> Result:
        """Judge by the live minutes of the last `reach` seconds; None: by all that any rule needs."""
        book, result = self._book, Result()
        since = now - (reach or book.reach_seconds + _MARGIN_SECONDS)
        nodes = load_nodes(connection, list(touches))
        ranges = _ranges(book, nodes, touches)
        live = [agent for agent in nodes if touches[agent].is_full or touches[agent].is_live]
        marks = self._search(connection, book, live, since, ranges)
        machines = [agent for agent in live if agent in marks or self._has_alert(agent)]
        suspects = self._suspects(connection, nodes, machines, marks)
        histories = _read(connection, book, suspects, machines, ranges, since)
        _read_events(connection, book, suspects, now, histories)
        for agent, node in nodes.items():
            actives = dict(self._actives.of(agent))
            judge = Judge(book, node, touches[agent], histories, actives, now, result)
            judge.is_shallow = reach is not None
            judge.absences()
            if agent in suspects:
                judge.machine(_meant(book.machine, marks.get(agent, set()), node.uuid, actives, None))
            for gpu, entries in suspects.get(agent, ()):
                judge.gpu(gpu, entries)
                self._pass()
            self._pass()
        return result

    def _has_alert(self, agent: int) -> bool:
        return any(rule not in self._book.absence_ids for rule, _ in self._actives.of(agent))

    def _suspects(
        self,
        connection: Connection,
        nodes: Mapping[int, NodeFacts],
        agents: Sequence[int],
        marks: Mapping[int, set[Mark]],
    ) -> Suspects:
        """Of these nodes, the GPUs that are to be judged, and by which rules."""
        if not agents:
            return {}
        found: Suspects = {agent: [] for agent in agents}
        for agent, gpus in load_gpus(connection, agents).items():
            actives, mine = self._actives.of(agent), marks.get(agent, set())
            for gpu in gpus:
                subject = f"{nodes[agent].uuid}/{gpu.uid}"
                entries = _meant(self._book.gpu, mine, subject, actives, gpu)
                if entries:
                    found[agent].append((gpu, entries))
        return found

    def _pass(self) -> None:
        self._work += 1
        if self._work >= _BREATH:
            self._work = 0
            self._breathe()


def evaluate_server(
    book: RuleBook, actives: ActiveAlerts, disks: Sequence[DiskUse], now: float
) -> list[Found]:
    """Judge the server itself."""
    found: list[Found] = []
    subject, view = Subject(SERVER), View(now)
    for entry in book.server:
        rule = entry.rule
        active = actives.of(None).get((rule.id, SERVER))
        outcome = settle(rule.id, rule.severity, subject, active, entry.judge(ServerWindow(now, disks)), view)
        found += [Found(rule.id, subject, step, view=view) for step in outcome.steps]
    return found


def orphans(book: RuleBook, actives: ActiveAlerts, now: float) -> list[Found]:
    """Active alerts whose rule is gone or off: they end."""
    found: list[Found] = []
    for alert in actives.all():
        if alert.rule not in book.ids:
            subject = Subject(alert.subject, alert.agent, alert.uid, alert.contract, alert.simulated)
            found.append(Found(alert.rule, subject, finish(alert, now, CHANGED), view=View(now)))
    return found


def _meant(
    entries: Sequence[Entry], marks: set[Mark], subject: str, actives: Actives, gpu: GpuFacts | None
) -> list[Entry]:
    """The rules that were found to have to do with the subject, or have an alert about it."""
    return [
        entry
        for entry in entries
        if (name := entry.rule.id, None) in marks
        or (gpu is not None and ((name, gpu.key[1]) in marks or (name, gpu.uid) in marks))
        or (name, subject) in actives
    ]


def _ranges(
    book: RuleBook, nodes: Mapping[int, NodeFacts], touches: Mapping[int, Touch]
) -> dict[tuple[int, int], list[int]]:
    """Nodes by the hours that are to be read of them: most of a fleet share them."""
    found: dict[tuple[int, int], list[int]] = {}
    for agent, node in nodes.items():
        touch = touches[agent]
        if not touch.is_full or node.last_hour is None:
            continue
        first = min(touch.hours, default=node.last_hour)
        last = node.last_hour if touch.is_due else max(touch.hours)
        back = ceil(book.reach_seconds / HOUR) + min(LONGEST_PERIOD, (node.period_seconds or HOUR) // HOUR)
        found.setdefault((min(first, last) - back, max(first, last)), []).append(agent)
    return found


def _read(
    connection: Connection,
    book: RuleBook,
    suspects: Suspects,
    machines: Sequence[int],
    ranges: Mapping[tuple[int, int], Sequence[int]],
    since: float,
) -> Histories:
    """What the suspects' rules look at."""
    histories = Histories()
    by_agent = {agent: [gpu.key for gpu, _ in gpus] for agent, gpus in suspects.items()}
    names = {name for gpus in suspects.values() for _, entries in gpus for e in entries for name in e.metrics}
    rules = {entry.rule.id for gpus in suspects.values() for _, entries in gpus for entry in entries}
    host_names = {name for entry in book.machine for name in entry.metrics}
    keys = [key for held in by_agent.values() for key in held]
    if keys:
        load_live(connection, keys, since, names, histories)
    for agents, first, last in _of(ranges, set(machines)):
        load_receipts(connection, agents, first, last, histories)
        load_hours(
            connection, [key for agent in agents for key in by_agent[agent]], first, last, names, histories
        )
        load_hosts(connection, agents, first, last, host_names, histories)
        if not rules.isdisjoint(book.lost):
            load_holes(connection, agents, first, last, histories)
        if not rules.isdisjoint(book.xid):
            load_happenings(connection, agents, first, last, histories)
    return histories


def _read_events(
    connection: Connection, book: RuleBook, suspects: Suspects, now: float, histories: Histories
) -> None:
    """The Xids of which live messages told and reports did not yet, as far back as any rule looks."""
    xid = set(book.xid)
    agents = [
        agent
        for agent, gpus in suspects.items()
        if any(entry.rule.id in xid for _, entries in gpus for entry in entries)
    ]
    if agents:
        load_live_happenings(connection, agents, now - book.reach_seconds - _MARGIN_SECONDS, histories)


def _of(
    ranges: Mapping[tuple[int, int], Sequence[int]], wanted: set[int]
) -> Iterator[tuple[list[int], int, int]]:
    for (first, last), agents in ranges.items():
        found = [agent for agent in agents if agent in wanted]
        if found:
            yield found, first, last
