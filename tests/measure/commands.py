"""How long a person waits: reading commands and export on a full store, and the first row after a start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.measure.bed import PROGRAM, configure, environment, make_standin, query, running, wait_for
from tests.measure.figures import Figure

SCRIPT = Path(sys.executable).with_name("gpu_monitor")
Say = Callable[[str, float], None]


def program() -> list[str]:
    """The installed console script, as people start it; the module where it is not installed."""
    return [str(SCRIPT)] if SCRIPT.exists() else list(PROGRAM)


def timed(command: Sequence[str], folder: Path, into: Path | None = None) -> float:
    """Seconds that one run of a command takes; RuntimeError with its words where it fails."""
    with (into or folder / "answer.txt").open("wb") as answer:
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=answer,
            stderr=subprocess.PIPE, check=False, timeout=300,
        )  # fmt: skip
        taken = time.perf_counter() - began
    if done.returncode:
        words = done.stderr.decode(errors="replace")[-800:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {words}")
    return taken


def reading_figures(
    folder: Path, store: Path, runs: int, refresh: Callable[[], None], say: Say
) -> list[Figure]:
    """`-sc ""` and `-ls` on a store; `refresh` brings its rows up to the present before each."""
    config = configure(folder, database={"file": str(store)})
    bare = statistics.median(timed([sys.executable, "-c", "pass"], folder) for _ in range(5))
    version = statistics.median(timed([*program(), "--version"], folder) for _ in range(5))
    figures = []
    for words, name in (((["-sc", ""]), '--show-collection ""'), (["-ls"], "--list-sends")):
        command = [*program(), "-c", str(config), *words]
        refresh()
        timed(command, folder)
        taken = []
        for number in range(runs):
            taken.append(timed(command, folder))
            say(name, number / runs)
        lines = len((folder / "answer.txt").read_bytes().splitlines())
        notes = (
            f"whole process, median of {runs}, longest {max(taken) * 1e3:.0f} ms; {lines} lines printed",
            f"for comparison: python -c pass {bare * 1e3:.0f} ms, --version {version * 1e3:.0f} ms",
        )
        figures.append(Figure(f"{name} on a full store", 150, statistics.median(taken) * 1e3, "ms", 0, notes))
    return figures


def export_figure(folder: Path, store: Path, rows: int, say: Say) -> Figure:
    """All raw rows as CSV."""
    config = configure(folder, database={"file": str(store)})
    target = folder / "rows.csv"
    command = [*program(), "export", "-c", str(config), "--raw", "--since", "-40d", "-f", "csv"]
    say("export", 0.0)
    taken = sorted(timed(command, folder, target) for _ in range(3))
    with target.open("rb") as file:
        lines = sum(1 for _ in file)
    size = target.stat().st_size
    target.unlink()
    notes = (
        f"whole process, median of 3, longest {taken[-1]:.2f} s; {lines - 1:,} of {rows:,} rows, {size / 1e6:.0f} MB",
    )
    return Figure(f"export of {rows:,} rows (30 days × 8 GPUs) to CSV", 3, taken[1], "s", 2, notes)


def start_figure(folder: Path, runs: int, say: Say) -> Figure:
    """From starting the process to the first row in the file, and to the answer of `-sc ""`."""
    standin = make_standin(folder / "nvml")
    first_row, answered = [], []
    for number in range(runs):
        home = folder / f"start-{number}"
        config = configure(home)
        store = home / "gpu_metrics.db"
        began = time.monotonic()
        with running(home, ["-c", str(config)], standin.env()) as process:
            wait_for(process, store, "SELECT count(*) FROM samples_raw", 30, 0.005)
            first_row.append(time.monotonic() - began)
            timed([*program(), "-c", str(config), "-sc", ""], home)
            answered.append(time.monotonic() - began)
        rows = query(store, "SELECT count(DISTINCT id & 65535) FROM samples_raw")
        if rows != [(8,)]:
            raise RuntimeError(f"the first collection holds {rows} GPUs, not 8")
        say("starting", number / runs)
    notes = (
        f"real agent on the stand-in, a new store; median of {runs}, longest {max(first_row):.2f} s",
        f'with the `-sc ""` that prints it, started then: {statistics.median(answered):.2f} s',
    )
    return Figure('start to a first row visible to -sc ""', 1.5, statistics.median(first_row), "s", 2, notes)
