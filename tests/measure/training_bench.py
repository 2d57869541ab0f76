"""`scripts/bench training`: measures the SDK against the bars of its design, each beside its control in the same run.

Everything is real: trainings in processes of their own, the real server and agent, in a temporary folder that is
removed at the end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.measure import (
    training_crash,
    training_disk,
    training_log,
    training_peers,
    training_server,
    training_start,
    training_together,
)
from tests.measure.bed import compile_program
from tests.measure.bench import PAGE, progress
from tests.measure.figures import Figure, as_json, as_markdown, as_text, replace_part
from tests.measure.machine import Machine, this_machine
from tests.server.postgres import WHY_NOT, running_cluster

_LIBRARIES = ("msgspec", "requests", "sqlalchemy", "uvicorn")


@dataclass(frozen=True)
class Scale:
    """How much: the documented measure, or a quick look."""

    calls: int = 100_000
    starts: int = 15
    lengths: tuple[int, int] = (20_000, 1_000_000)
    reads: int = 15
    experiments: int = 10_000
    fresh: int = 300
    records: int = 40_000
    rounds: int = 3
    live: int = 100
    kills: int = 8
    together: tuple[int, ...] = (4, 64)
    peer_seconds: float = 20.0


QUICK = Scale(10_000, 5, (20_000, 100_000), 5, 1000, 50, 5000, 1, 20, 2, (4, 16), 3.0)


class Bench:
    """One run of it. `say` shows progress."""

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str, float], None]) -> None:
        self.folder, self.scale, self.say = folder, scale, say

    def log(self) -> Iterator[Figure]:
        """A call, whatever the server does, and the bytes it takes."""
        return training_log.log_figures(self.folder / "log", self.scale.calls, self.say)

    def start(self) -> Iterator[Figure]:
        """Import, and the first call."""
        return training_start.start_figures(self.folder / "start", self.scale.starts, self.say)

    def read(self) -> Iterator[Figure]:
        """What was left on disk, read by another process."""
        scale = self.scale
        yield from training_disk.reading_figures(self.folder / "read", scale.lengths, scale.reads, self.say)
        yield training_disk.listing_figure(self.folder / "list", scale.experiments, scale.reads, self.say)
        yield training_disk.fresh_figure(self.folder / "fresh", scale.fresh, self.say)

    def together(self) -> Iterator[Figure]:
        """Many starts in one moment."""
        return training_together.together_figures(self.folder / "together", self.scale.together, self.say)

    def server(self) -> Iterator[Figure]:
        """Points into the server, and out of it again."""
        scale = self.scale
        yield training_server.rate_figure(self.folder / "rate", scale.records, scale.rounds, None, self.say)
        yield training_server.call_figure(self.folder / "call", scale.reads, self.say)
        yield from training_server.live_figures(self.folder / "live", scale.live, self.say)

    def postgresql(self) -> Iterator[Figure]:
        """The rate on PostgreSQL, with fsync."""
        if WHY_NOT:
            raise NotHere(WHY_NOT)
        scale = self.scale
        with running_cluster(fsync=True) as cluster:
            yield training_server.rate_figure(
                self.folder / "postgresql", scale.records, scale.rounds, cluster, self.say
            )

    def crash(self) -> Iterator[Figure]:
        """A killed training, watched by an agent."""
        yield training_crash.crash_figure(self.folder / "crash", self.scale.kills, self.say)


class NotHere(Exception):
    """Something that a part needs is not installed."""


PARTS = ("log", "start", "read", "together", "server", "postgresql", "crash")


def measure(bench: Bench, parts: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The figures of `parts`; what could not run is told in the second list."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in parts:
        try:
            for figure in getattr(bench, name)():
                figures.append(figure)  # what was measured before a part failed is kept
        except (NotHere, RuntimeError, OSError, subprocess.SubprocessError, AssertionError) as reason:
            failed.append(f"{name}: not measured to its end: {str(reason) or type(reason).__name__}")
    return figures, failed


def versions() -> str:
    """What else a figure depends on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench training", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="few calls, short runs: a look, not a measure")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(PARTS)}, with commas")
    parser.add_argument("--peers", action="store_true", help="also other trackers, from the package index")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--write", action="store_true", help="replace the trainings' figures in docs/performance.md"
    )
    args = parser.parse_args(argv)
    args.parts = args.only.split(",") if args.only else list(PARTS)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if args.write and (args.quick or args.only):
        parser.error("--write wants the whole measure: figures of several runs on one page would mislead")
    return args


def write(
    page: Path, machine: Machine, figures: Sequence[Figure], failed: Sequence[str], peers: str | None
) -> None:
    """Put the figures into the page; without `peers` those of the last time stay."""
    text = page.read_text(encoding="utf-8")
    lines = [*machine.lines(), versions()]
    text = replace_part(text, "training machine", "\n".join(f"- {line}" for line in lines))
    missing = "".join(f"\n- {line}" for line in failed)
    text = replace_part(text, "training figures", as_markdown(figures) + missing)
    if peers is not None:
        text = replace_part(
            text, "training peers", f"{machine.date}, load average {machine.load}:\n\n{peers}"
        )
    page.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 where every bar that was measured is met, 1 where one is not."""
    args = read_arguments(argv)
    machine = this_machine()
    compile_program()
    with tempfile.TemporaryDirectory(prefix="gpu_monitor-bench-") as name, progress() as say:
        folder, scale = Path(name), QUICK if args.quick else Scale()
        figures, failed = measure(Bench(folder, scale, say), args.parts)
        peers = (
            training_peers.measure(folder / "peers", scale.peer_seconds, scale.calls, say)
            if args.peers
            else []
        )
    if args.json:
        told = {**as_json(machine, figures), "versions": versions(), "failed": failed}
        print(json.dumps({**told, "peers": [peer.as_dict() for peer in peers]}, indent=2))
    else:
        print("\n".join([*machine.lines(), versions(), "", as_text(figures), *failed]))
        if peers:
            print("\n" + training_peers.as_text(peers))
    if args.write:
        write(PAGE, machine, figures, failed, training_peers.as_markdown(peers) if peers else None)
    return 0 if not failed and all(figure.is_met is not False for figure in figures) else 1


if __name__ == "__main__":
    # Ended from outside it ends what it started, and removes its folder, like at its own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
