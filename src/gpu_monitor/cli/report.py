"""`gpu_monitor report`: GPU-hours, utilisation, idle hours, energy and money of a span."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TextIO

from gpu_monitor.agent.ask import LOCAL, node_number
from gpu_monitor.agent.chronicle import other_nodes, recorded
from gpu_monitor.agent.tally import Figures, Tally, figures
from gpu_monitor.agent.usage import By, Line, Question, Usage, usage
from gpu_monitor.cli.asking import find_store
from gpu_monitor.cli.labels import recorded_text
from gpu_monitor.cli.options import Formatter, add_config, add_format, add_node, add_span
from gpu_monitor.cli.output import json_text, note, records_csv
from gpu_monitor.cli.report_table import print_table
from gpu_monitor.config.load import Loaded
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING, UsageError
from gpu_monitor.core.times import format_time, parse_moment
from gpu_monitor.storage.database import Reader

_DAYS = 7
_LATE_SECONDS = 3600.0
"""Data that begin so long after the span does are worth a word: low coverage would look like a fault."""
_FIGURES = tuple(field.name for field in fields(Figures))
_KEYS = {By.GPU: ("uid", "index", "name", "source"), By.NODE: ("node",), By.USER: ("user",), By.DAY: ("day",)}
_HEADINGS = {By.GPU: "GPU", By.DAY: "day (UTC)"}

EXAMPLES = """examples:
  gpu_monitor report                               each GPU over the last 7 days
  gpu_monitor report --since -30d --by user        whose hours they were
  gpu_monitor report --by day --price 0.31         what each day (UTC) cost
  gpu_monitor report --since 2024-03-01 --until 2024-04-01 -f csv > march.csv

Coverage is what was recorded of what could have been: the span times its GPUs. Idle: utilisation
below 5 %, on the mean of an interval. Held: idle with memory in use (256 MiB or more). Energy comes from the hardware counter;
where there is none it is the power added up over time, marked with ~ and in a column of its own
(energy_estimated_kwh). Unknown is -, or null, never 0.

By user: a GPU's time belongs to the users whose processes were on it, split equally where there were
several; time with none is (nobody). Their coverage is that of all GPUs. By day: from 00:00 to 24:00 UTC.

Whole periods are taken from their aggregates, pieces of periods and the last hour from the stored
rows; by user, rows are taken where they are still kept, and whole periods are split by time before
that. Simulated and replayed GPUs are labelled and never added to real ones."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `report` command."""
    parser = subparsers.add_parser(
        "report",
        help="GPU-hours, idle hours, energy and money",
        description="What the GPUs were used for: hours, idle hours, energy and money, with coverage.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=run)
    add_config(parser)
    add_span(parser, f"{_DAYS} days before --until")
    add_node(parser)
    parser.add_argument(
        "--by",
        choices=[by.value for by in By],
        default=By.GPU.value,
        help="a line for each GPU, node, user or day in UTC (default: gpu)",
    )
    parser.add_argument(
        "--price", type=float, metavar="P", help="price of a kilowatt-hour (default: report.price_per_kwh)"
    )
    add_format(parser, ("table", "json", "csv"), "table")


@dataclass(frozen=True)
class Answer:
    """A whole report: what was asked, and lines with their figures, ready to print."""

    since: float
    until: float
    by: By
    price: float | None
    currency: str
    lines: tuple[dict[str, Any], ...]
    totals: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Print the report; exit 3 where nothing was recorded in the span."""
    loaded, path = find_store(args.config)
    now = SystemClock().now()
    since, until = _span(args.since, args.until, now)
    price = _price(args.price, loaded)
    reader = Reader(path)
    try:
        answer = _answer(reader, args, loaded, (since, min(until, now)), price)
        _PRINTERS[args.output_format](answer, sys.stdout)
        sys.stdout.flush()
        for text in _remarks(reader, args, answer):
            note(text)
    finally:
        reader.close()
    return EXIT_DONE if answer.lines else EXIT_NOTHING


def _remarks(reader: Reader, args: argparse.Namespace, answer: Answer) -> Iterator[str]:
    """Where else there is something: outside the span, and on nodes that were not asked for."""
    if not answer.lines:
        nothing = f"nothing was recorded from {_stamp(answer.since)} to {_stamp(answer.until)}"
        yield f"{nothing}; {recorded_text(reader, node_number(reader, args.node))}"
    elif answer.by is not By.NODE or args.node is not None:
        found = recorded(reader, node_number(reader, args.node))
        if found is not None and found[0] - answer.since > _LATE_SECONDS:
            begun = f"there is data from {_stamp(found[0])} on: coverage is of the whole span"
            yield f"{begun}; since then: --since {_stamp(found[0])}"
    if args.node is None and answer.by is not By.NODE:
        names = other_nodes(reader)
        if names:
            yield f"imported nodes are not in it: {', '.join(names)} (--node NAME, or --by node for all)"


def _span(since: str | None, until: str | None, now: float) -> tuple[float, float]:
    end = parse_moment(until, now).candidates[-1] if until else now
    begin = parse_moment(since, now).epoch if since else end - _DAYS * 86400
    if begin >= min(end, now):
        raise UsageError(
            f"the span from {_stamp(begin)} to {_stamp(end)} holds no past time",
            "Give --since a time before --until, and before now.",
        )
    return begin, end


def _stamp(moment: float) -> str:
    return format_time(round(moment))


def _price(given: float | None, loaded: Loaded) -> float | None:
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise UsageError(f"--price {given:g} is no price", "Give a number of 0 or more, e.g. --price 0.31.")
    return loaded.settings.report.price_per_kwh if given is None else given


def _answer(
    reader: Reader, args: argparse.Namespace, loaded: Loaded, span: tuple[float, float], price: float | None
) -> Answer:
    by = By(args.by)
    lines: list[dict[str, Any]] = []
    totals: dict[str, Line] = {}
    notes: list[str] = []
    for node, name in _nodes(reader, args.node, by):
        has_processes = node == 1 and loaded.settings.collection.processes != "off"
        found = usage(reader, Question(node, *span, by, has_processes))
        lines += [_record(line, by, name, price) for line in found.lines]
        notes += found.notes
        _add_totals(totals, found)
    return Answer(
        *span, by, price, loaded.settings.report.currency, tuple(lines),
        tuple({"origin": total.origin, **_figures(total, price)} for total in totals.values()), tuple(notes),
    )  # fmt: skip


def _nodes(reader: Reader, named: str | None, by: By) -> Iterator[tuple[int, str]]:
    """The nodes to report on: the one named, this machine's, or by node all there are."""
    known = {1: LOCAL, **dict(reader.rows("SELECT id, name FROM nodes ORDER BY id"))}
    if by is By.NODE and named is None:
        yield from known.items()
        return
    number = node_number(reader, named)
    yield number, known[number]


def _add_totals(totals: dict[str, Line], found: Usage) -> None:
    for total in found.totals:
        before = totals.get(total.origin)
        if before is None:
            totals[total.origin] = total
            continue
        both = Tally()
        both.add(before.tally.values())
        both.add(total.tally.values())
        totals[total.origin] = replace(
            total, tally=both, known=both, possible=before.possible + total.possible
        )


def _figures(line: Line, price: float | None) -> dict[str, Any]:
    return asdict(figures(line.tally, line.known, line.possible, price))


def _record(line: Line, by: By, node: str, price: float | None) -> dict[str, Any]:
    """One line with its names, as JSON and CSV print it."""
    if by is By.GPU and line.gpu is not None:
        gpu = line.gpu
        named: dict[str, Any] = {"uid": gpu.uid, "index": gpu.index, "name": gpu.name, "source": gpu.source}
    elif by is By.DAY:
        named = {"day": format_time(line.day or 0)[:10]}
    else:
        named = {by.value: node if by is By.NODE else line.key}
    return {**named, "origin": line.origin, **_figures(line, price)}


def _print_json(answer: Answer, stream: TextIO) -> None:
    record = {
        "since": _stamp(answer.since),
        "until": _stamp(answer.until),
        "by": answer.by.value,
        "timezone": "UTC",
        "price_per_kwh": answer.price,
        "currency": None if answer.price is None else answer.currency,
        "lines": answer.lines,
        "totals": answer.totals,
        "notes": answer.notes,
    }
    stream.write(json_text(record, indent=1) + "\n")


def _print_csv(answer: Answer, stream: TextIO) -> None:
    header = ("since", "until", *_KEYS[answer.by], "origin", *_FIGURES, "currency")
    ends = {"since": _stamp(answer.since), "until": _stamp(answer.until)}
    money = {"currency": None if answer.price is None else answer.currency}
    records_csv(header, [{**ends, **line, **money} for line in answer.lines], stream)
    for text in answer.notes:
        note(text)


def _print_table(answer: Answer, stream: TextIO) -> None:
    stream.write(
        f"Usage by {_HEADINGS.get(answer.by, answer.by.value)}, {_stamp(answer.since)} to {_stamp(answer.until)}\n"
    )
    key = "uid" if answer.by is By.GPU else answer.by.value
    currency = None if answer.price is None else answer.currency
    for total in answer.totals:
        lines = [line for line in answer.lines if line["origin"] == total["origin"]]
        print_table(lines, total, key, currency, stream)
    for text in answer.notes:
        stream.write(f"{text}\n")


_PRINTERS = {"json": _print_json, "csv": _print_csv, "table": _print_table}
