"""Reports that hold too little of their period."""

from __future__ import annotations

from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.runs import find_runs
from gpu_monitor.server.alerts.screen import Limit, Screen
from gpu_monitor.server.alerts.window import GpuWindow, Judgement, Percent, Reading, Seconds, Spec


class Coverage(Spec, frozen=True, tag="coverage", tag_field="kind", kw_only=True):
    """Reports in a row, over at least `for_seconds`, hold under `percent` of a GPU's expected samples.

    Two periods at first: the one in which an agent is installed is never whole.
    """

    percent: Percent = 50
    for_seconds: Seconds = 7200


def metrics(_spec: Coverage) -> tuple[str, ...]:
    """What the rule reads: only what every report says of itself."""
    return ()


def screen(spec: Coverage) -> Screen:
    """Periods with too little."""
    return Screen(hours=(Limit("coverage", False, spec.percent / 100),))


def judge(spec: Coverage, window: GpuWindow) -> Judgement:
    """The stretches of thin reports."""
    least = spec.percent / 100

    def measure(reading: Reading) -> float | None:
        return None if reading.basis is None else reading.basis.coverage

    def say(value: float, lasted: float, _reading: Reading) -> str:
        return f"reports hold {100 * value:.0f} % of the samples, under {spec.percent:g} % for {format_duration(lasted)}"

    return find_runs(window.readings, measure, lambda share: share < least, spec.for_seconds, say)
