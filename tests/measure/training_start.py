"""What importing the SDK costs, and the first log call after it; each in a process of its own, again and again."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.measure.figures import Figure
from tests.measure.training_bed import Say, run_code
from tests.measure.training_servers import behaving

_IMPORT = """
import json, resource, sys
def told():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/smaps_rollup") as file:
        rss = next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
    return used.ru_utime, used.ru_utime + used.ru_stime, rss * 1024
before = told()
exec(sys.argv[1])
after = told()
print(json.dumps([one - other for one, other in zip(after, before)]))
"""
_FIRST = """
import json, time
from gpu_monitor.training import TrainingMonitor
began, spent = time.perf_counter(), time.process_time()
monitor = TrainingMonitor("first", directory="experiments", **SERVER)
made = time.perf_counter()
monitor.log_metrics({"loss": 0.5, "accuracy": 0.25, "rate": 0.125, "norm": 2.0, "time": 4.0}, 0)
logged, used = time.perf_counter(), time.process_time() - spent
monitor.finish(timeout=1)
print(json.dumps([logged - began, logged - made, used]))
"""
IMPORTS = ("import gpu_monitor.training", "from gpu_monitor import TrainingMonitor")


def start_figures(folder: Path, runs: int, say: Say) -> Iterator[Figure]:
    """Import and first call. Bars: 60 ms of user CPU and 10 MB over bare Python, and 20 ms."""
    folder.mkdir(parents=True)
    for words in IMPORTS:
        say(words, 0)
        run_code(_IMPORT, folder, words)
        found = [run_code(_IMPORT, folder, words) for _ in range(runs)]
        user, total, memory = ([one[place] for one in found] for place in range(3))
        notes = (
            f"median of {runs} processes, longest {max(user) * 1e3:.0f} ms; with the kernel's part "
            f"{statistics.median(total) * 1e3:.0f} ms",
        )
        yield Figure(f"`{words}`: user CPU", 60, statistics.median(user) * 1e3, "ms", 0, notes)
        yield Figure(f"`{words}`: memory over bare Python", 10, statistics.median(memory) / 1e6, "MB", 1,
                     ("resident set after less before it in the same process",))  # fmt: skip
    yield _first_figure(folder, runs, "", "the first log call after the import", 20, say)
    with behaving("real", folder) as (url, environ):
        yield _first_figure(folder, runs, url, "the same with a server", None, say, environ)


def _first_figure(
    folder: Path,
    runs: int,
    url: str,
    what: str,
    limit: float | None,
    say: Say,
    environ: dict[str, Any] | None = None,
) -> Figure:
    say(what, 0)
    code = _FIRST.replace("**SERVER", f"server={url!r}")
    found = [run_code(code, folder, env=environ) for _ in range(runs)]
    both, call, cpu = ([one[place] * 1e3 for one in found] for place in range(3))
    notes = (
        f"making the monitor (everything it records by itself on) and a call of 5 metrics; median of {runs} processes, "
        f"longest {max(both):.1f} ms; of the call alone "
        f"{statistics.median(call):.2f} ms; CPU time of both {statistics.median(cpu):.1f} ms",
    )
    return Figure(what, limit, statistics.median(both), "ms", 1, notes)
