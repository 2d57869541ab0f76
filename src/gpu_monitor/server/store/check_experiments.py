"""Are the bytes of segments those that came, and the points as many as were counted? Reads in batches, changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from sqlalchemy import Connection, func, select

from gpu_monitor.server.store.schema_experiments import experiments, points, segment_chunks, segments, series
from gpu_monitor.server.store.segment_chunks import unpack

Read = Callable[[], AbstractContextManager[Connection]]
_SEGMENTS = 100
_EXPERIMENTS = 20
"""In one snapshot: some million points."""


def segment_faults(read: Read) -> Iterator[str | None]:
    """For each segment that is held what is wrong with its bytes; None where nothing is."""
    after = 0
    while True:
        with read() as connection:
            asked = (
                select(
                    segments.c.id, segments.c.name, segments.c.bytes, experiments.c.uid, experiments.c.thinned
                )
                .join(experiments, experiments.c.id == segments.c.experiment)
                .where(segments.c.id > after, experiments.c.removed.is_(None))
                .order_by(segments.c.id)
                .limit(_SEGMENTS)
            )
            found = connection.execute(asked).fetchall()
            for row in found:
                what = _chunks_fault(connection, row.id, row.bytes, row.thinned is not None)
                yield None if what is None else f"segment {row.name} of experiment {row.uid}: {what}"
        if len(found) < _SEGMENTS:
            return
        after = found[-1].id


def _chunks_fault(connection: Connection, segment: int, held: int, is_thinned: bool) -> str | None:
    asked = select(segment_chunks).where(segment_chunks.c.segment == segment)
    place: int | None = None
    for chunk in connection.execute(asked.order_by(segment_chunks.c.start)):
        if chunk.start != (place or 0) and not (is_thinned and place is None):
            return f"bytes from {place or 0} to {chunk.start} are missing"
        data = unpack(bytes(chunk.data), chunk.length)
        if data is None or hashlib.sha256(data).digest() != bytes(chunk.digest):
            return f"the bytes from {chunk.start} on are not what their digest says"
        place = chunk.start + chunk.length
    if place != held and not (is_thinned and place is None):
        return f"{place or 0} bytes are there, {held} were acknowledged"
    return None


def point_faults(read: Read) -> Iterator[str]:
    """Where the points that are there are not as many as were taken; those that retention thinned out are left out."""
    after = 0
    while True:
        with read() as connection:
            asked = (
                select(experiments.c.id, experiments.c.uid, experiments.c.points)
                .where(
                    experiments.c.id > after, experiments.c.removed.is_(None), experiments.c.thinned.is_(None)
                )
                .order_by(experiments.c.id)
                .limit(_EXPERIMENTS)
            )
            found = connection.execute(asked).fetchall()
            for row in found:
                counted = (
                    select(series.c.name, series.c.points, func.count(points.c.ordinal))
                    .outerjoin(points, points.c.series == series.c.id)
                    .where(series.c.experiment == row.id)
                    .group_by(series.c.id, series.c.name, series.c.points)
                )
                total = 0
                for name, taken, there in connection.execute(counted).fetchall():
                    total += taken
                    if taken != there:
                        yield f"metric {name} of experiment {row.uid}: {there} points are there, {taken} were taken"
                if total != row.points:
                    yield f"experiment {row.uid}: its metrics have {total} points, {row.points} were taken"
        if len(found) < _EXPERIMENTS:
            return
        after = found[-1].id
