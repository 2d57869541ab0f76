"""What the server makes of trainings: points a second, one large upload, and how soon a point is on an open page."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from gpu_monitor.training.reading import open_experiment
from tests.fakes.segments import header, line
from tests.measure.figures import Figure
from tests.measure.server_load import cpu_seconds
from tests.measure.training_bed import ROOT, Say, training_environment
from tests.measure.training_servers import token_of
from tests.server.postgres import Cluster
from tests.server.rig import PATIENCE, Server, serving
from tests.server.segments import digest

SERIES = 5
CONNECTIONS = 4
MOST = 1 << 20
"""Bytes of one upload, as the SDK's uploader sends them where there is much to send."""


@dataclass(frozen=True)
class Part:
    """One upload of a segment."""

    experiment: str
    segment: str
    offset: int
    data: bytes
    points: int

    @property
    def path(self) -> str:
        """Where it goes."""
        return f"/api/experiments/{self.experiment}/segments/{self.segment}?offset={self.offset}"


def make_parts(experiment: str, records: int, first_step: int = 0, offset: int = 0) -> list[Part]:
    """A segment of so many calls of five metrics, in uploads of at most 1 MiB, whole lines each.

    With `offset`, what follows there: without header and series.
    """
    chance = random.Random(experiment)
    segment = "seg-a0000000"
    lines = [] if offset else [header(experiment, segment), *_names()]
    named = len(lines)
    lines += [
        line("p", step, step, 0, [chance.random() for _ in range(SERIES)])
        for step in range(first_step, first_step + records)
    ]
    found: list[Part] = []
    held: list[bytes] = []
    size, begin = 0, offset
    for number, one in enumerate([*lines, b""]):
        if held and (number == len(lines) or size + len(one) > MOST):
            heads = max(0, named - (number - len(held)))
            found.append(Part(experiment, segment, begin, b"".join(held), (len(held) - heads) * SERIES))
            held, begin, size, = [], begin + size, 0  # fmt: skip
        held.append(one)
        size += len(one)
    return found


def _names() -> list[bytes]:
    series = [line("s", number, f"metric_{number}", {}) for number in range(SERIES)]
    return [*series, line("g", 0, list(range(SERIES)))]


def deliver(port: int, token: str, segments: Sequence[Sequence[Part]]) -> float:
    """Upload segments, each on a connection of its own, part by part; seconds until everything is answered."""
    trouble: list[str] = []
    begin = threading.Barrier(len(segments) + 1)

    def work(parts: Sequence[Part]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.connect()
            begin.wait()
            for part in parts:
                if (said := _put(connection, token, part)) is not None:
                    trouble.append(said)
                    return

    threads = [threading.Thread(target=work, args=(parts,)) for parts in segments]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    if trouble:
        raise RuntimeError(trouble[0])
    return time.perf_counter() - began


def _put(connection: http.client.HTTPConnection, token: str, part: Part) -> str | None:
    """Deliver one part; what is wrong with the answer."""
    headers = {"Authorization": f"Bearer {token}", **digest(part.data)}
    connection.request("PUT", part.path, part.data, headers)
    answer = connection.getresponse()
    said = answer.read()
    right = {"offset": part.offset + len(part.data)}
    if answer.status == 200 and json.loads(said)["offset"] == right["offset"]:
        return None
    return f"{part.path}: {answer.status} {said[:200]!r}"


class Control:
    """The same rows into a bare table of SQLite with the same key, a transaction for each upload, FULL."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE points (step integer, time real, value real, series integer, ordinal integer,"
            " special integer, PRIMARY KEY (series, step, ordinal)) WITHOUT ROWID"
        )
        self._series = 0

    def deliver(self, segments: Sequence[Sequence[Part]]) -> float:
        """Seconds for everything: JSON read, rows written and committed."""
        began = time.perf_counter()
        for number in range(max(map(len, segments))):
            for place, parts in enumerate(segments):
                if number < len(parts):
                    self._write(parts[number], self._series + place * SERIES)
        self._series += len(segments) * SERIES
        return time.perf_counter() - began

    def _write(self, part: Part, series: int) -> None:
        rows = [
            (step, at / 1000, value, series + number, step, None)
            for kind, at, step, _, values, _ in (
                record for record in map(json.loads, part.data.splitlines()) if record[0] == "p"
            )
            if kind
            for number, value in enumerate(values)
        ]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def rate_figure(folder: Path, records: int, rounds: int, cluster: Cluster | None, say: Say) -> Figure:
    """Points stored a second by one process, beside the control. Bar: 50,000."""
    where = "SQLite FULL" if cluster is None else "PostgreSQL"
    folder.mkdir(parents=True)
    database = None if cluster is None else cluster.create()
    control = Control(folder / "control.db")
    rates: list[float] = []
    bare: list[float] = []
    cpu: list[float] = []
    with contextlib.closing(control), serving(folder, database=database) as server:
        token = server.token("--contract", "300", "--scope", "experiment:write")
        for turn in range(rounds):
            say(f"points, {where}", turn / rounds)
            segments = [make_parts(f"run-{turn}-{one}", records) for one in range(CONNECTIONS)]
            points = sum(part.points for parts in segments for part in parts)
            before = cpu_seconds(server.process.pid)
            rates.append(points / deliver(server.port, token, segments))
            cpu.append((cpu_seconds(server.process.pid) - before) / points * 1e6)
            bare.append(points / control.deliver(segments))
    notes = (
        f"{rounds} rounds of {points:,} points, five metrics a record, {CONNECTIONS} connections, uploads of at most 1 MiB; "
        f"medians; {min(cpu):.1f} µs of the server's CPU a point at best",
        "the control (the same rows into a bare table of SQLite with the same key, in turns): "
        f"{statistics.median(bare):,.0f} a second",
    )
    what = f"points stored and answered, one process, {where}"
    return Figure(what, 50_000, statistics.median(rates), "a second", 0, notes, at_least=True)


def call_figure(folder: Path, runs: int, say: Say) -> Figure:
    """One upload of 10,000 points. Bar: 500 ms."""
    say("an upload of 10,000 points", 0)
    folder.mkdir(parents=True)
    taken: list[float] = []
    with serving(folder) as server:
        token = server.token("--contract", "300", "--scope", "experiment:write")
        parts = [make_parts("run", 1)]
        deliver(server.port, token, parts)
        offset = len(parts[0][0].data)
        for number in range(runs):
            # The first record has step 0; the uploads after it go on from there.
            found = make_parts("run", 2000, 1 + 2000 * number, offset)
            taken.append(deliver(server.port, token, [found]) * 1e3)
            offset += sum(len(part.data) for part in found)
    size = len(found[0].data)
    notes = (
        f"2,000 records of 5 values ({size:,} B) to a run that is known; from the request to the answer, which comes after "
        f"the commit: median of {runs}, longest {max(taken):.0f} ms",
    )
    return Figure("10,000 points in a call", 500, statistics.median(taken), "ms", 0, notes)


_WRITER = """
import random, sys, time
from gpu_monitor.training import TrainingMonitor
monitor = TrainingMonitor("live", directory=sys.argv[1])
monitor.log_metrics({"began": 0.0}, 0)
print(monitor.experiment_id, flush=True)
sys.stdin.readline()
chance = random.Random(3)
for step in range(1, int(sys.argv[2]) + 1):
    time.sleep(chance.uniform(0.02, 0.3))
    monitor.log_metrics({"began": time.monotonic(), "loss": 1 / step}, step)
sys.stdin.readline()  # more points a second than a page is sent come after it was closed
for step in range(step + 1, step + 2000):
    monitor.log_metrics({"loss": 1 / step}, step)
print(monitor.finish(), flush=True)
"""


def live_figures(folder: Path, count: int, say: Say) -> Iterator[Figure]:
    """From the begin of a log call until the point is on an open socket; and the files that a segment has then."""
    say("a point on an open page", 0)
    folder.mkdir(parents=True)
    with serving(folder) as server:
        environ = {"GPU_MONITOR_SERVER": server.url, **token_of(server, folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder / "experiments"), str(count)], cwd=ROOT,
            env=training_environment(folder, **environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            experiment = process.stdout.readline().strip()
            late = sorted(_watch(server, (folder / "token").read_text(), experiment, process, count))
            process.stdin.write("go on\n")
            process.stdin.flush()
            left = process.stdout.readline().strip()
    notes = (
        f"from the begin of the log call, through the SDK's uploader and the server, to the message on /ws/live: the "
        f"longest of {count} points, median {statistics.median(late):.2f} s, 95% within {late[len(late) * 95 // 100]:.2f} s",
    )
    yield Figure("a new point on the WebSocket", 1.0, late[-1], "s", 2, notes)
    stored = open_experiment(folder / "experiments", experiment)
    assert len(stored.history("loss").value) == count + 1999
    names = [path.name for path in stored.folder.iterdir() if path.name.startswith("seg-")]
    logs = sum(name.endswith(".log") for name in names)
    told = ", ".join(sorted({Path(name).suffix for name in names}))
    notes = (f"after it was written, uploaded (left on this machine: {left}) and read: {told}",)
    yield Figure("files per segment", 3, len(names) / logs, "files", 1, notes)


def _watch(
    server: Server, token: str, experiment: str, process: subprocess.Popen[str], count: int
) -> list[float]:
    """Seconds from each call to its message."""
    assert process.stdin is not None
    with _socket(server, token) as client:
        client.send(json.dumps({"subscribe": {"experiments": [experiment]}, "cursor": None}))
        # A page begins with the last point of each metric: what comes after the server knows of the run is all told.
        while not json.loads(client.recv(timeout=PATIENCE)).get("experiments"):
            pass
        process.stdin.write("go\n")
        process.stdin.flush()
        late: list[float] = []
        end = time.monotonic() + PATIENCE + count
        while len(late) < count and time.monotonic() < end:
            told = json.loads(client.recv(timeout=PATIENCE))
            now = time.monotonic()
            for run in told.get("experiments", []):
                began = [one["value"] for one in run["series"] if one["name"] == "began"]
                late += [now - value for value in (began[0] if began else []) if value]
        if len(late) != count:
            raise RuntimeError(f"{len(late)} of {count} points came")
        return late


def _socket(server: Server, token: str) -> ClientConnection:
    url = server.url.replace("http", "ws", 1) + "/ws/live"
    headers = {"Authorization": f"Bearer {token}"}
    return connect(url, additional_headers=headers, open_timeout=PATIENCE, max_size=None)
