"""`gpu_monitor events`: what happened, and when there was no data, as one list in order of time."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TextIO

from gpu_monitor.agent.ask import interval_of, node_number
from gpu_monitor.agent.chronicle import (
    GAP,
    SEVERITIES,
    Card,
    Entry,
    Wanted,
    chronicle,
    find_cards,
    node_name,
    recorded,
    silence,
)
from gpu_monitor.agent.usage import PLAYED
from gpu_monitor.cli.asking import open_reader
from gpu_monitor.cli.labels import gpu_label, recorded_text, table_width
from gpu_monitor.cli.options import Formatter, add_config, add_format, add_node, add_span
from gpu_monitor.cli.output import json_text, note, records_csv
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING, UsageError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_duration, format_time, parse_moment
from gpu_monitor.storage.database import Reader

_DAY = 86400.0
_UID_COLUMNS = 12
_LEAST_TEXT = 20
"""However narrow the terminal: text in fewer columns than this cannot be read."""
_QUIET_SECONDS = 180.0
"""No row for so long (or three intervals) means that nobody records; the row under way is at most one interval old."""
_FIELDS = (
    "time", "end", "seconds", "kind", "severity", "node", "uid", "index", "name", "pci_bus_id", "source", "message",
    "cause", "detail", "advice",
)  # fmt: skip
_WORDS = {GAP: ("gap", "gaps"), "xid": ("Xid", "Xids"), "throttle_started": ("throttling", "throttlings")}

EXAMPLES = """examples:
  gpu_monitor events                           the last 24 hours
  gpu_monitor events --since -7d --gpu 1       what was wrong with GPU 1
  gpu_monitor events --kind gap                when there was no data, and why
  gpu_monitor events --severity error -f json  errors and worse, in full

A gap is a stretch without data, listed where it began. With --gpu the gaps of the whole node are listed
too, because that GPU has no data in them either; the node's events are not. An index or address is the
one the GPU had when last seen. Times are UTC and can be given to -sc. Exit code 3 where there is nothing."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `events` command."""
    parser = subparsers.add_parser(
        "events",
        help="what happened: Xids, lost GPUs, throttling, gaps",
        description="What happened and when there was no data, in order of time.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add_config(parser)
    add_span(parser, "24 hours before --until")
    add_node(parser)
    add("--gpu", metavar="GPU", help="one GPU: its index, the beginning of its uid, or its PCI address")
    add("--kind", metavar="KIND", help="one kind: gap, xid, throttle_started, agent_started ...")
    add("--severity", choices=SEVERITIES, help="this severity and worse")
    add_format(parser, ("table", "json", "csv"), "table")


@dataclass(frozen=True)
class Answer:
    """What was found, ready to print. Times are UTC epoch seconds."""

    since: float
    until: float
    node: str
    entries: tuple[Entry, ...]


def run(args: argparse.Namespace) -> int:
    """Print the list; exit 3 where it is empty."""
    now = SystemClock().now()
    since, until = _span(args.since, args.until, now)
    reader = open_reader(args.config)
    try:
        node = node_number(reader, args.node)
        found = None if args.gpu is None else find_cards(reader, node, args.gpu)
        uids = None if found is None else frozenset(card.uid for card in found)
        wanted = Wanted(node, since, until, now, uids, args.kind, args.severity)
        entries = chronicle(reader, wanted)
        answer = Answer(since, until, node_name(reader, node), tuple(entries))
        _PRINTERS[args.output_format](answer, sys.stdout)
        sys.stdout.flush()
        if found is not None and sum(card.parent_uid is None for card in found) > 1:
            note(f"{args.gpu} is what several GPUs were called: {', '.join(card.uid for card in found)}")
        quiet = _quiet(reader, wanted)
        if quiet:
            note(quiet)
        note(_summary(answer) if entries else _nothing(reader, wanted, args.gpu))
    finally:
        reader.close()
    return EXIT_DONE if entries else EXIT_NOTHING


def _span(since: str | None, until: str | None, now: float) -> tuple[float, float]:
    end = parse_moment(until, now).candidates[-1] if until else now
    begin = parse_moment(since, now).epoch if since else end - _DAY
    if begin >= end:
        raise UsageError("--since lies behind --until", "Give --since a time before --until.")
    return begin, end


def _quiet(reader: Reader, wanted: Wanted) -> str | None:
    """That nobody records now: the hole is put on record by the next start, so no gap shows it yet."""
    found = recorded(reader, wanted.node) if wanted.node == 1 and wanted.until >= wanted.now else None
    if found is None or wanted.now - found[1] < max(_QUIET_SECONDS, 3.0 * interval_of(reader)):
        return None
    since = format_time(round(found[1]))
    return f"nothing was recorded since {since}: that gap is listed once the agent runs again"


def _nothing(reader: Reader, wanted: Wanted, gpu: str | None) -> str:
    asked = [
        f"of {name} {value}"
        for name, value in (("GPU", gpu), ("kind", wanted.kind), ("severity", wanted.severity))
        if value is not None
    ]
    span = f"from {format_time(round(wanted.since))} to {format_time(round(wanted.until))}"
    what = " ".join(["no event and no gap", *asked])
    others = sorted({entry.kind for entry in chronicle(reader, replace(wanted, kind=None))})
    kinds = f" (there are: {', '.join(others)})" if others else ""
    return f"{what} {span}{kinds}; {recorded_text(reader, wanted.node)}"


def _summary(answer: Answer) -> str:
    """What was found, counted: `3 gaps (42 min without data), 1 Xid, 2 throttlings, 1 agent started`."""
    counts = Counter(entry.kind for entry in answer.entries)
    if counts["throttle_started"]:
        del counts["throttle_ended"]
    order = [
        *(kind for kind in _WORDS if counts[kind]),
        *sorted(kind for kind in counts if kind not in _WORDS),
    ]
    parts = []
    for kind in order:
        one, several = _WORDS.get(kind, (kind.replace("_", " "),) * 2)
        text = f"{counts[kind]} {one if counts[kind] == 1 else several}"
        if kind == GAP:
            lost = silence(answer.entries, answer.since, answer.until)
            text += f" ({format_duration(lost)} without data)"
        parts.append(text)
    return ", ".join(parts)


# ---------------------------------------------------------------- JSON and CSV


def _record(entry: Entry, node: str) -> dict[str, Any]:
    card = entry.card
    return {
        "time": _stamp(entry.time),
        "end": None if entry.end is None else _stamp(entry.end),
        "seconds": None if entry.seconds is None else round(entry.seconds, 3),
        "kind": entry.kind,
        "severity": entry.severity,
        "node": node,
        "uid": entry.uid,
        "index": card and card.index,
        "name": card and card.name,
        "pci_bus_id": card and card.pci_bus_id,
        "source": card and card.source,
        "message": entry.message,
        "cause": entry.cause,
        "detail": None if entry.detail is None else dict(entry.detail),
        "advice": entry.advice,
    }


def _stamp(moment: float) -> str:
    return format_time(round(moment, 3))


def _print_json(answer: Answer, stream: TextIO) -> None:
    lines = ",\n  ".join(json_text(_record(entry, answer.node)) for entry in answer.entries)
    head = {
        "since": format_time(round(answer.since)),
        "until": format_time(round(answer.until)),
        "node": answer.node,
    }
    opened = json_text(head)[:-1]
    stream.write(f'{opened}, "events": [' + (f"\n  {lines}\n" if lines else "") + "]}\n")


def _print_csv(answer: Answer, stream: TextIO) -> None:
    records_csv(_FIELDS, [_record(entry, answer.node) for entry in answer.entries], stream)


# ---------------------------------------------------------------- the table


def _print_table(answer: Answer, stream: TextIO) -> None:
    if not answer.entries:
        return
    played = {entry.card.source for entry in answer.entries if entry.card is not None} & set(PLAYED)
    if played:
        stream.write(f"{' and '.join(sorted(played)).upper()} GPUs: no real hardware did any of this.\n")
    names = _names([entry.card for entry in answer.entries if entry.card is not None])
    cells = [(_short_stamp(entry.time), entry.severity, _where(entry, names)) for entry in answer.entries]
    header = ("time (UTC)", "severity", "GPU")
    widths = [max(len(row[n]) for row in (header, *cells)) for n in range(len(header))]
    room = max(_LEAST_TEXT, table_width(stream) - sum(widths) - 2 * len(widths))
    told: set[str] = set()
    _write_row(header, ["what"], widths, stream)
    for row, entry in zip(cells, answer.entries, strict=True):
        _write_row(row, _wrapped(entry, room, told), widths, stream)


def _write_row(cells: Sequence[str], lines: Sequence[str], widths: Sequence[int], stream: TextIO) -> None:
    head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    for line in lines:
        stream.write(f"{head}  {line}".rstrip() + "\n")
        head = " " * len(head)


def _names(found: Sequence[Card]) -> dict[str, str]:
    """What each GPU is called: index and name where that is only one, else the beginning of its uid."""
    labels = {card.uid: gpu_label(card.index, card.name) for card in found}
    counts = Counter(labels.values())
    return {
        uid: label if label and counts[label] == 1 else uid[:_UID_COLUMNS] for uid, label in labels.items()
    }


def _where(entry: Entry, names: dict[str, str]) -> str:
    if entry.uid is None:
        address = (entry.detail or {}).get("pci_bus_id")
        return "node" if address is None else clean(str(address))
    return names.get(entry.uid, entry.uid[:_UID_COLUMNS])


def _short_stamp(moment: float) -> str:
    return datetime.fromtimestamp(int(moment), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wrapped(entry: Entry, room: int, told: set[str]) -> list[str]:
    """The text in lines of `room` columns; advice that stood in the table already is not said again."""
    text = entry.message
    if entry.kind == GAP:
        lasted = format_duration(entry.seconds or 0.0)
        ended = "still" if entry.end is None else f"until {_short_stamp(entry.end)}"
        text = f"no data for {lasted}, {ended}: {entry.message}"
    if entry.advice is not None:
        text = text.removesuffix(entry.advice).rstrip()
        stop = "" if text.endswith((".", ":", "!", "?")) else "."
        text += " (advice above)" if entry.advice in told else f"{stop} {entry.advice}"
        told.add(entry.advice)
    # A kernel's or driver's words are not trusted with the terminal.
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(shown, room, break_on_hyphens=False) or [""]


_PRINTERS = {"json": _print_json, "csv": _print_csv, "table": _print_table}
