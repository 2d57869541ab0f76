"""The GPUs of an experiment, with what they did for it; and the experiments of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Connection, func, select
from starlette.responses import Response

from gpu_monitor.core.catalogue import Kind
from gpu_monitor.server.answers import invalid, json_answer, missing
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import From, Reader, State, To, refuse_unknown, span
from gpu_monitor.server.routes.experiment_parts import MeantId, the_experiment
from gpu_monitor.server.store.experiment_energy import Account, account
from gpu_monitor.server.store.experiment_gpus import (
    Board,
    How,
    Place,
    Stay,
    experiments_on_gpu,
    gpus_of_experiment,
)
from gpu_monitor.server.store.experiment_list import experiment_rows
from gpu_monitor.server.store.gpus import places_of
from gpu_monitor.server.store.schema import samples
from gpu_monitor.server.store.schema_experiments import experiments
from gpu_monitor.server.store.series import HOST_PREFIX, KNOWN, LIVE, Question, Source, series, step_for
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.targets import Target
from gpu_monitor.server.store.values import stamp

router = APIRouter(tags=["experiments"], dependencies=[Depends(refuse_unknown)])

Axis = Literal["time", "relative"]
_LIVE_KEPT = 7 * DAY
_METRICS = 8
_CURVES = 64
"""GPUs with curves in one answer."""
_YEAR = 366 * DAY


class Interval(msgspec.Struct, frozen=True):
    """A stay on a GPU. `how`: `process` (an agent saw the run's process there, so the edges are right to half a minute
    or a minute) or `declared` (the run said that it sees this GPU, and no agent saw any process of its)."""

    since: str
    until: str
    how: How


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What GPUs did during stays. Null is unknown.

    `energy_kwh`: of the whole board, for as long as it is known; `energy_reason` says why it is not, wholly or in part.
    `energy_estimated`: in it are live minutes, power times seconds; else it is the hardware counter's.
    `prorated`: periods of reports at the edges were taken in part. `coverage`: recorded part of the time, 0 to 1.
    """

    gpu_hours: float | None
    gpu_utilization: float | None
    energy_kwh: float | None
    energy_reason: str | None
    energy_estimated: bool
    prorated: bool
    coverage: float | None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of the GPU while the run was on it; all columns are equally long. `x` is where a step begins: seconds
    since the experiment's start, or since 1970 UTC, as `axis` says."""

    metric: str
    unit: str
    source: Source
    step_seconds: int
    x: list[float]
    value: Sequence[float | int | list[str] | None]
    min: Sequence[float | int | None]
    max: Sequence[float | int | None]
    thinned: bool


class GpuOfRun(Usage, frozen=True, kw_only=True):
    """A GPU that the experiment was on."""

    uid: str
    name: str | None
    node: str
    hostname: str | None
    simulated: bool
    intervals: list[Interval]
    curves: list[Curve] = []


class GpusOfRun(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of an experiment, and all of them together. `simulated`: some GPU is, so no figure is of real work."""

    experiment_id: str
    axis: Axis
    simulated: bool
    total: Usage
    items: list[GpuOfRun]
    next: str | None = None


class RunOnGpu(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment that was on a GPU."""

    experiment_id: str
    name: str
    project: str
    status: str
    node: str
    hostname: str | None
    simulated: bool
    intervals: list[Interval]


class RunsOnGpu(msgspec.Struct, frozen=True, kw_only=True):
    """The experiments whose processes were on a GPU, the latest first."""

    uid: str
    since: str
    until: str
    items: list[RunOnGpu]
    next: str | None = None


@router.get(
    "/api/experiments/{id}/gpus",
    summary="An experiment's GPUs",
    **answers(GpusOfRun, "Its GPUs, when it was on them, and what they did"),
)
def gpus_of_run(
    state: State,
    who: Reader,
    id: MeantId,
    metric: Annotated[
        list[str],
        Query(
            max_length=_METRICS,
            description="a metric of the catalogue, whose curve is wanted; several may be given",
        ),
    ] = [],  # noqa: B006 (the framework copies it)
    axis: Annotated[Axis, Query(description="of the curves")] = "relative",
    max_points: Annotated[int, Query(ge=2, le=10_000, description="most steps of a curve")] = 500,
) -> Response:
    """GPU-hours, mean utilisation, energy and hardware curves. Which process was on which GPU is known within a minute of
    an agent seeing it (live), and for good from its reports."""
    for name in metric:
        if name not in KNOWN or name.startswith(HOST_PREFIX) or KNOWN[name].kind is Kind.STATE:
            raise invalid("metric", f"{name[:40]!r} is no metric of GPUs")
    now = state.clock.now()
    with state.store.read() as connection:
        row = the_experiment(connection, who, id)
        stays = gpus_of_experiment(connection, row, now)
        whole = Account()
        items: list[GpuOfRun] = []
        of_run = sorted(stays.of.get(row.id, {}).items(), key=lambda one: _order(stays.boards[one[0]]))
        for place, held in of_run:
            board, sums = stays.boards[place], account(connection, place, held)
            whole.add(sums)
            wanted = metric if len(items) < _CURVES else []
            curves = [
                _curve(
                    connection, place, held, name, max_points, now, row.started if axis == "relative" else 0.0
                )
                for name in wanted
            ]
            items.append(_item(board, held, sums, curves))
    total = msgspec.convert(_usage(whole), Usage)
    if not items:
        reason = "no GPU of it is known"
        total = msgspec.structs.replace(total, gpu_hours=None, energy_reason=reason, coverage=None)
    is_simulated = any(one.simulated for one in items)
    return json_answer(
        GpusOfRun(experiment_id=row.uid, axis=axis, simulated=is_simulated, total=total, items=items)
    )


@router.get(
    "/api/gpus/{uid}/experiments",
    summary="A GPU's experiments",
    **answers(RunsOnGpu, "The experiments that were on it, and when"),
)
def runs_on_gpu(
    state: State,
    who: Reader,
    uid: Annotated[str, Path(max_length=200, pattern=r"^[^\x00]+$", description="the GPU's uid")],
    start: From = None,
    to: To = None,
) -> Response:
    """Of the last 30 days where nothing is said. What agents saw counts; what runs only declare does not."""
    asked = span(start, to, state.clock.now(), 30 * DAY, _YEAR)
    with state.store.read() as connection:
        found = places_of(connection, who, uid)
        if not found:
            raise missing("GPU", uid)
        stays, runs = experiments_on_gpu(connection, [(one.agent, one.ordinal) for one in found], uid, asked)
        seen = experiment_rows(who).where(experiments.c.id.in_(sorted(runs)))
        rows = {row.id: row for row in connection.execute(seen)}
    told = [
        (held[-1].until, _run(rows[run], stays.boards[place], held))
        for run, by_place in stays.of.items()
        if run in rows
        for place, held in by_place.items()
    ]
    told.sort(key=lambda one: one[0], reverse=True)
    return json_answer(
        RunsOnGpu(
            uid=uid, since=stamp(asked.since) or "", until=stamp(asked.until) or "", items=[one for _, one in told]
        )
    )  # fmt: skip


def _order(board: Board) -> tuple[str, str, str]:
    return (board.hostname or "", board.node, board.uid)


def _usage(sums: Account) -> dict[str, Any]:
    return {
        "gpu_hours": round(sums.seconds / HOUR, 6) if sums.seconds > 0 else None,
        "gpu_utilization": _rounded(sums.utilization, 2),
        "energy_kwh": _rounded(sums.energy_kwh, 6),
        "energy_reason": sums.reason,
        "energy_estimated": sums.is_estimated,
        "prorated": sums.is_prorated,
        "coverage": _rounded(sums.coverage, 4),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _intervals(held: Sequence[Stay]) -> list[Interval]:
    return [Interval(stamp(one.since) or "", stamp(one.until) or "", one.how) for one in held]


def _item(board: Board, held: Sequence[Stay], sums: Account, curves: list[Curve]) -> GpuOfRun:
    return GpuOfRun(
        uid=board.uid, name=board.name, node=board.node, hostname=board.hostname, simulated=board.simulated,
        intervals=_intervals(held), curves=curves, **_usage(sums),
    )  # fmt: skip


def _run(row: Any, board: Board, held: Sequence[Stay]) -> RunOnGpu:
    return RunOnGpu(
        experiment_id=row.uid, name=row.name, project=row.project_name, status=row.status, node=board.node,
        hostname=board.hostname, simulated=board.simulated, intervals=_intervals(held),
    )  # fmt: skip


def _curve(
    connection: Connection,
    place: Place,
    held: Sequence[Stay],
    name: str,
    max_points: int,
    now: float,
    origin: float,
) -> Curve:
    """A metric from the first stay to the last: of live minutes while they are kept, else of hours."""
    since, until = held[0].since, max(held[-1].until, held[0].since + 1.0)
    source: Source = "hours"
    if name in LIVE and since > now - _LIVE_KEPT and _has_minutes(connection, place, since, until):
        source = "minutes"
    asked = Span(since - since % 60, until) if source == "minutes" else Span(since - since % HOUR, until)
    target = Target("gpu", places=(place,), agents=(place[0],))
    step = step_for(asked, 60 if source == "minutes" else HOUR, max_points)
    found = series(connection, Question(name, target, asked, step, "mean", source, True))
    x = [round(datetime.fromisoformat(time).timestamp() - origin, 3) for time in found.time]
    return Curve(
        metric=name, unit=found.unit, source=source, step_seconds=step, x=x, value=found.value, min=found.min,
        max=found.max, thinned=found.thinned,
    )  # fmt: skip


def _has_minutes(connection: Connection, place: Place, since: float, until: float) -> bool:
    row = samples.c
    asked = select(func.count()).where(
        row.agent == place[0], row.gpu == place[1], row.time >= int(since) - 60, row.time < until
    )
    return bool(connection.execute(asked).scalar())
