"""Whether the server lives, and whether it can do its work: answers that a supervisor may act on."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> dict[str, str]:
    """200 while the process lives and its event loop turns: a supervisor restarts it where this fails."""
    return {"status": "ok"}
