"""Where uploaders deliver experiments: segments by offset, signs of life, and the end of a process that others saw."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from gpu_monitor.server.answers import json_answer
from gpu_monitor.server.experiments.authors import SCOPE, author_of
from gpu_monitor.server.ingest.writer import Failed, Overloaded
from gpu_monitor.server.openapi import ProblemDetails
from gpu_monitor.server.parameters import State, refuse_unknown
from gpu_monitor.server.problems import MEDIA_TYPE, Problem
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.segment_draft import LATEST, written_json
from gpu_monitor.server.store.segment_write import Ending, Held, Refused, SignOfLife, Work

router = APIRouter(prefix="/api/experiments", tags=["experiments"], dependencies=[Depends(refuse_unknown)])
_FARTHEST = 1 << 53
_CAUSE_BYTES = 4096
_INTEGER = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
ExperimentId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="the experiment's id, as in its header"),
]
SegmentName = Annotated[str, Path(pattern=r"^seg-[a-z0-9]{8,64}$", description="as in its header")]


class SegmentHeld(msgspec.Struct, frozen=True):
    """The server holds the segment up to `offset` bytes. `status`: the experiment's."""

    offset: int
    status: str


class AliveBody(msgspec.Struct, frozen=True):
    """The writer of a segment lives. `at`: ms since the segment's start."""

    segment: _Word
    at: int = 0


class EndedBody(msgspec.Struct, frozen=True, kw_only=True):
    """A process that was seen to be gone. It must be the writer of a segment: its boot, when it started in ticks of
    it, and its pid in its innermost namespace (or, where that is not known, on its machine).

    `time`: UTC epoch seconds; `cause`: what is known of it (`signal`, `exit_code`, `oom`, `xid`, `reason`).
    """

    boot_id: _Word
    start_ticks: _INTEGER
    ns_pid: _INTEGER | None = None
    pid: _INTEGER | None = None
    time: Annotated[float, msgspec.Meta(ge=0, le=LATEST)]
    cause: dict[str, Any] = {}
    segment: _Word | None = None
    by: _Word = "agent"


class ExperimentEnded(msgspec.Struct, frozen=True):
    """What the experiment's status is now: the process's own last word counts more than what was seen of it."""

    experiment_id: str
    status: str


SHAPES: tuple[type[msgspec.Struct], ...] = (SegmentHeld, AliveBody, EndedBody, ExperimentEnded)


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def taking(kind: type[msgspec.Struct], text: str, body: dict[str, Any], **more: str) -> dict[str, Any]:
    """What a route that takes experiments says of itself: its body, its answer, its refusals (`_409="..."`)."""
    problem = {MEDIA_TYPE: {"schema": _ref(ProblemDetails)}}
    refusals = {
        401: "No token that is known, in force and not expired",
        403: "The token may not: its scope or its contract",
        503: "More comes than can be written now: again after Retry-After",
        507: "The disk is full; nothing was stored",
        **{int(status[1:]): words for status, words in more.items()},
    }
    return {
        "response_class": Response,
        "openapi_extra": {"requestBody": {"required": True, "content": body}, "security": [{"token": []}]},
        "responses": {200: {"description": text, "content": {"application/json": {"schema": _ref(kind)}}}}
        | {status: {"description": words, "content": problem} for status, words in sorted(refusals.items())},
    }


_LINES = {
    kind: {"schema": {"type": "string", "description": "whole lines"}}
    for kind in ("application/x-ndjson", "application/octet-stream")
}


@router.put(
    "/{experiment}/segments/{segment}",
    summary="Deliver a part of a segment",
    **taking(
        SegmentHeld, "It is safe", _LINES,
        _404="There is no such experiment, or it is another contract's",
        _409="It is held up to `offset`, before what was sent: go on from there",
        _410="The experiment was deleted here",
        _413="More than 1 MiB",
        _422="A line is not as docs/segments.md says, or the bytes differ from those that are held",
    ),
)  # fmt: skip
async def put_segment(
    request: Request,
    state: State,
    experiment: ExperimentId,
    segment: SegmentName,
    offset: Annotated[int, Query(ge=0, le=_FARTHEST, description="where it begins in the segment")],
) -> Response:
    """Whole lines, 1 MiB at most, as they are in the file. A repeat changes nothing. `Content-Digest` is held against
    them where it is given; gzip and zstd are taken."""
    author = await author_of(request, state)
    uploads = await state.segments.read(request, author, (experiment, segment, offset))
    for upload in uploads:
        held = await _written(state, upload)
    state.metrics.count("uploads_total")
    return json_answer(SegmentHeld(held.offset, held.status))


@router.post(
    "/{experiment}/alive",
    summary="Say that a run lives",
    **taking(
        SegmentHeld, "Heard: it counts for 60 s", {"application/json": {"schema": _ref(AliveBody)}},
        _404="There is no such experiment or segment, or it is another contract's",
        _410="The experiment was deleted here", _422="The request is not valid",
    ),
)  # fmt: skip
async def alive(request: Request, state: State, experiment: ExperimentId) -> Response:
    """For a run that logs less than once a minute; each upload says the same."""
    author = await author_of(request, state)
    said = await _said(request, state, AliveBody)
    held = await _written(state, SignOfLife(author, experiment, said.segment))
    return json_answer(SegmentHeld(held.offset, held.status))


@router.post(
    "/{experiment}/ended",
    summary="Say that a run's process is gone",
    **taking(
        ExperimentEnded, "Noted", {"application/json": {"schema": _ref(EndedBody)}},
        _404="There is no such experiment, or it is another contract's",
        _409="That process wrote no segment of the experiment",
        _410="The experiment was deleted here", _422="The request is not valid",
    ),
)  # fmt: skip
async def ended(request: Request, state: State, experiment: ExperimentId) -> Response:
    """What an agent saw of a registered run. A run that did not say itself how it ended has crashed, with this as
    proof."""
    author = await author_of(request, state, (SCOPE, "report:write"))
    said = await _said(request, state, EndedBody)
    if said.ns_pid is None and said.pid is None:
        raise Problem(422, "The request is not valid", "One of ns_pid and pid says which process it was.")
    work = Ending(
        author, experiment, said.segment, said.boot_id, said.start_ticks, said.ns_pid, said.pid, said.time,
        _cause(said.cause), said.by,
    )  # fmt: skip
    held = await _written(state, work)
    return json_answer(ExperimentEnded(experiment, held.status))


def _cause(cause: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(written_json(cause))
    except ValueError:
        size = _CAUSE_BYTES + 1
    if size > _CAUSE_BYTES:
        raise Problem(422, "The request is not valid", f"cause: {_CAUSE_BYTES} bytes of plain JSON at most.")
    return cause


async def _said(request: Request, state: ServerState, kind: Any) -> Any:
    body = await state.segments.body(request)
    try:
        return msgspec.json.decode(body.data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Problem(422, "The request is not valid", str(error)[:500]) from None


async def _written(state: ServerState, work: Work) -> Held:
    """What is held once it is safe; Problem where it is refused or cannot be written."""
    try:
        outcome = await state.experiments.write(work)
    except Overloaded as error:
        headers = {"Retry-After": str(error.seconds)}
        raise Problem(503, "Busy", "More comes than can be written now.", headers=headers) from None
    except Failed as error:
        raise Problem(error.status, error.title, str(error), headers=error.headers) from None
    if isinstance(outcome, Refused):
        state.metrics.count("uploads_refused_total", reason=str(outcome.status))
        more = {"offset": outcome.offset, "place": outcome.place}
        extra: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
        raise Problem(outcome.status, outcome.title, outcome.detail, **extra)
    return outcome
