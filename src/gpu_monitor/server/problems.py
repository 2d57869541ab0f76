"""Errors of the API as problem details (RFC 9457): one shape, whatever went wrong.

Commands beside the server load this, and not the framework with it: see `handlers`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from gpu_monitor.core.errors import StorageBusy, StorageError, StorageFull, StorageUnreachable

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
