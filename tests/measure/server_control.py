"""The control of `scripts/bench server`: what taking a report costs whoever checks and keeps next to nothing.

    python -m tests.measure.server_control DATABASE_URL

FastAPI on the same uvicorn, the raw body, msgspec, SHA-256, one receipt a report, committed in groups by one
thread as the server does it (SQLite FULL, or PostgreSQL with COPY), answered after the commit. No rows, no token,
no limits. Prints its port, ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import psycopg
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response

from gpu_monitor.wire.telemetry import Report

_LARGEST_GROUP = 256
_TABLE = "CREATE TABLE receipts (report text, digest {blob}, size integer)"
Receipt = tuple[str, bytes, int]
Waiting = tuple[Receipt, asyncio.Future[None]]
_report = msgspec.json.Decoder(Report)


def sqlite_writer(path: str) -> Callable[[Sequence[Receipt]], None]:
    """Writes one group, on the disk when it returns."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(_TABLE.format(blob="blob"))

    def write(group: Sequence[Receipt]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO receipts VALUES (?, ?, ?)", group)
        connection.execute("COMMIT")

    return write


def postgresql_writer(url: str) -> Callable[[Sequence[Receipt]], None]:
    """The same on PostgreSQL."""
    connection = psycopg.connect(url)
    connection.execute(_TABLE.format(blob="bytea"))  # type: ignore[arg-type]
    connection.commit()

    def write(group: Sequence[Receipt]) -> None:
        with connection.cursor().copy("COPY receipts FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "bytea", "int4"])
            for receipt in group:
                copy.write_row(receipt)
        connection.commit()

    return write


class Groups:
    """Takes receipts, commits what has come since the last commit, then lets those who wait go on."""

    def __init__(self, write: Callable[[Sequence[Receipt]], None]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def put(self, receipt: Receipt) -> asyncio.Future[None]:
        """What to wait for until the receipt is safe."""
        safe = self._loop.create_future()
        self._queue.put((receipt, safe))
        return safe

    def stop(self) -> None:
        """Commit what is there, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            with suppress(queue.Empty):
                while len(taken) < _LARGEST_GROUP:
                    taken.append(self._queue.get_nowait())
            group = [one for one in taken if one is not None]
            if group:
                self._write([receipt for receipt, _ in group])
                self._loop.call_soon_threadsafe(_release, [safe for _, safe in group])
            if len(group) < len(taken):
                return


def _release(group: Sequence[asyncio.Future[None]]) -> None:
    for safe in group:
        if not safe.done():
            safe.set_result(None)


def create_control(url: str) -> FastAPI:
    """The application; `url` is a file of SQLite or postgresql://..."""
    held: dict[str, Groups] = {}

    @asynccontextmanager
    async def life(_app: FastAPI) -> Any:
        writer = postgresql_writer(url) if url.startswith("postgresql:") else sqlite_writer(url)
        held["groups"] = Groups(writer)
        yield
        held["groups"].stop()

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/api/metrics")
    async def take(request: Request) -> Response:
        body = await request.body()
        report = _report.decode(body)
        digest = hashlib.sha256(body)
        await held["groups"].put((report.report_id, digest.digest(), len(body)))
        answer = {"uid": report.report_id, "sha256": digest.hexdigest(), "outcome": "stored", "revision": 1}
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return app


def main() -> None:
    """Listen on a free port, print it, serve."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(
        create_control(sys.argv[1]), http="httptools", ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    print(listener.getsockname()[1], flush=True)
    uvloop.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
