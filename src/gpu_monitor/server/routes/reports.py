"""Reports that were received, what of them was set aside, and where some are missing."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, invalid, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import (
    Cursor,
    Format,
    From,
    Limit,
    Node,
    Reader,
    State,
    Text,
    To,
    refuse_unknown,
    span,
)
from gpu_monitor.server.store.reports import (
    LEGEND,
    Quarantined,
    Report,
    ReportFilter,
    Strip,
    list_quarantined,
    list_reports,
    strips,
)
from gpu_monitor.server.store.span import DAY
from gpu_monitor.server.store.values import hour_stamp

router = APIRouter(prefix="/api/reports", tags=["reports"], dependencies=[Depends(refuse_unknown)])


class ReportPage(msgspec.Struct, frozen=True):
    """Receipts, newest period first."""

    items: list[Report]
    next: str | None


class QuarantinePage(msgspec.Struct, frozen=True):
    """What is set aside, newest first."""

    items: list[Quarantined]
    next: str | None


class StripPage(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes with a letter for each hour from `since` on; `legend` says what the letters mean."""

    since: str
    until: str
    legend: dict[str, str]
    items: list[Strip]
    next: str | None


@router.get("", summary="Reports received", **answers(ReportPage, "A page of receipts", csv=True))
def reports(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    start: From = None,
    to: To = None,
    quarantined: Annotated[
        bool | None, Query(description="only those with or without a part set aside")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """The receipt of each period that begins in the span; of the last 7 days where nothing is said."""
    asked = span(start, to, state.clock.now(), 7 * DAY, 3660 * DAY)
    mark = read_cursor(cursor, tuple[int, int])
    with state.store.read() as connection:
        found, last = list_reports(
            connection, who, ReportFilter(node, contract, quarantined), asked, mark, limit
        )
    next = None if last is None else write_cursor(*last)
    return answer(request, ReportPage(found, next), found, Report, format, next)


@router.get("/quarantine", summary="What was set aside", **answers(QuarantinePage, "A page of it", csv=True))
def quarantined(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """GPU entries that could not be taken, each with field and reason, and reports that came before their time."""
    mark = read_cursor(cursor, tuple[int])
    with state.store.read() as connection:
        wanted = ReportFilter(node, contract)
        found, last = list_quarantined(connection, who, wanted, None if mark is None else mark[0], limit)
    next = None if last is None else write_cursor(last)
    return answer(request, QuarantinePage(found, next), found, Quarantined, format, next)


@router.get("/strip", summary="Coverage, hour by hour", **answers(StripPage, "A strip per node", csv=True))
def strip(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    start: From = None,
    to: To = None,
    limit: Limit = 200,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Which hours of which node are here, whole, in part, late or not at all; of the last 7 days, 31 at most."""
    now = state.clock.now()
    asked = span(start, to, now, 7 * DAY, 31 * DAY)
    if asked.first_hour >= asked.end_hour:
        raise invalid("from", "no hour begins in the span")
    after = read_cursor(cursor, tuple[int]) or (0,)
    with state.store.read() as connection:
        found, last = strips(connection, who, ReportFilter(node, contract), asked, now, after[0], limit)
    next = None if last is None else write_cursor(last)
    whole = StripPage(
        since=hour_stamp(asked.first_hour) or "",
        until=hour_stamp(asked.end_hour) or "",
        legend=LEGEND,
        items=found,
        next=next,
    )
    return answer(request, whole, found, Strip, format, next)
