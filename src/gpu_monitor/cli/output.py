"""How results are printed: JSON lists of groups, CSV for spreadsheets, plain tables. Results go to stdout."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from gpu_monitor.agent.ask import Group
from gpu_monitor.core.spreadsheet import cell
from gpu_monitor.core.terminal_text import clean, clean_lines, escape_json
from gpu_monitor.core.times import format_time


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that reads back as it is, with the control characters of its texts escaped."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent).split("\n")
    return "\n".join(escape_json(line) for line in lines)


def _records_json(records: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """A list with one record a line."""
    stream.write("[")
    separator = "\n"
    for record in records:
        stream.write(separator + json_text(record))
        separator = ",\n"
    stream.write("\n]\n" if separator == ",\n" else "]\n")


def groups_json(groups: Iterable[Group], stream: TextIO, naive: bool = False) -> None:
    """`[{"timestamp": …, "gpus": [ … ]}]`, one group a line."""
    _records_json(({"timestamp": format_time(g.start, naive), "gpus": list(g.gpus)} for g in groups), stream)


def hosts_json(rows: Iterable[tuple[int, Mapping[str, Any]]], stream: TextIO, naive: bool = False) -> None:
    """`[{"timestamp": …, "host": { … }}]`, one row a line."""
    _records_json(
        ({"timestamp": format_time(start, naive), "host": values} for start, values in rows), stream
    )


def groups_csv(groups: Iterable[Group], fields: Sequence[str], stream: TextIO, naive: bool = False) -> None:
    """Header `timestamp,` and the fields, one row per GPU."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["timestamp", *fields])
    for group in groups:
        stamp = format_time(group.start, naive)
        writer.writerows([stamp, *(cell(gpu[name]) for name in fields)] for gpu in group.gpus)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO) -> None:
    """Aligned columns: numbers to the right, text to the left, null as a dash."""
    shown = [["-" if value is None else clean(str(value)) for value in row] for row in rows]
    kinds = [all(_is_number(row[n]) for row in shown) for n in range(len(header))]
    widths = [max(len(header[n]), *(len(row[n]) for row in shown), 0) for n in range(len(header))]
    for line in [list(header), *shown]:
        cells = [
            text.rjust(w) if right else text.ljust(w)
            for text, w, right in zip(line, widths, kinds, strict=True)
        ]
        stream.write("  ".join(cells).rstrip() + "\n")


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).replace("%", "", 1).isdigit()


def records_csv(header: Sequence[str], rows: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """A list of records as CSV."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell(row[name]) for name in header] for row in rows)


def note(text: str) -> None:
    """A message for people, on stderr."""
    print(clean_lines(text), file=sys.stderr)
