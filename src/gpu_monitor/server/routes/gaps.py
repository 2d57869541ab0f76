"""Stretches without data, and why."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, read_cursor, write_cursor
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
from gpu_monitor.server.store.history import Gap, Wanted, list_gaps
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/gaps", tags=["history"], dependencies=[Depends(refuse_unknown)])


class GapPage(msgspec.Struct, frozen=True):
    """Gaps, newest begun first."""

    items: list[Gap]
    next: str | None


@router.get("", summary="Stretches without data", **answers(GapPage, "A page of gaps", csv=True))
def gaps(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    gpu: Text = None,
    cause: Text = None,
    start: From = None,
    to: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Gaps that touch the span, each with its cause; of the last 7 days where nothing is said."""
    asked = span(start, to, state.clock.now(), 7 * DAY, 3660 * DAY)
    mark = read_cursor(cursor, tuple[float, int])
    equal = tuple((name, value) for name, value in (("cause", cause),) if value is not None)
    with state.store.read() as connection:
        found, last = list_gaps(connection, who, Wanted(node, gpu, contract, equal), asked, mark, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, GapPage(found, next), found, Gap, format, next)
