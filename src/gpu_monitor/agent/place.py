"""Where a collection goes: beside rows that are there already, or together with an earlier part of its interval."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_monitor.agent.collect import Collection
from gpu_monitor.core.catalogue import HOST_METRICS
from gpu_monitor.storage.database import Row
from gpu_monitor.storage.tables import MAX_ERAS, MAX_GPUS, key_era, key_floor, sample_columns, sample_key

_LOCAL_NODE = 1
LAST_ROW = "last_row"
"""The key in `meta` that holds interval and era of the newest collection."""
_SAMPLES = f"SELECT id, seconds, {', '.join(sample_columns())} FROM samples_raw"
_HOSTS = f"SELECT id, seconds, {', '.join(sample_columns(HOST_METRICS))} FROM hosts_raw"
_CLOCK_SECONDS = 1.0
"""A wall clock that reads less than this before the last reading was corrected, not put back."""


@dataclass(frozen=True)
class Place:
    """Interval, part of it (`began`) and clock era of a collection; the rows that an earlier part left there.

    `gpus` holds rows without their key by key, `host` the host's.
    """

    start: int
    began: float | None
    era: int
    gpus: Mapping[int, Row] = field(default_factory=dict)
    host: Row | None = None

    @property
    def mark(self) -> int:
        """Interval and era as one number."""
        return sample_key(self.start, self.era, 0)


def find_place(connection: sqlite3.Connection, collection: Collection, before: Place | None) -> Place:
    """The place of `collection`, where `before` is that of the last one this process stored.

    The same part of the same interval stays where it is. Else, where the interval has rows: those of
    the newest collection are completed if readings began anew after its end (a restart, a sleep); any
    others are of a time the clock passed before, and new rows go beside them in the next era. Where
    no era is left (the clock was put back 16 times over one interval) the last one is completed.
    """
    start, began = collection.start, collection.began
    if before is not None and (before.start, before.began) == (start, began):
        return before
    used = _newest_era(connection, start)
    if used is None:
        return Place(start, began, 0)
    if _goes_on(connection, start, used, began) or used + 1 >= MAX_ERAS:
        return _completing(connection, start, began, used)
    return Place(start, began, used + 1)


def _goes_on(connection: sqlite3.Connection, start: int, era: int, began: float | None) -> bool:
    """Whether the newest collection was an earlier part of this very interval, and ended before `began`."""
    if began is None:
        return False
    known = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('data_end', ?)", (LAST_ROW,)))
    return known.get(LAST_ROW) == sample_key(start, era, 0) and known["data_end"] <= began + _CLOCK_SECONDS


def _newest_era(connection: sqlite3.Connection, start: int) -> int | None:
    """The highest era that has a row of this machine in the interval, None where it has none."""
    newest = connection.execute(
        f"SELECT max(id) FROM (SELECT max(id) AS id FROM samples_raw WHERE id >= ? AND id < ?"
        f" AND id & {MAX_GPUS - 1} IN (SELECT id FROM gpus WHERE node = ?)"
        " UNION ALL SELECT max(id) FROM hosts_raw WHERE id >= ? AND id < ?)",
        (key_floor(start), key_floor(start + 1), _LOCAL_NODE, key_floor(start), key_floor(start + 1)),
    ).fetchone()[0]
    return None if newest is None else key_era(newest)


def _completing(connection: sqlite3.Connection, start: int, began: float | None, era: int) -> Place:
    bounds = (sample_key(start, era, 0), sample_key(start, era, MAX_GPUS - 1))
    rows = connection.execute(f"{_SAMPLES} WHERE id BETWEEN ? AND ?", bounds)
    hosts = connection.execute(f"{_HOSTS} WHERE id = ?", bounds[:1]).fetchone()
    return Place(start, began, era, {row[0]: row[1:] for row in rows}, None if hosts is None else hosts[1:])
