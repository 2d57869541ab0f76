"""A metric of a GPU or machine above or below a limit for a time."""

from __future__ import annotations

from typing import Literal

from gpu_monitor.core.catalogue import BY_NAME, HOST_METRICS, SAMPLED, Kind, round_value
from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.runs import find_runs
from gpu_monitor.server.alerts.screen import Limit, Screen
from gpu_monitor.server.alerts.window import GpuWindow, Judgement, NodeWindow, Reading, Seconds, Spec, Values
from gpu_monitor.server.store.schema import LIVE_METRICS

_LIVE = frozenset(metric.name for metric in LIVE_METRICS)
_HOST = {metric.name: metric for metric in HOST_METRICS}
_PLACES = {"mean": "mean", "min": "low", "max": "high"}
_GPU = {metric.name: metric for metric in SAMPLED if metric.kind is not Kind.FLAGS}


class Threshold(Spec, frozen=True, tag="threshold", tag_field="kind", kw_only=True):
    """`metric` of every GPU (`of` host: of every machine) is `when` (above, below) `limit` for `for_seconds`.

    `stat` is looked at in each reading: a live minute holds means only, so min and max make a difference in
    hours alone. Live minutes are used where there are any, hours elsewhere; a metric that live minutes do not
    carry is judged by hours. A sum (energy) is of the reading's own length.
    """

    metric: str
    when: Literal["above", "below"] = "above"
    limit: float
    for_seconds: Seconds = 300
    stat: Literal["mean", "min", "max"] = "mean"
    of: Literal["gpu", "host"] = "gpu"


def check(spec: Threshold) -> None:
    """UsageError where there is no such metric."""
    known = _HOST if spec.of == "host" else _GPU
    if spec.metric not in known:
        raise UsageError(
            f"metric: {spec.metric!r} is not measured of a {spec.of}", f"Known: {', '.join(sorted(known))}."
        )


def metrics(spec: Threshold) -> tuple[str, ...]:
    """What the rule reads."""
    return (spec.metric,)


def screen(spec: Threshold) -> Screen:
    """Readings over the limit; a live minute holds means only."""
    hours = (Limit(spec.metric, spec.when == "above", spec.limit, spec.stat),)
    if spec.of == "host":
        return Screen(hosts=hours)
    live = (Limit(spec.metric, spec.when == "above", spec.limit),)
    return Screen(live=live if spec.metric in _LIVE else None, hours=hours)


def judge(spec: Threshold, window: GpuWindow | NodeWindow) -> Judgement:
    """The stretches over the limit."""
    name, is_above, limit = spec.metric, spec.when == "above", spec.limit
    place = Values._fields.index(_PLACES[spec.stat])
    metric = _HOST[name] if spec.of == "host" else BY_NAME[name]

    def measure(reading: Reading) -> float | None:
        values = None if reading.is_shadowed and name in _LIVE else reading.values.get(name)
        return None if values is None else values[place]

    def say(value: float, lasted: float, reading: Reading) -> str:
        unit = f" {metric.unit}" if metric.unit else ""
        return (
            f"{name} is {round_value(metric, value)}{unit}, {spec.when} {limit:g} for {format_duration(lasted)}"
            f" ({spec.stat}; by {reading.told_by})"
        )

    def holds(value: float) -> bool:
        return value > limit if is_above else value < limit

    return find_runs(window.readings, measure, holds, spec.for_seconds, say)
