"""Limits that every request passes: how large its body may be, and how long it may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MIB = 1 << 20
DEFAULT_BYTES = 256 * 1024
"""No request of the API but the ones below needs more."""
LARGEST: tuple[tuple[str, int], ...] = (
    ("/api/metrics", 2 * _MIB),
    ("/api/samples", 2 * _MIB),
    ("/api/experiments", _MIB),
    ("/api/blobs", 2 * _MIB),
)
"""Bytes of an encoded body under a path; the longest path that fits counts."""
BODY_SECONDS = 30.0
"""The whole body must be there so long after the first look for it: 2 MiB at 70 kB/s."""
_CLOSE = {"Connection": "close"}


class BodyLimits:
    """Refuses bodies that are too large (413) or too slow (408), and then closes the connection."""

    def __init__(self, app: ASGIApp, seconds: float = BODY_SECONDS) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a body that is watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _WatchedBody(receive, limit_of(scope["path"]), self._seconds, _announced(scope))
        await self._app(scope, body.receive, send)


def limit_of(path: str) -> int:
    """How many bytes a body sent to `path` may have."""
    fitting = [(len(prefix), limit) for prefix, limit in LARGEST if path.startswith(prefix)]
    return max(fitting)[1] if fitting else DEFAULT_BYTES


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


class _WatchedBody:
    """One request's `receive`."""

    def __init__(self, receive: Receive, limit: int, seconds: float, announced: int) -> None:
        self._receive, self._limit, self._seconds = receive, limit, seconds
        self._size = announced
        self._deadline: float | None = None
        self._is_whole = False
        self._is_late = False
        self._arrived = 0

    async def receive(self) -> Message:
        """The next piece; HTTPException 413 or 408 where it is one too much or too late."""
        if self._is_whole:
            return await self._receive()  # only the news that the client has gone comes now
        self._refuse_large(self._size)
        message = await self._in_time()
        if message["type"] != "http.request":
            return message
        self._arrived += len(message.get("body", b""))
        self._refuse_large(self._arrived)
        self._is_whole = not message.get("more_body", False)
        return message

    def _refuse_large(self, size: int) -> None:
        if size > self._limit:
            raise HTTPException(
                413, f"The body is larger than the {self._limit} bytes that are taken here.", _CLOSE
            )

    async def _in_time(self) -> Message:
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._seconds
        task = asyncio.current_task()
        assert task is not None
        timer = loop.call_at(self._deadline, self._expire, task)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._is_late:
                raise
            if hasattr(task, "uncancel"):  # Python 3.11 and newer count cancellations
                task.uncancel()
            raise HTTPException(
                408, f"The body did not arrive within {self._seconds:.0f} s.", _CLOSE
            ) from None
        finally:
            timer.cancel()

    def _expire(self, task: asyncio.Task[object]) -> None:
        self._is_late = True
        task.cancel()
