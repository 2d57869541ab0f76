"""A metric of a running training that became NaN or infinite."""

from __future__ import annotations

import fnmatch
from typing import Annotated

from msgspec import Meta

from gpu_monitor.server.alerts.window import NO_DATA, RUN_OVER, Episode, Judgement, Pattern, RunWindow, Spec


class RunNan(Spec, frozen=True, tag="run_nan", tag_field="kind", kw_only=True):
    """A running run's metric is NaN or infinite as it was logged last. `metrics`: only these, with * and ?.

    It is over when the metric is finite again, or the run has ended.
    """

    metrics: Annotated[tuple[Pattern, ...], Meta(max_length=100)] = ()


def judge(spec: RunNan, window: RunWindow) -> Judgement:
    """Whether any of its metrics is not finite now."""
    if window.status != "running":
        return Judgement((), window.now, ending=RUN_OVER)
    meant = {name: one for name, one in window.metrics.items() if _is_meant(spec, name)}
    if not meant:
        return NO_DATA
    wrong = {name: one for name, one in meant.items() if one.is_special}
    if not wrong:
        return Judgement((), window.now)
    since = min(one.time if one.time is not None else window.now for one in wrong.values())
    first = next(iter(wrong.values())).special_step
    step = "" if first is None else f" (since step {first})"
    names = ", ".join(sorted(wrong)[:5])
    text = f"{window.title}: {names} is no finite number any more{step}"
    return Judgement((Episode(min(since, window.now), window.now, None, True, None, text),), window.now)


def _is_meant(spec: RunNan, name: str) -> bool:
    return not spec.metrics or any(fnmatch.fnmatchcase(name, pattern) for pattern in spec.metrics)
