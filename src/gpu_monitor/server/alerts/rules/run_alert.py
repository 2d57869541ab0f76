"""An alert that a training raised by itself, with `monitor.alert`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gpu_monitor.server.alerts.window import Episode, Judgement, RunWindow, Spec

Level = Literal["info", "warning", "error"]


class RunAlert(Spec, frozen=True, tag="run_alert", tag_field="kind", kw_only=True):
    """A run has raised an alert of one of `levels`. It is over `quiet_seconds` after the last one.

    `only` names experiments (id or name) or projects.
    """

    levels: Annotated[tuple[Level, ...], Meta(min_length=1, max_length=3)] = ("error",)
    quiet_seconds: Annotated[int, Meta(ge=60, le=7 * 86400)] = 3600


def judge(spec: RunAlert, window: RunWindow) -> Judgement:
    """One episode from the first of those that came close together; the message is the newest one's."""
    mine = [one for one in window.said if one.level in spec.levels]
    if not mine:
        return Judgement((), window.now)
    first = last = mine[-1]
    for one in reversed(mine):
        if first.time - one.time > spec.quiet_seconds:
            break
        first = one
    end = last.time + spec.quiet_seconds
    more = f": {last.text}" if last.text else ""
    count = sum(one.time >= first.time for one in mine)
    others = f" ({count} alerts of it)" if count > 1 else ""
    text = f"{window.title} says: {last.title}{more}{others}"
    over = end if end <= window.now else None
    since = min(first.time, window.now)
    return Judgement(
        (Episode(since, max(since, min(last.time, window.now)), over, True, None, text),), window.now
    )
