"""`scripts/bench server`: measures the server against the bars of its issue and prints what came out.

The real `gpu_monitor serve` in a process of its own, in a temporary folder that is removed at the end; load comes
from this process. Beside it, in the same run, a control that does next to nothing with a report.
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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.measure import server_asking, server_hostile, server_ingest, server_sockets
from tests.measure.bed import compile_program
from tests.measure.bench import PAGE, progress
from tests.measure.figures import Figure, as_json, as_markdown, as_text, replace_part
from tests.measure.machine import Machine, this_machine
from tests.measure.server_load import Template, only_defaults, real_report
from tests.measure.server_year import Year
from tests.server.postgres import WHY_NOT, Cluster, binaries, running_cluster

_LIBRARIES = ("fastapi", "uvicorn", "uvloop", "msgspec", "sqlalchemy", "psycopg")


@dataclass(frozen=True)
class Scale:
    """How much: the documented measure, or a quick look."""

    reports: int = 4000
    rounds: int = 5
    backlog_nodes: int = 500
    agents: int = 10_000
    year: Year = field(default_factory=Year)
    runs: int = 15
    load_seconds: float = 30.0
    rest_seconds: float = 10.0
    clients: int = 1000
    socket_seconds: float = 20.0
    hostile_seconds: float = 15.0


QUICK = Scale(1000, 1, 60, 1000, Year(100, 1000), 5, 5.0, 2.0, 100, 5.0, 3.0)


class Bench:
    """One run of it. `say` shows progress."""

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str, float], None]) -> None:
        self.folder, self.scale, self.say = folder, scale, say

    @cached_property
    def template(self) -> Template:
        """A real agent's report."""
        return Template(self._report)

    @cached_property
    def lean(self) -> Template:
        """The same with the twelve default fields alone."""
        return Template(only_defaults(self._report))

    @cached_property
    def _report(self) -> dict[str, Any]:
        self.say("a report of the real agent", 0)
        return real_report(self.folder / "report")

    def _singles(self, cluster: Cluster | None) -> Iterator[Figure]:
        """Single reports beside the control, of every field and of the default ones."""
        for name, template in (("every", self.template), ("twelve", self.lean)):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            about = "of every field" if name == "every" else "of the twelve default fields"
            yield from server_ingest.beside_control(
                folder, template, about, self.scale.reports, self.scale.rounds, cluster, self.say
            )

    def ingest(self) -> Iterator[Figure]:
        """Single reports on SQLite."""
        return self._singles(None)

    def postgresql(self) -> Iterator[Figure]:
        """The same on PostgreSQL, with fsync."""
        if WHY_NOT:
            raise NotHere(WHY_NOT)
        with running_cluster(fsync=True) as cluster:
            yield from self._singles(cluster)

    def backlog(self) -> Iterator[Figure]:
        """Days delivered at once, and bytes on the disk."""
        return server_ingest.backlog(
            self.folder / "backlog", self.template, self.scale.backlog_nodes, 24, self.say
        )

    def stampede(self) -> Iterator[Figure]:
        """A fleet in one second, and over thirty."""
        return server_ingest.stampede(self.folder / "stampede", self.template, self.scale.agents, self.say)

    def year(self) -> Iterator[Figure]:
        """Questions on a year of a fleet, and memory at work on it."""
        scale = self.scale
        return server_asking.year_figures(
            self.folder / "year", self.template, scale.year, scale.runs, scale.load_seconds, self.say
        )

    def sockets(self) -> Iterator[Figure]:
        """Live pages."""
        scale = self.scale
        self.say(f"{scale.clients:,} live pages", 0)
        cost = server_sockets.run(scale.clients, 1, 125, scale.socket_seconds)
        notes = (
            f"{cost.messages:,} messages of {cost.bytes_per_message} B in {cost.seconds:.0f} s,"
            f" {cost.per_client_second:.2f} a client and second; {cost.nodes} nodes of 8 GPUs; PSS {cost.pss_mb:.0f} MB",
        )
        yield Figure(
            f"{cost.clients:,} WebSocket clients at 1 message/s", 50, cost.core * 100, "% of a core", 1, notes
        )

    def memory(self) -> Iterator[Figure]:
        """An idle server."""
        self.say("an idle server", 0)
        yield server_asking.idle_figure(self.folder / "idle", self.scale.rest_seconds)

    def hostile(self) -> Iterator[Figure]:
        """What others notice of those who mean harm."""
        return server_hostile.hostile_figures(
            self.folder / "hostile", self.template, self.scale.hostile_seconds, self.say
        )


class NotHere(Exception):
    """Something that a part needs is not installed."""


PARTS = ("ingest", "postgresql", "backlog", "stampede", "year", "sockets", "memory", "hostile")


def measure(bench: Bench, parts: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The figures of `parts`; what could not run is told in the second list."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in parts:
        try:
            figures += getattr(bench, name)()
        except (NotHere, RuntimeError, OSError, subprocess.SubprocessError) as reason:
            failed.append(f"{name}: not measured: {reason}")
    return figures, failed


def versions() -> str:
    """What else a figure depends on."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    folder = binaries()
    if folder is not None:
        told = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
        found.append(f"PostgreSQL {told.split()[2]}")
    return ", ".join(found)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench server", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--quick", action="store_true", help="a small year, few reports: a look, not a measure"
    )
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(PARTS)}, with commas")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--write", action="store_true", help="replace the server's figures in docs/performance.md"
    )
    args = parser.parse_args(argv)
    args.parts = args.only.split(",") if args.only else list(PARTS)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if args.write and (args.quick or args.only):
        parser.error("--write wants the whole measure: figures of several runs on one page would mislead")
    return args


def write(page: Path, machine: Machine, figures: Sequence[Figure], failed: Sequence[str]) -> None:
    """Put the figures into the page."""
    text = page.read_text(encoding="utf-8")
    lines = [*machine.lines(), versions()]
    text = replace_part(text, "server machine", "\n".join(f"- {line}" for line in lines))
    missing = "".join(f"\n- {line}" for line in failed)
    text = replace_part(text, "server figures", as_markdown(figures) + missing)
    page.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 where every bar that was measured is met, 1 where one is not."""
    args = read_arguments(argv)
    machine = this_machine()
    compile_program()
    with tempfile.TemporaryDirectory(prefix="gpu_monitor-bench-") as folder, progress() as say:
        figures, failed = measure(Bench(Path(folder), QUICK if args.quick else Scale(), say), args.parts)
    if args.json:
        print(json.dumps({**as_json(machine, figures), "versions": versions(), "failed": failed}, indent=2))
    else:
        print("\n".join([*machine.lines(), versions(), "", as_text(figures), *failed]))
    if args.write:
        write(PAGE, machine, figures, failed)
    return 0 if not failed and all(figure.is_met is not False for figure in figures) else 1


if __name__ == "__main__":
    # Ended from outside it ends what it started, and removes its folder, like at its own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
