"""What GPUs were used for: hours, idle, held, energy, each with its coverage."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gpu_monitor.core.tally import Figures, figures
from gpu_monitor.server.answers import answer
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
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.usage import REAL, By, Line, idle_gpus, usage
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/usage", tags=["usage"], dependencies=[Depends(refuse_unknown)])

_LONGEST = 400 * DAY
"""A year and a month: its rows are added up when asked for."""


Price = Annotated[float | None, Query(ge=0, le=1e6, allow_inf_nan=False, description="of a kWh, for money")]


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line, with the definitions of the agent's `report`; of the names those that `by` makes sense of are set.

    Each figure has beside it the share of the possible time that it is known for; unknown is null. Idle:
    utilisation below 5 %. Held: idle with 256 MiB or more of device memory in use. `energy_kwh` comes from
    hardware counters; `energy_estimated_kwh` is mean power added up over the time without one. `money` is of both.
    """

    uid: str | None = None
    index: int | None = None
    name: str | None = None
    source: str | None = None
    node: str | None = None
    hostname: str | None = None
    contract_number: str | None = None
    user: str | None = None
    model: str | None = None
    day: str | None = None
    origin: str
    simulated: bool
    gpu_hours: float
    coverage: float
    gpu_utilization: float | None
    utilization_coverage: float
    idle_hours: float | None
    idle_coverage: float
    held_idle_hours: float | None
    held_idle_coverage: float
    energy_kwh: float | None
    energy_estimated_kwh: float | None
    energy_coverage: float
    money: float | None


class IdleLine(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's idle time; each figure with the share of the possible time that it is known for.

    `idle_energy_estimated_kwh` takes its mean power of all the time for that of the idle time, and so is rather too
    much than too little; `idle_money_estimated` is that times `price`.
    """

    uid: str
    index: int | None
    name: str | None
    node: str
    hostname: str | None
    contract_number: str
    source: str
    simulated: bool
    gpu_hours: float
    coverage: float
    idle_hours: float | None
    idle_coverage: float
    held_idle_hours: float | None
    held_idle_coverage: float
    idle_energy_estimated_kwh: float | None
    idle_money_estimated: float | None


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Lines, one total per origin (real, simulated, replay), and what a reader must know of the span's ends."""

    since: str
    until: str
    by: By
    includes_simulated: bool
    excluded_simulated_gpus: int
    totals: list[UsageLine]
    notes: list[str]
    items: list[UsageLine]
    next: str | None = None


class IdleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs that were idle longest."""

    since: str
    until: str
    order: str
    includes_simulated: bool
    excluded_simulated_gpus: int
    items: list[IdleLine]
    next: str | None = None


@router.get("", summary="Usage of a span", **answers(UsageAnswer, "Lines and totals", csv=True))
def usage_of(
    request: Request,
    state: State,
    who: Reader,
    by: Annotated[By, Query(description="what a line is about; days are UTC")] = By.GPU,
    start: From = None,
    to: To = None,
    node: Node = None,
    contract: Text = None,
    model: Text = None,
    include: Include = None,
    price: Price = None,
    format: Format = None,
) -> Response:
    """GPU-hours, idle, held but idle and energy of whole periods; of the last 7 days where nothing is said."""
    asked = _span(start, to, state.clock.now())
    wanted = GpuFilter(node, contract, model)
    with state.store.read() as connection:
        found = usage(connection, who, wanted, asked, by, include is not None)
    items = [_line(line, by, price) for line in found.lines]
    whole = UsageAnswer(
        since=stamp(asked.since) or "",
        until=stamp(asked.until) or "",
        by=by,
        includes_simulated=include is not None,
        excluded_simulated_gpus=found.excluded,
        totals=[_line(line, None, price) for line in found.totals],
        notes=found.notes,
        items=items,
    )
    return answer(request, whole, items, UsageLine, format)


@router.get(
    "/idle", summary="The GPUs that idle most", **answers(IdleAnswer, "GPUs, most idle first", csv=True)
)
def idle(
    request: Request,
    state: State,
    who: Reader,
    start: From = None,
    to: To = None,
    order: Annotated[
        Literal["idle", "held"], Query(description="by idle time, or by idle time with memory held")
    ] = "idle",
    limit: Annotated[int, Query(ge=1, le=1000, description="most items in the answer")] = 50,
    node: Node = None,
    contract: Text = None,
    model: Text = None,
    include: Include = None,
    price: Price = None,
    format: Format = None,
) -> Response:
    """Who idled longest in the last 7 days, or in the span that is asked for."""
    asked = _span(start, to, state.clock.now())
    with state.store.read() as connection:
        lines, excluded = idle_gpus(
            connection,
            who,
            GpuFilter(node, contract, model),
            asked,
            include is not None,
            order == "held",
            limit,
        )
    items = [_idle(line, price) for line in lines]
    whole = IdleAnswer(
        since=stamp(asked.since) or "",
        until=stamp(asked.until) or "",
        order=order,
        includes_simulated=include is not None,
        excluded_simulated_gpus=excluded,
        items=items,
    )
    return answer(request, whole, items, IdleLine, format)


def _span(start: str | None, to: str | None, now: float) -> Span:
    """What is asked for; without an end up to the last full hour, since only whole periods are there."""
    return span(start, to, now - now % HOUR if to is None else now, 7 * DAY, _LONGEST)


def _figures(line: Line, price: float | None) -> Figures:
    return figures(line.tally, line.known, line.possible, price)


def _line(line: Line, by: By | None, price: float | None) -> UsageLine:
    card = line.card
    named: dict[str, str | int | None] = {}
    if by is By.GPU and card is not None:
        named = {
            "uid": card.uid, "index": card.index, "name": card.name, "source": card.source, "node": card.node,
            "hostname": card.hostname, "contract_number": card.contract,
        }  # fmt: skip
    elif by is By.NODE and card is not None:
        named = {"node": card.node, "hostname": card.hostname, "contract_number": card.contract}
    elif by is By.CONTRACT:
        named = {"contract_number": line.key}
    elif by is By.DAY:
        named = {"day": (stamp(line.day) or "")[:10]}
    elif by is not None:
        named = {by.value: line.key}
    return msgspec.convert(
        {**named, "origin": line.origin, "simulated": line.origin != REAL, **asdict(_figures(line, price))},
        UsageLine,
    )


def _idle(line: Line, price: float | None) -> IdleLine:
    card, of = line.card, _figures(line, None)
    assert card is not None
    tally = line.tally
    seconds = tally.counter_seconds + tally.power_seconds
    joules = tally.counter_joules + tally.power_joules
    kwh = joules / seconds * tally.idle / 3.6e6 if seconds and of.idle_hours is not None else None
    return IdleLine(
        uid=card.uid, index=card.index, name=card.name, node=card.node, hostname=card.hostname,
        contract_number=card.contract, source=card.source, simulated=card.origin != REAL, gpu_hours=of.gpu_hours,
        coverage=of.coverage, idle_hours=of.idle_hours, idle_coverage=of.idle_coverage,
        held_idle_hours=of.held_idle_hours, held_idle_coverage=of.held_idle_coverage,
        idle_energy_estimated_kwh=None if kwh is None else round(kwh, 4),
        idle_money_estimated=None if kwh is None or price is None else round(kwh * price, 4),
    )  # fmt: skip
