"""Whether the server lives, and whether it can do its work: answers that a supervisor may act on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from gpu_monitor.server.state import ServerState, state_of

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: str = "ok"


class Ready(BaseModel):
    """What was looked at."""

    ready: bool
    checks: dict[str, str] = Field(description="`ok`, or what is wrong, of each")


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> Alive:
    """200 while the process lives and its event loop turns: a supervisor restarts it where this fails."""
    return Alive()


@router.get(
    "/readyz",
    summary="Whether it can do its work",
    responses={503: {"model": Ready, "description": "Something is wrong; send requests elsewhere"}},
)
async def readyz(state: Annotated[ServerState, Depends(state_of)], response: Response) -> Ready:
    """200 where database, disk, writer and clock were looked at just now and are well; else 503 and what is wrong."""
    report = await state.readiness.report()
    response.status_code = 200 if report.is_ready else 503
    return Ready(ready=report.is_ready, checks={name: wrong or "ok" for name, wrong in report.found.items()})
