"""Where agents deliver: reports, single and in batches, and live samples.

These answer before the framework is asked: its routing and its request and response objects take as long as
reading a report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.auth.principal import Principal, check_scope
from gpu_monitor.server.ingest.body import ENCODINGS, Body, invalid, open_body
from gpu_monitor.server.ingest.reading import Sender, read_many, read_samples, read_single, sender_of
from gpu_monitor.server.ingest.writer import READ_HERE, Failed, Overloaded, Result, Work
from gpu_monitor.server.problems import MEDIA_TYPE, Problem, let_go, problem_body, storage_problem
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.write import Answer, SetAside, Submission
from gpu_monitor.wire.intake import Malformed

_ASIDE = 256 << 10
"""A longer body is read in another thread, so that it does not hold up everybody's requests."""
_READERS = 2
"""Of longer bodies at once. Reading holds the interpreter's lock: 40 threads of the pool, each with a batch, took
twice as long for it as one after the other, and held 40 bodies decoded."""
_SCOPE = "report:write"
_JSON = b"application/json"
_T = TypeVar("_T")
_Headers = list[tuple[bytes, bytes]]
_NO_HEADERS: _Headers = []


class Accepts(msgspec.Struct, frozen=True):
    """What this server takes beside plain single reports; URLs are relative to that of single reports."""

    watch_seconds: int | None
    encodings: tuple[str, ...] = ENCODINGS
    batch: str = "metrics/batch"
    samples: str = "samples"
    experiments: str = "experiments"


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


class Desk:
    """One endpoint's work: from a body to the answer's JSON. Problem where it is refused."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._readers = asyncio.Semaphore(_READERS)

    async def aside(self, read: Callable[[], _T]) -> _T:
        """What `read` gives, called in another thread when it is its turn."""
        async with self._readers:
            return await run_in_threadpool(read)

    async def _read(self, body: Body, read: Callable[[], _T]) -> _T:
        return read() if len(body.data) <= _ASIDE else await self.aside(read)

    async def report(self, body: Body, sender: Sender) -> bytes:
        """Take one report: answered once it is safe."""
        state = self.state
        try:
            submission, answer = await self._read_and_write(
                body, lambda: read_single(state.shaper, body, sender)
            )
        except Malformed as error:
            state.metrics.count("rejects_total", reason="invalid")
            raise invalid(error.field, error.reason) from None
        if isinstance(answer, Refusal):
            raise self._problem(answer)
        assert answer is not None
        state.metrics.count("reports_total", outcome=answer.outcome)
        accepts = Accepts(state.watch.seconds(submission.shaped.intake.node.id))
        return _encode(
            Taken(
                answer.report_id, answer.sha256, answer.outcome, answer.revision, answer.quarantined, accepts,
                answer.node_token or msgspec.UNSET,
            )
        )  # fmt: skip

    async def batch(self, body: Body, sender: Sender) -> bytes:
        """Take many reports at once: each is answered for itself, once all are safe."""
        state = self.state
        try:
            parts = await self._read(body, lambda: read_many(state.shaper, body, sender))
        except Malformed as error:
            state.metrics.count("rejects_total", reason="invalid")
            raise invalid(error.field, error.reason) from None
        submissions = [part for part in parts if not isinstance(part, Malformed)]
        written = iter(await self._write(submissions, len(body.data)) if submissions else ())
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
        return _encode(Answers(answers, Accepts(watched)))

    async def samples(self, body: Body, sender: Sender) -> bytes:
        """Take live samples of one node: best effort, idempotent by GPU and time."""
        state = self.state
        try:
            batch = await self._read(body, lambda: read_samples(state.shaper, body, sender))
        except Malformed as error:
            state.metrics.count("rejects_total", reason="samples")
            raise invalid(error.field, error.reason) from None
        (refused,) = await self._write([batch], len(body.data))
        if isinstance(refused, Refusal):
            raise self._problem(refused)
        state.metrics.count("samples_total", len(batch.kept))
        return _encode({"accepts": Accepts(state.watch.seconds(batch.node.id))})

    async def _read_and_write(self, body: Body, read: Callable[[], Submission]) -> tuple[Submission, Result]:
        size = len(body.data)
        if size <= READ_HERE:
            return await self._ask(self.state.writer.read_and_write(read, size))
        submission = await self._read(body, read)
        (answer,) = await self._write([submission], size)
        return submission, answer

    async def _write(self, work: Sequence[Work], size: int) -> list[Result]:
        return await self._ask(self.state.writer.write(work, size))

    async def _ask(self, asked: Awaitable[_T]) -> _T:
        try:
            return await asked
        except Overloaded as error:
            headers = {"Retry-After": str(error.seconds)}
            raise Problem(503, "Busy", "More comes than can be written now.", headers=headers) from None
        except Failed as error:
            raise Problem(error.status, error.title, str(error), headers=error.headers) from None

    def _problem(self, refusal: Refusal) -> Problem:
        self.state.metrics.count("rejects_total", reason=str(refusal.status))
        more: dict[str, Any] = {} if refusal.revision is None else {"revision": refusal.revision}
        detail = f"{refusal.field}: {refusal.reason}"
        more |= {"field": refusal.field, "reason": refusal.reason}
        return Problem(refusal.status, refusal.title, detail, **more)


class IngestFront:
    """Answers the agents' requests; everything else goes on to the application."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state
        self._desk = desk = Desk(state)
        self._desks: dict[str, Callable[[Body, Sender], Awaitable[bytes]]] = {
            "/api/metrics": desk.report,
            "/api/metrics/batch": desk.batch,
            "/api/samples": desk.samples,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        desk = self._desks.get(scope["path"]) if scope["type"] == "http" else None
        if desk is None:
            await self._app(scope, receive, send)
            return
        status, kind, headers = 200, _JSON, _NO_HEADERS
        try:
            if scope["method"] == "POST":
                answer = await self._take(desk, scope, receive)
            elif scope["method"] == "OPTIONS":
                answer, headers = _encode({"accepts": Accepts(None)}), [(b"allow", b"OPTIONS, POST")]
            else:
                raise Problem(405, "Method Not Allowed", headers={"Allow": "OPTIONS, POST"})
        except (Problem, HTTPException, StorageError) as error:
            problem = _problem_of(error, scope)
            let_go(error)
            answer = problem_body(problem.status, problem.title, problem.detail, **problem.extra)
            status, kind, headers = problem.status, MEDIA_TYPE.encode(), _encoded(problem.headers)
        await _send(send, status, kind, answer, headers)

    async def _take(
        self, desk: Callable[[Body, Sender], Awaitable[bytes]], scope: Scope, receive: Receive
    ) -> bytes:
        """Who sends is known before a byte of the body is looked at."""
        state = self._state
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        principal = await self._identify(scope, headers)
        check_scope(principal, _SCOPE)
        sent = await state.arrivals.read(receive)
        encoding = headers.get(b"content-encoding", "").strip().lower()
        digest = headers.get(b"content-digest")
        if len(sent) <= _ASIDE and not encoding:
            body = open_body(sent, None, digest)
        else:
            body = await self._desk.aside(lambda: open_body(sent, encoding, digest))
        return await desk(body, sender_of(principal, headers, state.clock.now()))

    async def _identify(self, scope: Scope, headers: dict[bytes, str]) -> Principal:
        shown = headers.get(b"authorization", "")
        if shown.startswith("Bearer "):
            held = self._state.tokens.find_held(shown[7:])
            if held is not None:
                return held
        return await self._state.gate.identify(HTTPConnection(scope))


_encode = msgspec.json.Encoder().encode


def _problem_of(error: Exception, scope: Scope) -> Problem:
    if isinstance(error, HTTPException):  # a body too large or too slow
        return Problem(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, StorageError):  # whose token this is could not be asked
        return storage_problem(error, scope["method"], scope["path"])
    assert isinstance(error, Problem)
    return error


def _encoded(headers: Any) -> _Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _send(send: Send, status: int, kind: bytes, body: bytes, headers: _Headers) -> None:
    whole = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": whole})
    await send({"type": "http.response.body", "body": body})


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
