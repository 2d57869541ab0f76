"""A training run that says it runs, and is not heard from."""

from __future__ import annotations

from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.window import Episode, Judgement, RunWindow, Seconds, Spec


class RunStalled(Spec, frozen=True, tag="run_stalled", tag_field="kind", kw_only=True):
    """Nothing from a running run for `grace_seconds` beyond the minute that its last word counts for."""

    grace_seconds: Seconds = 240


def judge(spec: RunStalled, window: RunWindow) -> Judgement:
    """Whether it is stalled now; one that has ended is not."""
    if window.status != "running" or window.now < window.lease + spec.grace_seconds:
        return Judgement((), window.now)
    silent = window.now - window.last_heard
    step = "" if window.last_step is None else f"; its last step was {window.last_step}"
    text = f"{window.title} runs, but nothing was heard of it for {format_duration(silent)}{step}"
    return Judgement((Episode(window.last_heard, window.now, None, True, silent, text),), window.now)
