"""The agents' endpoints before the framework: trouble is told as problems, and what was refused is let go of at once."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.concurrency import run_in_threadpool

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import StorageCorrupt, StorageUnreachable
from gpu_monitor.server.app import Outermost
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.ingest.body import Arrivals, Body
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.ingest import IngestFront
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.wire.intake import Malformed
from gpu_monitor.wire.telemetry import join
from tests.server.posts import encode, make_report

LOCAL = Principal("local", "the local token", frozenset(("report:write",)))
BIG = encode(make_report(gpus=[{"uid": f"GPU-{number}", "name": "x" * 60} for number in range(10_000)]))
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


class Gate:
    """Asks a database that is in trouble; None: it is not, and everybody is the local user."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble

    async def identify(self, _connection: Any) -> Principal:
        """What the database says."""
        if self.trouble is not None:
            raise self.trouble
        return LOCAL


async def ask(
    gate: Gate, body: bytes = b"{}", path: str = "/api/metrics", encoding: str = "", times: int = 1
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The last answer to a body that is sent so many times."""
    state: Any = SimpleNamespace(
        gate=gate, arrivals=Arrivals(), shaper=Shaper(), clock=SystemClock(), metrics=OwnMetrics()
    )

    async def app(*_: Any) -> None:
        raise AssertionError("this path is not the framework's")

    front = Outermost(IngestFront(app, state), state)
    headers = [(b"content-encoding", encoding.encode())] if encoding else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    for _ in range(times):
        messages.clear()
        await front(scope, receive, send)
    start, end = messages
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, json.loads(end["body"])


@pytest.mark.parametrize(
    ("trouble", "status", "retry"),
    [
        (StorageUnreachable("cannot reach the database"), 503, "5"),
        (StorageCorrupt("the database is damaged"), 500, None),
        (RuntimeError("nobody foresaw this"), 500, None),
    ],
)
def test_a_token_that_cannot_be_looked_up_is_answered_as_a_problem(
    trouble: Exception, status: int, retry: str | None
) -> None:
    code, headers, told = asyncio.run(ask(Gate(trouble)))
    assert (code, told["status"]) == (status, status)
    assert headers["content-type"] == "application/problem+json"
    assert headers.get("retry-after") == retry
    assert str(trouble) not in json.dumps(told)


@pytest.mark.parametrize(
    ("body", "path", "encoding", "status"),
    [
        (BIG, "/api/metrics", "", 422),
        (gzip.compress(BIG), "/api/metrics", "gzip", 422),
        (DEEP, "/api/metrics", "", 422),
        (DEEP, "/api/samples", "", 422),
        (BIG[:-1], "/api/metrics/batch", "", 422),
        (gzip.compress(bytes(9 << 20)), "/api/metrics", "gzip", 413),
    ],
)
def test_a_refused_body_is_let_go_of_at_once(body: bytes, path: str, encoding: str, status: int) -> None:
    """Without looking for cycles: the server does so once in a long while."""

    async def count() -> int:
        code, _, _ = await ask(Gate(), body, path, encoding, times=8)
        assert code == status
        await run_in_threadpool(int)  # the thread has put away the last body then
        held = [one for one in gc.get_objects() if id(one) not in before]
        problems = [one for one in held if type(one) in (Problem, Malformed)]
        assert len(problems) <= 1, "more than the last one, which the loop holds"
        return sum(type(one) is Body for one in held)

    gc.collect()
    gc.disable()
    # What other tests of this process left is not meant; it is held, so that no new object takes its place.
    others = [one for one in gc.get_objects() if type(one) in (Problem, Malformed, Body)]
    before = set(map(id, others))
    try:
        assert asyncio.run(count()) == 0
    finally:
        gc.enable()


def test_wrong_reports_of_a_batch_hold_no_frames() -> None:
    state: Any = SimpleNamespace(
        gate=Gate(), arrivals=Arrivals(), shaper=Shaper(), clock=SystemClock(), metrics=OwnMetrics(),
        watch=SimpleNamespace(seconds=lambda _node: None),
    )  # fmt: skip
    not_reached: Any = None
    front = IngestFront(not_reached, state)
    answers: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": join([b'{"schema":1}'] * 3 + [BIG]), "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async def count() -> int:
        scope = {"type": "http", "method": "POST", "path": "/api/metrics/batch", "headers": []}
        await front(scope, receive, send)
        await run_in_threadpool(int)
        return sum(type(one) is Body for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(count()) == 0
    finally:
        gc.enable()
    assert answers[0]["status"] == 200
