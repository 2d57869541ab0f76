"""A first look at a log: who is in it, how often it was written, and whether its columns can be true."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.layout import Layout, Slot
from gpu_monitor.sources.recorded.rows import Findings, RecordedRow

SURVEYED_ROWS = 200_000
"""Rows looked at: all of most logs, the first hours of one of gigabytes; 2 MB of memory."""

_TOTALS = 2
"""Totals that the memory of one GPU may have in a log (a driver's change); more, and it is another column."""
_CONFLICT_SHARE = 0.1
_MANY = 64  # MIG splits the 8 GPUs of a machine into 56; more are no machine but a row number
_TOGETHER_SECONDS = 0.15  # nvidia-smi reads the GPUs of one round 2 to 30 ms apart (recordings)
_DEFAULT_STEP = 1.0


@dataclass(frozen=True)
class GpuSurvey:
    """One GPU of the rows looked at: `step` is the median of seconds between its rows."""

    rows: int
    first: float
    last: float
    step: float


@dataclass(frozen=True)
class Survey:
    """The rows looked at. `is_whole` where that was all of the log."""

    rows: int
    is_whole: bool
    gpus: dict[str, GpuSurvey]

    @property
    def first(self) -> float | None:
        """The earliest time, None without rows."""
        return min((gpu.first for gpu in self.gpus.values()), default=None)

    @property
    def step(self) -> float:
        """Seconds between the rows of a GPU: the median over GPUs of their medians."""
        return median(gpu.step for gpu in self.gpus.values()) if self.gpus else _DEFAULT_STEP


class _Gpu:
    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.steps = array("d")
        self.totals: set[int] = set()
        self.over_total = 0
        self.with_total = 0

    def add(self, row: RecordedRow) -> None:
        if self.first is None:
            self.first = row.time
        else:
            self.steps.append(row.time - self.last)
        self.last = row.time
        total, used = row.device.memory_total, row.values.get("memory_used")
        if total is not None:
            if len(self.totals) <= _TOTALS:
                self.totals.add(total)
            if isinstance(used, (int, float)):
                self.with_total += 1
                self.over_total += used > total


def survey(
    name: str,
    rows: Iterable[RecordedRow],
    layouts_met: Callable[[], Sequence[Layout]],
    findings: Findings,
    limit: int = SURVEYED_ROWS,
) -> Survey:
    """Look at the first `limit` rows; LogUnreadable where the columns cannot be what they are called.

    `layouts_met` gives those of the reader that `rows` come from; it is asked when they have been read.
    """
    gpus: dict[str, _Gpu] = {}
    count, is_whole = 0, True
    for row in rows:
        key = row.device.key
        gpu = gpus.get(key)
        if gpu is None:
            gpu = gpus[key] = _Gpu()
        gpu.add(row)
        count += 1
        if count >= limit:
            is_whole = False
            break
    layouts = layouts_met()
    _check_columns(name, layouts)
    _check_identity(name, layouts, count)
    if len(gpus) > _MANY and count < 2 * len(gpus):
        raise _mismatch(
            name, f"the column that names the GPU names another one in almost every row ({len(gpus)})"
        )
    for key, gpu in gpus.items():
        _check_forward(name, key, gpu)
        _check_memory(name, key, gpu)
        _check_alone(name, key, gpu)
    if not count and findings.skipped:
        reason, lines = max(findings.skipped.items(), key=lambda item: item[1].count)
        raise LogUnreadable(
            f"{name}: no row can be taken; {lines}: {reason}",
            "Check that the columns are the ones the header names; --columns LIST overrides it.",
        )
    return Survey(count, is_whole, {key: _summary(gpu) for key, gpu in gpus.items()})


def _summary(gpu: _Gpu) -> GpuSurvey:
    forward = [step for step in gpu.steps if step > 0]
    step = median(forward) if forward else _DEFAULT_STEP
    return GpuSurvey(len(gpu.steps) + 1, gpu.first or 0.0, gpu.last, step)


def _check_columns(name: str, layouts: Sequence[Layout]) -> None:
    """A column without one possible cell is not what its heading says."""
    slots: list[Slot] = [slot for layout in layouts for slot in layout.slots]
    for slot in slots:
        if slot.unreadable and not slot.has_values:
            raise _mismatch(
                name,
                f"column {slot.column.heading!r} is not {slot.column.place.dimension.value}: "
                f"none of its {slot.unreadable} cells can be one (first: {slot.example!r})",
            )


def _check_identity(name: str, layouts: Sequence[Layout], rows: int) -> None:
    for layout in layouts:
        if layout.conflicts > _CONFLICT_SHARE * (rows + layout.conflicts):
            both = " and ".join(
                repr(column.heading) for column in layout.columns if column.place.name == "index"
            )
            raise _mismatch(
                name, f"columns {both} name different GPUs in {layout.conflicts} rows: one is mislabelled"
            )
        if len(layout.hosts) > 1:
            raise LogUnreadable(
                f"{name} holds rows of several hosts ({', '.join(sorted(layout.hosts))} …)",
                "Split it into one file per host, and import each with its own --node.",
            )


def _check_memory(name: str, key: str, gpu: _Gpu) -> None:
    if gpu.with_total and gpu.over_total == gpu.with_total:
        raise _mismatch(name, f"memory used is above memory total in every row of GPU {key}")
    if len(gpu.totals) > _TOTALS:
        raise _mismatch(name, f"the column taken as memory total changes from row to row of GPU {key}")


def _check_forward(name: str, key: str, gpu: _Gpu) -> None:
    backwards = sum(step < 0 for step in gpu.steps)
    if backwards * 2 > len(gpu.steps):
        raise LogUnreadable(
            f"{name}: the times of GPU {key} run backwards",
            "Turn the file round: (head -1 FILE; tail -n +2 FILE | tac) | gpu_monitor import - --node NAME",
        )


def _check_alone(name: str, key: str, gpu: _Gpu) -> None:
    """Rows of one GPU do not come in bunches: where they do, several GPUs go by one name."""
    steps = sorted(gpu.steps)
    bunched = sum(abs(step) <= _TOGETHER_SECONDS for step in steps)
    if len(steps) < 3 or bunched * 3 < len(steps):
        return
    apart = [step for step in steps if step > _TOGETHER_SECONDS]
    if apart and median(apart) >= 5 * _TOGETHER_SECONDS:
        raise _mismatch(
            name,
            f"{bunched + 1} rows of GPU {key} follow another within {_TOGETHER_SECONDS:g} s: "
            "several GPUs seem to write in turns and no column tells them apart",
        )


def _mismatch(name: str, what: str) -> LogUnreadable:
    return LogUnreadable(
        f"{name}: {what}",
        "The header does not match the values, so nothing was taken. Name the columns as they really are:\n"
        "  --columns timestamp,index,utilization.gpu,…  ('-' for one to leave out)",
    )
