"""How fast a year of a fleet answers, and how much memory the server takes: idle, and at work on that year."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.measure.figures import Figure
from tests.measure.server_ingest import past_hour
from tests.measure.server_load import Client, Outcome, Requests, Template, on_fast_loop
from tests.measure.server_year import Year, make_year, row_count
from tests.server.rig import Server, pss_kib, serving

Say = Callable[[str, float], None]
_CLIENTS = 4
_REPORTS_A_SECOND = 50
"""Beside the questions: what a fleet of 15,000 nodes sends on average over its five minutes."""
_GPU = "GPU-00000000-0000-4000-9000-000000000050"
QUESTIONS: tuple[tuple[str, str, float], ...] = (
    ("fleet now", "/api/fleet", 15),
    ("one GPU, 30 days", f"/api/series?metric=gpu_utilization&gpu={_GPU}&from=-30d", 15),
    ("top 50 idle of 7 days", "/api/usage/idle?from=-7d&limit=50", 100),
    ("fleet per hour for a year", "/api/series?metric=gpu_utilization&from=-365d&max_points=10000", 15),
)
"""What is asked, where, and its bar in ms."""


def idle_figure(folder: Path, seconds: float) -> Figure:
    """A server that was started, asked a few things, and left alone."""
    folder.mkdir()
    with serving(folder) as server:
        for path in ("/healthz", "/readyz", "/api/fleet", "/metrics"):
            server.ask("GET", path)
        time.sleep(seconds)
        pss = pss_kib(server.process.pid) * 1024 / 1e6
    return Figure(
        "PSS idle", 90, pss, "MB", 1, (f"on SQLite, after four questions and {seconds:.0f} s of rest",)
    )


def year_figures(
    folder: Path, template: Template, year: Year, runs: int, load_seconds: float, say: Say
) -> Iterator[Figure]:
    """Questions on a year, one after the other; then memory while questions and reports come together."""
    folder.mkdir()
    path = folder / "server.db"
    say(f"a year of {year.gpus:,} GPUs is written", 0)
    began = time.monotonic()
    make_year(path, Year(year.gpus, year.hours, past_hour(1), year.contracts, year.live_minutes))
    rows, size, took = row_count(path), path.stat().st_size, time.monotonic() - began
    with serving(folder) as server:
        for number, (what, url, bar) in enumerate(QUESTIONS):
            say(what, number / len(QUESTIONS))
            times, length = ask_again_and_again(server, url, runs)
            notes: tuple[str, ...] = (
                f"GET {url}; median of {runs}, longest {max(times) * 1e3:.1f} ms; {length:,} B of JSON; over HTTP on loopback",
            )
            if not number:
                notes += (f"{rows:,} GPU-hours, {size / 1e9:.2f} GB, written in {took:.0f} s",)
            yield Figure(
                f"a year of {year.gpus:,} GPUs: {what}", bar, statistics.median(times) * 1e3, "ms", 1, notes
            )
        say("questions and reports together", 0)
        yield loaded_figure(server, template, load_seconds)


def ask_again_and_again(server: Server, url: str, runs: int) -> tuple[list[float], int]:
    """Seconds of each answer on one open connection, and the last one's length. The first two warm up."""
    size = 0

    async def ask() -> Outcome:
        nonlocal size
        outcome, client = Outcome(), await Client.connect(server.port)
        request = Requests(server.port, None).get(url)
        for number in range(runs + 2):
            began = time.perf_counter()
            reply = await client.ask(request)
            if reply.status != 200:
                raise RuntimeError(f"{url}: {reply.status} {reply.body[:300]!r}")
            size = len(reply.body)
            if number >= 2:
                outcome.note(reply, time.perf_counter() - began)
        client.close()
        return outcome

    return on_fast_loop(ask).latencies, size


def loaded_figure(server: Server, template: Template, seconds: float) -> Figure:
    """The largest PSS while four clients ask everything and reports come in."""
    token = server.token("--contract", "12345")
    peak, stored = 0, 0

    async def work() -> Outcome:
        nonlocal peak, stored
        outcome, until = Outcome(), time.perf_counter() + seconds

        async def ask(first: int) -> None:
            client = await Client.connect(server.port)
            for number in itertools.count(first):
                if time.perf_counter() > until:
                    break
                began = time.perf_counter()
                request = Requests(server.port, None).get(QUESTIONS[number % len(QUESTIONS)][1])
                outcome.note(await client.ask(request), time.perf_counter() - began)
            client.close()

        async def report() -> None:
            nonlocal stored
            requests, client, hour = (
                Requests(server.port, token),
                await Client.connect(server.port),
                past_hour(),
            )
            for node in itertools.count(100_000):
                if time.perf_counter() > until:
                    break
                reply = await client.ask(requests.one(*template.body(node, hour)))
                stored += reply.status == 200
                await asyncio.sleep(1 / _REPORTS_A_SECOND)
            client.close()

        async def watch() -> None:
            nonlocal peak
            while time.perf_counter() < until:
                peak = max(peak, pss_kib(server.process.pid))
                await asyncio.sleep(0.25)

        await asyncio.gather(report(), watch(), *(ask(first) for first in range(_CLIENTS)))
        return outcome

    outcome = on_fast_loop(work)
    answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(outcome.statuses.items()))
    notes = (
        f"largest in {seconds:.0f} s of {_CLIENTS} clients that ask the four questions above in turn ({answers}) beside"
        f" {stored:,} new reports; an answer took p50 {outcome.at(0.5) * 1e3:.0f}, p99 {outcome.at(0.99) * 1e3:.0f} ms",
    )
    return Figure("PSS on that year, under load", 150, peak * 1024 / 1e6, "MB", 1, notes)
