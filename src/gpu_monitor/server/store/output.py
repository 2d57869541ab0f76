"""What an experiment wrote: its output and its log, as it came, from the end or from a place on."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, Connection, func, select

from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema_experiments import texts
from gpu_monitor.server.store.values import stamp


class LogLine(msgspec.Struct, frozen=True):
    """What was written at once."""

    time: str
    stream: str
    text: str


@dataclass(frozen=True)
class OutputFilter:
    """Which lines: None does not restrict. `after` and `before` are places, neither of them included."""

    stream: str | None = None
    search: str | None = None
    after: int | None = None
    before: int | None = None


def read_output(
    connection: Connection, experiment: int, wanted: OutputFilter, limit: int
) -> tuple[list[LogLine], int | None, int]:
    """Lines in their order, the place of the first one where there are more before it, and the place to go on after.

    Up to `limit` of the first ones after a place; where none is given, of the last ones. Of a search that ends at
    the end the place to go on after is the end, so that what was looked through is not looked through again.
    """
    forward = wanted.after is not None
    of_it = texts.c.experiment == experiment
    newest = connection.execute(select(func.max(texts.c.ordinal)).where(of_it)).scalar()
    end = -1 if newest is None else int(newest)
    ordinal, conditions = texts.c.ordinal, _conditions(experiment, wanted)
    sized = select(ordinal, func.length(texts.c.text)).where(*conditions)
    direction = ordinal.asc() if forward else ordinal.desc()
    places = [(row[0], row[1]) for row in connection.execute(sized.order_by(direction).limit(limit + 1))]
    kept = fitting(places[:limit])
    is_cut = len(kept) < len(places)
    lines: list[LogLine] = []
    if kept:
        shown = select(texts).where(*conditions, ordinal.between(min(kept), max(kept))).order_by(ordinal)
        rows = connection.execute(shown)
        lines = [LogLine(stamp(row.time) or "", row.stream, row.text) for row in rows]
    if wanted.after is not None:
        earlier = min(kept) if kept and min(kept) > 0 else None
        return lines, earlier, max(kept) if is_cut else max(end, wanted.after)
    later = end if wanted.before is None else min(end, wanted.before - 1)
    return lines, min(kept) if is_cut else None, later


def _conditions(experiment: int, wanted: OutputFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [texts.c.experiment == experiment]
    if wanted.stream is not None:
        found.append(texts.c.stream == wanted.stream)
    if wanted.search is not None:
        found.append(texts.c.text.icontains(wanted.search, autoescape=True))
    if wanted.after is not None:
        found.append(texts.c.ordinal > wanted.after)
    if wanted.before is not None:
        found.append(texts.c.ordinal < wanted.before)
    return found
