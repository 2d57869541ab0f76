"""Bodies that are too large or too slow, headers that never end: refused, and the connection closed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.exceptions import HTTPException

from gpu_monitor.server.connection import HEAD_BYTES, PatientConnection
from gpu_monitor.server.limits import DEFAULT_BYTES, BodyLimits, limit_of

Pieces = list[bytes | float]
"""What arrives: bytes, and seconds of silence."""


def sent(
    *pieces: bytes | float, path: str = "/api/session", length: int | None = None, seconds: float = 5.0
) -> bytes:
    """The body as the application reads it behind the limits; HTTPException where it is refused."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    left = list(pieces)
    read: list[bytes] = []

    async def receive() -> dict[str, Any]:
        while left and isinstance(left[0], float):
            await asyncio.sleep(left.pop(0))  # type: ignore[arg-type]
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def app(_scope: Any, receive: Callable[[], Awaitable[dict[str, Any]]], _send: Any) -> None:
        while True:
            message = await receive()
            read.append(message.get("body", b""))
            if not message.get("more_body"):
                return

    async def send(_message: Any) -> None:
        raise AssertionError("the limits themselves answer nothing")

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(BodyLimits(app, seconds)(scope, receive, send))  # type: ignore[arg-type]
    return b"".join(read)


def test_what_fits_passes_unchanged() -> None:
    assert sent(b"abc", b"", b"def") == b"abcdef"
    whole = b"x" * DEFAULT_BYTES
    assert sent(whole, length=len(whole)) == whole


def test_one_byte_too_many_is_refused_announced_or_not() -> None:
    for pieces, length in (((b"",), DEFAULT_BYTES + 1), ((b"x" * DEFAULT_BYTES, b"y"), None)):
        with pytest.raises(HTTPException) as refused:
            sent(*pieces, length=length)
        assert refused.value.status_code == 413
        assert (refused.value.headers or {})["Connection"] == "close"


def test_reports_may_be_larger_than_the_rest() -> None:
    assert limit_of("/api/metrics") == limit_of("/api/metrics/batch") == 2 * 1024 * 1024
    assert limit_of("/api/users") == limit_of("/") == 256 * 1024


def test_a_body_that_trickles_is_refused_in_time() -> None:
    with pytest.raises(HTTPException) as refused:
        sent(b"{", 0.05, b"}", 30.0, b"", seconds=0.2)
    assert refused.value.status_code == 408
    assert sent(b"{", 0.05, b"}", seconds=5.0) == b"{}"


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def cancelled() -> bool:
        task = asyncio.ensure_future(asyncio.to_thread(lambda: None))
        reached = asyncio.Event()

        async def receive() -> dict[str, Any]:
            reached.set()
            await asyncio.sleep(60)
            raise AssertionError

        async def app(_scope: Any, receive: Any, _send: Any) -> None:
            await receive()

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        work = asyncio.ensure_future(BodyLimits(app)(scope, receive, None))  # type: ignore[arg-type]
        await reached.wait()
        work.cancel()
        await task
        try:
            await work
        except asyncio.CancelledError:
            return True
        return False

    assert asyncio.run(cancelled())


class Hasty(PatientConnection):
    """The same with less patience."""

    head_seconds = 0.3


@contextmanager
def listening() -> Iterator[int]:
    """uvicorn with such connections, in a thread; its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, http=Hasty, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def test_headers_that_never_end_close_the_connection_and_others_go_on() -> None:
    good = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening() as port:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost:", good + b"GET / HT"):
            with closing(socket.create_connection(("127.0.0.1", port), 30)) as client:
                client.sendall(begun)
                heard = b""
                while piece := client.recv(4096):
                    heard += piece
                assert heard.count(b"200 OK") == begun.count(good)
        with closing(socket.create_connection(("127.0.0.1", port), 30)) as client:
            for _ in range(3):  # kept alive, each request in time
                client.sendall(good)
                assert client.recv(4096).endswith(b"ok")
        with closing(socket.create_connection(("127.0.0.1", port), 30)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * (HEAD_BYTES + 10))
            assert client.recv(4096).startswith(b"HTTP/1.1 400")
