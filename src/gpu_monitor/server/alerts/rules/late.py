"""A report that did not come, of a node that is not silent."""

from __future__ import annotations

from gpu_monitor.core.times import format_duration, format_time
from gpu_monitor.server.alerts.rules.silent import due
from gpu_monitor.server.alerts.window import NO_DATA, Episode, Judgement, NodeWindow, Seconds, Spec

_HOUR = 3600


class Late(Spec, frozen=True, tag="late", tag_field="kind", kw_only=True):
    """The report of the next period is not here `grace_seconds` after its end. A silent node has its own alert."""

    grace_seconds: Seconds = 1800


def judge(spec: Late, window: NodeWindow) -> Judgement:
    """Whether one is missing now; else when it would be."""
    if due(window) <= window.now:
        return NO_DATA
    period = window.period_seconds or _HOUR
    if window.last_hour is None:
        begins = (window.first_seen // period + 1) * period  # the first whole period that it can report
    else:
        begins = float(window.last_hour * _HOUR + period)
    # What ended before the node was known could not have come: a backlog is not late on its first day.
    expected = max(begins + period, window.first_seen)
    deadline = expected + spec.grace_seconds
    if window.now < deadline:
        return Judgement((), window.now, deadline)
    late = window.now - expected
    text = f"the report of {format_time(int(begins))} is {format_duration(late)} late"
    return Judgement((Episode(expected, window.now, None, True, late, text),), window.now)
