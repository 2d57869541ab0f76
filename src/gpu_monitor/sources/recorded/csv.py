"""`nvidia-smi --query-gpu … --format=csv` and CSV of other tools, line by line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.columns import CLOCK, DATE, TIME, UTC_TIME, columns_of
from gpu_monitor.sources.recorded.devices import RowSkipped
from gpu_monitor.sources.recorded.layout import Clockwork, Layout
from gpu_monitor.sources.recorded.lines import Line
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.sniff import RECORD_AGAIN
from gpu_monitor.sources.recorded.stamps import StampReader

_DELIMITERS = ",;\t"
_PREAMBLE_LINES = 100
"""Messages of a shell or of nvidia-smi may stand before the header; more is another kind of file."""
_TIME_PLACES = (TIME, UTC_TIME, DATE, CLOCK)


def split_cells(text: str, delimiter: str) -> list[str]:
    """The cells of a line, not stripped; quotes as in RFC 4180 where there are any."""
    if '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a stray carriage return, a cell beyond the limit: no row of a log
        return text.split(delimiter)


def delimiter_of(text: str) -> str:
    """What separates the cells of `text`: the most frequent of comma, semicolon and tab."""
    return max(_DELIMITERS, key=text.count)


class CsvReader:
    """Reads one CSV log; `layouts` are those of the headers met, for checks after reading."""

    def __init__(self, name: str, options: ReadOptions, findings: Findings) -> None:
        self.layouts: list[Layout] = []
        self._name = name
        self._options = options
        self._findings = findings
        self._clockwork = Clockwork(StampReader(options.timezone, options.start))
        self._layout: Layout | None = None
        self._delimiter = ","
        self._preamble = 0
        self._first_line = ""

    def rows(self, lines: Iterable[Line]) -> Iterator[RecordedRow]:
        """Every row that can be taken; what cannot is counted. LogUnreadable where the columns are not known."""
        for number, text, is_ended in lines:
            text = text.strip("\ufeff\0 \t\r") if text[:1] in "\ufeff\0" else text
            if not text.strip():
                continue
            layout = self._layout or self._begin(number, text)
            row = self._row(layout, number, text, is_ended) if layout is not None else None
            if row is not None:
                yield row
        if not self.layouts:
            raise self._no_header()

    def _row(self, layout: Layout, number: int, text: str, is_ended: bool) -> RecordedRow | None:
        cells = split_cells(text, self._delimiter)
        expected = len(layout.columns)
        if len(cells) == expected + 1 and not cells[-1].strip():
            cells.pop()
        try:
            if len(cells) != expected:
                raise RowSkipped(_misfit(text, len(cells), expected, is_ended))
            return layout.row(cells, number, self._findings, is_cut=not is_ended)
        except RowSkipped as error:
            if not self._is_repeated_header(number, cells):
                self._findings.skip(str(error), number)
            return None

    def _begin(self, number: int, text: str) -> Layout | None:
        """The columns the user gave, which hold for this line too; None where a header had to be found."""
        self._delimiter = delimiter_of(text)
        if self._options.columns:
            return self._use(list(self._options.columns), number)
        cells = split_cells(text, self._delimiter)
        if self._is_header(cells):
            self._use(cells, number)
            return None
        if any(self._clockwork.stamps.candidates(cell.strip()) for cell in cells) and len(cells) > 1:
            raise LogUnreadable(
                f"{self._name} has no header; its first row is:\n    {text.strip()[:200]}",
                f"Name its {len(cells)} columns in order, for example\n"
                f"  --columns {_example(len(cells))}\n  ('-' for one to leave out)",
            )
        self._preamble += 1
        self._first_line = self._first_line or text.strip()[:200]
        self._findings.skip(f"before the header: {text.strip()[:60]!r}", number)
        if self._preamble > _PREAMBLE_LINES:
            raise self._no_header()
        return None

    def _no_header(self) -> LogUnreadable:
        return LogUnreadable(
            f"{self._name}: no header that is known was found; its first line is:\n    {self._first_line}",
            f"{RECORD_AGAIN}\n  {_hint_columns(self._name)}",
        )

    def _is_header(self, cells: list[str]) -> bool:
        columns = columns_of([cell.strip() for cell in cells])
        known = sum(column.is_known for column in columns)
        named_time = any(column.place.name in _TIME_PLACES for column in columns)
        if known == 0 or not (named_time or known * 2 >= len(cells)):
            return False
        return not any(self._clockwork.stamps.candidates(cell.strip()) for cell in cells)

    def _use(self, cells: list[str], number: int) -> Layout:
        headings = [cell.strip() for cell in cells]
        layout = Layout(columns_of(headings), self._clockwork)
        shown = ", ".join(headings)[:200]
        if any(heading.lower() in ("pid", "process_name") for heading in headings):
            raise LogUnreadable(
                f"{self._name} lists processes ({shown}), not GPUs", "Import the output of --query-gpu."
            )
        if not layout.has_time:
            raise LogUnreadable(
                f"{self._name}: none of its columns is a time: {shown}",
                "Record with --query-gpu=timestamp,…, or name the columns with --columns.",
            )
        if not layout.metrics:
            raise LogUnreadable(
                f"{self._name}: none of its columns is a metric that is kept: {shown}", RECORD_AGAIN
            )
        unknown = [column.heading for column in layout.columns if not column.is_known]
        if unknown:
            self._findings.note(f"columns left out: {', '.join(unknown)}"[:400], number)
        self._layout = layout
        self.layouts.append(layout)
        return layout

    def _is_repeated_header(self, number: int, cells: list[str]) -> bool:
        """Whether a line that is no row is a header; a different one holds from here on."""
        if not self._is_header(cells) or self._layout is None:
            return False
        if self._options.columns:
            self._findings.note("header replaced by --columns", number)
        elif [cell.strip() for cell in cells] != [column.heading for column in self._layout.columns]:
            self._use(cells, number)
            self._findings.note("the columns change here", number)
        return True


def _misfit(text: str, cells: int, expected: int, is_ended: bool) -> str:
    if "\0" in text or "\ufffd" in text:
        return "bytes that are no text"
    if not is_ended and cells < expected:
        return f"cut short: {cells} of {expected} cells at the end of the file"
    if cells == 1:
        return f"not a row: {text.strip()[:60]!r}"
    return f"{cells} cells where the header has {expected}"


def _example(count: int) -> str:
    fields = ["timestamp", "index", "utilization.gpu", "utilization.memory", "memory.used", "memory.total"]
    fields += ["temperature.gpu", "power.draw"]
    return ",".join(fields[:count]) + (",…" if count > len(fields) else "")


def _hint_columns(name: str) -> str:
    return (
        f"Or name its columns in order: gpu_monitor import {name} --columns timestamp,index,utilization.gpu,…"
    )
