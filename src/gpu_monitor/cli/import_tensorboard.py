"""`gpu_monitor import --tensorboard`: TensorBoard's event files as experiments in a directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpu_monitor.cli.output import json_text, note
from gpu_monitor.config.training import load_training
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOTHING, GpuMonitorError, UsageError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.training.tensorboard.runs import EMPTY, PROJECT, FileReport, RunReport, import_runs

_SHOWN = 8
"""Files shown per run, and kinds of what was left out; --json has all."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that belong to TensorBoard's runs."""
    add = parser.add_argument_group("TensorBoard").add_argument
    add(
        "--tensorboard",
        metavar="DIR",
        default=None,
        help="a folder of runs, or one event file, in place of logs",
    )
    add("--directory", metavar="DIR", default=None,
        help="where experiments lie (default: GPU_MONITOR_DIR, else ./experiments)")  # fmt: skip
    add(
        "--project",
        metavar="NAME",
        default=PROJECT,
        help=f"the project of its experiments (default: {PROJECT})",
    )


def run(args: argparse.Namespace) -> int:
    """Import the runs; the exit code."""
    if args.files:
        raise UsageError("--tensorboard takes no other files", "Import logs of nvidia-smi by themselves.")
    directory = load_training("", args.directory).directory
    tell = (lambda report: None) if args.json else _print
    try:
        reports = import_runs(Path(args.tensorboard), directory, args.project, is_dry=args.dry_run, tell=tell)
    except OSError as error:
        raise GpuMonitorError(
            f"cannot import {args.tensorboard} into {directory}: {error.strerror or error}",
            "Check the owner and mode of both folders.",
        ) from error
    if args.json:
        print(
            json_text(
                {"directory": str(directory), "dry_run": args.dry_run, "runs": list(map(_as_json, reports))},
                indent=1,
            )
        )
    elif args.dry_run:
        print("dry run: nothing was written")
    else:
        print(f"experiments are in {clean(str(directory))}")
    problems = [(file, problem) for report in reports for file in report.files for problem in file.problems]
    for file, problem in problems:
        note(f"gpu_monitor import: {clean(str(file.path))} {problem}")
    if problems:
        return EXIT_FAILED
    return EXIT_DONE if any(report.experiment_id for report in reports) else EXIT_NOTHING


def _print(report: RunReport) -> None:
    print(clean(f"{report.name}: {report.experiment_id or 'nothing to import'}"))
    for file in report.files[:_SHOWN]:
        if file.outcome != EMPTY or file.left_out or file.torn:
            print(clean(f"  {file.path.name}: {', '.join(_parts(file))}"))
    if len(report.files) > _SHOWN:
        print(f"  and {len(report.files) - _SHOWN} more files (see --json)")


def _parts(file: FileReport) -> list[str]:
    counts = (
        (file.values, f"{file.values:,} values of {len(file.metrics)} metrics"),
        (file.texts, f"{file.texts:,} texts"),
        (file.pictures, f"{file.pictures:,} pictures"),
        (file.params, f"{file.params:,} parameters"),
    )
    parts = [file.outcome, *(text for count, text in counts if count)]
    if file.without_time:
        parts.append(f"{file.without_time:,} events without a right time, which have that of the one before")
    if file.torn:
        parts.append(f"its last {file.torn:,} bytes are no whole record (yet)")
    left = [f"{count:,} x {kind}" for kind, count in file.left_out.most_common(_SHOWN)]
    return parts + ([f"left out: {'; '.join(left)}"] if left else [])


def _as_json(report: RunReport) -> dict[str, Any]:
    return {
        "run": report.name,
        "experiment_id": report.experiment_id,
        "files": [
            {
                "file": str(file.path), "outcome": file.outcome, "segment": file.segment, "values": file.values,
                "metrics": sorted(file.metrics), "texts": file.texts, "pictures": file.pictures,
                "params": file.params, "events_without_time": file.without_time, "torn_bytes": file.torn,
                "left_out": dict(file.left_out), "problems": file.problems,
            }
            for file in report.files
        ],
    }  # fmt: skip
