"""The table of `gpu_monitor report`: fits the terminal, or 80 columns; a uid is cut only on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from gpu_monitor.cli.labels import gpu_label, table_width
from gpu_monitor.core.terminal_text import clean

_LEAST_KEY = 8
_SLACK = 0.001
"""A figure known for so much less of the time than the rows were recorded gets a star."""
_HEADINGS = {"uid": "GPU", "node": "node", "user": "user", "day": "day (UTC)"}
_WARNINGS = {
    "simulated": "SIMULATED GPUs: no real hardware did any of this.",
    "replay": "REPLAYED log: these are not this machine's GPUs.",
}

Line = Mapping[str, Any]


def print_table(lines: Sequence[Line], total: Line, key: str, currency: str | None, stream: TextIO) -> None:
    """Lines of one origin, and their total where there are several; without a currency no money."""
    if total["origin"] in _WARNINGS:
        stream.write(f"{_WARNINGS[total['origin']]}\n")
    shown = [*lines, total] if len(lines) > 1 else list(lines)
    header = ["GPU-h", "cover", "util", "idle h", "held h", "kWh", *([currency] if currency else [])]
    cells = [_cells(line, currency is not None) for line in shown]
    widths = [max(len(header[n]), *(len(row[n]) for row in cells)) for n in range(len(header))]
    room = table_width(stream) - sum(widths) - 2 * len(widths)
    names = _names(lines, key, room, is_whole=not stream.isatty())
    names += ["total"] * (len(shown) - len(lines))
    first = max(len(name) for name in (_HEADINGS[key], *names))
    for name, row in zip([_HEADINGS[key], *names], [header, *cells], strict=True):
        numbers = "".join(f"  {cell.rjust(width)}" for cell, width in zip(row, widths, strict=True))
        stream.write(f"{name.ljust(first)}{numbers}\n")
    for text in _footnotes(total, cells):
        stream.write(f"{text}\n")


def _names(lines: Sequence[Line], key: str, room: int, is_whole: bool) -> list[str]:
    """What the lines are about; a GPU by index, name and uid. `is_whole`: a uid may be looked up, so it is not cut."""
    if key != "uid":
        return _shortened([clean(str(line[key])) for line in lines], room)
    labels = [gpu_label(line["index"], line["name"]) for line in lines]
    width = max((len(label) for label in labels), default=0)
    names = [
        f"{label.ljust(width)}  {line['uid']}".strip() for label, line in zip(labels, lines, strict=True)
    ]
    return names if is_whole else _shortened(names, room)


def _cells(line: Line, has_money: bool) -> list[str]:
    cells = [
        f"{line['gpu_hours']:.2f}",
        f"{line['coverage'] * 100:.1f}%",
        _known(line, "gpu_utilization", "utilization_coverage", "{:.1f}%"),
        _known(line, "idle_hours", "idle_coverage"),
        _known(line, "held_idle_hours", "held_idle_coverage"),
        _energy(line),
    ]
    return [*cells, _known(line, "money", "energy_coverage")] if has_money else cells


def _known(line: Line, name: str, coverage: str, pattern: str = "{:.2f}") -> str:
    """A figure as text: a dash where it is unknown, a star where it is known for less than the rest."""
    if line[name] is None:
        return "-"
    star = "*" if line["coverage"] - line[coverage] > _SLACK else ""
    return pattern.format(line[name]) + star


def _energy(line: Line) -> str:
    """Counted and estimated energy together; a tilde where the estimate changes what is printed."""
    counted, estimated = line["energy_kwh"], line["energy_estimated_kwh"]
    if counted is None and estimated is None:
        return "-"
    together = {**line, "kwh": (counted or 0.0) + (estimated or 0.0)}
    return ("~" if _shows(estimated) else "") + _known(together, "kwh", "energy_coverage")


def _shows(estimated: float | None) -> bool:
    return estimated is not None and estimated >= 0.005


def _footnotes(total: Line, cells: Sequence[Sequence[str]]) -> list[str]:
    found = []
    if any(cell.startswith("~") for row in cells for cell in row):
        estimated = total["energy_estimated_kwh"]
        found.append(f"~ estimated from power where no counter was read: {estimated:.2f} kWh")
    if any(cell.endswith("*") for row in cells for cell in row):
        found.append("* known for less of the time than recorded; -f json shows each coverage")
    return found


def _shortened(names: Sequence[str], room: int) -> list[str]:
    """The names cut to `room` columns, so that they stay different where that is possible."""
    room = max(room, _LEAST_KEY)
    if all(len(name) <= room for name in names):
        return list(names)
    for cut in (_head, _middle, _tail):
        short = [cut(name, room) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return [_head(name, room) for name in names]


def _head(name: str, room: int) -> str:
    return name if len(name) <= room else name[: room - 1] + "…"


def _tail(name: str, room: int) -> str:
    return name if len(name) <= room else "…" + name[-(room - 1) :]


def _middle(name: str, room: int) -> str:
    left = room // 2
    return name if len(name) <= room else name[:left] + "…" + name[-(room - 1 - left) :]
