"""Every kind of rule, one line each: what it looks at, and the function that judges."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.rules import (
    coverage,
    disk,
    held,
    late,
    lost,
    run_alert,
    run_ended,
    run_metric,
    run_nan,
    run_stalled,
    silent,
    skew,
    threshold,
    throttled,
    xid,
)
from gpu_monitor.server.alerts.screen import Screen
from gpu_monitor.server.alerts.window import Judgement, Spec

Scope = Literal["gpu", "node", "server", "experiment"]
AnySpec = (
    threshold.Threshold
    | silent.Silent
    | late.Late
    | lost.Lost
    | xid.XidErrors
    | throttled.Throttled
    | held.Held
    | coverage.Coverage
    | skew.Skew
    | disk.Disk
    | run_ended.RunEnded
    | run_alert.RunAlert
    | run_stalled.RunStalled
    | run_metric.RunMetric
    | run_nan.RunNan
)


@dataclass(frozen=True)
class RuleKind:
    """One kind. `judge` is pure: its settings and a window of its scope give a judgement."""

    name: str
    spec: type[Spec]
    judge: Callable[[Any, Any], Judgement]
    metrics: Callable[[Any], tuple[str, ...]] | None = None
    screen: Callable[[Any], Screen] | None = None
    """What its subjects are looked for by; None: each is judged at each look (is it heard of, the server)."""


KINDS: tuple[RuleKind, ...] = (
    RuleKind("threshold", threshold.Threshold, threshold.judge, threshold.metrics, threshold.screen),
    RuleKind("silent", silent.Silent, silent.judge),
    RuleKind("late", late.Late, late.judge),
    RuleKind("lost", lost.Lost, lost.judge, lost.metrics, lost.screen),
    RuleKind("xid", xid.XidErrors, xid.judge, xid.metrics, xid.screen),
    RuleKind("throttled", throttled.Throttled, throttled.judge, throttled.metrics, throttled.screen),
    RuleKind("held", held.Held, held.judge, held.metrics, held.screen),
    RuleKind("coverage", coverage.Coverage, coverage.judge, coverage.metrics, coverage.screen),
    RuleKind("skew", skew.Skew, skew.judge),
    RuleKind("disk", disk.Disk, disk.judge, disk.metrics, disk.screen),
    RuleKind("run_ended", run_ended.RunEnded, run_ended.judge),
    RuleKind("run_stalled", run_stalled.RunStalled, run_stalled.judge),
    RuleKind("run_metric", run_metric.RunMetric, run_metric.judge),
    RuleKind("run_nan", run_nan.RunNan, run_nan.judge),
    RuleKind("run_alert", run_alert.RunAlert, run_alert.judge),
)
_OF_RUNS = (
    run_ended.RunEnded,
    run_stalled.RunStalled,
    run_metric.RunMetric,
    run_nan.RunNan,
    run_alert.RunAlert,
)
_BY_NAME = {kind.name: kind for kind in KINDS}
_decoder = msgspec.json.Decoder(AnySpec)


def kind_of(spec: AnySpec) -> RuleKind:
    """The kind that judges by these settings."""
    return _BY_NAME[name_of(spec)]


def name_of(spec: AnySpec) -> str:
    """The name of its kind."""
    return str(spec.__struct_config__.tag)


def scope_of(spec: AnySpec) -> Scope:
    """What the rule is about: each GPU, each node, each experiment, or the server."""
    if isinstance(spec, _OF_RUNS):
        return "experiment"
    if isinstance(spec, (silent.Silent, late.Late, skew.Skew)):
        return "node"
    if isinstance(spec, disk.Disk):
        return spec.of
    if isinstance(spec, threshold.Threshold) and spec.of == "host":
        return "node"
    return "gpu"


def duration_of(spec: AnySpec) -> float:
    """How far back its window must reach, s."""
    return float(getattr(spec, "for_seconds", 0) or getattr(spec, "quiet_seconds", 0))


def metrics_of(spec: AnySpec) -> tuple[str, ...]:
    """The metrics it reads."""
    metrics = kind_of(spec).metrics
    return () if metrics is None else metrics(spec)


def read_spec(text: str | bytes) -> AnySpec:
    """The settings in JSON, checked; UsageError says what is wrong and where."""
    try:
        spec = _decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(str(error)) from None
    return checked(spec)


def convert_spec(given: object) -> AnySpec:
    """The settings in plain objects, checked likewise."""
    try:
        spec = msgspec.convert(given, AnySpec)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(str(error)) from None
    return checked(spec)


def checked(spec: AnySpec) -> AnySpec:
    """The same; UsageError where a metric or a class of Xids does not exist."""
    if isinstance(spec, threshold.Threshold):
        threshold.check(spec)
    if isinstance(spec, xid.XidErrors) and (wrong := xid.unknown_actions(spec)):
        raise UsageError(
            f"actions: {', '.join(map(repr, wrong))} are no classes of Xids", f"Known: {xid.known_actions()}."
        )
    return spec


def is_meant(spec: Spec, names: tuple[str | None, ...]) -> bool:
    """Whether a subject with these names (ids, host name, model, project) is one the rule is about."""
    return not spec.only or any(
        name is not None and fnmatch.fnmatchcase(name, pattern) for pattern in spec.only for name in names
    )
