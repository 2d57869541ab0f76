"""`gpu_monitor export`: stored rows or hours as CSV or JSON, in constant memory."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from gpu_monitor.agent.ask import node_number, parse_fields
from gpu_monitor.agent.extract import TIMESTAMP, Batch, Extract, Style
from gpu_monitor.cli.asking import find_store
from gpu_monitor.cli.options import Formatter, add_config, add_format, add_node, add_span
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING, GpuMonitorError, UsageError
from gpu_monitor.core.spreadsheet import cell
from gpu_monitor.core.times import format_time, parse_moment
from gpu_monitor.storage.database import Reader

_BAR = 30

EXAMPLES = """examples:
  gpu_monitor export > everything.csv
  gpu_monitor export --since -30d -o month.csv
  gpu_monitor export --hourly --fields uid,power_usage,coverage -f json
  gpu_monitor export --since -30d --fields all -f jsonl | gzip > month.gz

csv and json are what -sc prints; jsonl is one row a line, with its timestamp. Rows whose interval
starts in the span are taken. A file named with -o appears whole or not at all."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `export` command."""
    parser = subparsers.add_parser(
        "export",
        help="rows or hours as CSV or JSON",
        description="Write what is stored, row by row or hour by hour.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add_config(parser)
    add_span(parser, "the oldest there is")
    add_node(parser)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--raw", action="store_true", default=False, help="the rows of each interval (the default)"
    )
    kinds.add_argument("--hourly", action="store_true", default=False, help="the aggregates of whole periods")
    add("--fields", metavar="LIST", help="all, or names with commas (default: the twelve main ones)")
    add("--naive", action="store_true", default=argparse.SUPPRESS, help="local times without offset")
    add_format(parser, ("csv", "json", "jsonl"), "csv")
    add("-o", "--output", metavar="FILE", help="write into this file, not to stdout")
    add("--force", action="store_true", help="replace FILE where it exists")


@dataclass(frozen=True)
class Plan:
    """What is written: the fields, the form, rows or hours, and whether times are local."""

    fields: tuple[str, ...]
    form: str
    is_hourly: bool
    is_naive: bool

    def extract(self, reader: Reader, node: int) -> Extract:
        """What gives the lines; in `json` the time stands once per group, else in each line."""
        fields = self.fields if self.form == "json" else (TIMESTAMP, *self.fields)
        style = _STYLES[self.form]
        return Extract(reader, node, fields, style, is_hourly=self.is_hourly, is_naive=self.is_naive)


def run(args: argparse.Namespace) -> int:
    """Write the rows; exit 3 where there are none."""
    plan = Plan(
        parse_fields(args.fields, args.hourly),
        args.output_format,
        args.hourly,
        bool(getattr(args, "naive", False)),
    )
    now = SystemClock().now()
    since = parse_moment(args.since, now).epoch if args.since else None
    until = parse_moment(args.until, now).candidates[-1] if args.until else None
    if since is not None and until is not None and since >= until:
        raise UsageError("--since lies behind --until", "Give --since a time before --until.")
    reader = Reader(find_store(args.config)[1])
    try:
        node = node_number(reader, args.node)
        extract = plan.extract(reader, node)
        span = _limits(extract, since, until)
        if args.output is None:
            return _write(extract, span, plan, sys.stdout, sys.stderr.isatty() and not sys.stdout.isatty())
        return _write_file(extract, span, plan, Path(args.output), args.force)
    finally:
        reader.close()


def _limits(extract: Extract, since: float | None, until: float | None) -> tuple[int, int]:
    """The part of the span in which anything can be: whole seconds, empty where there is nothing."""
    bounds = extract.bounds()
    if bounds is None:
        return 0, 0
    start = bounds[0] if since is None else max(bounds[0], ceil(since))
    end = bounds[1] + 1 if until is None else min(bounds[1] + 1, ceil(until))
    return start, max(start, end)


def _write_file(extract: Extract, span: tuple[int, int], plan: Plan, path: Path, force: bool) -> int:
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise UsageError(f"{path} is a folder", "Name a file in it.")
        with path.open("w", encoding="utf-8", newline="") as stream:  # a pipe or a device: nothing to rename
            return _write(extract, span, plan, stream, False)
    _refuse_existing(path, force)
    with _replacing(path) as stream:
        code = _write(extract, span, plan, stream, sys.stderr.isatty())
        _refuse_existing(path, force)
        if code != EXIT_DONE:
            raise _NothingWritten
    return EXIT_DONE


class _NothingWritten(GpuMonitorError):
    """There are no rows, so no file is made."""

    exit_code = EXIT_NOTHING

    def __init__(self) -> None:
        super().__init__("nothing is stored in that span; no file was written")


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", "Name another file, or say --force to replace it.")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A new file beside `path` that takes its place at the end; removed on any error."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent, text=True)
    except OSError as error:
        raise GpuMonitorError(
            f"cannot write into {path.parent}: {error.strerror}", "Name a file in a folder you may write to."
        ) from error
    try:
        with open(handle, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
        # mkstemp makes files nobody else may read; this one is as readable as any other new file.
        Path(name).chmod(0o666 & ~_mask())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise GpuMonitorError(f"cannot write {path}: {error.strerror}", "Free space on that disk.") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _mask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _write(extract: Extract, span: tuple[int, int], plan: Plan, stream: TextIO, shows_progress: bool) -> int:
    """Write all batches; 3 where there was none."""
    batches = extract.batches(*span)
    if shows_progress:
        batches = _watched(batches, span, sys.stderr)
    count = _WRITERS[plan.form](batches, plan, stream)
    if not count and stream is sys.stdout:
        note("nothing is stored in that span")
    return EXIT_DONE if count else EXIT_NOTHING


def _write_csv(batches: Iterator[Batch], plan: Plan, stream: TextIO) -> int:
    stream.write(",".join((TIMESTAMP, *plan.fields)) + "\n")
    count = 0
    for batch in batches:
        stream.write("\n".join(batch.lines))
        stream.write("\n")
        count += len(batch.starts)
    return count


def _write_lines(batches: Iterator[Batch], plan: Plan, stream: TextIO) -> int:
    count = 0
    for batch in batches:
        stream.write("{" + "}\n{".join(batch.lines) + "}\n")
        count += len(batch.starts)
    return count


def _write_json(batches: Iterator[Batch], plan: Plan, stream: TextIO) -> int:
    rows = (one for batch in batches for one in zip(batch.places, batch.starts, batch.lines, strict=True))
    stream.write("[")
    count = 0
    for _, group in groupby(rows, itemgetter(0)):
        found = list(group)
        stream.write(",\n" if count else "\n")
        stamp = format_time(found[0][1], plan.is_naive)
        gpus = "}, {".join(line for _, _, line in found)
        stream.write(f'{{"timestamp": "{stamp}", "gpus": [{{{gpus}}}]}}')
        count += len(found)
    stream.write("\n]\n" if count else "]\n")
    return count


def _watched(batches: Iterator[Batch], span: tuple[int, int], stream: TextIO) -> Iterator[Batch]:
    """The same batches, with a bar on a terminal."""
    for batch in batches:
        yield batch
        share = (batch.starts[-1] + 1 - span[0]) / max(1, span[1] - span[0])
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        stream.write(f"\rexport [{bar}] {share:4.0%}")
        stream.flush()
    stream.write("\r" + " " * (_BAR + 15) + "\r")
    stream.flush()


def _csv_text(value: Any) -> str:
    """What the csv module writes for a value."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow((cell(value), 0))  # a lone empty cell would be quoted
    return buffer.getvalue()[: -len(",0\n")]


def _json_label(name: str) -> str:
    return json.dumps(name) + ": "


_JSON = Style(", ", _json_label, "null", json_text)
_STYLES = {"csv": Style(",", lambda name: "", "", _csv_text), "json": _JSON, "jsonl": _JSON}
_WRITERS = {"csv": _write_csv, "json": _write_json, "jsonl": _write_lines}
