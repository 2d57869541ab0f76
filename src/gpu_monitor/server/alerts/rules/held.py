"""A GPU that does nothing while somebody's memory is held on it."""

from __future__ import annotations

from gpu_monitor.core.tally import HELD_BYTES, IDLE_BELOW
from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.runs import find_runs
from gpu_monitor.server.alerts.screen import Limit, Screen, Share
from gpu_monitor.server.alerts.window import GpuWindow, Judgement, Reading, Seconds, Spec

_MOST = 0.95
"""Share of a period that must have been idle and held: a period's first and last interval may be partly so."""


class Held(Spec, frozen=True, tag="held", tag_field="kind", kw_only=True):
    """Utilisation under 5 % while at least 256 MiB are in use, for `for_seconds`."""

    for_seconds: Seconds = 3600


def metrics(_spec: Held) -> tuple[str, ...]:
    """What the rule reads."""
    return ("gpu_utilization", "memory_used")


def screen(_spec: Held) -> Screen:
    """Idle minutes with memory held; periods that were nearly all so."""
    live = (Limit("gpu_utilization", False, IDLE_BELOW), Limit("memory_used", True, HELD_BYTES))
    return Screen(live=live, hours=(Share("held_idle_seconds", "seconds", _MOST),))


def judge(spec: Held, window: GpuWindow) -> Judgement:
    """The stretches of idleness with memory held; a report's period counts where nearly all of it was so."""

    def say(value: float, lasted: float, reading: Reading) -> str:
        return (
            f"idle for {format_duration(lasted)} while {value / (1 << 30):.1f} GiB of its memory are held"
            f" (by {reading.told_by})"
        )

    return find_runs(window.readings, _held_bytes, lambda held: held > 0, spec.for_seconds, say)


def _held_bytes(reading: Reading) -> float | None:
    """Bytes held while idle, 0 where it was used or free; None where that is unknown."""
    memory = reading.values.get("memory_used")
    if reading.basis is not None:
        seconds, held = reading.basis.seconds, reading.basis.held_idle
        if reading.is_shadowed or not seconds or held is None or memory is None:
            return None
        return memory.mean if held >= _MOST * seconds else 0.0
    used = reading.values.get("gpu_utilization")
    if used is None or memory is None:
        return None
    return memory.mean if used.mean < IDLE_BELOW and memory.mean >= HELD_BYTES else 0.0
