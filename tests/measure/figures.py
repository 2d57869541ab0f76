"""A measured figure beside its bar, and the table of them: for the terminal, as JSON, in docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.measure.machine import Machine

BEGIN, END = "<!-- {name}: written by scripts/bench -->", "<!-- {name}: end -->"


@dataclass(frozen=True)
class Figure:
    """One row. `value` in `unit`, None where it could not be measured (then `notes` say why).

    `limit`: the bar, None where there is none; `at_least`: the value must not be below it, else not above.
    `notes`: how it came about and what else was seen.
    """

    what: str
    limit: float | None
    value: float | None
    unit: str
    decimals: int = 1
    notes: tuple[str, ...] = ()
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met; None where there is no bar or no figure."""
        if self.limit is None or self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """What, bar, measured, met."""
        sign = "≥" if self.at_least else "≤"
        bar = "" if self.limit is None else f"{sign} {_number(self.limit)} {self.unit}"
        measured = "not measured" if self.value is None else f"{self.value:,.{self.decimals}f} {self.unit}"
        met = {True: "yes", False: "NO", None: ""}[self.is_met]
        return self.what, bar, measured, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


HEAD = ("what", "bar", "measured", "met")


def as_text(figures: Sequence[Figure], *, with_notes: bool = True) -> str:
    """The table for a terminal."""
    rows = [HEAD, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number and with_notes:
            lines += [f"    {note}" for note in figures[number - 1].notes]
    return "\n".join(lines)


def as_markdown(figures: Sequence[Figure]) -> str:
    """The table for a page, and below it what was noted for each row."""
    rows = [" | ".join(HEAD), "|".join(["---"] * 4), *(" | ".join(figure.cells()) for figure in figures)]
    noted = [f"- **{figure.what}**: {'; '.join(figure.notes)}" for figure in figures if figure.notes]
    return "\n".join(f"| {row} |" if number != 1 else f"|{row}|" for number, row in enumerate(rows)) + (
        "\n\n" + "\n".join(noted) if noted else ""
    )


def as_json(machine: Machine, figures: Sequence[Figure]) -> dict[str, object]:
    """Everything, for a program."""
    rows = [{**asdict(figure), "met": figure.is_met} for figure in figures]
    return {"machine": asdict(machine), "figures": rows}


def replace_part(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of `name` replaced; ValueError where they are missing."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, found, rest = text.partition(begin)
    inside, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no marks {begin} and {end}")
    del inside
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def write_page(page: Path, machine: Machine, figures: Sequence[Figure], peers: str | None) -> None:
    """Put the figures (and the peers', if measured) into the page."""
    text = page.read_text(encoding="utf-8")
    text = replace_part(text, "machine", "\n".join(f"- {line}" for line in machine.lines()))
    text = replace_part(text, "figures", as_markdown(figures))
    if peers is not None:
        text = replace_part(text, "peers", peers)
    page.write_text(text, encoding="utf-8")
