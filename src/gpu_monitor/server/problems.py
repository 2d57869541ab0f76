"""Errors of the API as problem details (RFC 9457): one shape, whatever went wrong."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from gpu_monitor.core.errors import StorageBusy, StorageError, StorageFull, StorageUnreachable
from gpu_monitor.server.page import not_found_page

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
}
"""What OpenAPI says of every refusal."""
_LOG = logging.getLogger("server")


class Problem(Exception):
    """A request that is refused: raise it anywhere in a route; `extra` become members of the answer."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(title)
        self.status, self.title, self.detail = status, title, detail
        self.headers, self.extra = dict(headers or {}), extra


def problem_body(status: int, title: str, detail: str | None = None, **extra: Any) -> bytes:
    """The JSON of a problem, for those who answer without a framework."""
    whole = {"type": "about:blank", "title": title, "status": status}
    if detail is not None:
        whole["detail"] = detail
    return msgspec.json.encode({**whole, **extra})


def problem_response(problem: Problem) -> Response:
    """The answer that says what was refused."""
    body = problem_body(problem.status, problem.title, problem.detail, **problem.extra)
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Make every refusal of the application, the framework's own too, a problem answer."""
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StorageError, _storage)
    app.add_exception_handler(Exception, _crash)  # the framework raises it again; server.app logs it


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(not_found_page(request.url.path), 404, {"Vary": "Accept"})
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else None
    return problem_response(Problem(error.status_code, title, detail, headers=error.headers))


async def _invalid(_request: Request, error: Exception) -> Response:
    """What is wrong with which field; never the value, which may be a password."""
    assert isinstance(error, RequestValidationError)
    wrong = [{"field": _place(one["loc"]), "reason": str(one["msg"])} for one in error.errors()]
    detail = "; ".join(f"{one['field']}: {one['reason']}" for one in wrong[:5])
    return problem_response(Problem(422, "The request is not valid", detail, errors=wrong))


def storage_problem(error: StorageError, method: str, path: str) -> Problem:
    """What the database's trouble means for who asks: later (503), or no room (507); the log says what it is."""
    level = logging.WARNING if isinstance(error, StorageBusy) else logging.CRITICAL
    _LOG.log(level, "%s %s: %s", method, path, error.message)
    if isinstance(error, StorageFull):
        return Problem(507, "No room", "The disk of the database is full; nothing was stored.")
    if isinstance(error, (StorageBusy, StorageUnreachable)):
        later = {"Retry-After": str(RETRY_SECONDS)}
        return Problem(503, "Not now", "The database cannot be used now.", headers=later)
    return Problem(500, "Internal error", "The database refused; the log of the server says why.")


def let_go(error: BaseException) -> None:
    """Cut an error that has been dealt with from the frames it came through, and from what caused it.

    Those frames hold the request's body, and a future among them the error: only looking for cycles, which is
    seldom done here, would free it.
    """
    chain = [error]
    while chain:
        one = chain.pop()
        chain += [other for other in (one.__cause__, one.__context__) if other is not None]
        one.__traceback__ = one.__cause__ = one.__context__ = None


async def _storage(request: Request, error: Exception) -> Response:
    assert isinstance(error, StorageError)
    return problem_response(storage_problem(error, request.method, request.url.path))


async def _crash(request: Request, error: Exception) -> Response:
    """A mistake of ours: what it was stands in the log, and in the answer only with DEBUG on loopback."""
    settings = request.app.state.server.settings
    detail = "This was logged; the log of the server says what happened."
    extra: dict[str, Any] = {}
    if settings.debug and not settings.is_exposed:
        extra = {"traceback": "".join(traceback.format_exception(error)).splitlines()}
    return problem_response(Problem(500, "Internal error", detail, **extra))


def _place(location: tuple[int | str, ...]) -> str:
    """`query.limit`, `body.name`."""
    return ".".join(str(part) for part in location)
