"""One or several metrics over time."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection
from starlette.responses import Response

from gpu_monitor.core.catalogue import Kind
from gpu_monitor.server.answers import answer, invalid, missing, wants_csv
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import (
    Format,
    From,
    Include,
    Node,
    Reader,
    State,
    Text,
    To,
    refuse_unknown,
    span,
)
from gpu_monitor.server.store.reach import Available, available, minutes_suffice
from gpu_monitor.server.store.series import (
    HOST_PREFIX,
    KNOWN,
    LIVE,
    Question,
    Series,
    SeriesPoint,
    Source,
    points,
    series,
    step_for,
)
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.steps import Agg
from gpu_monitor.server.store.targets import Target, TargetKind, find_target, with_instances
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/series", tags=["history"], dependencies=[Depends(refuse_unknown)])

_METRICS = 12
"""Metrics in one question: a page's worth of charts."""
_MOST_ROWS = 3_000_000
"""GPU-hours (or live samples) that one question may add up: about a second of SQLite's time."""
_MINUTES_UP_TO = 26 * HOUR
_SMALL = 64
"""GPUs of which live minutes are added up without being asked for: a node or a few."""
_LIVE_KEPT = 8 * DAY


class SeriesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Series of one target. `source` says what they are made from, `step_seconds` how long a step is.

    `available` says since when there is anything of each source, of whatever was asked.

    `thinned`: steps join several times; their least and greatest reading are in `min` and `max`. `extremes` says
    what those are of: `readings` of single GPUs, or whole `steps` (means or sums of all GPUs at one time).
    """

    of: TargetKind
    name: str | None
    since: str
    until: str
    agg: Agg
    source: Source
    available: Available
    step_seconds: int
    thinned: bool
    extremes: str
    simulated: bool
    excluded_simulated_gpus: int
    items: list[Series]
    next: str | None = None


@router.get("", summary="Metrics over time", **answers(SeriesAnswer, "One series per metric", csv=True))
def series_of(
    request: Request,
    state: State,
    who: Reader,
    metric: Annotated[
        list[str],
        Query(
            min_length=1,
            max_length=_METRICS,
            json_schema_extra={"items": {"type": "string", "enum": sorted(KNOWN)}},
            description="a metric of the catalogue, idle_seconds, held_idle_seconds, or of a node host.cpu_utilization"
            " and the like; several may be given",
        ),
    ],
    gpu: Text = None,
    node: Node = None,
    contract: Text = None,
    model: Text = None,
    start: From = None,
    to: To = None,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="most steps of a series")] = 1000,
    agg: Annotated[
        Agg,
        Query(
            description="how GPUs at one time come together: a sum over GPUs is not one over time (but of energy and times)"
        ),
    ] = "mean",
    source: Annotated[
        Source | None,
        Query(
            description="live minutes or hours; where not said, minutes of up to 26 h of which they miss no hour"
            " that was reported, else hours"
        ),
    ] = None,
    include: Include = None,
    format: Format = None,
) -> Response:
    """A metric of a GPU, of a node, or of a group: a contract's, a model's, or with neither the whole fleet's."""
    names = list(dict.fromkeys(metric))
    for name in names:
        _check_metric(name)
    kind, named = _which(gpu=gpu, node=node, contract=contract, model=model)
    asked = span(start, to, state.clock.now(), DAY, 3660 * DAY)
    with state.store.read() as connection:
        target = find_target(connection, who, kind, named or "")
        if target is None:
            raise missing(kind, named or "")
        is_in = kind == "gpu" or include is not None
        chosen = _source(connection, target, asked, names, source)
        for name in names:
            _check_fit(name, target, chosen, agg)
        base = _base(target, chosen)
        asked = _whole_slots(asked, base) if chosen == "hours" else asked
        step = step_for(asked, base, max_points)
        questions = [Question(name, target, asked, step, agg, chosen, is_in) for name in names]
        _check_size(questions, target, asked, chosen, is_in)
        if not all(question.is_summed_up for question in questions):
            named_instances = with_instances(connection, target)
            questions = [replace(question, target=named_instances) for question in questions]
        found = [series(connection, question) for question in questions]
        since_when = available(connection, target)
    whole = SeriesAnswer(
        of=kind,
        name=named,
        since=stamp(asked.since) or "",
        until=stamp(asked.until) or "",
        agg=agg,
        source=chosen,
        available=since_when,
        step_seconds=step,
        thinned=any(one.thinned for one in found),
        extremes="steps" if agg == "sum" or any(one.is_summed_up for one in questions) else "readings",
        simulated=is_in and target.simulated_gpus > 0,
        excluded_simulated_gpus=0 if is_in else target.simulated_gpus,
        items=found,
    )
    rows = [point for one in found for point in points(one)] if wants_csv(request, format) else []
    return answer(request, whole, rows, SeriesPoint, format)


def _check_metric(name: str) -> None:
    if name in KNOWN:
        return
    near = difflib.get_close_matches(name, KNOWN, 1)
    hint = f"; did you mean {near[0]}?" if near else "; docs/metrics.md lists them"
    raise invalid("metric", f"no metric {name[:60]!r} with a series{hint}")


def _which(**named: str | None) -> tuple[TargetKind, str | None]:
    given = [(kind, name) for kind, name in named.items() if name is not None]
    if len(given) > 1:
        raise invalid(given[1][0], f"either {given[0][0]} or {given[1][0]}, not both")
    if not given:
        return "fleet", None
    kinds: dict[str, TargetKind] = {"gpu": "gpu", "node": "node", "contract": "contract", "model": "model"}
    return kinds[given[0][0]], given[0][1]


def _check_fit(name: str, target: Target, source: Source, agg: Agg) -> None:
    """Refuse what cannot be answered with a true value."""
    metric = KNOWN[name]
    if name.startswith(HOST_PREFIX) and target.kind != "node":
        raise invalid("metric", f"{name} is of a machine: say which with node=")
    if metric.kind is Kind.FLAGS and target.kind != "gpu":
        raise invalid(
            "metric", f"{name} is a set of names, which does not add up over GPUs: say one with gpu="
        )
    if metric.kind is Kind.FLAGS and agg != "mean":
        raise invalid("agg", f"{name} is a set of names; leave agg out")
    if source == "minutes" and name not in LIVE:
        raise invalid("source", f"live minutes do not hold {name}; ask for hours")


def _source(
    connection: Connection, target: Target, asked: Span, names: list[str], wanted: Source | None
) -> Source:
    """Live minutes for short spans of which they hide nothing that hours hold; else hours."""
    if wanted is not None:
        if wanted == "minutes" and asked.seconds > _LIVE_KEPT:
            raise invalid("source", "live minutes are kept for 7 days; ask for a shorter span, or for hours")
        return wanted
    is_small = target.gpus + target.simulated_gpus <= _SMALL
    fits = asked.seconds <= (_MINUTES_UP_TO if is_small else 3 * HOUR)
    if not fits or not all(name in LIVE for name in names):
        return "hours"
    return "minutes" if minutes_suffice(connection, target, asked, is_small=is_small) else "hours"


def _base(target: Target, source: Source) -> int:
    """The shortest step: of one GPU's minutes as they are, of several GPUs' the interval that they share."""
    if source == "hours":
        return target.period
    return 1 if target.kind == "gpu" else target.interval


def _whole_slots(asked: Span, base: int) -> Span:
    """The span, begun and ended with whole periods where these are longer than an hour."""
    if base <= HOUR:
        return asked
    return Span(asked.since // base * base, -(-asked.until // base) * base)


def _check_size(
    questions: list[Question], target: Target, asked: Span, source: Source, simulated: bool
) -> None:
    count = target.gpus + (target.simulated_gpus if simulated else 0)
    rows = count * asked.seconds / (target.interval if source == "minutes" else target.period)
    rows *= sum(not question.is_summed_up for question in questions)
    if rows > _MOST_ROWS:
        advice = "ask for a shorter span, a node or a GPU; of the fleet mean or sum of the default metrics are ready"
        raise invalid("from", f"this would add up {rows:.0f} rows; {advice}")
