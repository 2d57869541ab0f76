"""Processes that were on GPUs."""

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
from gpu_monitor.server.store.history import Process, Wanted, list_processes
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/processes", tags=["history"], dependencies=[Depends(refuse_unknown)])


class ProcessPage(msgspec.Struct, frozen=True):
    """Processes, last seen first."""

    items: list[Process]
    next: str | None


@router.get("", summary="Processes on GPUs", **answers(ProcessPage, "A page of processes", csv=True))
def processes(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    gpu: Text = None,
    user: Text = None,
    experiment_id: Text = None,
    start: From = None,
    to: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Processes that were there in the span, at most 31 days; of the last day where nothing is said."""
    asked = span(start, to, state.clock.now(), DAY, 31 * DAY)
    mark = read_cursor(cursor, tuple[float, int])
    equal = tuple(
        (name, value)
        for name, value in (("user", user), ("experiment_id", experiment_id))
        if value is not None
    )
    with state.store.read() as connection:
        found, last = list_processes(connection, who, Wanted(node, gpu, contract, equal), asked, mark, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, ProcessPage(found, next), found, Process, format, next)
