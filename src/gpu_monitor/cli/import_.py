"""`gpu_monitor import`: recorded nvidia-smi logs into the store, as history of a named node; or TensorBoard's runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import timedelta, timezone, tzinfo
from re import fullmatch
from typing import Any, TextIO
from zoneinfo import ZoneInfo

from gpu_monitor.agent.ask import load_plan
from gpu_monitor.agent.importing import FileReport, ImportReport, Progress, Target, plan_tasks, run_import
from gpu_monitor.agent.ledger import refresh
from gpu_monitor.cli import import_tensorboard
from gpu_monitor.cli.options import Formatter, add_config
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.config.load import Loaded, load
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOTHING, UsageError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_duration, format_time, parse_duration, parse_moment
from gpu_monitor.sources.recorded.rows import Lines, ReadOptions
from gpu_monitor.storage.database import Writer

_EXAMPLES = """examples:
  gpu_monitor import gpu.csv                            nvidia-smi --query-gpu=… --format=csv; node `gpu`
  gpu_monitor import gpu.csv.1 gpu.csv --node trainer   a rotated log as history of one machine
  gpu_monitor import old.csv --columns timestamp,index,memory.used
  gpu_monitor import gpu.csv --timezone Europe/Berlin   times without offset were written there
  gpu_monitor import dmon.log --start '2026-07-14 08:12:38' --step 10
  zcat gpu.csv.gz | gpu_monitor import - --node trainer
  gpu_monitor import --dry-run *.csv                    read and check, write nothing
  gpu_monitor import --tensorboard runs                 TensorBoard's event files as experiments

The rows show with --node NAME in -sc, export and report; they are sent only by `resend --node NAME`."""
_BAR = 24
_SHOWN = 8
"""Reasons and notes shown per file; --json has all."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `import` command."""
    parser = subparsers.add_parser(
        "import", help="recorded nvidia-smi logs into the store, TensorBoard's runs", formatter_class=Formatter, epilog=_EXAMPLES,
        description="Import logs of nvidia-smi (--query-gpu CSV, -q -x XML, dmon) as history of a named node, or "
        "TensorBoard's event files as experiments.",
    )  # fmt: skip
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="a recorded log; - is standard input")
    add("--node", metavar="NAME", default=None, help="whose history it is (default: named after the file)")
    add("--columns", metavar="LIST", help="the columns in order, with commas; '-' for one to leave out")
    add(
        "--timezone",
        metavar="TZ",
        help="zone of times without offset: Europe/Berlin, UTC, +02:00 (default: local)",
    )
    add("--start", metavar="TIME", default=None, help="when the first row was read, for logs without times")
    add(
        "--step",
        metavar="SECONDS",
        default="1",
        help="seconds between its readings, with --start (default 1)",
    )
    add("--dry-run", action="store_true", default=False, help="read and check, write nothing")
    add("--json", action="store_true", default=False, help="the outcome as JSON")
    add_config(parser)
    import_tensorboard.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import the files; the exit code."""
    if args.tensorboard is not None:
        return import_tensorboard.run(args)
    if not args.files:
        raise UsageError("nothing to import was named", "Give logs of nvidia-smi, or --tensorboard DIR.")
    options = _options(args)
    tasks = plan_tasks(args.files, args.node)
    loaded = load(args.config)
    interval = loaded.settings.collection.interval_seconds
    progress = _progress(sys.stderr)
    if args.dry_run:
        report = run_import(tasks, options, interval, None, progress)
    else:
        writer = Writer(loaded.store)
        try:
            target = Target(writer, _plan(writer, loaded), SystemClock().now(), refresh)
            report = run_import(tasks, options, interval, target, progress)
        finally:
            writer.close()
    if args.json:
        print(json_text(_as_json(report, args.dry_run), indent=1))
    else:
        _print(report, args.dry_run, sys.stdout)
    return _exit_code(report)


def _exit_code(report: ImportReport) -> int:
    for file in report.files:
        if file.error is not None:
            note(f"gpu_monitor import: {file.error}")
    if any(file.error is not None for file in report.files):
        return EXIT_FAILED
    return EXIT_DONE if any(file.rows for file in report.files) else EXIT_NOTHING


def _options(args: argparse.Namespace) -> ReadOptions:
    columns = None
    if args.columns is not None:
        columns = tuple(name.strip() for name in args.columns.split(","))
    start = None
    if args.start is not None:
        start = parse_moment(args.start, SystemClock().now()).epoch
    step = parse_duration(args.step)
    if step <= 0:
        raise UsageError("--step 0 makes all readings one moment", "Give the seconds between two readings.")
    return ReadOptions(columns, _zone(args.timezone), start, step)


def _zone(text: str | None) -> tzinfo | None:
    if text is None or text.lower() == "local":
        return None
    if text.upper() in ("Z", "UTC", "GMT"):
        return timezone.utc
    offset = fullmatch(r"([+-])(\d{2}):?(\d{2})?", text)
    if offset:
        shift = timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0))
        return timezone(-shift if offset[1] == "-" else shift)
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, LookupError) as error:
        raise UsageError(
            f"unknown time zone {text!r}",
            "Examples: Europe/Berlin, America/New_York, UTC, +02:00, local. (On Windows the names need: pip install tzdata)",
        ) from error


def _plan(writer: Writer, loaded: Loaded) -> PeriodPlan:
    """The period lengths of the store; of the configuration where no agent has run on it yet."""
    if writer.get_meta("period_plan") is not None:
        return load_plan(writer)
    return PeriodPlan(((0, loaded.settings.collection.aggregation_interval_hours),))


def _progress(stream: TextIO) -> Progress:
    """A bar on a terminal, nothing in a pipe."""
    if not stream.isatty():
        return lambda name, done, size: None

    def draw(name: str, done: int, size: int) -> None:
        share, name = done / size if size else 1.0, clean(name)
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        end = "\r" + " " * (len(name) + _BAR + 12) + "\r" if done >= size else ""
        print(f"\r{name} [{bar}] {share:4.0%}", end=end, file=stream, flush=True)

    return draw


def _print(report: ImportReport, is_dry: bool, stream: TextIO) -> None:
    for file in report.files:
        if file.error is not None and not file.rows:
            continue
        for line in _lines(file, is_dry):
            print(clean(line), file=stream)
    for node, outlines in report.periods.items():
        if not outlines:
            continue
        first, last = outlines[0].period, outlines[-1].period
        span = f"{format_time(first.start)}..{format_time(last.end)}"
        unit = "hour" if first.seconds == 3600 else f"period of {first.seconds // 3600} h"
        print(f"aggregated {_count(len(outlines), unit)} of {node}", file=stream)
        print(f"  see: gpu_monitor -sc {span} --hourly --node {node}", file=stream)
    if is_dry:
        print("dry run: nothing was written, and nothing compared with the store", file=stream)


def _lines(file: FileReport, is_dry: bool) -> list[str]:
    lines = [f"{file.name} ({file.format}): {_count(file.rows, 'row')} of {_count(len(file.gpus), 'GPU')}"]
    if file.first is not None and file.last is not None:
        every = "" if file.step is None else f", every {file.step:.3g} s"
        lasted = format_duration(file.last - file.first)
        lines.append(f"  {format_time(file.first)} to {format_time(file.last)} ({lasted}{every})")
    counts = file.counts
    verb = "would be stored" if is_dry else "stored"
    parts = [f"{_count(counts.stored, 'interval')} of {file.interval} s {verb}"]
    parts += [f"{counts.completed:,} completed"] if counts.completed else []
    parts += [f"{counts.present:,} there already"] if counts.present else []
    parts += [f"{counts.pruned:,} of hours whose rows are past their age"] if counts.pruned else []
    lines.append(f"  node {file.node}: {', '.join(parts)}")
    lines += _reasons("left out", file.findings.skipped)
    lines += _reasons("note", file.findings.notes)
    return lines


def _reasons(label: str, reasons: Mapping[str, Lines]) -> list[str]:
    lines = [f"  {label}: {reason} ({found})" for reason, found in list(reasons.items())[:_SHOWN]]
    hidden = len(reasons) - _SHOWN
    return lines + ([f"  {label}: {hidden} more reasons (see --json)"] if hidden > 0 else [])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _as_json(report: ImportReport, is_dry: bool) -> dict[str, Any]:
    return {
        "dry_run": is_dry,
        "files": [_file_json(file) for file in report.files],
        "periods": {
            node: [format_time(outline.period.start) for outline in outlines]
            for node, outlines in report.periods.items()
        },
    }


def _file_json(file: FileReport) -> dict[str, Any]:
    return {
        "file": file.name,
        "node": file.node,
        "format": file.format,
        "error": None if file.error is None else str(file.error),
        "rows": file.rows,
        "gpus": sorted(file.gpus),
        "first": None if file.first is None else format_time(file.first),
        "last": None if file.last is None else format_time(file.last),
        "step_seconds": file.step,
        "interval_seconds": file.interval,
        "stored": file.counts.stored,
        "completed": file.counts.completed,
        "present": file.counts.present,
        "pruned": file.counts.pruned,
        "skipped": _lines_json(file.findings.skipped),
        "notes": _lines_json(file.findings.notes),
    }


def _lines_json(reasons: Mapping[str, Lines]) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "rows": found.count, "lines": found.first} for reason, found in reasons.items()
    ]
