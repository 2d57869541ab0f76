"""Xid errors of the driver, by what NVIDIA advises to do about them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gpu_monitor.core.xid import EVENT_KIND, Action, explain
from gpu_monitor.server.alerts.screen import Screen
from gpu_monitor.server.alerts.window import Episode, GpuWindow, Happening, Judgement, Spec

SEVERITIES = ("info", "warning", "error", "critical")
Number = Annotated[int, Meta(ge=0, le=100_000)]
Quiet = Annotated[int, Meta(ge=60, le=7 * 86400)]
_ACTIONS = frozenset(action.value for action in Action)


class XidErrors(Spec, frozen=True, tag="xid", tag_field="kind", kw_only=True):
    """Any Xid at least as bad as `least`, of the classes `actions` (none named: every class) or of `numbers`.

    It is over once none came for `quiet_seconds`.
    """

    least: Literal["info", "warning", "error", "critical"] = "error"
    actions: Annotated[tuple[str, ...], Meta(max_length=20)] = ()
    numbers: Annotated[tuple[Number, ...], Meta(max_length=100)] = ()
    quiet_seconds: Quiet = 3600


def unknown_actions(spec: XidErrors) -> tuple[str, ...]:
    """Those of `actions` that do not exist."""
    return tuple(name for name in spec.actions if name not in _ACTIONS)


def known_actions() -> str:
    """The classes there are, with commas between."""
    return ", ".join(sorted(_ACTIONS))


def metrics(_spec: XidErrors) -> tuple[str, ...]:
    """What the rule reads: events, no metric."""
    return ()


def screen(_spec: XidErrors) -> Screen:
    """Xids of any class."""
    return Screen(is_xid=True)


def judge(spec: XidErrors, window: GpuWindow) -> Judgement:
    """One episode for Xids that come with less than the quiet time between them."""
    episodes: list[Episode] = []
    group: list[Happening] = []
    for one in sorted(window.happenings):
        if one.kind != EVENT_KIND or one.xid is None or not _is_meant(spec, one):
            continue
        if group and one.time - group[-1].time >= spec.quiet_seconds:
            episodes.append(_episode(spec, group, window.now))
            group = []
        group.append(one)
    if group:
        episodes.append(_episode(spec, group, window.now))
    goes_on = bool(episodes) and episodes[-1].until is None
    recheck = episodes[-1].seen + spec.quiet_seconds if goes_on else None
    return Judgement(tuple(episodes), window.now, recheck)


def _is_meant(spec: XidErrors, one: Happening) -> bool:
    assert one.xid is not None
    if one.xid in spec.numbers:
        return True
    if spec.numbers and not spec.actions:
        return False
    xid = explain(one.xid, one.text)
    if spec.actions and xid.action.value not in spec.actions:
        return False
    return SEVERITIES.index(xid.severity) >= SEVERITIES.index(spec.least)


def _episode(spec: XidErrors, group: list[Happening], now: float) -> Episode:
    first, last = group[0], group[-1]
    assert last.xid is not None
    xid = explain(last.xid, last.text)
    more = f" ({len(group)} Xids since the first)" if len(group) > 1 else ""
    end = last.time + spec.quiet_seconds
    text = f"Xid {last.xid}: {xid.meaning}{more}. {xid.advice}"
    return Episode(first.time, last.time, end if end <= now else None, True, float(last.xid), text)
