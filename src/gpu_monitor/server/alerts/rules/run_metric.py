"""A metric of a running training, as it was logged last, above or below a limit."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gpu_monitor.server.alerts.window import NO_DATA, RUN_OVER, Episode, Judgement, RunWindow, Spec

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]


class RunMetric(Spec, frozen=True, tag="run_metric", tag_field="kind", kw_only=True):
    """The newest value of `metric` is above (or below) `limit`, from step `from_step` on. It ends with the run.

    A value that is not finite neither holds nor clears: `run_nan` tells of it.
    """

    metric: Annotated[str, Meta(min_length=1, max_length=250, pattern=r"^[A-Za-z0-9_./\-: ]+$")]
    limit: Number
    when: Literal["above", "below"] = "above"
    from_step: Annotated[int, Meta(ge=0, le=2**53)] = 0


def judge(spec: RunMetric, window: RunWindow) -> Judgement:
    """Whether it holds by the newest value."""
    if window.status != "running":
        return Judgement((), window.now, ending=RUN_OVER)
    found = window.metrics.get(spec.metric)
    if found is None or found.value is None or found.time is None:
        return NO_DATA
    if found.step is not None and found.step < spec.from_step:
        return NO_DATA
    holds = found.value > spec.limit if spec.when == "above" else found.value < spec.limit
    if not holds:
        return Judgement((), window.now)
    step = "" if found.step is None else f" at step {found.step}"
    text = f"{window.title}: {spec.metric} is {found.value:.6g}{step}, {spec.when} {spec.limit:g}"
    since = min(found.time, window.now)
    return Judgement((Episode(since, window.now, None, True, found.value, text),), window.now)
