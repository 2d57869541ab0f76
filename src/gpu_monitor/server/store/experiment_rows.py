"""Rows of experiments, segments and series while they are written: read once, changed in memory, put back together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select, tuple_

from gpu_monitor.server.store.rows import Rows
from gpu_monitor.server.store.schema_experiments import experiments, segments, series
from gpu_monitor.server.store.segment_draft import Piece

_NAMES = 500
"""In one question."""
_KEPT = ("id", "uid", "experiment", "name", "created", "created_by", "contract", "project")
"""Columns that stay as they were made."""


@dataclass(slots=True)
class ExperimentRow:
    """An experiment; the fields are the columns."""

    id: int
    uid: str
    contract: int
    project: int
    name: str
    created: float
    created_by: str
    started: float
    ended: float | None
    status: str
    status_changed: float
    exit_code: int | None
    signal: str | None
    reason: str | None
    proof: str | None
    last_heard: float
    lease: float
    last_step: int | None
    last_time: float | None
    points: int
    texts: int
    specials: int
    bytes: int
    simulated: bool
    host: str | None
    user: str | None
    archived: float | None
    thinned: float | None
    removed: float | None
    revision: int


@dataclass(slots=True)
class SegmentRow:
    """A segment; the fields are the columns."""

    id: int
    experiment: int
    name: str
    bytes: int
    damaged: int
    unknown: int
    started: float
    received: float
    last_heard: float
    last_time: float | None
    host: str
    pid: int
    user: str | None
    boot_id: str | None
    start_ticks: int | None
    ns_pid: int | None
    rank: int | None
    python: str | None
    version: str | None
    gpus: str | None
    simulated: bool
    resumed: bool
    parent: str | None
    status: str
    status_time: float
    status_more: str | None
    proof: str | None
    proof_time: float | None
    decoder: str


@dataclass(slots=True)
class SeriesRow:
    """A metric of an experiment; the fields are the columns."""

    id: int
    experiment: int
    name: str
    unit: str | None
    source: str | None
    points: int = 0
    first_time: float | None = None
    last_step: int | None = None
    last_time: float | None = None
    last_value: float | None = None
    last_special: int | None = None
    min_value: float | None = None
    min_step: int | None = None
    min_time: float | None = None
    max_value: float | None = None
    max_step: int | None = None
    max_time: float | None = None
    specials: int = 0
    special_step: int | None = None

    def add(self, piece: Piece) -> int:
        """Take points into the figures; how many of them are not finite."""
        times, steps, values = piece.times, piece.steps, piece.column.values
        self.points += len(times)
        self.first_time = min(times) if self.first_time is None else min(self.first_time, min(times))
        newest = max(times)
        at = len(times) - 1 if times[-1] == newest else len(times) - 1 - list(reversed(times)).index(newest)
        if self.last_time is None or newest >= self.last_time:
            self.last_step, self.last_time, self.last_value = steps[at], newest, values[at]
            self.last_special = None if piece.column.specials is None else piece.column.specials[at]
        finite: Sequence[float] = values  # type: ignore[assignment]
        not_finite = 0
        if piece.column.specials is not None:
            finite = [value for value in values if value is not None]
            not_finite = len(values) - len(finite)
            if self.special_step is None and not_finite:
                self.special_step = steps[values.index(None)]
            self.specials += not_finite
        if finite:
            least, greatest = min(finite), max(finite)
            if self.min_value is None or least < self.min_value:
                place = values.index(least)
                self.min_value, self.min_step, self.min_time = least, steps[place], times[place]
            if self.max_value is None or greatest > self.max_value:
                place = values.index(greatest)
                self.max_value, self.max_step, self.max_time = greatest, steps[place], times[place]
        return not_finite


Row = TypeVar("Row", ExperimentRow, SegmentRow, SeriesRow)
_TABLES: dict[type[Any], Table] = {ExperimentRow: experiments, SegmentRow: segments, SeriesRow: series}


def columns_of(kind: type[Any]) -> list[str]:
    """The columns of a kind of row, in the order of its fields."""
    return [field.name for field in fields(kind)]


def save(rows: Rows, kind: type[Row], changed: Iterable[Row]) -> None:
    """Put rows that are there back as they are now."""
    names = columns_of(kind)
    then = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in _KEPT)
    values = [[getattr(one, name) for name in names] for one in changed]
    rows.upsert(_TABLES[kind], names, ("id",), f"SET {then}", values)


def load_experiments(connection: Connection, uids: Iterable[str]) -> dict[str, ExperimentRow]:
    """Experiments by their uid, locked until the transaction ends; removed ones, too."""
    asked = select(*(experiments.c[name] for name in columns_of(ExperimentRow)))
    asked = asked.where(experiments.c.uid.in_(sorted(set(uids)))).order_by(experiments.c.uid)
    found = connection.execute(asked.with_for_update()).fetchall()
    return {row.uid: ExperimentRow(*row) for row in found}


def load_segments(
    connection: Connection, wanted: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], SegmentRow]:
    """Segments by their experiment's id and their own name."""
    keys = sorted(set(wanted))
    if not keys:
        return {}
    asked = select(*(segments.c[name] for name in columns_of(SegmentRow)))
    asked = asked.where(tuple_(segments.c.experiment, segments.c.name).in_(keys))
    return {(row.experiment, row.name): SegmentRow(*row) for row in connection.execute(asked)}


def load_series(connection: Connection, experiment: int, names: Iterable[str]) -> dict[str, SeriesRow]:
    """Series of an experiment by name, of those that are there."""
    wanted = list(names)
    asked = select(*(series.c[name] for name in columns_of(SeriesRow)))
    found: dict[str, SeriesRow] = {}
    for start in range(0, len(wanted), _NAMES):
        part = asked.where(
            series.c.experiment == experiment, series.c.name.in_(wanted[start : start + _NAMES])
        )
        found.update((row.name, SeriesRow(*row)) for row in connection.execute(part))
    return found
