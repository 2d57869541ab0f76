"""The rules that are on, with what is asked of them again and again worked out once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpu_monitor.server.alerts.kinds import RuleKind, duration_of, kind_of, metrics_of, scope_of
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.screen import Screen
from gpu_monitor.server.alerts.window import GpuWindow, Judgement, NodeWindow, RunWindow, ServerWindow
from gpu_monitor.server.store.alert_screen import Screens

_LOG = logging.getLogger("alerts")
# Which kinds of rules live minutes alone say something about, and which look at whether a node is heard of.
_LIVE_KINDS = ("threshold", "held", "throttled", "lost")
_ABSENCE_KINDS = ("silent", "late", "skew")


@dataclass(frozen=True)
class Entry:
    """A rule with what its kind says of it. `is_live`: live minutes alone tell something; `duration` in s."""

    rule: Rule
    kind: RuleKind
    is_live: bool
    is_absence: bool
    duration: float
    metrics: tuple[str, ...]
    screen: Screen | None

    @staticmethod
    def of(rule: Rule) -> Entry:
        """The entry of a rule."""
        kind = kind_of(rule.spec)
        return Entry(
            rule,
            kind,
            kind.name in _LIVE_KINDS,
            kind.name in _ABSENCE_KINDS,
            duration_of(rule.spec),
            metrics_of(rule.spec),
            None if kind.screen is None else kind.screen(rule.spec),
        )

    def judge(self, window: GpuWindow | NodeWindow | ServerWindow | RunWindow) -> Judgement:
        """What the rule says of the window. One that fails on it says nothing, so that the others are judged."""
        try:
            return self.kind.judge(self.rule.spec, window)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, AssertionError):
            _LOG.exception("the rule %s cannot be judged", self.rule.id)
            return Judgement()


@dataclass(frozen=True)
class RuleBook:
    """The rules that are on: of GPUs, of machines by their reports, of whether nodes are heard of, of the server, of runs."""

    gpu: tuple[Entry, ...] = ()
    machine: tuple[Entry, ...] = ()
    absence: tuple[Entry, ...] = ()
    server: tuple[Entry, ...] = ()
    reach_seconds: float = 0.0
    screens: Screens = field(default_factory=lambda: Screens({}))
    lost: tuple[str, ...] = ()
    xid: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()
    absence_ids: frozenset[str] = frozenset()
    experiment: tuple[Entry, ...] = ()

    @staticmethod
    def of(rules: Iterable[Rule]) -> RuleBook:
        """The book of these rules."""
        found: dict[str, list[Entry]] = {"gpu": [], "node": [], "server": [], "experiment": []}
        for rule in rules:
            if rule.enabled:
                found[scope_of(rule.spec)].append(Entry.of(rule))
        gpu, node = found["gpu"], found["node"]
        screens = {one.rule.id: one.screen for one in (*gpu, *node) if one.screen is not None}
        return RuleBook(
            tuple(gpu),
            tuple(one for one in node if not one.is_absence),
            tuple(one for one in node if one.is_absence),
            tuple(found["server"]),
            max((one.duration for one in (*gpu, *node)), default=0.0),
            Screens(screens),
            tuple(name for name, screen in screens.items() if screen.is_lost),
            tuple(name for name, screen in screens.items() if screen.is_xid),
            frozenset(one.rule.id for group in found.values() for one in group),
            frozenset(one.rule.id for one in node if one.is_absence),
            tuple(found["experiment"]),
        )
