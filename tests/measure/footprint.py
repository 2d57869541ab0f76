"""CPU and memory of the agent's whole process tree: on the stand-in library, and over a simulated day."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.agent.identity import establish
from gpu_monitor.agent.recovery import Machine, begin_run
from gpu_monitor.agent.store import Store
from gpu_monitor.cli.assembly import keep_plan, name_node
from gpu_monitor.storage.database import Writer
from tests.fakes.clock import FakeClock
from tests.fakes.server import ServerProcess
from tests.measure.bed import GPUS, Ended, configure, make_standin, query, running, wait_for
from tests.measure.figures import Figure
from tests.measure.machine import steadiness, steady
from tests.measure.tree import Memory, ProcessTree

WARM_UP = 70.0
"""Seconds before counting: a whole interval, its row, and the reports of the hours before."""
_POLL = 2.0
"""A child that ends loses what it spent since it was last looked at: this long at most."""
SPEED = 1440.0
"""A simulated day in a minute, where the machine keeps up."""

Say = Callable[[str, float], None]


@dataclass(frozen=True)
class Run:
    """What one run of the agent on the stand-in cost."""

    interval: int
    seconds: float
    cpu: float
    by_process: tuple[tuple[str, float], ...]
    rows: int
    memory: Memory
    sent: int
    disturbed: float

    @property
    def percent(self) -> float:
        """CPU time in per cent of one core."""
        return 100 * self.cpu / self.seconds


def make_past(folder: Path, hours: int = 3) -> None:
    """A store whose agent was killed hours ago: the next start has closed hours to report (a gap in each)."""
    began = time.time() - hours * 3600
    writer = Writer(folder / "gpu_metrics.db")
    try:
        name_node(writer, "bench")
        establish(writer, None, began)
        store = Store(writer, keep_plan(writer, 1, began))
        begin_run(
            store, FakeClock(began), Machine(None, None), now=began,
            interval=60, pid=1, version="0", describe="bench",
        )  # fmt: skip
    finally:
        writer.close()


def agent_run(folder: Path, interval: int, seconds: float, warm_up: float, say: Say) -> Run:
    """The agent on eight H100s of the stand-in, reports sent to a server before counting begins."""
    folder.mkdir(parents=True)
    standin = make_standin(folder / "nvml")
    with ServerProcess(folder) as server:
        # As the central server does: live minutes are part of what the agent costs.
        server.behave(encodings=("gzip",), samples="/api/samples")
        config = configure(
            folder,
            server={"url": server.url, "contract_number": "12345", "spread_seconds": 5},
            collection={"interval_seconds": interval},
        )
        make_past(folder)
        store = folder / "gpu_metrics.db"
        with running(folder, ["-c", str(config)], standin.env()) as process:
            wait_for(
                process, store, "SELECT count(*) = 8 FROM (SELECT DISTINCT id & 65535 FROM samples_raw)", 60
            )
            wait_for(process, store, "SELECT count(*) > 0 FROM reports WHERE state = 'sent'", 60, 0.2)
            label = f"agent at {interval} s"
            _watch(
                process, warm_up, ProcessTree(process.pid), lambda share: say(f"{label}: warming up", share)
            )
            tree = ProcessTree(process.pid)
            return _count(process, tree, store, interval, seconds, lambda share: say(label, share))


def _watch(
    process: subprocess.Popen[bytes], seconds: float, tree: ProcessTree, say: Callable[[float], None]
) -> float:
    """Poll the tree for `seconds`; returns how long that really was."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(min(_POLL, seconds - passed))
        tree.cpu_seconds()
        say(min(1.0, passed / seconds))
        if process.poll() is not None:
            raise Ended(f"the agent ended with {process.returncode} while it was measured")
    return time.monotonic() - began


def _count(
    process: subprocess.Popen[bytes],
    tree: ProcessTree,
    store: Path,
    interval: int,
    seconds: float,
    say: Callable[[float], None],
) -> Run:
    counting = "SELECT count(*), max(id) FROM samples_raw"
    rows_before = int(str(query(store, counting)[0][0]))
    before, spent_before = tree.cpu_seconds(), dict(tree.by_process())
    passed = _watch(process, seconds, tree, say)
    cpu = tree.cpu_seconds() - before
    each = tuple((name, spent - spent_before.get(name, 0.0)) for name, spent in tree.by_process())
    rows = int(str(query(store, counting)[0][0])) - rows_before
    sent = int(str(query(store, "SELECT count(*) FROM reports WHERE state = 'sent'")[0][0]))
    return Run(interval, passed, cpu, each, rows, tree.memory(), sent, steadiness())


def cpu_figure(run: Run, limit: float) -> Figure:
    """CPU of the tree against its bar."""
    each = ", ".join(f"{name} {1e3 * spent:.0f} ms" for name, spent in run.by_process)
    notes = (
        f"{run.cpu * 1e3:.0f} ms of CPU in {run.seconds:.0f} s ({each}); {run.rows} rows stored",
        f"stand-in NVML library (its own work is in the figure), readings every {min(10, run.interval)} s",
        f"right after it {steady(run.disturbed)}",
    )
    what = f"agent, {GPUS} GPUs, {run.interval} s interval, CPU of the process tree"
    return Figure(what, limit, run.percent, "% of one core", 4, notes)


@dataclass(frozen=True)
class Day:
    """Memory of the agent over a simulated day, by the hours passed; how many reports were sent."""

    curve: tuple[tuple[float, Memory], ...]
    sent: int
    seconds: float


def simulated_day(folder: Path, hours: int, say: Say) -> Day:
    """The agent on simulated GPUs for `hours`, every hour's report sent to a server in another process."""
    folder.mkdir(parents=True)
    marks = [*(mark for mark in (1, 2, 6, 12, 18) if mark < hours), hours]
    curve: list[tuple[float, Memory]] = []
    began = time.monotonic()
    with ServerProcess(folder) as server:
        config = configure(
            folder, server={"url": server.url, "contract_number": "12345", "spread_seconds": 5}
        )
        store = folder / "gpu_metrics.db"
        start = int(time.time()) // 3600 * 3600 - (hours + 1) * 3600
        words = ["-c", str(config), "--simulate", f"{GPUS}:h100", "--seed", "1", "--speed", str(SPEED)]
        words += ["--start", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start))]
        with running(folder, words) as process:
            tree = ProcessTree(process.pid)
            for mark in marks:
                # The hours that are closed by then, but for the last, whose report goes out seconds later.
                sent = max(1, mark - 1)
                end = start + mark * 3600
                wait_for(process, store, f"SELECT max(id) >> 20 >= {end} FROM samples_raw", 1200, 0.25)
                wait_for(
                    process, store, f"SELECT count(*) >= {sent} FROM reports WHERE state = 'sent'", 120, 0.25
                )
                say("a simulated day", mark / hours)
                curve.append((float(mark), tree.memory()))
        sent = int(str(query(store, "SELECT count(*) FROM reports WHERE state = 'sent'")[0][0]))
        return Day(tuple(curve), sent, time.monotonic() - began)


def memory_figure(run: Run, day: Day) -> Figure:
    """Memory of the tree: the real agent with its NVML child, and what a day adds, as if no other Python ran."""
    counted = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in run.memory.by_process)
    curve = ", ".join(f"{hour:g} h {memory.mb:.1f}" for hour, memory in day.curve)
    grown = max(0, day.curve[-1][1].alone - day.curve[0][1].alone)
    notes = (
        f"agent and NVML child on the stand-in after {run.sent} reports sent: {run.memory.mb:.1f} MB",
        f"grown on simulated GPUs from hour {day.curve[0][0]:g} to {day.curve[-1][0]:g}, a report sent each hour: "
        f"{grown / 1e6:.1f} MB (agent alone: {curve} MB; {day.sent} reports)",
        "every mapped file counted in full, as if no other Python ran on the machine; PSS as the kernel counts it "
        f"beside others: {run.memory.pss / 1e6:.1f} MB ({counted})",
    )
    what = f"memory of the process tree after {day.curve[-1][0]:g} simulated hours with reports sent"
    return Figure(what, 48, (run.memory.alone + grown) / 1e6, "MB", 1, notes)
