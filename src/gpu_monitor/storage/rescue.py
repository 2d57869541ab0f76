"""Reads the rows of a damaged table that can still be read: from both ends, then around the bad pages."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = tuple[Any, ...]
Stretch = tuple[int, int]
"""Keys strictly between the two."""

_BATCH = 1000
_PROBES, _FEW_PROBES = 2000, 64
"""Looks into bad stretches per table, and where neither end could be read: about 50 microseconds each."""


@dataclass(frozen=True)
class Shape:
    """A table as it is read: its columns in order, those of its key, and how finely holes are searched.

    `grain`: holes narrower than this in the first key column are given up; `highest`: no key is above it
    (None: not known). `integers`: every value is a whole number or null, so a row with anything else is
    a damaged one.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    grain: int = 2
    highest: int | None = None
    integers: bool = False


class Rescue:
    """Reads one table of `source`, hands its rows to `take` in batches, and stops when `is_late` says so.

    A row may be handed over twice.
    """

    def __init__(
        self,
        source: sqlite3.Connection,
        shape: Shape,
        take: Callable[[list[Row]], None],
        is_late: Callable[[], bool],
    ) -> None:
        self._source = source
        self._shape = shape
        self._take = take
        self._is_late = is_late
        self._places = [shape.columns.index(name) for name in shape.key]

    def run(self) -> list[Stretch]:
        """Take all that can be read; the stretches of the first key column that cannot, ascending.

        A table whose key is no number has one stretch (0, 0) where something is missing.
        """
        low, whole = self._read("1", (), False)
        if whole:
            return []
        keys, marks = quoted(self._shape.key), ", ".join("?" * len(self._shape.key))
        beyond = "1" if low is None else f"({keys}) > ({marks})"
        high, whole = self._read(beyond, () if low is None else self._key(low), True)
        return [] if whole else self._search(low, high)

    def _search(self, low: Row | None, high: Row | None) -> list[Stretch]:
        """Halve the stretch between two bad places, widest parts first, until what is left is bad throughout."""
        bottom, top = self._bounds(low, high)
        if not isinstance(bottom, int) or not isinstance(top, int):
            return [(0, 0)]
        waiting, lost, probes = deque([(bottom, top)]), list[Stretch](), 0
        most = _FEW_PROBES if low is None and high is None else _PROBES
        while waiting:
            bottom, top = waiting.popleft()
            probes += 1
            if top - bottom < 2:
                continue
            if top - bottom <= self._shape.grain or probes > most or self._is_late():
                if probes > most or not self._between(bottom + 1, top, False)[1]:
                    lost.append((bottom, top))
                continue
            middle = (bottom + top) // 2
            edge, whole = self._between(middle, top, False)
            if not whole:
                waiting.append((middle - 1 if edge is None else edge, top))
            edge, whole = self._between(bottom + 1, middle, True)
            if not whole:
                waiting.append((bottom, middle if edge is None else edge))
        return _joined(sorted(lost))

    def _bounds(self, low: Row | None, high: Row | None) -> tuple[Any, Any]:
        first, last = (None if row is None else row[self._places[0]] for row in (low, high))
        bottom = -1 if first is None else first
        if last is None and isinstance(bottom, int):
            highest = self._shape.highest
            last = max(bottom * 2, bottom + 4096) if highest is None else max(highest, bottom + 1)
        return bottom, last

    def _between(self, start: int, end: int, descending: bool) -> tuple[int | None, bool]:
        """Take the rows whose first key lies in [start, end); the last first key, and whether all were read."""
        name = quoted(self._shape.key[:1])
        edge, whole = self._read(f"{name} >= ? AND {name} < ?", (start, end), descending)
        return None if edge is None else edge[self._places[0]], whole

    def _key(self, row: Row) -> Row:
        return tuple(row[place] for place in self._places)

    def _read(self, condition: str, parameters: Sequence[Any], descending: bool) -> tuple[Row | None, bool]:
        """Take rows in order of the key until an error; the last row taken, and whether there was no error."""
        shape = self._shape
        order = ", ".join(f'"{name}"{" DESC" if descending else ""}' for name in shape.key)
        sql = (
            f"SELECT {quoted(shape.columns)} FROM {shape.name} NOT INDEXED WHERE {condition} ORDER BY {order}"
        )
        last: Row | None = None
        batch: list[Row] = []
        try:
            for row in self._in_order(self._source.execute(sql, parameters), descending):
                last = row
                batch.append(row)
                if len(batch) >= _BATCH:
                    self._take(batch)
                    batch = []
                    if self._is_late():
                        return last, False
            return last, True
        except (sqlite3.Error, _Disorder):
            return last, False
        finally:
            if batch:
                self._take(batch)

    def _in_order(self, rows: Iterator[Row], descending: bool) -> Iterator[Row]:
        """The rows that can be true: a page that lies in the wrong place shows by its keys."""
        before: Row | None = None
        for row in rows:
            key = self._key(row)
            if self._shape.integers and not all(value is None or type(value) is int for value in row):
                raise _Disorder
            if before is not None and not _follows(before, key, descending):
                raise _Disorder
            before = key
            yield row


def quoted(names: Sequence[str]) -> str:
    """Column names for SQL; some are words of the language."""
    return ", ".join(f'"{name}"' for name in names)


class _Disorder(Exception):
    """Rows came that cannot be true."""


def _follows(before: Row, key: Row, descending: bool) -> bool:
    try:
        return key < before if descending else key > before
    except TypeError:
        return False


def _joined(stretches: list[Stretch]) -> list[Stretch]:
    """Stretches that touch as one."""
    found: list[Stretch] = []
    for bottom, top in stretches:
        if found and bottom <= found[-1][1]:
            found[-1] = (found[-1][0], max(top, found[-1][1]))
        else:
            found.append((bottom, top))
    return found
