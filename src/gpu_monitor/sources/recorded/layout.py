"""A line's cells, to a row: compiled once per header, so that a log of gigabytes reads at speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_monitor.core.catalogue import Reason
from gpu_monitor.core.model import Status
from gpu_monitor.sources.recorded.cells import Cell, Dimension, parse_cell
from gpu_monitor.sources.recorded.columns import (
    CLOCK,
    DATE,
    DEVICE_PARTS,
    HOST,
    TIME,
    UTC_TIME,
    Column,
    is_metric,
)
from gpu_monitor.sources.recorded.devices import RowSkipped, device_of
from gpu_monitor.sources.recorded.rows import Findings, RecordedDevice, RecordedRow, RecordedValue
from gpu_monitor.sources.recorded.stamps import StampReader, pick

_CACHED = 20_000
_VITAL = ("gpu_utilization", "memory_used", "temperature", "power_usage")
"""A GPU that gives none of these and says it is lost is gone; what else its row shows is left over."""


class Slot:
    """One column that gives a metric: remembers what its cells were worth, and how many made no sense.

    `known` holds the cells read so far by their text; a caller that finds one there need not ask.
    """

    def __init__(self, position: int, column: Column) -> None:
        self.position = position
        self.column = column
        self.metric = column.place.name
        self.known: dict[str, Cell] = {}
        self.has_values = False
        self.unreadable = 0
        self.example = ""

    def read(self, text: str) -> Cell:
        """What the cell `text` says."""
        place = self.column.place
        cell = parse_cell(text.strip(), place.name, place.dimension, self.column.factor, place.bit)
        if len(self.known) >= _CACHED:
            self.known.clear()
        self.known[text] = cell
        self.has_values = self.has_values or cell.value is not None
        return cell

    def refuse(self, text: str, line: int, findings: Findings) -> None:
        """Count a cell that fits no such column."""
        self.unreadable += 1
        self.example = self.example or text.strip()[:40]
        expected = self.column.place.dimension.value
        findings.note(f"column {self.column.heading!r}: cells that are not {expected}", line)


class Clockwork:
    """Where one log stands in time: what it last said, per GPU and as a whole."""

    def __init__(self, stamps: StampReader) -> None:
        self.stamps = stamps
        self._of_gpu: dict[str, float] = {}
        self._of_log: float | None = None

    def time(self, text: str, key: str) -> float:
        """The epoch that `text` means for the GPU `key`; RowSkipped where it is no time."""
        candidates = self.stamps.candidates(text)
        if not candidates:
            raise RowSkipped("the time is missing or cannot be read")
        epoch = pick(candidates, self._of_gpu.get(key), self._of_log)
        self._of_gpu[key] = self._of_log = epoch
        return epoch


class Layout:
    """The columns of a log: which cell holds the time, which the GPU, which each metric."""

    def __init__(self, columns: Sequence[Column], clockwork: Clockwork) -> None:
        self.columns = tuple(columns)
        self.hosts: set[str] = set()
        self.conflicts = 0
        self._clockwork = clockwork
        self._times = _time_columns(columns)
        self._is_utc = any(columns[i].place.name == UTC_TIME for i in self._times)
        self._host = next((i for i, c in enumerate(columns) if c.place.name == HOST), None)
        self._parts, self._loose, self._factor = _identity_columns(columns)
        self._identity = sorted({*self._parts.values(), *([] if self._loose is None else [self._loose])})
        self._devices: dict[tuple[str, ...], RecordedDevice] = {}
        self.metrics = _metric_slots(columns)
        self._single = [slots[0] for slots in self.metrics.values() if len(slots) == 1]
        self._joint = [slots for slots in self.metrics.values() if len(slots) > 1]

    @property
    def has_time(self) -> bool:
        """Whether any column holds the time."""
        return bool(self._times)

    @property
    def slots(self) -> Iterable[Slot]:
        """Every column that gives a metric."""
        return (slot for slots in self.metrics.values() for slot in slots)

    def row(self, cells: Sequence[str], line: int, findings: Findings, is_cut: bool = False) -> RecordedRow:
        """The row of `cells`; RowSkipped where it has no time or no GPU.

        `is_cut`: the file ends in the last cell, so a bare number there may have lost digits.
        """
        last = len(cells) - 1 if is_cut else -1
        if last in self._times or last in self._identity:
            raise RowSkipped("cut in a cell that names the time or the GPU")
        device = self._device(cells)
        if self._host is not None and len(self.hosts) < 3:
            self.hosts.add(cells[self._host].strip())
        stamps = self._clockwork.stamps
        jumped = stamps.imaginary
        time = self._clockwork.time(self._time_text(cells), device.key)
        if stamps.imaginary != jumped:
            findings.note("a time that the clocks of this zone jumped over (is --timezone right?)", line)
        values, reasons = self._values(
            self._uncut(cells, line, findings) if is_cut else cells, line, findings
        )
        is_lost = bool(reasons) and Reason.LOST in reasons.values()
        if is_lost:
            # Beside [GPU requires reset] the other cells say [N/A], though the card does have the metric.
            reasons = dict.fromkeys(reasons, Reason.LOST)
        status = Status.LOST if is_lost and not any(name in values for name in _VITAL) else Status.OK
        return RecordedRow(time, device, values, reasons, line, status)

    def _time_text(self, cells: Sequence[str]) -> str:
        if len(self._times) == 1:
            text = cells[self._times[0]].strip()
        else:
            text = " ".join(_dashed(cells[i].strip()) for i in self._times)
        return f"{text}Z" if self._is_utc and text and text[-1].isdigit() and ":" in text else text

    def _device(self, cells: Sequence[str]) -> RecordedDevice:
        key = tuple([cells[i] for i in self._identity])
        device = self._devices.get(key)
        if device is None:
            named = {part: cells[i].strip() for part, i in self._parts.items()}
            loose = None if self._loose is None else cells[self._loose].strip()
            try:
                device = device_of(named, loose, self._factor)
            except RowSkipped as error:
                self.conflicts += "different GPUs" in str(error)
                raise
            if len(self._devices) >= _CACHED:
                self._devices.clear()
            self._devices[key] = device
        return device

    def _values(
        self, cells: Sequence[str], line: int, findings: Findings
    ) -> tuple[dict[str, RecordedValue], dict[str, str]]:
        values: dict[str, RecordedValue] = {}
        reasons: dict[str, str] = {}
        for slot in self._single:
            text = cells[slot.position]
            value, reason, is_readable = slot.known.get(text) or slot.read(text)
            if value is not None:
                values[slot.metric] = value
            else:
                reasons[slot.metric] = reason or Reason.INVALID
                if not is_readable:
                    slot.refuse(text, line, findings)
        for slots in self._joint:
            read = [slot.known.get(cells[slot.position]) or slot.read(cells[slot.position]) for slot in slots]
            for slot, cell in zip(slots, read, strict=True):
                if not cell.readable:
                    slot.refuse(cells[slot.position], line, findings)
            cell = _together(slots, read)
            if cell.value is not None:
                values[slots[0].metric] = cell.value
            else:
                reasons[slots[0].metric] = cell.reason or Reason.INVALID
        return values, reasons

    def _uncut(self, cells: Sequence[str], line: int, findings: Findings) -> Sequence[str]:
        """`cells` without a last number that may have lost digits."""
        last = len(cells) - 1
        is_kept = any(slot.position == last for slot in self.slots)
        if not is_kept or not cells[-1].strip()[-1:].isdigit():
            return cells
        findings.note(f"the last cell ({self.columns[last].heading!r}) may be cut and was left out", line)
        return [*cells[:-1], ""]


def _time_columns(columns: Sequence[Column]) -> list[int]:
    """The column with the time, or the two with date and time of day, in that order."""
    first: dict[str, int] = {}
    for i, column in enumerate(columns):
        first.setdefault(column.place.name, i)
    if DATE in first:
        return [first[DATE], *([first[CLOCK]] if CLOCK in first else [])]
    return [first[name] for name in (TIME, UTC_TIME) if name in first][:1]


def _identity_columns(columns: Sequence[Column]) -> tuple[dict[str, int], int | None, float]:
    parts: dict[str, int] = {}
    loose: int | None = None
    factor = 1.0
    for i, column in enumerate(columns):
        place = column.place
        if place.name not in DEVICE_PARTS:
            continue
        if place.name == "index" and place.rank == 1:
            loose = i if loose is None else loose
        else:
            parts.setdefault(place.name, i)
            if parts[place.name] == i and place.name == "memory_total":
                factor = column.factor
    return parts, loose, factor


def _metric_slots(columns: Sequence[Column]) -> dict[str, list[Slot]]:
    found: dict[str, list[Slot]] = {}
    for i, column in enumerate(columns):
        if is_metric(column.place.name):
            found.setdefault(column.place.name, []).append(Slot(i, column))
    for name, slots in list(found.items()):
        slots.sort(key=lambda slot: slot.column.place.rank)
        # A part of a sum is not the sum.
        if len({slot.column.place.rank for slot in slots}) < slots[0].column.place.parts:
            del found[name]
    return found


def _together(slots: Sequence[Slot], cells: Sequence[Cell]) -> Cell:
    """What several columns of one metric say: the sum of parts, all flags, or the best that the card has."""
    known = [cell for cell in cells if cell.value is not None]
    place = slots[0].column.place
    if place.parts:
        if len(known) < len(cells):
            return next(cell for cell in cells if cell.value is None)
        return Cell(sum(cell.value for cell in known if not isinstance(cell.value, str | None)), None, True)
    if not known:
        return next((cell for cell in cells if cell.reason == Reason.LOST), cells[0])
    if place.dimension in (Dimension.MASK, Dimension.FLAG):
        mask = 0
        for cell in known:
            mask |= int(cell.value or 0)
        return Cell(mask, None, True)
    # The next best column answers only for what the card does not have: two counters are never mixed.
    return next(cell for cell in cells if cell.reason != Reason.UNSUPPORTED)


def _dashed(text: str) -> str:
    """`20260714` as `2026-07-14`; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text
