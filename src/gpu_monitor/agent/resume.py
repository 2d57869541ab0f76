"""The run in progress goes on in a store that was put back, replaced or begun anew under it."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass

from gpu_monitor.agent.recovery import Machine, insert_run
from gpu_monitor.agent.store import LOCAL_NODE, Store
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.model import Event
from gpu_monitor.core.times import format_time
from gpu_monitor.storage.orphan import Orphan

_LOG = logging.getLogger("agent")
CAUSE = "store replaced"


@dataclass(frozen=True)
class Running:
    """The run in progress: since when the agent runs, since when at this interval (UTC epoch, seconds)."""

    first: float
    began: float
    interval: int
    pid: int
    version: str


def resume_run(
    store: Store, clock: Clock, machine: Machine, running: Running, upto: float, orphan: Orphan | None
) -> int:
    """See to it that the store knows the run in progress; returns its number there.

    Where it did not, and no salvage says why, the time up to `upto` (from where what is collected goes on)
    is put on record as a gap, with a loss and a critical event. One transaction.
    """
    now = clock.now()
    with store.writer.transaction() as connection:
        if orphan is not None and orphan.is_back:
            text = "the store was removed while it was open; what it held was saved, nothing is lost"
            store.add_events(connection, [Event(now, "store_restored", text, "warning")])
        known = connection.execute(
            "SELECT id FROM runs WHERE started = ? AND pid = ? AND ended_how IS NULL ORDER BY id DESC",
            (running.began, running.pid),
        ).fetchone()
        if known is not None:
            return int(known[0])
        salvaged = connection.execute(
            "SELECT 1 FROM events WHERE kind = 'store_salvaged' AND time >= ?", (running.first,)
        ).fetchone()
        data_end = store.data_end()
        connection.execute(
            "UPDATE runs SET ended = ?, ended_how = 'killed' WHERE ended_how IS NULL", (data_end,)
        )
        if salvaged is None:
            _tell_loss(connection, store, now, running.first if data_end is None else data_end, upto, orphan)
        number = insert_run(
            connection, machine, running.began, interval=running.interval, pid=running.pid,
            version=running.version, suspended=clock.suspended(),
        )  # fmt: skip
        # Killed before the next row, the hole must begin where this gap ends.
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('data_end', ?)", (max(upto, data_end or upto),)
        )
    return number


def _tell_loss(
    connection: sqlite3.Connection, store: Store, now: float, since: float, upto: float, orphan: Orphan | None
) -> None:
    kept = orphan.name if orphan is not None else None
    where = "it could not be saved and is lost" if kept is None else f"it is kept as {kept}"
    text = f"the store was removed or replaced while the agent ran; what it held before {format_time(upto)}: {where}"
    _LOG.critical("%s: %s", store.writer.path, text)
    connection.execute(
        'UPDATE gaps SET "end" = max(start, ?) WHERE node = ? AND "end" IS NULL', (since, LOCAL_NODE)
    )
    if upto > since:
        # The hours are not marked for rollup: an empty one would take the place of one that was sent.
        connection.execute(
            'INSERT INTO gaps (node, start, "end", cause, detail) VALUES (?, ?, ?, ?, ?)',
            (LOCAL_NODE, since, upto, CAUSE, where),
        )
    # Nobody can count what is not there any more.
    connection.execute(
        "INSERT INTO losses (time, what, cause, rows) VALUES (?, 'samples', ?, 0)", (now, f"{CAUSE}; {where}")
    )
    detail = {"kept": kept} if kept else {}
    store.add_events(connection, [Event(now, "store_replaced", text, "critical", detail=detail)])
