"""One node against the rules: windows from what was read, and what becomes of each alert. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from gpu_monitor.server.alerts.actives import Actives
from gpu_monitor.server.alerts.book import Entry, RuleBook
from gpu_monitor.server.alerts.kinds import is_meant
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
from gpu_monitor.server.alerts.window import Episode, GpuWindow, Judgement, NodeWindow, Reading
from gpu_monitor.server.store.alert_windows import GpuFacts, Histories, NodeFacts, Receipt


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


def is_late(receipt: Receipt | None) -> bool:
    """Whether a report's period had ended long before it came."""
    return receipt is not None and receipt.received - receipt.end > OLD_SECONDS


class Judge:
    """One node against rules. `is_shallow`: live minutes were read of a short time only."""

    __slots__ = (
        "_actives", "_book", "_has_newest", "_histories", "_node", "_now", "_old_hours", "_result", "_touch", "is_shallow",
    )  # fmt: skip

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

    def absences(self) -> None:
        """Judge whether it is heard of, and when that must be looked at again."""
        node = self._node
        window, subject, view = self._node_window(()), _subject(node), View(self._now)
        for entry in self._book.absence:
            rule = entry.rule
            if not self._is_meant(rule, subject, (node.uuid, node.hostname)):
                continue
            self._judged(rule, subject, entry.judge(window), view, True)

    def machine(self, entries: Sequence[Entry]) -> None:
        """Judge what its reports say of the machine."""
        if not entries:
            return
        node = self._node
        subject, view = _subject(node), View(self._now, True, self._is_old(None))
        window = self._node_window([r for _, r in self._histories.hosts.get(node.agent, ())])
        past = list(self._past_nodes())
        for entry in entries:
            rule = entry.rule
            if not self._is_meant(rule, subject, (node.uuid, node.hostname)):
                continue
            if self._touch.is_full and self._has_newest:
                self._judged(rule, subject, entry.judge(window), view, False)
                self._past(entry, subject, past)

    def gpu(self, gpu: GpuFacts, entries: Sequence[Entry]) -> None:
        """Judge one of its GPUs."""
        node = self._node
        subject = Subject(f"{node.uuid}/{gpu.uid}", node.agent, gpu.uid, node.contract, gpu.simulated)
        names = (node.uuid, node.hostname, gpu.uid, gpu.name)
        window = self._gpu_window(gpu) if self._has_newest else None
        first = next((r.start for r in window.readings if r.is_live), None) if window is not None else None
        view = View(self._now, True, self._is_old(gpu))
        past = list(self._past_gpus(gpu))
        for entry in entries:
            rule = entry.rule
            if not self._is_meant(rule, subject, names):
                continue
            self._past(entry, subject, past)
            if window is None or not (self._touch.is_full or entry.is_live):
                continue
            judgement = entry.judge(window)
            if self.is_shallow and first is not None:
                judgement = self._completed(entry, subject, judgement, first)
            self._judged(rule, subject, judgement, view, False)

    def _completed(self, entry: Entry, subject: Subject, judgement: Judgement, first: float) -> Judgement:
        """The judgement of a few minutes, with what the active alert knows of the time before.

        Where a stretch began before the `first` of them and nobody knows when, the node must be judged by all.
        """
        cut = next((one for one in judgement.episodes if one.since == first), None)
        if cut is None or cut.is_firing:
            return judgement
        active = self._actives.get((entry.rule.id, subject.name))
        if active is None or (active.state == "pending" and cut.seen - active.since >= entry.duration):
            self._result.shallow.add(self._node.agent)
        elif active.state == "firing":
            whole = tuple(replace(one, is_firing=True) if one is cut else one for one in judgement.episodes)
            return replace(judgement, episodes=whole)
        return judgement

    def _is_meant(self, rule: Rule, subject: Subject, names: tuple[str | None, ...]) -> bool:
        """Whether the rule is about the subject; an alert from when it was ends."""
        if rule.contract in (None, subject.contract) and (not rule.spec.only or is_meant(rule.spec, names)):
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
        elif active is not None or judgement.episodes:
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
        self, entry: Entry, subject: Subject, windows: Iterable[tuple[GpuWindow | NodeWindow, bool]]
    ) -> None:
        """Take up what reports of earlier hours show: all of it is over, or the newest window tells."""
        for window, is_old in windows:
            judgement = entry.judge(window)
            if not judgement.episodes:
                continue
            view, rule = View(window.now, False, is_old), entry.rule
            active = self._actives.get((rule.id, subject.name))
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


def _subject(node: NodeFacts) -> Subject:
    return Subject(node.uuid, node.agent, None, node.contract, node.simulated)
