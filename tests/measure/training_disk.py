"""Reading what trainings left on disk: one series, a thinned view, ten thousand experiments, a point that has just come."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_monitor.training.listing import CACHE, list_experiments
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.stored import Columns
from gpu_monitor.training.thinning import Thinned
from gpu_monitor.wire.training import Status
from tests.fakes.segments import header, line, points
from tests.measure.figures import Figure
from tests.measure.training_bed import ROOT, Say, training_environment

SERIES = 5
_SHOWN = 1000


def record(directory: Path, name: str, count: int) -> Path:
    """An experiment with `count` points in each of five series, by the SDK's own recorder; its folder."""
    recorder = Recorder(Run(name, name, "bench", directory / name))
    for step in range(count):
        recorder.log_points({f"metric_{number}": step / (7 + number) for number in range(SERIES)}, step)
    recorder.put(Status(recorder.at(), "completed", {}))
    recorder.close(60)
    return directory / name


@dataclass(frozen=True)
class Taken:
    """How long each of some runs took, and the CPU time that they needed: on a busy machine much less; in ms."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.wall)

    def told(self) -> str:
        """In words."""
        return (
            f"median of {len(self.wall)}, longest {max(self.wall):.1f} ms, CPU time of the one in the middle "
            f"{statistics.median(self.cpu):.1f} ms"
        )


def timed(work: Callable[[], object], runs: int) -> Taken:
    """Run something again and again."""
    wall, cpu = [], []
    for _ in range(runs):
        began, spent = time.perf_counter(), time.thread_time()
        work()
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.thread_time() - spent) * 1e3)
    return Taken(wall, cpu)


def reading_figures(folder: Path, lengths: tuple[int, int], runs: int, say: Say) -> Iterator[Figure]:
    """One series whole, and thinned at two lengths. Bars: 15 ms of 20,000 points, 5 ms of a view."""
    folder.mkdir(parents=True)
    for count in lengths:
        say(f"an experiment of {count:,} points a series", 0)
        stored = record(folder, f"run-{count}", count)
        (log,) = stored.glob("seg-*.log")
        begun = timed(partial(open_experiment, folder, stored.name), 1).median
        (index,) = stored.glob("seg-*.idx")
        about = (
            f"{SERIES} series of {count:,} points, a log of {log.stat().st_size / 1e6:.1f} MB and an index of "
            f"{index.stat().st_size / 1e6:.1f} MB"
        )
        if count == lengths[0]:
            assert len(_history(folder, stored.name).value) == count
            whole = timed(partial(_history, folder, stored.name), runs)
            bare = timed(partial(_by_hand, log), 3)
            whole_notes = (
                f"opened anew each time: {whole.told()}; {about}",
                f"for comparison: `json.loads` of each line of the log {bare.median:.0f} ms; the first look, "
                f"which makes the index, {begun:.0f} ms",
            )
            yield Figure(f"one series of {count:,} points read", 15, whole.median, "ms", 1, whole_notes)
        viewed = timed(partial(_view, folder, stored.name), runs)
        notes = (f"opened anew each time: {viewed.told()}; {about}; first look {begun:.0f} ms",)
        what = f"a view of {_SHOWN:,} items of {count:,} points"
        yield Figure(what, 5, viewed.median, "ms", 1, notes)


def _history(folder: Path, name: str) -> Columns:
    return open_experiment(folder, name).history("metric_2")


def _view(folder: Path, name: str) -> Thinned:
    return open_experiment(folder, name).thinned("metric_2", _SHOWN)


def _by_hand(log: Path) -> list[float]:
    """What reading one series costs without an index."""
    return [record[4][2] for record in map(json.loads, log.read_bytes().splitlines()) if record[0] == "p"]


def listing_figure(folder: Path, count: int, runs: int, say: Say) -> Figure:
    """All experiments of a directory that have ended, by a process that has listed them before. Bar: 100 ms of 10,000."""
    say(f"{count:,} experiments", 0)
    for number in range(count):
        name = f"run-{number:05}"
        (folder / name).mkdir(parents=True)
        data = header(name, "seg-a0000000", name=f"model-{number % 50}", started=1_700_000_000.0 + number)
        data += line("a", 0, {"lr": number / 7, "batch_size": 32, "optimizer": "adam"}) + points(10)
        (folder / name / "seg-a0000000.log").write_bytes(data + line("z", 20, "completed", {}))
    # A folder that has just changed is not relied on: the second look is the first that settles.
    first = timed(lambda: list_experiments(folder), 1).median
    end = time.monotonic() + 10
    while not _is_settled(folder) and time.monotonic() < end:
        time.sleep(0.1)
    second = timed(lambda: list_experiments(folder), 1).median
    taken = timed(lambda: list_experiments(folder), runs)
    assert len(list_experiments(folder)) == count
    notes = (
        f"{taken.told()}; the first look at all of them {first / 1e3:.1f} s, the one "
        f"that could rely on every folder {second / 1e3:.1f} s; a cache of {(folder / CACHE).stat().st_size / 1e6:.1f} MB",
    )
    return Figure(f"{count:,} experiments listed", 100, taken.median, "ms", 0, notes)


def _is_settled(folder: Path) -> bool:
    newest = max(path.stat().st_mtime for path in folder.iterdir())
    return time.time() - newest > 3


_WRITER = """
import random, sys, time
from gpu_monitor.training import TrainingMonitor
monitor = TrainingMonitor("fresh", directory=sys.argv[1], server="")
monitor.log_metrics({"loss": 0.0, "began": 0.0}, 0)
print(monitor.experiment_id, flush=True)
sys.stdin.readline()
chance = random.Random(2)
for step in range(1, int(sys.argv[2]) + 1):
    time.sleep(chance.uniform(0.005, 0.03))
    monitor.log_metrics({"loss": 1.0, "began": time.monotonic()}, step)
print("done", flush=True)
sys.stdin.readline()
monitor.finish()
"""


def fresh_figure(folder: Path, count: int, say: Say) -> Figure:
    """From the begin of a log call in one process until another has read the point. Bar: 100 ms."""
    say("a point that has just come", 0)
    folder.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(count)], cwd=ROOT, env=training_environment(folder),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        stored = open_experiment(folder, process.stdout.readline().strip())
        process.stdin.write("go\n")
        process.stdin.flush()
        late = _follow(lambda: stored.refresh(), lambda: stored.history("began").value, count)
        process.stdin.close()
    notes = (
        f"the longest of {count} points, median {statistics.median(late):.1f} ms; the reader looks every millisecond, and "
        "reads all that there is",
    )
    return Figure("a point readable by another process", 100, max(late), "ms", 1, notes)


def _follow(refresh: Callable[[], None], values: Callable[[], list[float]], count: int) -> list[float]:
    """How late each point was seen, ms."""
    late: list[float] = []
    end = time.monotonic() + 120
    while len(late) < count and time.monotonic() < end:
        refresh()
        found = values()[1 + len(late) :]
        now = time.monotonic()
        late += [(now - began) * 1e3 for began in found]
        time.sleep(0.001)
    if len(late) < count:
        raise RuntimeError(f"only {len(late)} of {count} points were seen")
    return late
