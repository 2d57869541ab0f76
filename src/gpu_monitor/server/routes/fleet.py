"""The fleet now."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Format, Include, Node, Reader, State, Text, refuse_unknown
from gpu_monitor.server.store.fleet import FleetGpu, FleetTotals, fleet_now
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/fleet", tags=["fleet"], dependencies=[Depends(refuse_unknown)])


class FleetNow(msgspec.Struct, frozen=True, kw_only=True):
    """Totals over every GPU asked for, and a row for each. Totals hold no simulated GPU unless `includes_simulated`."""

    time: str
    totals: FleetTotals
    includes_simulated: bool
    excluded_simulated_gpus: int
    items: list[FleetGpu]  # type: ignore[valid-type]  # made from the catalogue
    next: str | None


@router.get("", summary="The fleet now", **answers(FleetNow, "Totals and one row per GPU", csv=True))
def fleet(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    model: Text = None,
    source: Text = None,
    simulated: bool | None = None,
    status: Text = None,
    include: Include = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="most rows in one answer")] = 10_000,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """What every GPU does now, from its newest live sample or period. Values too old to count as now are null."""
    start = (read_cursor(cursor, tuple[int]) or (0,))[0]
    wanted = GpuFilter(node, contract, model, source, simulated, status)
    now = state.clock.now()
    with state.store.read() as connection:
        found = fleet_now(connection, who, wanted, now, include is not None)
    rows = found.rows[start : start + limit] if start >= 0 else []
    next = write_cursor(start + limit) if len(found.rows) > start + limit else None
    whole = FleetNow(
        time=stamp(round(now, 3)) or "",
        totals=found.totals,
        includes_simulated=include is not None,
        excluded_simulated_gpus=found.excluded,
        items=rows,
        next=next,
    )
    return answer(request, whole, rows, FleetGpu, format, next)
