"""`scripts/bench`: measures the agent against the bars of its issue and prints what came out.

Everything runs in a temporary folder that is removed at the end; every process is ended by its pid.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.measure import commands, footprint, peers, storage
from tests.measure.bed import compile_program
from tests.measure.figures import Figure, as_json, as_text, write_page
from tests.measure.machine import this_machine
from tests.standin.build import NoCompiler

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


@dataclass(frozen=True)
class Scale:
    """How long and how large: the documented measure, or a quick look."""

    cpu_seconds: float = 600.0
    warm_up: float = footprint.WARM_UP
    day_hours: int = 24
    store_days: int = 30
    collections: int = 1000
    runs: int = 15
    peer_seconds: float = 120.0


QUICK = Scale(60.0, 15.0, 3, 2, 300, 5, 20.0)


class Bench:
    """One run of it. `say` shows progress."""

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str, float], None]) -> None:
        self.folder = folder
        self.scale = scale
        self.say = say

    def cpu(self) -> Iterator[Figure]:
        """CPU at both intervals, memory of both processes and over a day."""
        scale = self.scale
        minute = footprint.agent_run(self.folder / "minute", 60, scale.cpu_seconds, scale.warm_up, self.say)
        yield footprint.cpu_figure(minute, 0.02)
        second = footprint.agent_run(self.folder / "second", 1, scale.cpu_seconds, scale.warm_up, self.say)
        yield footprint.cpu_figure(second, 0.2)
        yield footprint.memory_figure(
            minute, footprint.simulated_day(self.folder / "day", scale.day_hours, self.say)
        )

    def memory(self) -> Iterator[Figure]:
        """Memory alone, without waiting ten minutes for the CPU."""
        run = footprint.agent_run(self.folder / "tree", 60, 5.0, 5.0, self.say)
        day = footprint.simulated_day(self.folder / "day", self.scale.day_hours, self.say)
        yield footprint.memory_figure(run, day)

    def storage(self) -> Iterator[Figure]:
        """Bytes, steps and commands on a full store."""
        days = self.scale.store_days
        with storage.full_store(self.folder, days, self.say) as (made, figure):
            yield figure
            yield storage.twelve_bytes(self.folder, days, self.say)
            yield storage.collection_figure(self.scale.collections, self.say)
            yield from commands.reading_figures(
                self.folder / "ask", made.path, self.scale.runs, made.up_to_now, self.say
            )
            yield commands.export_figure(self.folder / "ask", made.path, made.rows(), self.say)
            yield storage.rollup_figure(made)
            yield storage.retention_figure(made, self.folder)

    def start(self) -> Iterator[Figure]:
        """From a start to a first row."""
        yield commands.start_figure(self.folder / "start", self.scale.runs, self.say)


PARTS = ("cpu", "memory", "storage", "start")
_BY_DEFAULT = ("cpu", "storage", "start")  # cpu measures memory, too


def measure(bench: Bench, parts: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The figures of `parts`; what could not run is told in the second list."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in parts:
        try:
            figures += getattr(bench, name)()
        except NoCompiler as reason:
            failed.append(f"{name}: not measured, the stand-in library cannot be built: {reason}")
    return figures, failed


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A line that is written over on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    yield lambda what, share: print(f"\r\033[K{what}: {share:.0%}", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr, flush=True)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--quick", action="store_true", help="short runs, a small store: a look, not a measure"
    )
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(PARTS)}, with commas")
    parser.add_argument("--peers", action="store_true", help="also other programs, from the package index")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="replace the figures in docs/performance.md")
    args = parser.parse_args(argv)
    args.parts = args.only.split(",") if args.only else list(_BY_DEFAULT)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if args.write and (args.quick or args.only):
        parser.error("--write wants the whole measure: figures of several runs on one page would mislead")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 where every bar that was measured is met, 1 where one is not."""
    args = read_arguments(argv)
    machine = this_machine()
    compile_program()
    with tempfile.TemporaryDirectory(prefix="gpu_monitor-bench-") as folder, progress() as say:
        scale = QUICK if args.quick else Scale()
        figures, failed = measure(Bench(Path(folder), scale, say), args.parts)
        others = peers.measure(Path(folder) / "peers", scale.peer_seconds, say) if args.peers else []
    if args.json:
        print(
            json.dumps({**as_json(machine, figures), "peers": [peer.as_dict() for peer in others]}, indent=2)
        )
    else:
        print("\n".join([*machine.lines(), "", as_text(figures), *failed]))
        if others:
            print("\n" + peers.as_text(others))
    if args.write:
        write_page(PAGE, machine, figures, peers.as_markdown(others) if others else None)
    return 0 if not failed and all(figure.is_met is not False for figure in figures) else 1


if __name__ == "__main__":
    # Ended from outside it ends what it started, and removes its folder, like at its own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
