"""`gpu_monitor compare`: experiments side by side."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from gpu_monitor.cli.experiments import add_where
from gpu_monitor.cli.labels import table_width
from gpu_monitor.cli.options import Formatter
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.core.compare import Best
from gpu_monitor.core.errors import EXIT_DONE, GpuMonitorError
from gpu_monitor.training.compare import compare_experiments
from gpu_monitor.wire.training import written

EXAMPLES = """examples:
  gpu_monitor compare baseline tuned              parameters that differ, and what the metrics came to
  gpu_monitor compare baseline tuned tuned~2 --step 1000
  gpu_monitor compare baseline tuned --plot curves.png --metric val_loss
  gpu_monitor compare a b --server http://localhost:8000 --json

Each is taken from this machine where it lies here, else from the server. The best value is marked with a star; where
a metric's name does not tell whether less or more is better, --best reward:max does."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `compare` command."""
    parser = subparsers.add_parser(
        "compare", help="experiments side by side", description="Experiments side by side.", epilog=EXAMPLES,
        formatter_class=Formatter,
    )  # fmt: skip
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add("names", metavar="NAME", nargs="+", help="an id or a name; NAME~2 is the one before the newest")
    add("--step", metavar="N", type=int, default=None, help="also the values at this step")
    add(
        "--best",
        metavar="METRIC:min|max",
        action="append",
        type=_goal,
        default=[],
        help="what is best of a metric",
    )
    add(
        "--every",
        action="store_true",
        default=False,
        help="also what is the same, and the SDK's own readings",
    )
    add(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help="with --plot: this metric; may be repeated",
    )
    add(
        "--plot",
        metavar="FILE",
        default=None,
        help="draw the curves over each other (PNG, SVG or PDF; needs matplotlib)",
    )
    add("--json", action="store_true", default=False, help="print JSON")
    add_where(parser)


def _goal(text: str) -> tuple[str, Best]:
    name, _, goal = text.rpartition(":")
    if not name or goal not in ("min", "max"):
        raise argparse.ArgumentTypeError(f"{text!r}: a metric's name, and :min or :max, were expected")
    return name, "min" if goal == "min" else "max"


def run(args: argparse.Namespace) -> int:
    """Print the comparison, or draw it."""
    compared = compare_experiments(
        args.names, directory=args.directory, server=args.server, step=args.step, best=dict(args.best)
    )
    for words in compared.said:
        note(words)
    if len(compared.runs) == 1:
        (run,) = compared.runs
        note(
            f"only {run.id} is named: there is nothing beside it (`{run.name}~2` is the one before the newest)"
        )
    figure = None if args.plot is None else compared.plot(args.metric or None)
    if args.json:
        print(json_text(_plain(compared.to_dict()), indent=2))
    else:
        print(compared.table(table_width(sys.stdout), every=args.every))
    if figure is not None:
        path = Path(args.plot)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise GpuMonitorError(
                f"cannot write {path}: {error}", "Name a .png, .svg or .pdf you may write."
            ) from error
        note(f"drawn into {path}")
    return EXIT_DONE


def _plain(value: Any) -> Any:
    """NaN and infinities by their names: JSON has none."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return written(value) if isinstance(value, float) and not math.isfinite(value) else value
