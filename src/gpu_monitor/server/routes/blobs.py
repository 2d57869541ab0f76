"""Files of experiments by the SHA-256 of their bytes: brought in pieces, given out as attachments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from gpu_monitor.core.errors import StorageFull
from gpu_monitor.server.answers import json_answer, missing
from gpu_monitor.server.auth.contracts import ensure_contract
from gpu_monitor.server.experiments.authors import author_of
from gpu_monitor.server.experiments.blobs import Elsewhere, NotThatFile, OverQuota
from gpu_monitor.server.parameters import Reader, State, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.segments import taking
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.blob_rows import BlobRow, visible_blob
from gpu_monitor.server.store.segment_write import Author

router = APIRouter(prefix="/api/blobs", tags=["experiments"], dependencies=[Depends(refuse_unknown)])
Digest = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file, in hexadecimal digits")
]
_FARTHEST = 1 << 53
_T = TypeVar("_T")
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class BlobHeld(msgspec.Struct, frozen=True):
    """How much of the file is held; `complete`: all of it, and its digest is right."""

    offset: int
    complete: bool


@router.head(
    "/{sha256}",
    summary="How far a file was brought",
    response_class=Response,
    responses={
        200: {"description": "All of it is here; `Content-Length` is its size"},
        404: {"description": "Not all of it; `Upload-Offset` says where to go on"},
    },
)
async def find(request: Request, state: State, sha256: Digest) -> Response:
    """Of what the asker's own contract brought: others' files are never here for them."""
    author = await author_of(request, state)
    contract = await _contract(state, author)
    found = await _aside(state, lambda: state.blobs.state(contract, sha256))
    headers = {"Upload-Offset": str(found.offset)}
    if found.is_whole:
        return Response(None, 200, {**headers, "Content-Length": str(found.offset)})
    return Response(None, 404, {**headers, "Content-Length": "0"})


@router.put(
    "/{sha256}",
    summary="Bring a part of a file",
    **taking(
        BlobHeld, "It is held", _BYTES,
        _409="It is held up to `offset`, before what was sent: go on from there",
        _413="More than 2 MiB at once",
        _422="All bytes are here and are not those of the digest: they were discarded",
    ),
)  # fmt: skip
async def put(
    request: Request,
    state: State,
    sha256: Digest,
    offset: Annotated[int, Query(ge=0, le=_FARTHEST, description="where it begins in the file")],
    size: Annotated[
        int | None,
        Query(ge=0, le=_FARTHEST, description="of the whole file: with its last part it is verified"),
    ] = None,
) -> Response:
    """2 MiB at most. It counts once its bytes have the digest. Where `size` is not given, an empty part at the end
    says that it is all. `Content-Digest` is held against each part where it is given."""
    author = await author_of(request, state)
    body = await state.segments.body(request)
    contract = await _contract(state, author)
    try:
        held = await _aside(state, lambda: state.blobs.put(contract, sha256, offset, body.data, size))
    except Elsewhere as error:
        raise Problem(409, "Elsewhere", f"{error.offset} bytes are held.", offset=error.offset) from None
    except NotThatFile:
        reason = "The bytes are not those of the digest: they were discarded."
        raise Problem(422, "The upload is not valid", reason) from None
    except OverQuota:
        state.metrics.count("uploads_refused_total", reason="quota")
        raise Problem(507, "No room", "The files of the contract would come to more than they may.") from None
    except StorageFull as error:
        state.metrics.count("uploads_refused_total", reason="full")
        raise Problem(507, "No room", f"{error.message}; the part was not stored.") from None
    return json_answer(BlobHeld(held.offset, held.is_whole))


@router.get(
    "/{sha256}",
    summary="A file",
    response_class=FileResponse,
    responses={200: {"description": "The file, as an attachment", "content": _BYTES}},
)
async def get(
    state: State,
    who: Reader,
    sha256: Digest,
    name: Annotated[
        str | None,
        Query(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/\\]+$", description="what to save it as"),
    ] = None,
) -> Response:
    """For whoever may see an experiment that names it. Never shown by a browser as a page."""

    def ask() -> BlobRow | None:
        with state.store.read() as connection:
            return visible_blob(connection, who, sha256)

    row = await run_in_threadpool(ask)
    if row is None:
        raise missing("file", sha256)
    return blob_response(state, row, name)


def blob_response(state: ServerState, row: BlobRow, name: str | None = None) -> Response:
    """A file that the asker may see, as an attachment called `name`; Problem 404 where its bytes are gone."""
    path = state.blobs.path_of(row.sha256)
    if not path.is_file():
        raise Problem(404, "Not found", "The file is lost: its bytes are not in BLOBS_DIRECTORY any more.")
    headers = {"ETag": f'"{row.sha256}"', "X-Content-Type-Options": "nosniff", "Cache-Control": "private"}
    return FileResponse(
        path, headers=headers, media_type="application/octet-stream", filename=name or row.sha256
    )


async def _contract(state: ServerState, author: Author) -> int:
    """The id of the contract that is written for; of a token of every contract its row is made where it is missing."""
    if author.contract is not None:
        return author.contract

    def ensure() -> int:
        with state.store.write() as connection:
            return ensure_contract(connection, author.number)

    return await run_in_threadpool(ensure)


async def _aside(state: ServerState, work: Callable[[], _T]) -> _T:
    """What `work` gives, in a thread of the files."""
    return await asyncio.get_running_loop().run_in_executor(state.blobs.threads, work)
