"""A node that says nothing any more."""

from __future__ import annotations

from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.window import Episode, Judgement, NodeWindow, Seconds, Spec
from gpu_monitor.server.store.freshness import seen_until


class Silent(Spec, frozen=True, tag="silent", tag_field="kind", kw_only=True):
    """Nothing from a node for `grace_seconds` beyond the time its next word was due."""

    grace_seconds: Seconds = 120


def due(window: NodeWindow) -> float:
    """Until when a node that says nothing more is not silent."""
    return seen_until(
        window.first_seen,
        window.last_report,
        window.last_live,
        window.period_seconds,
        window.interval_seconds,
    )


def judge(spec: Silent, window: NodeWindow) -> Judgement:
    """Whether it is silent now; else when it would be."""
    deadline = due(window) + spec.grace_seconds
    if window.now < deadline:
        return Judgement((), window.now, deadline)
    heard = max(window.first_seen, window.last_report or 0.0, window.last_live or 0.0)
    text = f"nothing was heard of the node for {format_duration(window.now - heard)}"
    return Judgement((Episode(heard, window.now, None, True, window.now - heard, text),), window.now)
