"""Load for a server: a real agent's report, told of many nodes and hours, and connections that cost little.

The clients share one event loop and one core; they write requests that were made beforehand and read answers
by their length alone.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_monitor.core.catalogue import DEFAULT_FIELDS, METRICS
from gpu_monitor.wire.entry import COVER, IDLE, spread_names
from gpu_monitor.wire.telemetry import join, report_id
from tests.fakes.server import ServerProcess
from tests.measure.bed import configure, running

CONTRACT = "12345"
HOUR = 3600
GPUS = 8
_NODE, _TIME, _REPORT = "@node@", "@time@", "@report@"
_TICKS = os.sysconf("SC_CLK_TCK")


def real_report(folder: Path, gpus: int = GPUS) -> dict[str, Any]:
    """A whole hour of a simulated machine as the real agent sends it, decoded."""
    with ServerProcess(folder) as server:
        server.behave(encodings=())
        place = folder / "agent"
        told = {"url": server.url, "contract_number": CONTRACT, "spread_seconds": 5}
        words = ["-c", str(configure(place, server=told)), "--simulate", f"{gpus}:h100", "--speed", "3600"]
        with running(place, [*words, "--start", "-6h"]) as process:
            while process.poll() is None:
                for body in server.held().values():
                    report: dict[str, Any] = json.loads(body)
                    if report["gpus"] and all(entry["coverage"] == 1.0 for entry in report["gpus"]):
                        return report
                time.sleep(0.1)
        said = (place / "console.txt").read_text(errors="replace")[-1500:]
        raise RuntimeError(f"the agent ended with {process.returncode}: {said}")


def only_defaults(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the twelve default fields of each GPU, their extremes and what they rest on; without nulls.

    No agent of ours sends less than every field; another sender may, and a bar for reports of 7 kB means this one.
    """
    names = [name for metric in METRICS if metric.name in DEFAULT_FIELDS for name in spread_names(metric)]
    kept = {"source", *names, *COVER, *IDLE}
    entries = [
        {name: value for name, value in entry.items() if name in kept and value is not None}
        for entry in report["gpus"]
    ]
    return {**report, "gpus": entries}


class Template:
    """A report that is told of other nodes and hours by replacing text: 20 µs each."""

    def __init__(self, report: dict[str, Any], contract: str = CONTRACT) -> None:
        bare = {**report, "contract_number": contract, "gaps": [], "events": [], "processes": []}
        bare["node"] = {**report["node"], "id": _NODE, "hostname": f"host-{_NODE}", "simulated": False}
        bare["gpus"] = [
            {**entry, "uid": f"GPU-{number:04d}-{_NODE}", "source": "nvml"}
            | ({"serial": None} if "serial" in entry else {})
            for number, entry in enumerate(report["gpus"])
        ]
        bare |= {"report_id": _REPORT, "aggregation_time": _TIME, "revision": 1, "period_seconds": HOUR}
        self._text = json.dumps(bare, separators=(",", ":"), ensure_ascii=False)

    def body(self, node: int, hour: int) -> tuple[str, bytes]:
        """The report's id and bytes of one node's hour (hours since 1970)."""
        name = node_id(node)
        known = report_id(name, hour * HOUR, HOUR, 1)
        when = datetime.fromtimestamp(hour * HOUR, timezone.utc).isoformat()
        text = self._text.replace(_NODE, name).replace(_TIME, when).replace(_REPORT, known)
        return known, text.encode()


def node_id(number: int) -> str:
    """The UUID of a node of this load."""
    return f"00000000-0000-4000-8000-{number:012x}"


@dataclass(frozen=True)
class Requests:
    """Makes the bytes of requests to one server."""

    port: int
    token: str | None
    compress: bool = False

    def one(self, known: str, body: bytes) -> bytes:
        """One report."""
        return self._post("/api/metrics", body, f"Idempotency-Key: {known}\r\n")

    def batch(self, path: str, bodies: Sequence[bytes]) -> bytes:
        """Several reports at once."""
        return self._post(path, join(bodies), "")

    def get(self, path: str) -> bytes:
        """A question."""
        return f"GET {path} HTTP/1.1\r\n{self._head()}\r\n".encode()

    def _head(self) -> str:
        token = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        return f"Host: 127.0.0.1:{self.port}\r\n{token}"

    def _post(self, path: str, body: bytes, more: str) -> bytes:
        wire = gzip.compress(body, 6) if self.compress else body
        proof = base64.b64encode(hashlib.sha256(wire).digest()).decode()
        packed = "Content-Encoding: gzip\r\n" if self.compress else ""
        head = (
            f"POST {path} HTTP/1.1\r\n{self._head()}Content-Type: application/json\r\n{packed}{more}"
            f"X-Contract-Number: {CONTRACT}\r\nContent-Digest: sha-256=:{proof}:\r\nContent-Length: {len(wire)}\r\n\r\n"
        )
        return head.encode() + wire


@dataclass(frozen=True)
class Reply:
    """An answer: `retry_after` in s, where it says so."""

    status: int
    body: bytes
    retry_after: float | None


class Client(asyncio.Protocol):
    """One connection, kept open; one request at a time."""

    def __init__(self) -> None:
        self._data = b""
        self._waiting: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, port: int) -> Client:
        """A connection to a server on this machine."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"closed before the answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Put the answer together."""
        self._data = self._data + data if self._data else data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        low = head.lower()
        at = low.find(b"\r\ncontent-length:")
        length = int(low[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self._data = b""
        retry = low.find(b"\r\nretry-after:")
        after = float(low[retry + 14 :].split(b"\r\n", 1)[0]) if retry >= 0 else None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Reply(int(head[9:12]), rest, after))

    async def ask(self, request: bytes) -> Reply:
        """Send and wait for the answer; ConnectionError where none comes."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


@dataclass
class Outcome:
    """What came of a load. Latencies in s, in order of the answers."""

    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    faults: int = 0
    """Answers of 5xx other than 503 with Retry-After."""
    broken: int = 0
    """Connections that were refused or broke before an answer."""

    def note(self, reply: Reply, took: float) -> None:
        """Count an answer."""
        self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
        self.latencies.append(took)
        if reply.status >= 500 and (reply.status != 503 or reply.retry_after is None):
            self.faults += 1

    def at(self, share: float) -> float:
        """The latency that this share of the answers stayed within, s."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def hammer(port: int, requests: Iterable[bytes], connections: int) -> Outcome:
    """Send all requests, each connection one after the other, as fast as they are answered."""
    outcome, waiting = Outcome(), iter(requests)
    clients = [await Client.connect(port) for _ in range(connections)]

    async def work(client: Client) -> None:
        for request in waiting:
            began = time.perf_counter()
            reply = await client.ask(request)
            outcome.note(reply, time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(work, clients))
    outcome.seconds = time.perf_counter() - began
    for client in clients:
        client.close()
    return outcome


async def deliver(port: int, request: bytes, outcome: Outcome, until: float) -> None:
    """One agent: send, wait as told, send again, until 200 or `until` (perf_counter)."""
    client: Client | None = None
    pause = 0.5
    try:
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                client = client or await Client.connect(port)
                reply = await client.ask(request)
            except OSError:
                client, outcome.broken = None, outcome.broken + 1
                await asyncio.sleep(pause)
                continue
            outcome.note(reply, time.perf_counter() - began)
            if reply.status == 200:
                return
            await asyncio.sleep(reply.retry_after if reply.retry_after is not None else pause)
        outcome.lost += 1
    finally:
        if client is not None:
            client.close()


def on_fast_loop(work: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Run on uvloop, so that the clients leave the server its core."""
    import uvloop  # only where load is made

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work())  # type: ignore[arg-type]
    finally:
        loop.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
