"""A small TCP proxy on loopback in front of several servers: each connection to the next one that answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence


class Relay:
    """Where it listens, and how many connections each backend was given."""

    def __init__(self, backends: Sequence[int]) -> None:
        self._backends = list(backends)
        self._turn = itertools.count()
        self.port = 0
        self.given: Counter[int] = Counter()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Pass connections on until `stop`."""
        tasks: set[asyncio.Task[None]] = set()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._pass_on(reader, writer)
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._turn)
        for step in range(len(self._backends)):
            backend = self._backends[(first + step) % len(self._backends)]
            try:
                there, back = await asyncio.open_connection("127.0.0.1", backend)
            except OSError:
                continue
            self.given[backend] += 1
            try:
                done, left = await asyncio.wait(
                    [asyncio.ensure_future(_copy(reader, back)), asyncio.ensure_future(_copy(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in left:
                    task.cancel()
                await asyncio.gather(*done, *left, return_exceptions=True)
            finally:
                back.close()
            return


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()


@contextlib.contextmanager
def relaying(backends: Sequence[int]) -> Iterator[Relay]:
    """A relay in a thread of its own."""
    relay, ready = Relay(backends), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(relay.serve(ready, stop)))
    thread.start()
    try:
        assert ready.wait(30)
        yield relay
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
