"""What every reader of recorded logs gives: one row per GPU and moment, in catalogue units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo

from gpu_monitor.core.model import Status

RecordedValue = float | int | str


@dataclass(frozen=True)
class RecordedDevice:
    """Which GPU a row is about, as far as the log says; every part may be None.

    `uuid` is None too where the log masks it with zeros. `memory_total` in bytes.
    """

    uuid: str | None = None
    index: int | None = None
    pci_bus_id: str | None = None
    name: str | None = None
    serial: str | None = None
    minor_number: int | None = None
    memory_total: int | None = None
    parent_uid: str | None = None
    mig_instance: str | None = None

    @property
    def key(self) -> str:
        """What tells this GPU from the others of its file: the UUID, else the index, else the PCI address.

        A log that names no GPU at all is about one GPU, whose key is `0`.
        """
        if self.uuid:
            return self.uuid
        if self.index is not None:
            return str(self.index)
        return self.pci_bus_id or "0"


@dataclass(frozen=True)
class RecordedRow:
    """One GPU at one moment. `time` is UTC epoch seconds, `line` where it began in its file (from 1).

    `values`: metric name to value in the catalogue's unit. Gauges and states as written, FLAGS as a
    mask, RATE metrics as the rate the log shows (bytes/s), TOTAL metrics as the raw counter (s).
    A metric that the log has a column for and no value is in `reasons` instead: `unsupported` for
    [N/A], [Not Supported] and deprecated cells, `denied` for missing permission, `lost` for a GPU
    that is lost or asks for a reset, `invalid` for [Unknown Error], empty or impossible cells.
    `status` is LOST where a GPU says so and gives no utilisation, memory, temperature or power.
    """

    time: float
    device: RecordedDevice
    values: Mapping[str, RecordedValue] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    line: int = 0
    status: Status = Status.OK


@dataclass(frozen=True)
class ReadOptions:
    """How to read a log.

    `columns`: the columns in order, for a file without header or with a wrong one. `timezone`: of
    times written without one; None is this machine's. `start`: UTC epoch of the first reading, for
    logs that hold no times (`dmon` without `-o T`); `step` their seconds between readings.
    """

    columns: tuple[str, ...] | None = None
    timezone: tzinfo | None = None
    start: float | None = None
    step: float = 1.0


@dataclass
class Findings:
    """What a reader left out and why: `skipped` and `notes` map a reason to the lines it was met at.

    Of each reason the first few line numbers are kept and all are counted. A skip is a row not
    taken; a note is a row taken with something to know about it.
    """

    skipped: dict[str, Lines] = field(default_factory=dict)
    notes: dict[str, Lines] = field(default_factory=dict)

    def skip(self, reason: str, line: int) -> None:
        """Count one row that was not taken."""
        _count(self.skipped, reason, line)

    def note(self, text: str, line: int) -> None:
        """Count one thing worth saying about a row that was taken."""
        _count(self.notes, text, line)

    @property
    def skipped_rows(self) -> int:
        """How many rows were not taken."""
        return sum(lines.count for lines in self.skipped.values())


_LINES_KEPT = 5
_REASONS_KEPT = 30
_OTHER = "other reasons"


def _count(places: dict[str, Lines], text: str, line: int) -> None:
    """Add a line to its reason; beyond the first reasons all go under one, so that memory stays small."""
    if text not in places and len(places) >= _REASONS_KEPT:
        text = _OTHER
    places.setdefault(text, Lines()).add(line)


@dataclass
class Lines:
    """Where something was met: the first few line numbers, and how often in all."""

    first: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, line: int) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < _LINES_KEPT:
            self.first.append(line)

    def __str__(self) -> str:
        """`line 3` or `lines 3, 4, 5, 6, 7 and 12 more`."""
        shown = ", ".join(str(n) for n in self.first)
        rest = self.count - len(self.first)
        return f"line{'s' if self.count > 1 else ''} {shown}" + (f" and {rest} more" if rest else "")
