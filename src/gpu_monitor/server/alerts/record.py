"""Writes what became of alerts, and what is to be told of it, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from gpu_monitor.server.alerts.judge import Found
from gpu_monitor.server.alerts.rule import SEVERITIES, Rule, Severity
from gpu_monitor.server.alerts.state import RECOVERED, Step, begin
from gpu_monitor.server.notify.notice import make_notice
from gpu_monitor.server.store.alert_names import find_names
from gpu_monitor.server.store.alerts import (
    Alert,
    Moment,
    Silence,
    active_alerts,
    delete_alert,
    insert_alert,
    overlapping,
    queue,
    tell_pages,
    told_channels,
    update_alert,
)
from gpu_monitor.server.store.engine import Store

_SEAM = 1.0
"""An alert that is recorded as past and ends this close to a new episode is the same one, going on (s)."""


@dataclass(frozen=True)
class Audience:
    """Who is told: each channel's name and the least severity it wants. Empty: nobody, alerts only show."""

    channels: tuple[tuple[str, Severity], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Every channel that is on."""
        return frozenset(name for name, _ in self.channels)

    def of(self, severity: Severity) -> list[str]:
        """The channels that want alerts of this severity."""
        rank = SEVERITIES.index(severity)
        return [name for name, least in self.channels if SEVERITIES.index(least) <= rank]


@dataclass
class Recorder:
    """Writes found steps. `rules` give the advice; `silences` hold back; `count` counts what fired and ended."""

    store: Store
    rules: Mapping[str, Rule]
    silences: Sequence[Silence]
    audience: Audience
    count: Callable[[str], None]
    touched: list[int | None] = field(default_factory=list)
    written: list[tuple[Alert, bool]] = field(default_factory=list)
    """Each alert as it was written, in order, and whether it was removed; true once the transaction is committed."""

    def write(self, connection: Connection, found: Iterable[Found], now: float) -> int | None:
        """Write everything; the number of the newest change, None where no node's alert changed its state."""
        self.touched = []
        for one in found:
            if one.step is not None:
                self._step(connection, one, one.step, now)
            elif one.finished is not None:
                self._finished(connection, one, now)
        agents = dict.fromkeys(agent for agent in self.touched if agent is not None)
        return tell_pages(connection, self.store, agents, now) if agents else None

    def release(self, connection: Connection, now: float) -> None:
        """Tell of alerts that fired under a silence which is over."""
        for alert in active_alerts(connection):
            if alert.silenced and alert.state == "firing" and not self._is_silenced(alert, now):
                self._update(connection, replace(alert, silenced=False))
                self._tell(connection, alert, "fired", now)

    def _step(self, connection: Connection, one: Found, step: Step, now: float) -> None:
        alert, tell = step.alert, step.tell
        if step.kind == "delete":
            delete_alert(connection, alert)
            self.written.append((alert, True))
            self.touched.append(alert.agent)
            return
        if step.kind == "insert":
            alert = self._insert(connection, alert)
        else:
            if alert.state == "resolved":
                alert = replace(alert, silenced=False)
            self._update(connection, alert)
        if step.kind == "insert" or tell or not alert.is_active:
            self.touched.append(alert.agent)
        for moment in tell:
            self._announce(connection, alert, moment, now)

    def _insert(self, connection: Connection, alert: Alert) -> Alert:
        """Write an alert that goes on; what was recorded as past and reaches up to it is the same one."""
        past = overlapping(connection, alert.rule, alert.subject, alert.since - _SEAM, alert.seen)
        if past is not None and past.past and past.state == "resolved":
            alert = replace(alert, id=past.id, since=min(past.since, alert.since))
            self._update(connection, alert)
        else:
            self._insert_new(connection, alert)
        return alert

    def _finished(self, connection: Connection, one: Found, now: float) -> None:
        """Put an episode on record that was over when it became known, unless it is there."""
        episode, view = one.finished, one.view
        assert episode is not None and episode.until is not None and view is not None
        rule = self.rules.get(one.rule)
        if rule is None:
            return
        held = overlapping(connection, one.rule, one.subject.name, episode.since - _SEAM, episode.until)
        if held is not None:
            if held.past and held.resolved is not None and held.resolved < episode.until:
                longer = replace(held, resolved=episode.until, seen=episode.seen, value=episode.value)
                self._update(connection, replace(longer, message=episode.message))
                self.touched.append(held.agent)
            return
        alert = replace(begin(one.rule, rule.severity, one.subject, episode, view), ending=RECOVERED)
        self._insert_new(connection, alert)
        self.touched.append(alert.agent)
        self.count("past" if alert.past else "fired")
        if not alert.past and not self._is_silenced(alert, now):
            self._tell(connection, alert, "fired", now)
            self._tell(connection, alert, "resolved", now)

    def _announce(self, connection: Connection, alert: Alert, moment: Moment, now: float) -> None:
        self.count(moment)
        if moment == "fired" and self._is_silenced(alert, now):
            self._update(connection, replace(alert, silenced=True))
        else:
            self._tell(connection, alert, moment, now)

    def _update(self, connection: Connection, alert: Alert) -> None:
        update_alert(connection, alert)
        self.written.append((alert, False))

    def _insert_new(self, connection: Connection, alert: Alert) -> None:
        insert_alert(connection, alert)
        self.written.append((alert, False))

    def _is_silenced(self, alert: Alert, now: float) -> bool:
        return any(silence.covers(alert, now) for silence in self.silences)

    def _tell(self, connection: Connection, alert: Alert, moment: Moment, now: float) -> None:
        """Put a notice into the outbox: that it is over goes to those who are told that it fired."""
        if moment == "fired":
            to = self.audience.of(alert.severity)
        else:
            to = [name for name in told_channels(connection, alert.id) if name in self.audience.names]
        if to:
            rule = self.rules.get(alert.rule)
            names = find_names(connection, alert.agent, alert.uid, alert.subject)
            body = make_notice(alert, moment, names, None if rule is None else rule.advice)
            queue(connection, alert.id, moment, body, to, now)
