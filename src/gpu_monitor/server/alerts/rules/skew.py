"""A node whose clock is wrong."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpu_monitor.server.alerts.window import NO_DATA, Episode, Judgement, NodeWindow, Spec


class Skew(Spec, frozen=True, tag="skew", tag_field="kind", kw_only=True):
    """The node's clock and the server's differ by more than `seconds`."""

    seconds: Annotated[float, Meta(gt=0, le=86400)] = 30


def judge(spec: Skew, window: NodeWindow) -> Judgement:
    """Whether it was wrong when it was last measured."""
    skew, measured = window.skew_seconds, window.skew_measured
    if skew is None or measured is None:
        return NO_DATA
    if abs(skew) <= spec.seconds:
        return Judgement((), measured)
    text = f"the node's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    return Judgement((Episode(measured, measured, None, True, skew, text),), measured)
