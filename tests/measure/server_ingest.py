"""What it costs to take reports: beside a control, in backlogs, and when a fleet knocks at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from gpu_monitor.server.store.engine import open_store
from tests.measure.figures import Figure
from tests.measure.server_load import (
    GPUS,
    HOUR,
    Outcome,
    Requests,
    Template,
    cpu_seconds,
    deliver,
    hammer,
    on_fast_loop,
)
from tests.server.postgres import Cluster
from tests.server.rig import pss_kib, serving

Say = Callable[[str, float], None]
CONNECTIONS = 64
_NAMES = {"sqlite": "SQLite FULL", "postgresql": "PostgreSQL"}


@dataclass(frozen=True)
class Taken:
    """One run of a load. `cpu` in s, of the serving process alone; `pss` after it, KiB."""

    reports: int
    outcome: Outcome
    cpu: float
    pss: int = 0

    @property
    def rate(self) -> float:
        """Reports stored and answered a second."""
        return self.reports / self.outcome.seconds

    @property
    def cpu_us(self) -> float:
        """CPU a report, µs."""
        return self.cpu / self.reports * 1e6

    def told(self, who: str) -> str:
        """In words."""
        latency = f"p50 {self.outcome.at(0.5) * 1e3:.1f}, p99 {self.outcome.at(0.99) * 1e3:.1f} ms"
        return f"{who}: {self.rate:,.0f}/s, {self.cpu_us:.0f} µs of CPU a report, {latency}"


@contextlib.contextmanager
def control(url: str) -> Iterator[tuple[int, int]]:
    """The control on a database; its port and pid."""
    command = [sys.executable, "-m", "tests.measure.server_control", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def past_hour(back: int = 2) -> int:
    """An hour that is over, in hours since 1970."""
    return int(time.time()) // HOUR - back


def take(port: int, pid: int, requests: Sequence[bytes], reports: int, warm: int) -> Taken:
    """Send the first `warm` requests uncounted, then the rest."""
    on_fast_loop(lambda: hammer(port, requests[:warm], CONNECTIONS))
    before = cpu_seconds(pid)
    outcome = on_fast_loop(lambda: hammer(port, requests[warm:], CONNECTIONS))
    cpu = cpu_seconds(pid) - before
    wrong = {status: count for status, count in outcome.statuses.items() if status != 200}
    if wrong:
        raise RuntimeError(f"not every report was taken: {wrong}")
    return Taken(reports, outcome, cpu, pss_kib(pid))


def beside_control(
    folder: Path,
    template: Template,
    about: str,
    reports: int,
    rounds: int,
    cluster: Cluster | None,
    say: Say,
) -> Iterator[Figure]:
    """Single reports of known nodes, on SQLite or (with a cluster) on PostgreSQL, server and control in turn.

    `about`: which reports, after "reports of 8 GPUs".
    """
    kind = "sqlite" if cluster is None else "postgresql"
    warm = reports // 8
    plan = [(number % warm, past_hour(12) + number // warm) for number in range(warm + reports)]
    ours: list[Taken] = []
    theirs: list[Taken] = []
    for number in range(rounds):
        say(f"{_NAMES[kind]}: one by one, {about}", number / rounds)
        place = folder / f"{kind}-{number}"
        place.mkdir()
        with control(str(place / "control.db") if cluster is None else cluster.create()) as (port, pid):
            made = [Requests(port, None).one(*template.body(*what)) for what in plan]
            theirs.append(take(port, pid, made, reports, warm))
        with serving(place, database=None if cluster is None else cluster.create()) as server:
            ask = Requests(server.port, server.token("--contract", "12345"))
            made = [ask.one(*template.body(*what)) for what in plan]
            ours.append(take(server.port, server.process.pid, made, reports, warm))
            held = count_receipts(server.database)
            if held != warm + reports:
                raise RuntimeError(f"{held} receipts of {warm + reports} reports")
    own, other = (sorted(runs, key=lambda run: run.rate)[len(runs) // 2] for runs in (ours, theirs))
    # A machine may be twice as slow from one minute to the next: only what ran right after each other is compared.
    rates = sorted(mine.rate / its.rate for mine, its in zip(ours, theirs, strict=True))
    costs = sorted(mine.cpu_us / its.cpu_us for mine, its in zip(ours, theirs, strict=True))
    size = len(template.body(*plan[0])[1])
    what = f"{_NAMES[kind]}, {size / 1000:.1f} kB"
    notes = (
        own.told("the server"), other.told("the control"),
        f"{rounds} rounds each in turn: {reports:,} reports, eight hours of {warm:,} nodes that are known from an hour before;"
        f" {CONNECTIONS} connections; the median run of each",
    )  # fmt: skip
    yield Figure(
        f"reports of {GPUS} GPUs, {about} ({size:,} B), one process, {_NAMES[kind]}: stored and answered",
        1000, own.rate, "a second", 0, notes, at_least=True,
    )  # fmt: skip
    yield Figure(f"{what}: rate beside the control's", 0.7, statistics.median(rates), "× of it", 2,
                 (_spread("rate", rates),), at_least=True)  # fmt: skip
    yield Figure(f"{what}: CPU beside the control's", 1.4, statistics.median(costs), "× of it", 2,
                 (_spread("CPU", costs),))  # fmt: skip


def _spread(what: str, ratios: Sequence[float]) -> str:
    least, most = min(ratios), max(ratios)
    return f"the median of {len(ratios)} rounds, each beside the control's run before it: {what} {least:.2f} to {most:.2f}"


def count_receipts(url: str) -> int:
    """How many reports a database holds."""
    with contextlib.closing(open_store(url)) as store, store.read() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM receipts").scalar_one())


def backlog(folder: Path, template: Template, nodes: int, hours: int, say: Say) -> Iterator[Figure]:
    """Each node delivers a day at once, and what a row of it takes on the disk."""
    say("backlogs", 0)
    folder.mkdir()
    last = past_hour()
    with serving(folder) as server:
        token = server.token("--contract", "12345")
        accepts = json.loads(server.ask("OPTIONS", "/api/metrics", token=token).body)["accepts"]
        # What an agent does with a server that takes gzip.
        ask = Requests(server.port, token, compress="gzip" in accepts["encodings"])
        where = urljoin("/api/metrics", accepts["batch"])
        made = [
            ask.batch(where, [template.body(node, last - back)[1] for back in reversed(range(hours))])
            for node in range(nodes)
        ]  # fmt: skip
        warm = nodes // 10
        taken = take(server.port, server.process.pid, made, (nodes - warm) * hours, warm)
        held = count_receipts(server.database)
        if held != nodes * hours:
            raise RuntimeError(f"{held} receipts of {nodes * hours} reports")
        pss = taken.pss
    notes = (
        f"{nodes} nodes of {GPUS} GPUs, {hours} hours each in one gzip batch of {len(made[0]):,} B",
        taken.told("of a report (latencies of a batch)"),
        f"PSS right after it {pss / 1024:.0f} MB",
    )  # fmt: skip
    yield Figure(
        "backlog posts: reports stored and answered", 2000, taken.rate, "a second", 0, notes, at_least=True
    )
    yield row_figure(folder / "server.db")


def row_figure(path: Path) -> Figure:
    """Bytes of a GPU-hour on the disk, from SQLite's own account of its pages."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT count(*) FROM aggregates").fetchone()[0]
        parts = connection.execute(
            "SELECT d.name, sum(d.pgsize) FROM dbstat d JOIN sqlite_schema s ON s.name = d.name"
            " WHERE s.tbl_name = 'aggregates' GROUP BY d.name ORDER BY 2 DESC"
        ).fetchall()
        whole = connection.execute("SELECT sum(pgsize) FROM dbstat").fetchone()[0]
    total = sum(size for _, size in parts)
    notes = (
        f"{rows:,} rows of full H100 reports; " + ", ".join(f"{name} {size / rows:.1f} B" for name, size in parts),
        f"the whole database (receipts, hosts, changes too): {whole / rows:.1f} B a row",
    )  # fmt: skip
    return Figure("bytes per GPU-hour row, indexes included", 260, total / rows, "B", 1, notes)


def stampede(folder: Path, template: Template, agents: int, say: Say) -> Iterator[Figure]:
    """Every agent of a fleet in the same second, then the same fleet over half a minute."""
    say(f"{agents:,} agents at once", 0)
    folder.mkdir()
    _allow_files(2 * agents)
    with serving(folder) as server:
        ask = Requests(server.port, server.token("--contract", "12345"))
        hour = past_hour(3)
        made = [ask.one(*template.body(node, hour)) for node in range(agents)]
        at_once = on_fast_loop(lambda: _crowd(server.port, made, 1.0, 120.0))
        held = count_receipts(server.database)
        peak = pss_kib(server.process.pid)
        yield Figure(
            f"{agents:,} agents in the same second: every report stored", 30, at_once.seconds, "s", 1,
            (*_crowd_notes(at_once, held, agents), f"PSS after it {peak / 1024:.0f} MB"),
        )  # fmt: skip
        lost = float(at_once.faults + agents - held)
        what = "the same: reports lost, and 5xx other than 503 with Retry-After"
        yield Figure(what, 0, lost, "", 0)
        say(f"{agents:,} agents over 30 s", 0.5)
        made = [ask.one(*template.body(node, hour + 1)) for node in range(agents)]
        before = cpu_seconds(server.process.pid)
        spread = on_fast_loop(lambda: _crowd(server.port, made, 30.0, 120.0))
        cpu = cpu_seconds(server.process.pid) - before
        held = count_receipts(server.database) - held
        yield Figure(
            f"{agents:,} agents over 30 s: time to the answer, p50", 5, spread.at(0.5) * 1e3, "ms", 1,
            (*_crowd_notes(spread, held, agents), f"the server used {cpu / spread.seconds:.0%} of a core"),
        )  # fmt: skip


def _crowd_notes(outcome: Outcome, held: int, agents: int) -> Sequence[str]:
    answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(outcome.statuses.items()))
    return (
        f"{held:,} of {agents:,} stored, {outcome.lost} given up, {outcome.broken} connections broken and made again;"
        f" answers: {answers}",
        f"from the request to the answer: p50 {outcome.at(0.5) * 1e3:.1f}, p99 {outcome.at(0.99) * 1e3:.1f} ms",
    )


async def _crowd(port: int, requests: Sequence[bytes], over: float, patience: float) -> Outcome:
    """Each request from an agent and connection of its own; they begin evenly within `over` seconds."""
    outcome, began = Outcome(), time.perf_counter()

    async def agent(number: int, request: bytes) -> None:
        wait = began + over * number / len(requests) - time.perf_counter()
        await asyncio.sleep(max(0.0, wait))
        await deliver(port, request, outcome, began + patience)

    await asyncio.gather(*(agent(number, request) for number, request in enumerate(requests)))
    outcome.seconds = time.perf_counter() - began
    return outcome


def _allow_files(wanted: int) -> None:
    """Allow ourselves, and so the server, as many open files as there are connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
