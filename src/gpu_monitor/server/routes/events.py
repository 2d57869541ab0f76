"""Things that happened."""

from __future__ import annotations

from typing import Literal

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
from gpu_monitor.server.store.history import Event, Wanted, list_events
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/events", tags=["history"], dependencies=[Depends(refuse_unknown)])


class EventPage(msgspec.Struct, frozen=True):
    """Events, newest first."""

    items: list[Event]
    next: str | None


@router.get("", summary="Things that happened", **answers(EventPage, "A page of events", csv=True))
def events(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    gpu: Text = None,
    kind: Text = None,
    severity: Literal["info", "warning", "error", "critical"] | None = None,
    start: From = None,
    to: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Events in the span: GPUs lost, Xid errors, throttling, agents started; of the last 7 days where nothing is said."""
    asked = span(start, to, state.clock.now(), 7 * DAY, 3660 * DAY)
    mark = read_cursor(cursor, tuple[float, int])
    equal = tuple(
        (name, value) for name, value in (("kind", kind), ("severity", severity)) if value is not None
    )
    with state.store.read() as connection:
        found, last = list_events(connection, who, Wanted(node, gpu, contract, equal), asked, mark, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, EventPage(found, next), found, Event, format, next)
