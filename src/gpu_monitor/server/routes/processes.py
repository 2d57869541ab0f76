"""Processes that were on GPUs."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Text, refuse_unknown
from gpu_monitor.server.routes.history import Asked
from gpu_monitor.server.store.history import Process, list_processes
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/processes", tags=["history"], dependencies=[Depends(refuse_unknown)])


class ProcessPage(msgspec.Struct, frozen=True):
    """Processes, last seen first."""

    items: list[Process]
    next: str | None


@router.get("", summary="Processes on GPUs", **answers(ProcessPage, "A page of processes", csv=True))
def processes(asked: Asked, user: Text = None, experiment_id: Text = None) -> Response:
    """Processes that were there in the span, at most 31 days; of the last day where nothing is said."""
    return asked.page(
        list_processes, ProcessPage, Process, (DAY, 31 * DAY), user=user, experiment_id=experiment_id
    )
