"""Judges nodes by the rules: windows from what was read, and what becomes of each alert. Writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from sqlalchemy import Connection

from gpu_monitor.server.alerts.kinds import duration_of, is_meant, kind_of, metrics_of, scope_of
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.state import (
    CHANGED,
    NO_DATA,
    OLD_SECONDS,
    STALE_SECONDS,
    Step,
    Subject,
    View,
    finish,
    is_stale,
    settle,
    without_stale,
)
from gpu_monitor.server.alerts.window import (
    DiskUse,
    Episode,
    GpuWindow,
    Judgement,
    NodeWindow,
    Reading,
    ServerWindow,
)
from gpu_monitor.server.store.alert_windows import (
    HOUR,
    LONGEST_PERIOD,
    GpuFacts,
    Histories,
    NodeFacts,
    Receipt,
    load_gpus,
    load_happenings,
    load_holes,
    load_hosts,
    load_hours,
    load_live,
    load_nodes,
    load_receipts,
)
from gpu_monitor.server.store.alerts import Alert, active_alerts, server_alerts

_LOG = logging.getLogger("alerts")
SERVER = "server"
"""The subject of alerts about the server itself."""
_MARGIN_SECONDS = 600.0
"""Deep windows reach so much further back than the longest duration: the reading before a stretch is seen, too."""
_SHALLOW_SECONDS = 300.0
"""Of most GPUs so few live minutes tell all: that a condition does not hold, or since when it does."""
_DEEP_AT_ONCE = 20
"""Nodes whose whole windows are read at once: some 10,000 readings of an hour."""


@dataclass
class Touch:
    """Why a node is looked at: new reports of these hours, new live minutes, or a time that has come.

    `is_due`: look at everything; `is_absent`: only at whether it is still heard of.
    """

    hours: set[int] = field(default_factory=set)
    is_live: bool = False
    is_due: bool = False
    is_absent: bool = False

    @property
    def is_full(self) -> bool:
        """Whether reports matter, not live minutes alone."""
        return self.is_due or bool(self.hours)


@dataclass(frozen=True)
class RuleBook:
    """The rules that are on, by what they are about."""

    gpu: tuple[Rule, ...] = ()
    node: tuple[Rule, ...] = ()
    server: tuple[Rule, ...] = ()
    gpu_metrics: frozenset[str] = frozenset()
    host_metrics: frozenset[str] = frozenset()
    reach_seconds: float = 0.0

    @staticmethod
    def of(rules: Iterable[Rule]) -> RuleBook:
        """The book of these rules."""
        found: dict[str, list[Rule]] = {"gpu": [], "node": [], "server": []}
        for rule in rules:
            if rule.enabled:
                found[scope_of(rule.spec)].append(rule)
        return RuleBook(
            tuple(found["gpu"]),
            tuple(found["node"]),
            tuple(found["server"]),
            frozenset(name for rule in found["gpu"] for name in metrics_of(rule.spec)),
            frozenset(name for rule in found["node"] for name in metrics_of(rule.spec)),
            max((duration_of(rule.spec) for rule in (*found["gpu"], *found["node"])), default=0.0),
        )

    @property
    def ids(self) -> frozenset[str]:
        """The rules that are on."""
        return frozenset(rule.id for rule in (*self.gpu, *self.node, *self.server))


@dataclass(frozen=True)
class Found:
    """A step, or an episode that was over when it became known, with what is needed to write and tell it."""

    rule: str
    subject: Subject
    step: Step | None = None
    finished: Episode | None = None
    view: View | None = None


@dataclass
class Result:
    """What became of some nodes. `absence` and `other`: when each node must be looked at again (UTC epoch s)."""

    found: list[Found] = field(default_factory=list)
    absence: dict[int, float] = field(default_factory=dict)
    other: dict[int, float] = field(default_factory=dict)
    full: set[int] = field(default_factory=set)
    shallow: set[int] = field(default_factory=set)
    """Nodes of which the last minutes did not tell enough."""

    def take(self, other: Result) -> None:
        """Add what another part found."""
        self.found += other.found
        self.absence.update(other.absence)
        self.other.update(other.other)
        self.full |= other.full


Actives = dict[tuple[str, str], Alert]
# Which kinds of rules live minutes alone say something about.
_LIVE_KINDS = ("threshold", "held", "throttled", "lost")
_ABSENCE_KINDS = ("silent", "late", "skew")


def evaluate(connection: Connection, book: RuleBook, touches: Mapping[int, Touch], now: float) -> Result:
    """Judge these nodes and their GPUs: by the last minutes, and by whole windows where those do not tell enough."""
    result = _evaluate(connection, book, touches, now, _SHALLOW_SECONDS)
    deep = sorted(result.shallow)
    if deep:
        result.found = [one for one in result.found if one.subject.agent not in result.shallow]
        for agent in deep:
            result.absence.pop(agent, None)
            result.other.pop(agent, None)
    for start in range(0, len(deep), _DEEP_AT_ONCE):
        part = {agent: touches[agent] for agent in deep[start : start + _DEEP_AT_ONCE]}
        result.take(_evaluate(connection, book, part, now, None))
    return result


def _evaluate(
    connection: Connection, book: RuleBook, touches: Mapping[int, Touch], now: float, reach: float | None
) -> Result:
    """Judge by the live minutes of the last `reach` seconds; None: by all that any rule needs."""
    agents = list(touches)
    nodes = load_nodes(connection, agents)
    gpus = load_gpus(connection, [agent for agent in agents if _wants_gpus(touches[agent])])
    actives = {(alert.rule, alert.subject): alert for alert in active_alerts(connection, agents)}
    histories = _read(connection, book, nodes, touches, now - (reach or book.reach_seconds + _MARGIN_SECONDS))
    result = Result()
    for agent, node in nodes.items():
        judge = _Judge(book, node, touches[agent], histories, actives, now, result)
        judge.is_shallow = reach is not None
        judge.node()
        for gpu in gpus.get(agent, ()):
            judge.gpu(gpu)
    return result


def evaluate_server(connection: Connection, book: RuleBook, disks: Sequence[DiskUse], now: float) -> Result:
    """Judge the server itself."""
    result = Result()
    actives = {alert.rule: alert for alert in server_alerts(connection)}
    subject, view = Subject(SERVER), View(now)
    for rule in book.server:
        judgement = judgement_of(rule, ServerWindow(now, disks))
        outcome = settle(rule.id, rule.severity, subject, actives.get(rule.id), judgement, view)
        result.found += [Found(rule.id, subject, step, view=view) for step in outcome.steps]
    return result


def orphans(connection: Connection, book: RuleBook, now: float) -> Result:
    """Active alerts whose rule is gone or off: they end."""
    result = Result()
    known = book.ids
    for alert in active_alerts(connection):
        if alert.rule not in known:
            subject = Subject(alert.subject, alert.agent, alert.uid, alert.contract, alert.simulated)
            result.found.append(Found(alert.rule, subject, finish(alert, now, CHANGED), view=View(now)))
    return result


def _wants_gpus(touch: Touch) -> bool:
    return touch.is_full or touch.is_live


def _read(
    connection: Connection,
    book: RuleBook,
    nodes: Mapping[int, NodeFacts],
    touches: Mapping[int, Touch],
    since: float,
) -> Histories:
    histories = Histories()
    live = [agent for agent in nodes if _wants_gpus(touches[agent])]
    if live:
        load_live(connection, live, since, book.gpu_metrics, histories)
    for (first, last), agents in _ranges(book, nodes, touches).items():
        load_receipts(connection, agents, first, last, histories)
        load_hours(connection, agents, first, last, book.gpu_metrics, histories)
        load_hosts(connection, agents, first, last, book.host_metrics, histories)
        load_holes(connection, agents, first, last, histories)
        load_happenings(connection, agents, first, last, histories)
    return histories


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


def judgement_of(rule: Rule, window: GpuWindow | NodeWindow | ServerWindow) -> Judgement:
    """What the rule says of the window. A rule that fails on it says nothing, so that the others are judged."""
    try:
        return kind_of(rule.spec).judge(rule.spec, window)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, AssertionError):
        _LOG.exception("the rule %s cannot be judged", rule.id)
        return Judgement()


def is_late(receipt: Receipt | None) -> bool:
    """Whether a report's period had ended long before it came."""
    return receipt is not None and receipt.received - receipt.end > OLD_SECONDS


class _Judge:
    """One node against all rules."""

    def __init__(
        self,
        book: RuleBook,
        node: NodeFacts,
        touch: Touch,
        histories: Histories,
        actives: Actives,
        now: float,
        result: Result,
    ) -> None:
        self.is_shallow = False
        self._book, self._node, self._touch = book, node, touch
        self._histories, self._actives, self._now, self._result = histories, actives, now, result
        newest = node.last_hour
        # The newest one counts among them where it came late: live minutes may be newer still.
        self._old_hours = sorted(
            hour
            for hour in touch.hours
            if newest is not None and (hour < newest or is_late(histories.receipts.get((node.agent, hour))))
        )
        self._has_newest = touch.is_due or touch.is_live or (newest is not None and newest in touch.hours)
        if touch.is_due:
            result.full.add(node.agent)

    def node(self) -> None:
        """Judge the machine."""
        node = self._node
        subject = Subject(node.uuid, node.agent, None, node.contract, node.simulated)
        view = View(self._now, True, self._is_old(None))
        readings = [reading for _, reading in self._histories.hosts.get(node.agent, ())]
        window = self._node_window(readings)
        for rule in self._book.node:
            if not self._is_meant(rule, subject, (node.uuid, node.hostname)):
                continue
            is_absence = kind_of(rule.spec).name in _ABSENCE_KINDS
            if not is_absence and not (self._touch.is_full and self._has_newest):
                continue
            known_at = View(self._now) if is_absence else view
            self._judged(rule, subject, judgement_of(rule, window), known_at, is_absence)
            if not is_absence:
                self._past(rule, subject, self._past_nodes())

    def gpu(self, gpu: GpuFacts) -> None:
        """Judge one of its GPUs."""
        node = self._node
        subject = Subject(f"{node.uuid}/{gpu.uid}", node.agent, gpu.uid, node.contract, gpu.simulated)
        names = (node.uuid, node.hostname, gpu.uid, gpu.name)
        window = self._gpu_window(gpu) if self._has_newest else None
        first = next((r.start for r in window.readings if r.is_live), None) if window is not None else None
        view = View(self._now, True, self._is_old(gpu))
        for rule in self._book.gpu:
            if not self._is_meant(rule, subject, names):
                continue
            self._past(rule, subject, self._past_gpus(gpu))
            if window is None or not (self._touch.is_full or kind_of(rule.spec).name in _LIVE_KINDS):
                continue
            judgement = judgement_of(rule, window)
            if self.is_shallow and first is not None:
                judgement = self._completed(rule, subject, judgement, first)
            self._judged(rule, subject, judgement, view, False)

    def _completed(self, rule: Rule, subject: Subject, judgement: Judgement, first: float) -> Judgement:
        """The judgement of a few minutes, with what the active alert knows of the time before.

        Where a stretch began before the `first` of them and nobody knows when, the node must be judged by all.
        """
        cut = next((one for one in judgement.episodes if one.since == first), None)
        if cut is None or cut.is_firing:
            return judgement
        active = self._actives.get((rule.id, subject.name))
        if active is None or (
            active.state == "pending" and cut.seen - active.since >= duration_of(rule.spec)
        ):
            self._result.shallow.add(self._node.agent)
        elif active.state == "firing":
            whole = tuple(replace(one, is_firing=True) if one is cut else one for one in judgement.episodes)
            return replace(judgement, episodes=whole)
        return judgement

    def _is_meant(self, rule: Rule, subject: Subject, names: tuple[str | None, ...]) -> bool:
        """Whether the rule is about the subject; an alert from when it was ends."""
        if rule.contract in (None, subject.contract) and is_meant(rule.spec, names):
            return True
        active = self._actives.pop((rule.id, subject.name), None)
        if active is not None:
            step = finish(active, self._now, CHANGED)
            self._result.found.append(Found(rule.id, subject, step, view=View(self._now)))
        return False

    def _judged(
        self, rule: Rule, subject: Subject, judgement: Judgement, view: View, is_absence: bool
    ) -> None:
        """Take up what the newest window shows, and when to look again."""
        active = self._actives.get((rule.id, subject.name))
        again = [] if judgement.recheck is None else [judgement.recheck]
        if active is not None and is_stale(active, judgement, self._now):
            step = finish(active, max(active.seen, active.since), NO_DATA)
            self._result.found.append(Found(rule.id, subject, step, view=view))
        else:
            outcome = settle(
                rule.id, rule.severity, subject, active, without_stale(judgement, self._now), view
            )
            self._result.found += [Found(rule.id, subject, step, view=view) for step in outcome.steps]
            if self._touch.hours or self._touch.is_live:
                self._finished(rule, subject, outcome.finished, view)
            again += [step.alert.seen + STALE_SECONDS for step in outcome.steps if step.alert.is_active]
            if active is not None and not outcome.steps:
                again.append(active.seen + STALE_SECONDS)
        into = self._result.absence if is_absence else self._result.other
        for time in again:
            # What lies in the past was judged just now: another look can show nothing else before a minute.
            time = max(time, self._now + 60.0)
            into[self._node.agent] = min(into.get(self._node.agent, time), time)

    def _past(
        self, rule: Rule, subject: Subject, windows: Iterable[tuple[GpuWindow | NodeWindow, bool]]
    ) -> None:
        """Take up what reports of earlier hours show: all of it is over, or the newest window tells."""
        for window, is_old in windows:
            view = View(window.now, False, is_old)
            active = self._actives.get((rule.id, subject.name))
            judgement = judgement_of(rule, window)
            outcome = settle(rule.id, rule.severity, subject, active, judgement, view)
            self._finished(rule, subject, outcome.finished, view)

    def _finished(self, rule: Rule, subject: Subject, episodes: Iterable[Episode], view: View) -> None:
        for episode in episodes:
            assert episode.until is not None
            if not view.is_old and episode.until <= rule.changed:
                continue  # the rule is younger than what it would tell of
            taken = View(self._now, True, view.is_old)
            self._result.found.append(Found(rule.id, subject, finished=episode, view=taken))

    def _past_gpus(self, gpu: GpuFacts) -> Iterator[tuple[GpuWindow, bool]]:
        agent, histories = self._node.agent, self._histories
        for hour in self._old_hours:
            receipt = histories.receipts.get((agent, hour))
            if receipt is None:
                continue
            readings = [reading for of, reading in histories.hours.get(gpu.key, ()) if of <= hour]
            holes = [
                hole
                for of, hole in histories.holes.get(agent, ())
                if of <= hour and hole.uid in (None, gpu.uid)
            ]
            happenings = [
                one for of, uid, one in histories.happenings.get(agent, ()) if of <= hour and uid == gpu.uid
            ]
            window = GpuWindow(receipt.end, readings, holes, happenings)
            yield window, is_late(receipt)

    def _past_nodes(self) -> Iterator[tuple[NodeWindow, bool]]:
        for hour in self._old_hours:
            receipt = self._histories.receipts.get((self._node.agent, hour))
            if receipt is not None:
                readings = [r for of, r in self._histories.hosts.get(self._node.agent, ()) if of <= hour]
                yield self._node_window(readings), is_late(receipt)

    def _node_window(self, readings: Sequence[Reading]) -> NodeWindow:
        node = self._node
        return NodeWindow(
            self._now, node.first_seen, node.last_report, node.last_live, node.last_hour, node.period_seconds,
            node.interval_seconds, node.skew_seconds, node.skew_measured, readings,
        )  # fmt: skip

    def _gpu_window(self, gpu: GpuFacts) -> GpuWindow:
        agent, histories = self._node.agent, self._histories
        readings = [*histories.live.get(gpu.key, ()), *(r for _, r in histories.hours.get(gpu.key, ()))]
        readings.sort(key=lambda reading: (reading.start, reading.end))
        return GpuWindow(
            self._now,
            readings,
            [hole for _, hole in histories.holes.get(agent, ()) if hole.uid in (None, gpu.uid)],
            [one for _, uid, one in histories.happenings.get(agent, ()) if uid == gpu.uid],
            gpu.status,
            gpu.time,
        )

    def _is_old(self, gpu: GpuFacts | None) -> bool:
        """Whether the newest data had ended long before it came. Of live minutes and reports, the later ends count."""
        node = self._node
        ends: list[tuple[float, float]] = []
        if gpu is not None and gpu.live and gpu.time is not None and node.last_live is not None:
            ends.append((gpu.time, node.last_live))
        if node.last_hour is not None:
            receipt = self._histories.receipts.get((node.agent, node.last_hour))
            if receipt is not None:
                ends.append((receipt.end, receipt.received))
        if not ends:
            return False
        end, came = max(ends)
        return came - end > OLD_SECONDS
