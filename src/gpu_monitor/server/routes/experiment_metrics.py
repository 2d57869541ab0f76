"""The metrics of one experiment along its steps or its time."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection
from starlette.responses import Response

from gpu_monitor.server.answers import answer, invalid, wants_csv
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Format, From, Reader, State, To, moment, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.experiment_parts import MeantId, the_experiment
from gpu_monitor.server.store.experiment_detail import metric_rows
from gpu_monitor.server.store.metric_points import (
    Axis,
    MetricRow,
    MetricSeries,
    Range,
    find_series,
    metric_items,
    read_metrics,
)

router = APIRouter(prefix="/api/metrics", tags=["experiments"], dependencies=[Depends(refuse_unknown)])
_NAMES = 100
_VALUES = 200_000
"""Items of all metrics of one answer."""


class MetricsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of one experiment. `left_out`: names of it that are not in the answer for there are too many.

    `thinned`: some of them have stretches of the axis instead of points.
    """

    experiment_id: str
    axis: Axis
    thinned: bool
    series: list[MetricSeries]
    left_out: int


@router.get(
    "/{experiment_id}", summary="An experiment's metrics", **answers(MetricsAnswer, "The metrics", csv=True)
)
def metrics(
    request: Request,
    state: State,
    who: Reader,
    experiment_id: MeantId,
    names: Annotated[
        list[str] | None,
        Query(max_length=_NAMES, description="a metric, or several with commas; may be repeated; none: all"),
    ] = None,
    axis: Annotated[
        Axis,
        Query(description="x is the step, seconds since the experiment's start, or seconds since 1970 UTC"),
    ] = "step",
    start: From = None,
    to: To = None,
    max_points: Annotated[int, Query(ge=1, le=20_000, description="most items of a metric")] = 1000,
    format: Format = None,
) -> Response:
    """Every value where there are few; else stretches with mean, least and greatest. `from` and `to` are of the axis."""
    wanted = _names(names)
    if len(wanted) * max_points > _VALUES:
        raise invalid(
            "max_points", f"{len(wanted)} metrics of {max_points} items are more than {_VALUES} together"
        )
    now = state.clock.now()
    since, until = (_place(text, axis, name, now) for text, name in ((start, "from"), (to, "to")))
    with state.store.read() as connection:
        row = the_experiment(connection, who, experiment_id)
        held, left_out = _series(connection, row.id, wanted, max_points)
        asked = Range(axis, row.started, since, until)
        found = read_metrics(connection, held, asked, max_points)
    whole = MetricsAnswer(
        experiment_id=row.uid,
        axis=axis,
        thinned=any(one.thinned for one in found),
        series=found,
        left_out=left_out,
    )
    items = metric_items(found) if wants_csv(request, format) else []
    return answer(request, whole, items, MetricRow, format)


def _names(given: list[str] | None) -> list[str]:
    """The names in a parameter that may be repeated, and hold commas."""
    found = list(dict.fromkeys(name for text in given or () for name in text.split(",") if name))
    if len(found) > _NAMES:
        raise invalid("names", f"at most {_NAMES} metrics in one question")
    if any("\x00" in name for name in found):
        raise invalid("names", "no metric has U+0000 in its name")
    return found


def _series(connection: Connection, row: int, wanted: list[str], max_points: int) -> tuple[list[Any], int]:
    """The rows of the metrics, and how many are left out; Problem 404 for one that is not there."""
    if not wanted:
        every = connection.execute(metric_rows(row)).all()
        shown = min(_NAMES, _VALUES // max_points)
        return list(every[:shown]), max(0, len(every) - shown)
    held = find_series(connection, row, wanted)
    if len(held) < len(wanted):
        there = {one.name for one in held}
        missing = next(name for name in wanted if name not in there)
        raise Problem(404, "Not found", f"The experiment has no metric {missing[:250]!r}.")
    return held, 0


def _place(text: str | None, axis: Axis, parameter: str, now: float) -> float | int | None:
    """A place on the axis as it was typed; Problem 422 where it is none."""
    if text is None:
        return None
    if axis == "time":
        return moment(text, parameter, now)
    try:
        place = int(text) if axis == "step" else float(text)
    except ValueError:
        kind = "a step is a whole number" if axis == "step" else "seconds are a number"
        raise invalid(parameter, kind) from None
    if not -(2**63) <= place < 2**63:
        raise invalid(parameter, "beyond what 64 bits hold")
    return place
