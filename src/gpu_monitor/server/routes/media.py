"""Pictures, tables, histograms and files of an experiment: what there is, and the files themselves."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import FileResponse, Response

from gpu_monitor.server.answers import answer, json_answer, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Format, Limit, Reader, State, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.blobs import blob_response
from gpu_monitor.server.routes.experiment_parts import LongCursor, MeantId, read_text_cursor, the_experiment
from gpu_monitor.server.store.blob_rows import BlobRow, held_by
from gpu_monitor.server.store.media_list import (
    Artifact,
    MediaFilter,
    MediaItem,
    find_artifact,
    list_artifacts,
    list_media,
)

router = APIRouter(prefix="/api/experiments", tags=["experiments"], dependencies=[Depends(refuse_unknown)])

_STRANGE = re.compile(
    r"[\x00-\x1f\x7f\\]|%(?:2e|2f|5c|00)|^/|^[a-z]:|(?:^|/)(?:\.{0,2})(?:/|$)", re.IGNORECASE
)
"""What no artifact's name has: control characters, backslashes, encoded dots and slashes, a beginning of an absolute
path, and parts that are empty, `.` or `..`."""


class MediaPage(msgspec.Struct, frozen=True, kw_only=True):
    """Records in the order in which they came."""

    experiment_id: str
    items: list[MediaItem]
    next: str | None


class ArtifactPage(msgspec.Struct, frozen=True, kw_only=True):
    """Artifacts by name."""

    experiment_id: str
    items: list[Artifact]
    next: str | None


@router.get(
    "/{id}/media",
    summary="An experiment's pictures, tables and files",
    **answers(MediaPage, "A page of them"),
)
def media(
    state: State,
    who: Reader,
    id: MeantId,
    kind: Annotated[
        list[str] | None,
        Query(
            max_length=10,
            description="image, histogram, table, graph, text, artifact, checkpoint, model; several: any of them",
        ),
    ] = None,
    name: Annotated[str | None, Query(min_length=1, max_length=500, pattern=r"^[^\x00]+$")] = None,
    step: Annotated[
        int | None, Query(ge=-(2**63), le=2**63 - 1, description="only those of this step")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """What an experiment logged beside numbers and output: small contents themselves, files by their digest."""
    wanted = MediaFilter(tuple(one.replace("\x00", "") for one in kind or ()), name, step)
    after = read_cursor(cursor, tuple[int]) or (-1,)
    with state.store.read() as connection:
        row = the_experiment(connection, who, id)
        found, last = list_media(connection, row.id, wanted, after[0], limit)
    next = None if last is None else write_cursor(last)
    return json_answer(MediaPage(experiment_id=row.uid, items=found, next=next))


@router.get(
    "/{id}/artifacts",
    summary="An experiment's artifacts",
    **answers(ArtifactPage, "A page of them", csv=True),
)
def artifacts(
    request: Request,
    state: State,
    who: Reader,
    id: MeantId,
    limit: Limit = 100,
    cursor: LongCursor = None,
    format: Format = None,
) -> Response:
    """The artifacts of an experiment, each as it was logged last under its name."""
    after = read_text_cursor(cursor, tuple[str]) or ("",)
    with state.store.read() as connection:
        row = the_experiment(connection, who, id)
        found, last = list_artifacts(connection, row.id, after[0], limit)
    next = None if last is None else write_cursor(last)
    page = ArtifactPage(experiment_id=row.uid, items=found, next=next)
    return answer(request, page, found, Artifact, format, next)


@router.get(
    "/{id}/artifacts/{name:path}",
    summary="An artifact's file",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The file, as an attachment",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def artifact(
    state: State,
    who: Reader,
    id: MeantId,
    name: Annotated[
        str, Path(min_length=1, max_length=500, description="a relative path with slashes, as in the list")
    ],
) -> Response:
    """The file that was logged last under this name. Never shown by a browser as a page."""
    if _STRANGE.search(name):
        reason = "no artifact has such a name: it is a relative path with slashes, without . and .. and backslashes"
        errors = [{"field": "path.name", "reason": reason}]
        raise Problem(422, "The request is not valid", f"path.name: {reason}", errors=errors)
    with state.store.read() as connection:
        row = the_experiment(connection, who, id)
        found = find_artifact(connection, row.id, name)
        held: BlobRow | None = None
        if found is not None and found.sha256 is not None:
            held = held_by(connection, row.contract, found.sha256.hex())
    if found is None:
        raise Problem(404, "Not found", f"The experiment has no artifact {name[:200]!r}.")
    if held is None:
        raise Problem(404, "Not found", f"The bytes of {name[:200]!r} have not come yet.")
    return blob_response(state, held, name.rpartition("/")[2])
