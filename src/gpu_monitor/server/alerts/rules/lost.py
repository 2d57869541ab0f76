"""A GPU that is lost or hung, or a driver that hangs."""

from __future__ import annotations

from gpu_monitor.server.alerts.screen import Screen
from gpu_monitor.server.alerts.window import NO_DATA, Episode, GpuWindow, Hole, Judgement, Seconds, Spec

_AT_REST = (
    "ok", "asleep", "suspended", "host", "let go", "agent", "clock", "replay ended", "nothing recorded", "queue",
    "not in the log", "store",
)  # fmt: skip
"""Beginnings of the causes of gaps that are no fault of the GPU: it rests, or nobody looked."""
_OF_NODE = ("driver", "no driver", "hung")
"""Beginnings of the causes of a whole node's gaps that are its GPUs' fault."""
_SEAM = 1.0
"""Gaps are cut at the periods of reports: parts this close belong together (s)."""


class Lost(Spec, frozen=True, tag="lost", tag_field="kind", kw_only=True):
    """A GPU gives nothing for `for_seconds` though the agent asks it: lost, hung, gone, or its driver hangs."""

    for_seconds: Seconds = 0


def metrics(_spec: Lost) -> tuple[str, ...]:
    """What the rule reads: gaps and the newest status, no metric."""
    return ()


def screen(_spec: Lost) -> Screen:
    """States and gaps."""
    return Screen(is_lost=True)


def is_fault(cause: str, is_of_node: bool = False) -> bool:
    """Whether a gap of this cause is the GPU's fault."""
    text = cause.lower()
    return text.startswith(_OF_NODE) if is_of_node else not text.startswith(_AT_REST)


def judge(spec: Lost, window: GpuWindow) -> Judgement:
    """The stretches in which it was gone; the newest status tells whether the last one goes on."""
    episodes: list[Episode] = []
    for hole in sorted(window.holes):
        if not is_fault(hole.cause, hole.uid is None):
            continue
        if episodes and hole.start <= episodes[-1].seen + _SEAM:
            merged = Hole(episodes[-1].since, max(episodes[-1].seen, hole.stop), hole.cause, hole.uid)
            episodes[-1] = _episode(spec, merged)
        else:
            episodes.append(_episode(spec, hole))
    status, time = window.status, window.status_time
    if status is None or time is None:
        return Judgement(tuple(episodes), window.now)
    if not is_fault(status):
        return Judgement(tuple(episodes), time) if status == "ok" or episodes else NO_DATA
    since = time
    if episodes and episodes[-1].seen >= time - _SEAM:
        since = episodes.pop().since
    lasted = max(0.0, window.now - since)
    goes_on = Episode(since, window.now, None, lasted >= spec.for_seconds, None, _words(status))
    recheck = None if goes_on.is_firing else since + spec.for_seconds
    return Judgement((*episodes, goes_on), window.now, recheck)


def _episode(spec: Lost, hole: Hole) -> Episode:
    lasted = hole.stop - hole.start
    return Episode(hole.start, hole.stop, hole.stop, lasted >= spec.for_seconds, None, _words(hole.cause))


def _words(cause: str) -> str:
    return f"the GPU gives nothing: {cause}"
