"""What the framework calls when a request is refused or fails: every answer is a problem."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.page import not_found_page
from gpu_monitor.server.problems import Problem, problem_response, storage_problem


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
