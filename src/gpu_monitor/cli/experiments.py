"""`gpu_monitor experiments`: the experiments of this machine, or of a server."""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gpu_monitor.cli.consent import agrees
from gpu_monitor.cli.experiment_pages import print_details, print_list
from gpu_monitor.cli.options import Formatter, add_format
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.config.training import SERVER, load_training
from gpu_monitor.core.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    ConfigError,
    GpuMonitorError,
    UsageError,
)
from gpu_monitor.core.spreadsheet import cell
from gpu_monitor.core.times import format_time
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.run_terms import Point, Wanted
from gpu_monitor.training.runs_here import RunsHere
from gpu_monitor.training.runs_there import RunsThere
from gpu_monitor.wire.training import STATUSES, written

EXAMPLES = """examples:
  gpu_monitor experiments list                        those in ./experiments (or GPU_MONITOR_DIR), newest first
  gpu_monitor experiments list --project vision --status failed
  gpu_monitor experiments list --where 'val_loss < 0.3 and lr = 0.001'
  gpu_monitor experiments list --sort 'min(val_loss)' --order asc
  gpu_monitor experiments list --server URL           those on a server
  gpu_monitor experiments show resnet50               the newest of that name; resnet50~2 is the one before
  gpu_monitor experiments export resnet50 -o points.csv
  gpu_monitor experiments archive resnet50~2          hides it; --undo takes it back
  gpu_monitor experiments delete resnet50~2           an archived one, for good; asks first

exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing found, 78 no server"""
_COLUMNS = ("metric", "step", "time", "value")
Runs = RunsHere | RunsThere


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `experiments` command."""
    parser = subparsers.add_parser(
        "experiments", help="list, show, export, archive and delete experiments", epilog=EXAMPLES,
        description="The experiments that lie on this machine, or (with --server) on a server.", formatter_class=Formatter,
    )  # fmt: skip
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_list(actions.add_parser("list", help="all of them, the newest first", formatter_class=Formatter))
    show = actions.add_parser(
        "show", help="one of them: parameters, metrics, notes, alerts, files", formatter_class=Formatter
    )
    export = actions.add_parser("export", help="its points as CSV or JSON", formatter_class=Formatter)
    export.add_argument(
        "--metric", metavar="NAME", action="append", default=[], help="only this metric; may be repeated"
    )
    export.add_argument(
        "-o", "--output", metavar="FILE", default=None, help="write into this file, not to stdout"
    )
    export.add_argument("--force", action="store_true", default=False, help="replace FILE where it exists")
    add_format(export, ("csv", "json"), "csv")
    archive = actions.add_parser(
        "archive", help="hide it from lists; deletes nothing", formatter_class=Formatter
    )
    archive.add_argument("--undo", action="store_true", default=False, help="take it back")
    delete = actions.add_parser(
        "delete", help="delete an archived one for good, with its files", formatter_class=Formatter
    )
    delete.add_argument("--yes", action="store_true", default=False, help="do not ask")
    for action in (show, export, archive, delete):
        action.add_argument(
            "name", metavar="NAME", help="an id or a name; NAME~2 is the one before the newest"
        )
    for action in (*actions.choices.values(),):
        add_where(action)
    for action in (actions.choices["list"], show):
        action.add_argument("--json", action="store_true", default=False, help="print JSON")


def _add_list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--project", metavar="NAME", default=None, help="of this project")
    add("--tag", metavar="KEY[=VALUE]", action="append", default=[], help="with this tag; may be repeated")
    add(
        "--status", metavar="STATUS", choices=STATUSES, action="append", default=[],
        help=f"{', '.join(STATUSES)}; may be repeated",
    )  # fmt: skip
    add("--text", metavar="WORDS", default=None, help="with these words in name or id")
    add(
        "--where", metavar="EXPRESSION", default=None,
        help="by parameters, metrics, tags and fields: 'val_loss < 0.3 and not lr = 0.1'",
    )  # fmt: skip
    add("--sort", metavar="WHAT", default=None, help="by started, params.x, metrics.x, min(x) ...")
    add(
        "--order", choices=("asc", "desc"), default=None, help="of --sort (default: desc, the greatest first)"
    )
    hidden = parser.add_mutually_exclusive_group()
    hidden.add_argument("--archived", action="store_true", default=False, help="only archived ones")
    hidden.add_argument("--all", action="store_true", default=False, help="archived ones, too")
    add("-n", "--limit", metavar="N", type=_count, default=50, help="at most so many (default: 50)")


def add_where(parser: argparse.ArgumentParser) -> None:
    """`--directory` and `--server`: where the experiments are."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--directory", metavar="DIR", default=None, help="where experiments lie (default: ./experiments)"
    )
    place.add_argument(
        "--server",
        metavar="URL",
        default=None,
        help="those on this server; the token is in GPU_MONITOR_TOKEN",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 to 100000 was expected")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do what `gpu_monitor experiments ACTION` asks; the exit code."""
    with opened(args.directory, args.server) as runs:
        if args.action == "list":
            return _list(runs, args)
        if args.action == "show":
            return _show(runs, args)
        if args.action == "export":
            return _export(runs, args)
        if args.action == "archive":
            return _archive(runs, args)
        return _delete(runs, args)


@contextlib.contextmanager
def opened(directory: str | None, server: str | None) -> Iterator[Runs]:
    """The experiments of a directory, or of a server where one is named."""
    settings = load_training(server=server, directory=directory)
    if server is None:
        yield RunsHere(settings.directory)
        return
    if settings.server is None:
        raise ConfigError("there is no server to ask", f"Give --server URL, or set {SERVER}.")
    connection = ExperimentServer(settings.server, settings.read_token, settings.ca_file)
    try:
        connection.prepare()
        yield RunsThere(connection)
    finally:
        connection.close()


def _list(runs: Runs, args: argparse.Namespace) -> int:
    is_archived = True if args.archived else None if args.all else False
    wanted = Wanted(
        args.project,
        tuple(args.tag),
        tuple(args.status),
        args.text,
        args.where,
        is_archived,
        args.sort,
        args.limit,
        args.order,
    )
    found = runs.list(wanted)
    if args.json:
        print(json_text({"items": found.items, "has_more": found.has_more}, indent=2))
    elif found.items:
        print_list(found.items, sys.stdout)
    if found.items and found.hint:
        note(found.hint)
    if not found.items:
        note(f"no such experiments in {runs.where}{f': {found.hint}' if found.hint else ''}")
        return EXIT_NOTHING
    if found.has_more:
        note(
            f"there are more than {len(found.items)}: -n shows them, or pick by --project, --tag, --status, --text, --where"
        )
    return EXIT_DONE


def _show(runs: Runs, args: argparse.Namespace) -> int:
    found = runs.show(args.name)
    said = found.pop("said", None)
    if said:
        note(said)
    if args.json:
        print(json_text(found, indent=2))
    else:
        print_details(found, sys.stdout)
    return EXIT_DONE


def _export(runs: Runs, args: argparse.Namespace) -> int:
    points = _begun(runs.points(args.name, tuple(args.metric)))
    if isinstance(runs, RunsThere):
        note(
            "the server gives points by their steps: the column of times is empty; exported where it ran, it is full"
        )
    if args.output is None:
        return _write(points, args.output_format, sys.stdout, args.name)
    path = Path(args.output)
    if path.exists() and not args.force:
        raise UsageError(f"{path} exists already", "Name another file, or say --force to replace it.")
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            code = _write(points, args.output_format, stream, args.name)
        if code == EXIT_DONE:
            draft.replace(path)
    except OSError as error:
        raise GpuMonitorError(
            f"cannot write {path}: {error.strerror}", "Name a file you may write to."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return code


def _begun(points: Iterator[Point]) -> Iterator[Point]:
    """The same points; what cannot be read is told before anything is written."""
    first = list(itertools.islice(points, 1))
    return itertools.chain(first, points)


def _write(points: Iterator[Point], form: str, stream: TextIO, name: str) -> int:
    """Write the points; 3 where there are none."""
    count = 0
    rows = csv.writer(stream, lineterminator="\n")
    if form == "csv":
        rows.writerow(_COLUMNS)
    for one in points:
        values = [
            one.metric,
            one.step,
            None if one.time is None else format_time(one.time),
            written(one.value),
        ]
        if form == "csv":
            rows.writerow([cell(value) for value in values])
        else:
            stream.write(
                ("[\n" if not count else ",\n") + json_text(dict(zip(_COLUMNS, values, strict=True)))
            )
        count += 1
    if form == "json":
        stream.write("\n]\n" if count else "[]\n")
    if not count:
        note(f"{name} has no points")
    return EXIT_DONE if count else EXIT_NOTHING


def _archive(runs: Runs, args: argparse.Namespace) -> int:
    found = runs.archive(args.name, not args.undo)
    print(f"{found} is {'listed again' if args.undo else 'archived: --undo takes it back'}")
    return EXIT_DONE


def _delete(runs: Runs, args: argparse.Namespace) -> int:
    experiment_id, what, is_archived = runs.about(args.name)
    if not is_archived:
        raise GpuMonitorError(
            f"{experiment_id} is not archived", f"First: gpu_monitor experiments archive {experiment_id}"
        )
    if not args.yes and not agrees(f"This deletes {what} for good."):
        note("nothing was deleted")
        return EXIT_FAILED
    print(f"{runs.delete(experiment_id)} is deleted")
    return EXIT_DONE
