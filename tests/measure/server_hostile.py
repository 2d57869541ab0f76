"""What others notice of those who mean harm: p99 of an honest agent, memory of the server, while it lasts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.measure.figures import Figure
from tests.measure.server_ingest import past_hour
from tests.measure.server_load import Client, Outcome, Requests, Template, on_fast_loop
from tests.server.rig import Server, pss_kib, serving

Say = Callable[[str, float], None]
_SLOW = 500
_BOMB = 64 << 20
_PAUSE = 0.02
"""Between two requests of the honest agent."""


@dataclass(frozen=True)
class Attack:
    """`run(port, token, until)` goes on until that time (perf_counter)."""

    name: str
    run: Callable[[int, str, float], Awaitable[str]]


async def slow_uploads(port: int, token: str, until: float) -> str:
    """Bodies that come a byte a second, on 500 connections at once."""
    closed = 0

    async def one() -> None:
        nonlocal closed
        while time.perf_counter() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = (
                f"POST /api/metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1900000\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                writer.write(head.encode() + b"{" * 60_000)
                while time.perf_counter() < until and not reader.at_eof():
                    writer.write(b" ")
                    await asyncio.sleep(1.0)
            closed += reader.at_eof()
            writer.close()

    await asyncio.gather(*(one() for _ in range(_SLOW)))
    return f"{_SLOW} connections that send 60 kB and then a byte a second; the server closed {closed}"


def _repeated(body: bytes, more: str = "") -> Callable[[int, str, float], Awaitable[str]]:
    async def run(port: int, token: str, until: float) -> str:
        head = (
            f"POST /api/metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        )
        statuses: dict[int, int] = {}

        async def one() -> None:
            while time.perf_counter() < until:
                client = await Client.connect(port)
                with contextlib.suppress(ConnectionError):
                    status = (await client.ask(head.encode() + body)).status
                    statuses[status] = statuses.get(status, 0) + 1
                client.close()

        await asyncio.gather(*(one() for _ in range(4)))
        told = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
        return f"{len(body):,} B from 4 connections again and again: {told or 'no answer'}"

    return run


def attacks(template: Template) -> list[Attack]:
    """What is tried, each for itself."""
    report = json.loads(template.body(1, past_hour())[1])
    many = {**report, "gpus": [{"uid": f"GPU-{n}", "source": "nvml"} for n in range(10_000)]}
    deep = b'{"schema":1,"node":' + b"[" * 900_000 + b"]" * 900_000 + b"}"
    zipped = "Content-Encoding: gzip\r\n"
    return [
        Attack("500 slow uploads", slow_uploads),
        Attack("bombs of 64 MiB in gzip", _repeated(gzip.compress(bytes(_BOMB), 9), zipped)),
        Attack("10,000 GPUs in one report", _repeated(json.dumps(many, separators=(",", ":")).encode())),
        Attack("JSON 900,000 deep", _repeated(deep)),
        Attack("bad UTF-8 and NaN", _repeated(b'{"schema":1,"x":"\xff\xfe","y":NaN,' + b" " * 100_000)),
    ]


def hostile_figures(folder: Path, template: Template, seconds: float, say: Say) -> Iterator[Figure]:
    """One figure for each attack: p99 of an honest agent beside its p99 in peace."""
    folder.mkdir()
    _allow_files(4 * _SLOW)
    numbers = itertools.count(1)
    with serving(folder) as server:
        token = server.token("--contract", "12345")
        honest(server, token, template, numbers, 2.0, None)
        peace, base, _ = honest(server, token, template, numbers, seconds, None)
        bar = max(2 * peace.at(0.99), peace.at(0.99) + 0.1) * 1e3
        tried = attacks(template)
        for number, attack in enumerate(tried):
            say(attack.name, number / len(tried))
            outcome, peak, told = honest(server, token, template, numbers, seconds, attack)
            taken = f"{outcome.statuses.get(200, 0)} of {len(outcome.latencies)} answered with 200"
            notes = (
                told,
                f"in peace p50 {peace.at(0.5) * 1e3:.1f}, p99 {peace.at(0.99) * 1e3:.1f} ms;"
                f" now p50 {outcome.at(0.5) * 1e3:.1f} ms, {taken}",
                f"PSS at most {peak * 1024 / 1e6:.0f} MB, in peace {base * 1024 / 1e6:.0f} MB",
            )
            yield Figure(
                f"{attack.name}: p99 of an honest agent", round(bar), outcome.at(0.99) * 1e3, "ms", 0, notes
            )
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended: {server.said[-2000:]}")


def honest(
    server: Server,
    token: str,
    template: Template,
    numbers: Iterator[int],
    seconds: float,
    attack: Attack | None,
) -> tuple[Outcome, int, str]:
    """An agent that reports new nodes, one after the other; latencies, the largest PSS (KiB), the attack's words."""
    peak, told = 0, ""

    async def work() -> Outcome:
        nonlocal peak, told
        outcome, until, requests = Outcome(), time.perf_counter() + seconds, Requests(server.port, token)
        attacking = asyncio.ensure_future(attack.run(server.port, token, until)) if attack else None
        client, hour = await Client.connect(server.port), past_hour()
        while time.perf_counter() < until:
            request = requests.one(*template.body(next(numbers), hour))
            began = time.perf_counter()
            outcome.note(await client.ask(request), time.perf_counter() - began)
            peak = max(peak, pss_kib(server.process.pid))
            await asyncio.sleep(_PAUSE)
        client.close()
        if attacking is not None:
            told = await attacking
        return outcome

    return on_fast_loop(work), peak, told


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
