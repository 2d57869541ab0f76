"""Projects that hold experiments."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Format, Limit, Reader, State, Text, refuse_unknown
from gpu_monitor.server.routes.experiment_parts import LongCursor, read_text_cursor
from gpu_monitor.server.store.project_list import Mark, Project, list_projects

router = APIRouter(prefix="/api/projects", tags=["experiments"], dependencies=[Depends(refuse_unknown)])


class ProjectPage(msgspec.Struct, frozen=True):
    """Projects by name."""

    items: list[Project]
    next: str | None


@router.get("", summary="Every project", **answers(ProjectPage, "A page of projects", csv=True))
def projects(
    request: Request,
    state: State,
    who: Reader,
    contract: Text = None,
    limit: Limit = 100,
    cursor: LongCursor = None,
    format: Format = None,
) -> Response:
    """The projects that the asker may see."""
    after = read_text_cursor(cursor, Mark)
    with state.store.read() as connection:
        found, last = list_projects(connection, who, contract, after, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, ProjectPage(found, next), found, Project, format, next)
