"""Experiments side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gpu_monitor.core.compare import Best
from gpu_monitor.server.answers import invalid, json_answer, table_answer, wants_csv
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Format, Reader, State, refuse_unknown
from gpu_monitor.server.routes.experiment_parts import the_experiment
from gpu_monitor.server.store.comparison import (
    METRICS,
    ComparedMetric,
    ComparedTag,
    Comparison,
    compare_metrics,
    compare_params,
    compare_tags,
)
from gpu_monitor.server.store.experiment_detail import MetricPoint
from gpu_monitor.server.store.experiment_list import Experiment, experiment_fields

router = APIRouter(prefix="/api/compare", tags=["experiments"], dependencies=[Depends(refuse_unknown)])
_EXPERIMENTS = 50


@router.get("", summary="Experiments side by side", **answers(Comparison, "The comparison", csv=True))
def compare(
    request: Request,
    state: State,
    who: Reader,
    ids: Annotated[
        list[str],
        Query(
            min_length=1, max_length=_EXPERIMENTS, description="ids, names or name~2, with commas or repeated"
        ),
    ],
    names: Annotated[
        list[str] | None,
        Query(max_length=METRICS, description="which metrics, with commas or repeated; none: all"),
    ] = None,
    best: Annotated[
        list[str] | None,
        Query(max_length=METRICS, description="metric:min or metric:max, where its name does not tell"),
    ] = None,
    step: Annotated[
        int | None,
        Query(ge=-(2**63), le=2**63 - 1, description="also answer each metric's value at this step"),
    ] = None,
    differing: Annotated[bool, Query(description="only parameters and tags that differ")] = False,
    format: Format = None,
) -> Response:
    """Parameters, tags, and what the metrics came to: best, last, least, greatest, and at a step."""
    meant, wanted, goals = _split(ids), _split(names), _goals(best)
    if not 1 <= len(meant) <= _EXPERIMENTS:
        raise invalid("ids", f"1 to {_EXPERIMENTS} experiments")
    if len(wanted) > METRICS:
        raise invalid("names", f"at most {METRICS} metrics in one question")
    with state.store.read() as connection:
        meant_rows = [the_experiment(connection, who, one) for one in meant]
        found = list({row.id: row for row in meant_rows}.values())
        rows = [row.id for row in found]
        now = state.clock.now()
        of_metrics, left_out = compare_metrics(connection, rows, wanted or None, goals, step)
        params, is_cut = compare_params(connection, rows)
        tags, are_cut = compare_tags(connection, rows)
        whole = Comparison(
            experiments=[
                Experiment(**experiment_fields(row, _tags(tags, place), now))
                for place, row in enumerate(found)
            ],
            params=[one for one in params if one.differs or not differing],
            tags=[one for one in tags if one.differs or not differing],
            metrics=of_metrics,
            left_out=left_out,
            cut=[name for name, cut in (("params", is_cut), ("tags", are_cut)) if cut],
        )
    if wants_csv(request, format):
        header = ["kind", "name", "differs", *(one.id for one in whole.experiments)]
        return table_answer(request, header, _cells(whole))
    return json_answer(whole)


def _split(given: list[str] | None) -> list[str]:
    found = [word for text in given or () for word in text.split(",") if word]
    if any("\x00" in word or len(word) > 520 for word in found):
        raise invalid("ids", "no name holds U+0000 or more than 520 characters")
    return list(dict.fromkeys(found))


def _goals(given: list[str] | None) -> dict[str, Best]:
    found: dict[str, Best] = {}
    for word in _split(given):
        name, _, goal = word.rpartition(":")
        if not name or goal not in ("min", "max"):
            raise invalid("best", "a metric's name, and :min or :max")
        found[name] = "min" if goal == "min" else "max"
    return found


def _tags(compared: list[ComparedTag], place: int) -> dict[str, str]:
    values = {one.name: one.values[place] for one in compared}
    return {key: value for key, value in values.items() if value is not None}


def _cells(whole: Comparison) -> Iterator[list[Any]]:
    """One row for each parameter, tag and figure of a metric; one column for each experiment."""
    for kind, told in (("param", whole.params), ("tag", whole.tags)):
        for one in told:
            yield [kind, one.name, one.differs, *one.values]
    for metric in whole.metrics:
        for kind, figures in _figures(metric):
            values = [None if point is None else point.value for point in figures]
            yield [kind, metric.name, len(set(values)) > 1, *values]


def _figures(metric: ComparedMetric) -> Iterator[tuple[str, list[MetricPoint | None]]]:
    if metric.best_is is not None:
        yield "best", metric.best
    yield "last", metric.last
    yield "min", metric.min
    yield "max", metric.max
    if metric.at is not None:
        yield "at", metric.at
