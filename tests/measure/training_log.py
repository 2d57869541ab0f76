"""What a log call costs beside a bare `os.write` of the same bytes, in the same process, in turns.

    python -m tests.measure.training_log FOLDER CALLS METRICS SERVER     one measure, as JSON; SERVER "" means none

A block of calls of `log_metrics` comes first, then the lines that it left in the log are written to another file
by `os.write` alone, and so on: whatever else the machine does hits both. A server stands for one on another machine:
it gives way to the training.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_monitor.training.monitor import TrainingMonitor
from tests.measure.figures import Figure
from tests.measure.training_bed import Say, Spread, run
from tests.measure.training_servers import behaving

BLOCK = 100
ROUNDS = 5
LONG = 1_000_000
OVER_P50, OVER_P99, OVER_LONGEST = 8.0, 20.0, 2000.0
"""Microseconds over the control (over twice the control at p99) that a call may take."""
SERVERS = {
    "no server": "nothing is configured",
    "dead": "nobody listens where the server should be",
    "slow": "it takes each request and says nothing for 30 s",
    "500": "it answers each request with 500",
    "real": "`gpu_monitor serve` takes everything meanwhile",
}


class Timed:
    """How long calls took, nanoseconds; and the longest of those in which nobody took the core away.

    A long call in which the kernel counted the thread as preempted says how busy the machine is, and no more.
    """

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.undisturbed = 0
        self._switches = 0

    def begin(self) -> None:
        """A block begins."""
        self._switches = _preemptions()

    def add(self, taken: int) -> None:
        """One call."""
        self.taken.append(taken)
        if taken > LONG:
            switches = _preemptions()
            if switches != self._switches:
                self._switches = switches
                return
        self.undisturbed = max(self.undisturbed, taken)


def _preemptions() -> int:
    """How often this thread was taken off its core so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def measure(folder: Path, calls: int, metrics: int, server: str) -> dict[str, Any]:
    """Both spreads over `calls` calls each, and what the log took."""
    monitor = TrainingMonitor("bench", "bench", directory=folder / "experiments", server=server)
    monitor.log_metrics(_values(random.Random(0), metrics), 0)
    log = monitor.recorder.writer.path
    chance = random.Random(1)
    ours, control = Timed(), Timed()
    held = bare = 0
    reader = os.open(log, os.O_RDONLY)
    file = os.open(folder / "control.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for first in range(0, calls, BLOCK):
            batch = [_values(chance, metrics) for _ in range(BLOCK)]
            before = os.fstat(reader).st_size
            _log(monitor, batch, first, ours)
            lines = _points(os.pread(reader, os.fstat(reader).st_size - before, before))
            held += sum(map(len, lines))
            bare += len(lines)
            _write(file, lines[:BLOCK], control)
    finally:
        os.close(file)
        os.close(reader)
    began = time.perf_counter()
    left = monitor.finish(timeout=1.0)
    return {
        "ours": ours.taken, "control": control.taken,
        "undisturbed": {"ours": ours.undisturbed, "control": control.undisturbed},
        "bytes": held, "lines": bare, "left": left,
        "finish": time.perf_counter() - began, "size": log.stat().st_size,
    }  # fmt: skip


def _values(chance: random.Random, metrics: int) -> dict[str, float]:
    """Metrics as a training has them: doubles with all their digits."""
    return {f"metric_{number}": chance.random() for number in range(metrics)}


def _log(monitor: TrainingMonitor, batch: list[dict[str, float]], first: int, timed: Timed) -> None:
    clock, log = time.perf_counter_ns, monitor.log_metrics
    timed.begin()
    for step, values in enumerate(batch, first):
        began = clock()
        log(values, step)
        timed.add(clock() - began)


def _write(file: int, lines: list[bytes], timed: Timed) -> None:
    clock, write = time.perf_counter_ns, os.write
    timed.begin()
    for line in lines:
        began = clock()
        write(file, line)
        timed.add(clock() - began)


def _points(data: bytes) -> list[bytes]:
    """The records of points; readings of the machine may be among them."""
    return [line for line in data.splitlines(keepends=True) if line.startswith(b'["p"')]


def figures_of(
    what: str, ours: Spread, control: Spread, notes: tuple[str, ...], long: tuple[str, ...] = ()
) -> Iterator[Figure]:
    """The three bars of a log call."""
    beside = f"the control: {control.told()}"
    yield Figure(f"{what}: p50", round(control.p50 + OVER_P50, 1), ours.p50, "µs", 1,
                 (f"bar: the control's + {OVER_P50:g} µs", beside, *notes))  # fmt: skip
    yield Figure(f"{what}: p99", round(2 * control.p99 + OVER_P99, 1), ours.p99, "µs", 1,
                 (f"bar: twice the control's + {OVER_P99:g} µs",))  # fmt: skip
    yield Figure(f"{what}: longest", round(control.longest + OVER_LONGEST), ours.longest, "µs", 0,
                 ("bar: the control's + 2 ms", *long))  # fmt: skip


def _typical(rounds: list[Spread], taken: list[int]) -> Spread:
    """The spread of all calls; the longest is the median of the rounds' longest.

    The longest of a single round is decided by whether anybody on the machine wanted the core in these seconds.
    """
    return replace(Spread.of(taken), longest=statistics.median(one.longest for one in rounds))


def _told_of_longest(found: list[dict[str, Any]]) -> tuple[str, ...]:
    """The longest calls of each round."""
    told = []
    for side, name in (("ours", "the rounds' longest"), ("control", "the control's")):
        longest = ", ".join(f"{max(one[side]) / 1e3:,.0f}" for one in found)
        undisturbed = max(one["undisturbed"][side] for one in found) / 1e3
        told.append(f"{name}: {longest} µs; where nobody took the core away at most {undisturbed:,.0f} µs")
    return "the median of the rounds", *told


def log_figures(folder: Path, calls: int, say: Say) -> Iterator[Figure]:
    """A call of five metrics with every kind of server, and the bytes that values take."""
    for kind, about in SERVERS.items():
        place = folder / kind.replace(" ", "-")
        place.mkdir(parents=True)
        say(f"log calls, {kind}", 0)
        with behaving(kind, place) as (url, environ):
            rounds = [place / str(number) for number in range(ROUNDS)]
            for one in rounds:
                one.mkdir()
            found = [run("training_log", place, one, calls, 5, url, env=environ) for one in rounds]
        ours, control = (
            _typical([Spread.of(each[side]) for each in found], [n for each in found for n in each[side]])
            for side in ("ours", "control")
        )
        finish = max(one["finish"] for one in found)
        notes = (
            f"{ROUNDS} rounds of {calls:,} calls and as many of the control in turns of {BLOCK}; {about}",
            f"what is recorded by itself is on, as by default; finish(timeout=1) took {finish:.1f} s at most",
        )
        name = "log call of 5 metrics" if kind == "no server" else f"the same, server {kind}"
        yield from figures_of(name, ours, control, notes, _told_of_longest(found))
        if kind == "no server":
            yield _bytes_figure(found[0], 5, 30)
    say("bytes of one metric", 0)
    place = folder / "one"
    place.mkdir()
    yield _bytes_figure(run("training_log", place, place, calls // 10, 1, ""), 1, 60)


def _bytes_figure(found: dict[str, Any], metrics: int, limit: float) -> Figure:
    value = found["bytes"] / found["lines"] / metrics
    word = "metrics" if metrics > 1 else "metric"
    notes = (
        f"random doubles with all their digits; {found['lines']:,} records in a log of {found['size']:,} B",
    )
    return Figure(f"bytes a value, {metrics} {word} a call", limit, value, "B", 1, notes)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
