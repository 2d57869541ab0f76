"""The application: every router, one line each, behind the limits and checks that all requests pass."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_monitor import __version__
from gpu_monitor.server import openapi_ingest
from gpu_monitor.server.api_shapes import SHAPES
from gpu_monitor.server.handlers import add_handlers
from gpu_monitor.server.limits import BodyLimits
from gpu_monitor.server.openapi import describe
from gpu_monitor.server.problems import (
    MEDIA_TYPE,
    PROBLEMS,
    RETRY_SECONDS,
    let_go,
    problem_body,
)
from gpu_monitor.server.routes import (
    alerts,
    blobs,
    channels,
    compare,
    docs,
    events,
    experiment_gpus,
    experiment_metrics,
    experiments,
    fleet,
    gaps,
    gpus,
    health,
    home,
    logs,
    media,
    metrics,
    models,
    nodes,
    processes,
    projects,
    reports,
    rules,
    segments,
    series,
    sessions,
    silences,
    tokens,
    usage,
    users,
    ws,
)
from gpu_monitor.server.routes.ingest import IngestFront
from gpu_monitor.server.security import Doorkeeper
from gpu_monitor.server.state import ServerState

_LOG = logging.getLogger("server")

ROUTERS = (
    home.router,
    docs.router,
    fleet.router,
    nodes.router,
    gpus.router,
    series.router,
    usage.router,
    reports.router,
    gaps.router,
    events.router,
    processes.router,
    projects.router,
    media.router,  # before the experiments, whose names may hold a slash
    experiment_gpus.router,
    experiments.router,
    experiment_metrics.router,
    logs.router,
    models.router,
    compare.router,
    segments.router,
    blobs.router,
    alerts.router,
    rules.router,
    silences.router,
    channels.router,
    metrics.router,
    health.router,
    sessions.router,
    tokens.router,
    users.router,
    ws.router,
)

DESCRIPTION = (
    "The flight recorder and the ledger of a GPU fleet: what the agents report, exactly once; what it says; who"
    " is told. Lists are `{items, next}`, times are UTC, errors are problem details (RFC 9457)."
)


def create_app(state: ServerState) -> ASGIApp:
    """The ASGI application around `state`; its parts run from the lifespan's start to its end."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with contextlib.ExitStack() as started:
            for part in state.parts:
                part.start()
                started.callback(part.stop)
            yield

    app = FastAPI(
        title="gpu_monitor",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        # The pages of the documentation come from this machine: see routes/docs.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    app.state.server = state
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    describe(app, (*SHAPES, *openapi_ingest.SHAPES), openapi_ingest.PATHS)
    return Outermost(Doorkeeper(BodyLimits(IngestFront(app, state)), state.settings), state)


class Outermost:
    """Logs and counts what nobody foresaw (problems answers it 500): the only place that catches everything."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except asyncio.CancelledError:
            # Only a stop cancels: this request took longer than the stop could wait.
            if scope["type"] == "http":
                with contextlib.suppress(RuntimeError):  # the answer had begun
                    await _answer_stopping(send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            self._state.metrics.count("errors_total")
            _LOG.exception("%s %s failed", scope["method"], scope["path"])
            let_go(error)
            if not begun:  # it came from a part that stands before the framework
                detail = "This was logged; the log of the server says what happened."
                await _answer(send, 500, problem_body(500, "Internal error", detail))


async def _answer_stopping(send: Send) -> None:
    body = problem_body(
        503, "Not now", "The server is stopping; whether this was done is not known. Try again."
    )
    await _answer(send, 503, body, (b"retry-after", str(RETRY_SECONDS).encode()), (b"connection", b"close"))


async def _answer(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
