"""Clocks held down against the user's will."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gpu_monitor.core.catalogue import THROTTLE_REASONS, throttle_names
from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.runs import find_runs
from gpu_monitor.server.alerts.screen import Bits, Screen
from gpu_monitor.server.alerts.window import GpuWindow, Judgement, Reading, Seconds, Spec

_BITS = {name: bit for bit, name in THROTTLE_REASONS}
_SHARE = 0.5
"""A report tells which reasons there were and for how long in all: half of the period counts as all of it."""
Because = Literal[
    "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"
]  # fmt: skip


class Throttled(Spec, frozen=True, tag="throttled", tag_field="kind", kw_only=True):
    """One of `reasons` for `for_seconds`. The power cap is left out at first: under full load it is usual."""

    reasons: Annotated[tuple[Because, ...], Meta(min_length=1, max_length=6)] = (
        "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown",
    )  # fmt: skip
    for_seconds: Seconds = 600


def metrics(_spec: Throttled) -> tuple[str, ...]:
    """What the rule reads."""
    return ("throttle_reasons", "throttle_time")


def screen(spec: Throttled) -> Screen:
    """Readings with one of the reasons, however long."""
    reasons = (Bits("throttle_reasons", _mask(spec)),)
    return Screen(live=reasons, hours=reasons)


def judge(spec: Throttled, window: GpuWindow) -> Judgement:
    """The stretches in which clocks were held down."""
    wanted = _mask(spec)

    def measure(reading: Reading) -> float | None:
        reasons = reading.values.get("throttle_reasons")
        if reasons is None or reading.is_shadowed:
            return None
        found = int(reasons.mean) & wanted
        if reading.is_live or not found:
            return float(found)
        time = reading.values.get("throttle_time")
        if time is None or reading.basis is None or not reading.basis.seconds:
            return None
        return float(found) if time.mean >= _SHARE * reading.basis.seconds else 0.0

    def say(value: float, lasted: float, reading: Reading) -> str:
        names = ", ".join(throttle_names(int(value)))
        return f"clocks are held down by {names} for {format_duration(lasted)} (by {reading.told_by})"

    return find_runs(window.readings, measure, lambda mask: mask > 0, spec.for_seconds, say)


def _mask(spec: Throttled) -> int:
    return sum(_BITS[name] for name in set(spec.reasons))
