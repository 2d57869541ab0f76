"""A training run that has ended: completed, failed, stopped or crashed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gpu_monitor.server.alerts.window import NO_DATA, Episode, Judgement, RunWindow, Spec

Ended = Literal["completed", "failed", "stopped", "crashed"]
_WORDS = {
    "completed": "completed",
    "failed": "failed",
    "stopped": "was stopped",
    "crashed": "vanished without a word of its own",
}


class RunEnded(Spec, frozen=True, tag="run_ended", tag_field="kind", kw_only=True):
    """A run has ended in one of `statuses`. It is over after `quiet_seconds`, or once the run goes on (resumed).

    `only` names experiments (id or name) or projects.
    """

    statuses: Annotated[tuple[Ended, ...], Meta(min_length=1, max_length=4)] = ("failed", "crashed")
    quiet_seconds: Annotated[int, Meta(ge=60, le=7 * 86400)] = 3600


def judge(spec: RunEnded, window: RunWindow) -> Judgement:
    """One episode from its end on."""
    if window.status not in spec.statuses:
        return Judgement((), window.now)
    if window.ended is None:
        return NO_DATA
    end = window.ended + spec.quiet_seconds
    why = f" ({window.reason})" if window.reason else ""
    step = "" if window.last_step is None else f", at step {window.last_step}"
    text = f"{window.title} {_WORDS[window.status]}{why}{step}"
    over = end if end <= window.now else None
    return Judgement((Episode(window.ended, window.now, over, True, None, text),), window.now)
