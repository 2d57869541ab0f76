"""Takes experiments out, wholly or their points: in batches, so that no transaction keeps others waiting for long."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, Table, exists, func, select, text, update

from gpu_monitor.server.store.batches import BATCH, delete_some
from gpu_monitor.server.store.blob_rows import take_unnamed
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema_experiments import (
    captures,
    experiments,
    media,
    models,
    notes,
    params,
    points,
    run_alerts,
    segment_chunks,
    segments,
    series,
    tags,
    texts,
)

REMOVAL_LOCK = 0x6770756D6578
"""The advisory lock of the one process that takes experiments out on PostgreSQL: the letters gpumex."""
_OWN = (texts, params, tags, notes, captures, run_alerts, models)
_DAY = 86400
_NAMES = 500
_CHUNKS = 50
"""Of a segment's bytes in one transaction: each may have a MiB."""


class _NotOurs(Exception):
    """Another process takes experiments out at this moment."""


def mark_removed(connection: Connection, experiment: int, now: float) -> None:
    """Delete an experiment: from this transaction on no question finds it; `finish_removals` takes its rows out.

    Its id stays as taken, so that an uploader that comes back does not bring it again.
    """
    connection.execute(
        update(experiments)
        .where(experiments.c.id == experiment, experiments.c.removed.is_(None))
        .values(removed=now, revision=experiments.c.revision + 1)
    )


def finish_removals(
    store: Store, now: float, stop: threading.Event | None = None, batch: int = BATCH
) -> list[str]:
    """Take out the rows of deleted experiments, at most `batch` in one transaction; the digests of files that nobody
    holds any more."""
    gone: list[str] = []
    with store.read() as connection:
        asked = select(experiments.c.id).where(
            experiments.c.removed.is_not(None), exists().where(segments.c.experiment == experiments.c.id)
        )
        left = list(connection.execute(asked).scalars())
    for number in left:
        try:
            for digests in _take_out(store, number, now, stop, batch):
                gone += digests
        except _NotOurs:
            break
        if stop is not None and stop.is_set():
            break
    return gone


def _take_out(
    store: Store, experiment: int, now: float, stop: threading.Event | None, batch: int
) -> Iterator[list[str]]:
    """Delete what belongs to an experiment, its segments last: by them one that was not finished is known."""
    with store.read() as connection:
        of_series = select(series.c.id).where(series.c.experiment == experiment)
        numbers = list(connection.execute(of_series).scalars())
        of_segments = select(segments.c.id).where(segments.c.experiment == experiment)
        chunked = list(connection.execute(of_segments).scalars())
    for number in numbers:
        yield from _all(store, points, points.c.series == number, stop, batch)
    for number in chunked:
        yield from _all(store, segment_chunks, segment_chunks.c.segment == number, stop, _CHUNKS)
    for table in (*_OWN, series):
        yield from _all(store, table, table.c.experiment == experiment, stop, batch)
    while stop is None or not stop.is_set():
        with store.write() as connection:
            _refuse_others(connection)
            asked = select(media.c.sha256).where(
                media.c.experiment == experiment, media.c.sha256.is_not(None)
            )
            named = {bytes(one).hex() for one in connection.execute(asked.distinct().limit(_NAMES)).scalars()}
            which = media.c.experiment == experiment
            if named:
                which &= media.c.sha256.in_([bytes.fromhex(one) for one in named])
            count = delete_some(connection, media, which, batch)
            yield take_unnamed(connection, now, named) if named else []
        if not named and count < batch:
            break
    yield from _all(store, segments, segments.c.experiment == experiment, stop, batch)


def _all(
    store: Store, table: Table, which: ColumnElement[bool], stop: threading.Event | None, most: int
) -> Iterator[list[str]]:
    """Delete all rows that `which` means, a batch a transaction; _NotOurs where another process is at it."""
    while stop is None or not stop.is_set():
        with store.write() as connection:
            _refuse_others(connection)
            count = delete_some(connection, table, which, most)
        if count < most:
            return
        yield []


def thin_finished(store: Store, now: float, days: int, stop: threading.Event | None = None) -> int:
    """Take the points of experiments out that ended so many days ago, but each metric's first, last, least and
    greatest; how many experiments were thinned. Their bytes as they came go, too."""
    with store.read() as connection:
        asked = select(experiments.c.id).where(
            experiments.c.ended < now - days * _DAY,
            experiments.c.status != "running",
            experiments.c.thinned.is_(None),
            experiments.c.removed.is_(None),
        )
        old = list(connection.execute(asked.order_by(experiments.c.ended)).scalars())
    done = 0
    for number in old:
        try:
            _thin(store, number, now, stop)
        except _NotOurs:
            break
        if stop is not None and stop.is_set():
            break
        done += 1
    return done


def _thin(store: Store, number: int, now: float, stop: threading.Event | None) -> None:
    with store.read() as connection:
        kept = list(_kept(connection, number))
        of_segments = select(segments.c.id).where(segments.c.experiment == number)
        chunked = list(connection.execute(of_segments).scalars())
    for one, ordinals in kept:
        which = (points.c.series == one) & points.c.ordinal.not_in(ordinals)
        for _ in _all(store, points, which, stop, BATCH):
            pass
    for segment in chunked:
        for _ in _all(store, segment_chunks, segment_chunks.c.segment == segment, stop, _CHUNKS):
            pass
    if stop is not None and stop.is_set():
        return
    with store.write() as connection:
        _refuse_others(connection)
        connection.execute(
            update(experiments)
            .where(experiments.c.id == number)
            .values(thinned=now, revision=experiments.c.revision + 1)
        )


def _kept(connection: Connection, experiment: int) -> Iterator[tuple[int, list[int]]]:
    """Each series, and the ordinals of its points that stay."""
    for row in connection.execute(select(series).where(series.c.experiment == experiment)).fetchall():
        mine, held = points.c.series == row.id, points.c
        first = connection.execute(select(func.min(held.ordinal)).where(mine)).scalar()
        last = connection.execute(
            select(func.max(held.ordinal)).where(mine, held.step == row.last_step, held.time == row.last_time)
        ).scalar()
        ordinals = {first, last}
        for name in ("min", "max"):
            step, moment, value = (getattr(row, f"{name}_{part}") for part in ("step", "time", "value"))
            if step is not None:
                asked = select(func.min(held.ordinal)).where(
                    mine, held.step == step, held.time == moment, held.value == value
                )
                ordinals.add(connection.execute(asked).scalar())
        yield row.id, sorted(one for one in ordinals if one is not None)


def _refuse_others(connection: Connection) -> None:
    """_NotOurs while another process has a batch under way: what it does would be counted as done."""
    if connection.dialect.name == "postgresql":
        asked = text("SELECT pg_try_advisory_xact_lock(:key)")
        if not connection.execute(asked, {"key": REMOVAL_LOCK}).scalar_one():
            raise _NotOurs
