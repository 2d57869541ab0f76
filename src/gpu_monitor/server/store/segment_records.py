"""The lines of an upload, read without trust and without knowing what stood before them.

Points are gathered by runs: lines of the same set, one after the other, become columns, which is how they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_monitor.server.store.schema_experiments import INFINITY, MINUS_INFINITY, NAN
from gpu_monitor.wire.training import AnyRecord, BadRecord, Points, decode, has_check, whole_lines

LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**63 - 1
"""Steps, and whatever else is a whole number in a column."""
_SPECIAL = {"NaN": NAN, "Infinity": INFINITY, "-Infinity": MINUS_INFINITY}
_KIND = re.compile(rb'\["([a-z])"')
_KNOWN = frozenset(b"hsgpatnmxecz")


class BadLine(Exception):
    """A line that is whole and is no record as docs/segments.md has them; `place`: where it begins, in bytes."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place, self.reason = place, reason


@dataclass(frozen=True, slots=True)
class Column:
    """One series' part of a run. `specials`: which value is not finite (its own is None then); None: all are."""

    values: Sequence[float | None]
    specials: Sequence[int | None] | None


@dataclass(frozen=True, slots=True)
class PointRun:
    """Lines of points of one set: a column for each of its series."""

    set: int
    at: list[int]
    steps: list[int]
    columns: list[Column]


Item = PointRun | AnyRecord


@dataclass(frozen=True, slots=True)
class Records:
    """What the lines hold, each with its place; how many were damaged, and of kinds that are not known here."""

    items: list[tuple[int, Item]]
    damaged: int = 0
    unknown: int = 0


def read_records(data: bytes) -> Records:
    """The records of whole lines; BadLine for one that is undamaged and yet none."""
    items: list[tuple[int, Item]] = []
    gathered: list[Points] = []
    damaged = unknown = place = begin = 0
    for line in whole_lines(data):
        try:
            record = decode(line)
        except BadRecord as error:
            if not has_check(line):
                damaged += 1
            elif _is_known(line):
                raise BadLine(place, str(error)) from None
            else:
                unknown += 1
            place += len(line)
            continue
        if type(record) is not Points:
            if gathered:
                items.append((begin, _run(gathered, begin)))
                gathered = []
            items.append((place, record))
        elif gathered and gathered[0].set == record.set and len(gathered[0].values) == len(record.values):
            gathered.append(record)
        else:
            if gathered:
                items.append((begin, _run(gathered, begin)))
            gathered, begin = [record], place
        place += len(line)
    if gathered:
        items.append((begin, _run(gathered, begin)))
    return Records(items, damaged, unknown)


def _is_known(line: bytes) -> bool:
    match = _KIND.match(line)
    return match is not None and match[1][0] in _KNOWN


def _run(records: list[Points], place: int) -> PointRun:
    at, steps = [one.at for one in records], [one.step for one in records]
    if min(steps) < LEAST_INTEGER or max(steps) > MOST_INTEGER:
        raise BadLine(place, "a step is no whole number of 64 bits")
    columns = [_column(values, place) for values in zip(*(one.values for one in records), strict=True)]
    return PointRun(records[0].set, at, steps, columns)


def _column(values: tuple[Any, ...], place: int) -> Column:
    kinds = set(map(type, values))
    if kinds == {float}:
        return Column(values, None)
    try:
        if str not in kinds:
            return Column([float(value) for value in values], None)
        specials = [_SPECIAL[value] if isinstance(value, str) else None for value in values]
        return Column([None if isinstance(value, str) else float(value) for value in values], specials)
    except OverflowError:
        raise BadLine(place, "a value is larger than a number can be") from None
    except KeyError as error:
        raise BadLine(place, f"{error.args[0][:40]!r} is no value") from None
