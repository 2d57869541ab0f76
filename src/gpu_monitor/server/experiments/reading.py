"""From the bytes of a request to an upload: arrived, undamaged, whole lines, decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gpu_monitor.server.experiments.writer import POINTS, points_in
from gpu_monitor.server.ingest.body import Arrivals, Body, open_body
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.store.segment_chunks import pack
from gpu_monitor.server.store.segment_records import BadLine, read_records
from gpu_monitor.server.store.segment_write import Author, Upload
from gpu_monitor.wire.training import RECORD_BYTES

_ASIDE = 32 << 10
"""A longer body is read in another thread: beyond it takes more than a ms."""
_READERS = 2
_T = TypeVar("_T")


class SegmentReader:
    """Reads uploads, few at once: it holds the interpreter's lock."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._turns = asyncio.Semaphore(_READERS)

    async def read(self, request: Request, author: Author, place: tuple[str, str, int]) -> list[Upload]:
        """The upload in a body, in as many parts as one transaction each is for; Problem where it is none.

        `place`: experiment, segment, offset.
        """
        body = await self.body(request)
        if len(body.data) > RECORD_BYTES:
            raise Problem(413, "Too large", f"An upload has {RECORD_BYTES} bytes at most, decoded.")
        if body.data and not body.data.endswith(b"\n"):
            raise _invalid("it does not end where a line ends")
        return await self._aside(len(body.data), lambda: list(_uploads(body.data, author, place)))

    async def body(self, request: Request) -> Body:
        """The bytes of a request as its digest and encoding say; Problem where they are not."""
        sent = await self._arrivals.read(request.receive)
        encoding = request.headers.get("content-encoding", "").strip().lower()
        digest = request.headers.get("content-digest")
        try:
            return await self._aside(len(sent), lambda: open_body(sent, encoding, digest))
        except Problem as problem:
            if problem.status == 422:
                raise _invalid(problem.detail or problem.title) from None
            raise

    async def _aside(self, size: int, read: Callable[[], _T]) -> _T:
        if size <= _ASIDE:
            return read()
        async with self._turns:
            return await run_in_threadpool(read)


def _invalid(reason: str, **more: Any) -> Problem:
    return Problem(422, "The upload is not valid", reason, **more)


def _uploads(data: bytes, author: Author, place: tuple[str, str, int]) -> Iterator[Upload]:
    """The bytes as one upload, or cut between lines where they hold more than one transaction is for."""
    experiment, segment, offset = place
    try:
        whole = Upload(author, experiment, segment, offset, data, read_records(data))
    except BadLine as error:
        raise _invalid(f"The line at {offset + error.place}: {error.reason}", place=error.place) from None
    parts = -(-points_in(whole) // POINTS)
    if parts <= 1:
        yield Upload(author, experiment, segment, offset, data, whole.records, pack(data))
        return
    start = 0
    for number in range(1, parts + 1):
        stop = len(data) if number == parts else data.rfind(b"\n", 0, number * len(data) // parts) + 1
        if stop > start:
            part = data[start:stop]
            yield Upload(author, experiment, segment, offset + start, part, read_records(part), pack(part))
            start = stop
