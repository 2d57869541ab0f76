"""Things that happened."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Text, refuse_unknown
from gpu_monitor.server.routes.history import Asked
from gpu_monitor.server.store.history import Event, list_events
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/events", tags=["history"], dependencies=[Depends(refuse_unknown)])


class EventPage(msgspec.Struct, frozen=True):
    """Events, newest first."""

    items: list[Event]
    next: str | None


@router.get("", summary="Things that happened", **answers(EventPage, "A page of events", csv=True))
def events(
    asked: Asked, kind: Text = None, severity: Literal["info", "warning", "error", "critical"] | None = None
) -> Response:
    """Events in the span: GPUs lost, Xid errors, throttling, agents started; of the last 7 days where nothing is said."""
    return asked.page(list_events, EventPage, Event, (7 * DAY, 3660 * DAY), kind=kind, severity=severity)
