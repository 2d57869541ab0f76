"""Where agents deliver: reports, single and in batches, and live samples. Bodies are read by msgspec, not by the framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gpu_monitor.server.auth.principal import check_scope
from gpu_monitor.server.ingest.body import ENCODINGS, Body, invalid, open_body
from gpu_monitor.server.ingest.reading import Sender, read_many, read_samples, read_single, sender_of
from gpu_monitor.server.ingest.writer import Failed, Overloaded, Result, Work
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.write import Answer, SetAside, Submission
from gpu_monitor.wire.intake import Malformed

router = APIRouter()

_ASIDE = 256 << 10
"""A longer body is read in another thread, so that it does not hold up everybody's requests."""
_T = TypeVar("_T")


class Accepts(msgspec.Struct, frozen=True):
    """What this server takes beside plain single reports; URLs are relative to that of single reports."""

    watch_seconds: int | None
    encodings: tuple[str, ...] = ENCODINGS
    batch: str = "metrics/batch"
    samples: str = "samples"


class Taken(msgspec.Struct, frozen=True):
    """The answer to a report that is safe."""

    uid: str
    sha256: str
    outcome: str
    revision: int
    quarantined: Sequence[SetAside]
    accepts: Accepts
    node_token: str | msgspec.UnsetType = msgspec.UNSET


class TakenPart(msgspec.Struct, frozen=True):
    """The same of one report of a batch."""

    report_id: str
    uid: str
    sha256: str
    outcome: str
    revision: int
    quarantined: Sequence[SetAside]
    status: int = 200
    node_token: str | msgspec.UnsetType = msgspec.UNSET


class RefusedPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why one report of a batch was not taken."""

    report_id: str | None
    status: int
    title: str
    detail: str
    field: str
    reason: str
    revision: int | None = None


class Answers(msgspec.Struct, frozen=True):
    """The answer to a batch, in its order."""

    answers: list[TakenPart | RefusedPart]
    accepts: Accepts


_encode = msgspec.json.Encoder().encode


async def post_report(request: Request) -> Response:
    """Take one report: answered once it is safe."""
    state, sender = await _greet(request)
    body = await _body(request, state)
    try:
        submission = await _aside(body, lambda: read_single(state.shaper, body, sender))
    except Malformed as error:
        state.metrics.count("rejects_total", reason="invalid")
        raise invalid(error.field, error.reason) from None
    (answer,) = await _write(state, [submission], len(body.data))
    if isinstance(answer, Refusal):
        state.metrics.count("rejects_total", reason=str(answer.status))
        raise _problem(answer)
    assert answer is not None
    state.metrics.count("reports_total", outcome=answer.outcome)
    accepts = Accepts(state.watch.seconds(submission.shaped.intake.node.id))
    token = answer.node_token or msgspec.UNSET
    return _json(
        Taken(
            answer.report_id,
            answer.sha256,
            answer.outcome,
            answer.revision,
            answer.quarantined,
            accepts,
            token,
        )
    )


async def post_batch(request: Request) -> Response:
    """Take many reports at once: each is answered for itself, once all are safe."""
    state, sender = await _greet(request)
    body = await _body(request, state)
    try:
        parts = await _aside(body, lambda: read_many(state.shaper, body, sender))
    except Malformed as error:
        raise invalid(error.field, error.reason) from None
    submissions = [part for part in parts if not isinstance(part, Malformed)]
    written = iter(await _write(state, submissions, len(body.data)) if submissions else ())
    answers: list[TakenPart | RefusedPart] = []
    watched: int | None = None
    for part in parts:
        if isinstance(part, Malformed):
            state.metrics.count("rejects_total", reason="invalid")
            answers.append(
                RefusedPart(None, 422, "The report is not valid", part.message, part.field, part.reason)
            )
            continue
        watched = watched or state.watch.seconds(part.shaped.intake.node.id)
        answers.append(_part(state, part, next(written)))
    return _json(Answers(answers, Accepts(watched)))


async def post_samples(request: Request) -> Response:
    """Take live samples of one node: best effort, idempotent by GPU and time."""
    state, sender = await _greet(request)
    body = await _body(request, state)
    try:
        batch = await _aside(body, lambda: read_samples(state.shaper, body, sender))
    except Malformed as error:
        state.metrics.count("rejects_total", reason="samples")
        raise invalid(error.field, error.reason) from None
    (refused,) = await _write(state, [batch], len(body.data))
    if isinstance(refused, Refusal):
        state.metrics.count("rejects_total", reason=str(refused.status))
        raise _problem(refused)
    state.metrics.count("samples_total", len(batch.kept))
    return _json({"accepts": Accepts(state.watch.seconds(batch.node.id))})


async def options(_request: Request) -> Response:
    """Say what is taken beside plain single reports."""
    return _json({"accepts": Accepts(None)}, {"Allow": "OPTIONS, POST"})


router.add_route("/api/metrics", post_report, methods=["POST"], include_in_schema=False)
router.add_route("/api/metrics", options, methods=["OPTIONS"], include_in_schema=False)
router.add_route("/api/metrics/batch", post_batch, methods=["POST"], include_in_schema=False)
router.add_route("/api/samples", post_samples, methods=["POST"], include_in_schema=False)
router.add_route("/api/samples", options, methods=["OPTIONS"], include_in_schema=False)
router.add_route("/api/metrics/batch", options, methods=["OPTIONS"], include_in_schema=False)


async def _greet(request: Request) -> tuple[ServerState, Sender]:
    """Who sends, before a byte of the body is looked at."""
    state: ServerState = request.app.state.server
    principal = await state.gate.identify(request)
    check_scope(principal, "report:write")
    return state, sender_of(principal, request.headers, state.clock.now())


async def _body(request: Request, state: ServerState) -> Body:
    sent = await state.arrivals.read(request)
    encoding, digest = request.headers.get("content-encoding"), request.headers.get("content-digest")
    if len(sent) <= _ASIDE and not encoding:
        return open_body(sent, None, digest)
    return await run_in_threadpool(open_body, sent, encoding and encoding.strip().lower(), digest)


async def _aside(body: Body, read: Callable[[], _T]) -> _T:
    return read() if len(body.data) <= _ASIDE else await run_in_threadpool(read)


async def _write(state: ServerState, work: Sequence[Work], size: int) -> list[Result]:
    try:
        return await state.writer.write(work, size)
    except Overloaded as error:
        headers = {"Retry-After": str(error.seconds)}
        raise Problem(503, "Busy", "More comes than can be written now.", headers=headers) from None
    except Failed as error:
        if error.is_full:
            raise Problem(507, "No room", "The server's disk is full; the report was not taken.") from None
        headers = {"Retry-After": "10"}
        raise Problem(503, "Database away", "The database cannot be written now.", headers=headers) from None


def _part(state: ServerState, submission: Submission, answer: Result) -> TakenPart | RefusedPart:
    report_id = submission.shaped.intake.report_id
    if isinstance(answer, Answer):
        state.metrics.count("reports_total", outcome=answer.outcome)
        return TakenPart(
            report_id, answer.report_id, answer.sha256, answer.outcome, answer.revision, answer.quarantined,
            node_token=answer.node_token or msgspec.UNSET,
        )  # fmt: skip
    assert answer is not None
    state.metrics.count("rejects_total", reason=str(answer.status))
    detail = f"{answer.field}: {answer.reason}"
    return RefusedPart(
        report_id, answer.status, answer.title, detail, answer.field, answer.reason, answer.revision
    )


def _problem(refusal: Refusal) -> Problem:
    more: dict[str, Any] = {} if refusal.revision is None else {"revision": refusal.revision}
    detail = f"{refusal.field}: {refusal.reason}"
    more |= {"field": refusal.field, "reason": refusal.reason}
    return Problem(refusal.status, refusal.title, detail, **more)


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(content), 200, headers, "application/json")
