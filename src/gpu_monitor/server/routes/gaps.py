"""Stretches without data, and why."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Text, refuse_unknown
from gpu_monitor.server.routes.history import Asked
from gpu_monitor.server.store.history import Gap, list_gaps
from gpu_monitor.server.store.span import DAY

router = APIRouter(prefix="/api/gaps", tags=["history"], dependencies=[Depends(refuse_unknown)])


class GapPage(msgspec.Struct, frozen=True):
    """Gaps, newest begun first."""

    items: list[Gap]
    next: str | None


@router.get("", summary="Stretches without data", **answers(GapPage, "A page of gaps", csv=True))
def gaps(asked: Asked, cause: Text = None) -> Response:
    """Gaps that touch the span, each with its cause; of the last 7 days where nothing is said."""
    return asked.page(list_gaps, GapPage, Gap, (7 * DAY, 3660 * DAY), cause=cause)
