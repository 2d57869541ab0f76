# SPDX-License-Identifier: MIT
"""One experiment as it is held against others: its parameters, tags, and what its metrics came to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gpu_monitor.core.compare import Best
from gpu_monitor.core.errors import GpuMonitorError, NothingFound
from gpu_monitor.sinks.exchange import Failure
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.stored import StoredExperiment
from gpu_monitor.wire.training import number_of

CURVE_POINTS = 1_000


@dataclass(frozen=True)
class Came:
    """A value that a metric came to, and at which step (None: not known)."""

    value: float
    step: int | None


@dataclass(frozen=True)
class Figures:
    """What a metric came to. `min` and `max` are of finite values; `at`: at the step that was asked for, or last before."""

    last: Came | None
    min: Came | None
    max: Came | None
    at: Came | None = None
    unit: str | None = None
    source: str | None = None

    def best(self, goal: Best | None) -> Came | None:
        """The least or greatest value; None where nothing says which of them is good."""
        return None if goal is None else self.min if goal == "min" else self.max


@dataclass(frozen=True)
class Curve:
    """A metric to be drawn: `x` steps, `value` NaN where it was none. `thinned`: there are more points."""

    x: list[float]
    value: list[float]
    thinned: bool


@dataclass(frozen=True)
class ComparedRun:
    """One experiment of a comparison. Times are UTC epoch seconds or None; `where`: this machine, or the server's address."""

    id: str
    name: str
    project: str
    status: str
    simulated: bool
    seconds: float | None
    last_step: int | None
    params: dict[str, Any]
    tags: dict[str, str]
    metrics: dict[str, Figures]
    where: str
    curve: Callable[[str], Curve] = field(repr=False, compare=False)


def from_disk(stored: StoredExperiment, step: int | None) -> ComparedRun:
    """A stored experiment; its readings by the SDK itself come after its own metrics."""

    def curve(name: str) -> Curve:
        thinned = stored.thinned(name, CURVE_POINTS)
        return Curve(thinned.x, thinned.value, thinned.thinned)

    return ComparedRun(
        stored.id, stored.name, stored.project, stored.status, stored.simulated,
        stored.seconds, stored.last_step, stored.params, stored.tags,
        {name: _figures(stored, name, step) for name in stored.metric_names()}, "this machine", curve,
    )  # fmt: skip


def _figures(stored: StoredExperiment, name: str, step: int | None) -> Figures:
    held, facts = stored.history(name), stored.metric_facts(name)
    points = list(zip(held.value, held.step, strict=True))
    finite = [point for point in points if math.isfinite(point[0])]
    before = [point for point in points if step is not None and point[1] <= step]
    return Figures(
        last=_came(points[-1:]),
        min=_came([min(finite, key=_value)] if finite else []),
        max=_came([max(finite, key=_value)] if finite else []),
        at=_came([max(enumerate(before), key=lambda one: (one[1][1], one[0]))[1]] if before else []),
        unit=facts.get("unit"),
        source=facts.get("source"),
    )


def _value(point: tuple[float, int]) -> float:
    return point[0]


def _came(points: Sequence[tuple[float, int]]) -> Came | None:
    return Came(points[0][0], points[0][1]) if points else None


def from_server(server: ExperimentServer, names: Sequence[str], step: int | None) -> list[ComparedRun]:
    """Experiments that a server holds, in the order of `names`. GpuMonitorError where it does not say."""
    asked = "".join(f"&ids={quote(name, safe='')}" for name in names)
    more = f"&step={step}" if step is not None else ""
    told = ask_server(server, f"/api/compare?{asked[1:]}{more}")
    return [_from_answer(server, told, place) for place in range(len(told["experiments"]))]


def _from_answer(server: ExperimentServer, told: dict[str, Any], place: int) -> ComparedRun:
    one = told["experiments"][place]
    metrics = {}
    for metric in told["metrics"]:
        if metric["last"][place] is not None:
            metrics[metric["name"]] = Figures(
                _at(metric["last"], place), _at(metric["min"], place), _at(metric["max"], place),
                _at(metric["at"], place), unit=metric["unit"],
            )  # fmt: skip

    def curve(name: str) -> Curve:
        path = f"/api/metrics/{quote(one['id'])}?names={quote(name, safe='')}&max_points={CURVE_POINTS}"
        answer = ask_server(server, path)
        found = next(iter(answer["series"]), None)
        if found is None:
            return Curve([], [], False)
        values = [math.nan if value is None else number_of(value) for value in found["value"]]
        return Curve(list(map(float, found["x"])), values, bool(answer["thinned"]))

    return ComparedRun(
        one["id"], one["name"], one["project"], one["status"], one["simulated"], one["duration_seconds"],
        one["last_step"], _set(told["params"], place), _set(told["tags"], place), metrics, server.name, curve,
    )  # fmt: skip


def _set(told: Sequence[dict[str, Any]], place: int) -> dict[str, Any]:
    return {one["name"]: one["values"][place] for one in told if one["values"][place] is not None}


def _at(told: Sequence[dict[str, Any] | None] | None, place: int) -> Came | None:
    one = None if told is None else told[place]
    return None if one is None else Came(number_of(one["value"]), one["step"])


def ask_server(server: ExperimentServer, path: str) -> Any:
    """A server's answer to a question. NothingFound for 404, GpuMonitorError with its words for the rest."""
    reply = server.get(path)
    if isinstance(reply, Failure):
        raise GpuMonitorError(
            f"{server.name} does not answer: {reply.text}", "Is it running, and its address right?"
        )
    if reply.data is None:
        raise GpuMonitorError(f"the answer of {server.name} is too long", "Ask for fewer at once.")
    try:
        answer = json.loads(reply.data)
    except ValueError:
        answer = {}
    if reply.status == 200:
        return answer
    words = answer.get("detail") or answer.get("title") or f"HTTP {reply.status}"
    if reply.status == 404:
        raise NothingFound(f"{server.name}: {words}")
    hint = "GPU_MONITOR_TOKEN holds the token." if reply.status in (401, 403) else None
    raise GpuMonitorError(f"{server.name}: {words} (HTTP {reply.status})", hint)
