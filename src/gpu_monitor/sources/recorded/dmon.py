"""`nvidia-smi dmon`, with its date and time columns or without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.columns import columns_of
from gpu_monitor.sources.recorded.devices import RowSkipped
from gpu_monitor.sources.recorded.layout import Clockwork, Layout
from gpu_monitor.sources.recorded.lines import Line
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.stamps import StampReader

_NO_UNITS = ("idx", "#", "yyyymmdd", "hh:mm:ss", "bool", "errs", "-", "")
_HALF_A_DAY = 43_200
_MASKED = "N/A"
_OWN_NAMES = {"mem": "utilization.memory", "sm": "utilization.gpu", "temp": "temperature.gpu"}
_IN_TIME = "-"
"""Stands for the columns of date and time, which the first column is put together from."""


def split_words(text: str) -> list[str]:
    """The words of a line of dmon: between blanks, or commas with `--format csv`."""
    bare = text.strip().lstrip("#").strip()
    return [word.strip() for word in bare.split(",")] if "," in bare else bare.split()


class DmonReader:
    """Reads one dmon log; `layouts` are those of its headers, for checks after reading."""

    def __init__(self, name: str, options: ReadOptions, findings: Findings) -> None:
        self.layouts: list[Layout] = []
        self._name = name
        self._options = options
        self._findings = findings
        self._clockwork = Clockwork(StampReader(options.timezone, options.start))
        self._names: list[str] = []
        self._layout: Layout | None = None
        self._clock = _StartClock(options)

    def rows(self, lines: Iterable[Line]) -> Iterator[RecordedRow]:
        """Every row that can be taken; what cannot is counted. LogUnreadable where times are missing."""
        for number, text, is_ended in lines:
            stripped = text.strip("\ufeff\0 \t\r")
            if not stripped:
                continue
            words = split_words(stripped)
            if stripped.startswith("#"):
                self._header(words, number)
            elif self._layout is None:
                self._findings.skip(f"before the header: {stripped[:60]!r}", number)
            else:
                row = self._row(self._layout, words, number, is_ended)
                if row is not None:
                    yield row
        if self._layout is None:
            raise LogUnreadable(f"{self._name}: no header of nvidia-smi dmon was found")

    def _header(self, words: list[str], number: int) -> None:
        """A line of names, or the line of units below it, which completes the layout."""
        lowered = [word.lower() for word in words]
        if "gpu" in lowered:
            self._names = lowered
            return
        if len(words) != len(self._names):
            return
        self._units(lowered, number)

    def _units(self, units: list[str], number: int) -> None:
        headings = [_heading(name, unit) for name, unit in zip(self._names, units, strict=True)]
        if self._layout is not None and headings == [c.heading for c in self._layout.columns[1:]]:
            return
        # The time goes first: it is put together from date and time, or from --start.
        columns = columns_of(["timestamp", *headings])
        unknown = [column.heading for column in columns if not column.is_known and column.heading != _IN_TIME]
        if unknown:
            self._findings.note(f"columns left out: {', '.join(unknown)}", number)
        is_dated = "date" in self._names and "time" in self._names
        if not is_dated and self._options.start is None:
            what = "times of day but no date" if "time" in self._names else "no times"
            raise LogUnreadable(
                f"{self._name} holds {what}: it was recorded without `nvidia-smi dmon -o DT`",
                "Say when its first row was read, for example --start '2026-07-14 08:12:38'.",
            )
        self._layout = Layout(columns, self._clockwork)
        self.layouts.append(self._layout)
        if "time" not in self._names:
            step = f"{self._options.step:g}"
            self._findings.note(
                f"no times in the log: counted from --start, {step} s between readings", number
            )

    def _row(self, layout: Layout, words: list[str], number: int, is_ended: bool) -> RecordedRow | None:
        expected = len(layout.columns) - 1
        if len(words) != expected:
            at_end = "" if is_ended else " at the end of the file"
            self._findings.skip(f"{len(words)} words where the header has {expected}{at_end}", number)
            return None
        named = dict(zip(self._names, words, strict=True))
        if "date" in named and "time" in named:
            time = _joined(named["date"], named["time"])
        else:
            time = self._clock.time(named.get("time"), named.get("gpu", "0"))
        cells = [time, *(_MASKED if word == "-" else word for word in words)]
        try:
            return layout.row(cells, number, self._findings, is_cut=not is_ended)
        except RowSkipped as error:
            self._findings.skip(str(error), number)
            return None


class _StartClock:
    """The times of a log that holds none, or none but times of day, from when it was started."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._round = 0
        self._in_round: set[str] = set()
        self._day: datetime | None = None
        self._last = 0

    def time(self, of_day: str | None, gpu: str) -> str:
        """The time of the next row, as text for a StampReader."""
        return self._counted(gpu) if of_day is None else self._on_day(of_day)

    def _counted(self, gpu: str) -> str:
        if gpu in self._in_round:
            self._round += 1
            self._in_round.clear()
        self._in_round.add(gpu)
        return f"{(self._options.start or 0.0) + self._round * self._options.step:.3f}"

    def _on_day(self, of_day: str) -> str:
        if self._day is None:
            zone = self._options.timezone
            self._day = datetime.fromtimestamp(self._options.start or 0.0, zone)
        seconds = _seconds(of_day)
        if self._last - seconds > _HALF_A_DAY:
            self._day += timedelta(days=1)
        self._last = seconds
        return f"{self._day:%Y-%m-%d} {of_day}"


def _heading(name: str, unit: str) -> str:
    if name in ("date", "time"):
        return _IN_TIME
    name = _OWN_NAMES.get(name, name)
    return name if unit in _NO_UNITS else f"{name} [{unit}]"


def _seconds(of_day: str) -> int:
    parts = of_day.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise RowSkipped("no time of day")
    return int(parts[0]) * 3600 + int(parts[1]) * 60 + int(parts[2])


def _joined(date: str, of_day: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]} {of_day}" if len(date) == 8 else f"{date} {of_day}"
