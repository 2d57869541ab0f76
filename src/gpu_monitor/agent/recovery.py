"""What happened while no agent ran: closes what the last run left open and puts the hole on record."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from gpu_monitor.agent.beat import STEP_SECONDS
from gpu_monitor.agent.collect import Absence
from gpu_monitor.agent.store import LOCAL_NODE, Store, mark_dirty
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.model import Event
from gpu_monitor.core.times import format_duration

_SUSPENDED = "host suspended"
_SLEPT_SECONDS = 1.0
"""Less than this is no sleep: the two clocks are read one after the other."""


@dataclass(frozen=True)
class Machine:
    """Which machine and boot this is. `boot_time` in UTC epoch seconds; None where the system does not tell."""

    boot_id: str | None
    boot_time: float | None
    hostname: str | None = None
    os: str | None = None


@dataclass(frozen=True)
class LastRun:
    """How the run before ended (None: it was killed) and on which boot it ran."""

    ended_how: str | None
    boot_id: str | None


def find_hole(
    data_end: float | None, last: LastRun | None, machine: Machine, now: float, slept: float
) -> tuple[list[Event], list[Absence]]:
    """Events and gaps for the time from `data_end` to `now`.

    `slept`: seconds the machine slept in that time. Without an earlier run there is no hole.
    """
    if last is None or data_end is None:
        return [], []
    rebooted = machine.boot_id is not None and last.boot_id is not None and machine.boot_id != last.boot_id
    events = _events(data_end, last, rebooted, now)
    if data_end >= now:
        return events, []
    gaps, since = [], data_end
    cause = "agent stopped" if last.ended_how is not None else "agent killed"
    if rebooted and machine.boot_time is not None and data_end < machine.boot_time < now:
        down_cause = "host down" if last.ended_how is None else "agent stopped"
        gaps.append(Absence(since, machine.boot_time, down_cause, None, "until the host was booted"))
        since, cause = machine.boot_time, "agent not started"
    detail = None
    if not rebooted and slept > _SLEPT_SECONDS:
        cause = _SUSPENDED if slept > (now - since) * 0.5 else cause
        detail = f"the machine slept for {format_duration(slept)} of this time"
    gaps.append(Absence(since, now, cause, None, detail))
    return events, gaps


def _events(data_end: float, last: LastRun, rebooted: bool, now: float) -> list[Event]:
    """That the run before was killed; that the clock was put back since, so that no time seems to be missing."""
    events = []
    back = data_end - now
    if last.ended_how is None:
        text = "the host went down" if rebooted else "the agent was killed"
        since = f"; no data since {format_duration(-back)}" if back < 0 else ""
        events.append(Event(now, "agent_killed", f"{text}{since}", "warning"))
    if back > STEP_SECONDS:
        text = f"the clock was put back by at least {format_duration(back)} while no agent ran"
        events.append(Event(now, "clock_stepped", text, "warning", detail={"seconds": round(-back, 3)}))
    return events


def begin_run(
    store: Store,
    clock: Clock,
    machine: Machine,
    *,
    now: float,
    interval: int,
    pid: int,
    version: str,
    describe: str,
) -> int:
    """Put the start on record: the hole before it, gaps left open, the run itself. Returns the run's number.

    `now` is the time of the first reading: up to it there is no data.

    One transaction: killed half way, the next start finds the same hole again.
    """
    with store.writer.transaction() as connection:
        last, slept = _last_run(connection, clock.suspended())
        data_end = store.data_end()
        events, gaps = find_hole(data_end, last, machine, now, slept)
        connection.execute(
            'UPDATE gaps SET "end" = max(start, ?) WHERE node = ? AND "end" IS NULL',
            (min(now, data_end or now), LOCAL_NODE),
        )
        connection.execute(
            "UPDATE runs SET ended = ?, ended_how = 'killed' WHERE ended_how IS NULL", (data_end,)
        )
        store.add_absences(connection, _extended(connection, store, gaps))
        started = Event(
            now, "agent_started", f"agent {version} started ({describe})", "info", detail={"pid": pid}
        )
        store.add_events(connection, [*events, started])
        run = insert_run(
            connection, machine, now, interval=interval, pid=pid, version=version, suspended=clock.suspended()
        )
        # From here on the hole is on record; a kill before the first row must not put it there twice.
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('data_end', ?)", (max(now, data_end or now),))
    return run


def insert_run(
    connection: sqlite3.Connection,
    machine: Machine,
    began: float,
    *,
    interval: int,
    pid: int,
    version: str,
    suspended: float,
) -> int:
    """Put a run on record; returns its number."""
    cursor = connection.execute(
        "INSERT INTO runs (started, pid, boot_id, version, interval_seconds, suspended, hostname, os)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (began, pid, machine.boot_id, version, interval, suspended, machine.hostname, machine.os),
    )
    return int(cursor.lastrowid or 0)


def _extended(connection: sqlite3.Connection, store: Store, gaps: list[Absence]) -> list[Absence]:
    """The gaps to add: one that goes on where the last one of the same cause ended makes that longer instead.

    So a start that was killed before its first row leaves one hole, not two that meet within a minute.
    """
    if not gaps or gaps[0].end is None:
        return gaps
    first = gaps[0]
    count = connection.execute(
        'UPDATE gaps SET "end" = ? WHERE id = (SELECT id FROM gaps WHERE node = ? AND uid IS NULL AND "end" = ?'
        " AND cause = ? ORDER BY id DESC LIMIT 1)",
        (first.end, LOCAL_NODE, first.start, first.cause),
    ).rowcount
    if not count:
        return gaps
    mark_dirty(connection, LOCAL_NODE, store.plan, first.start, gaps[0].end)
    return gaps[1:]


def _last_run(connection: sqlite3.Connection, suspended: float) -> tuple[LastRun | None, float]:
    """The run before, and how long the machine slept since its data ended (what it slept in between is on record)."""
    row = connection.execute(
        "SELECT ended_how, boot_id, suspended, started FROM runs ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None, 0.0
    ended_how, boot_id, slept_before, started = row
    known = connection.execute(
        'SELECT coalesce(sum("end" - start), 0) FROM gaps WHERE node = ? AND cause = ? AND start >= ?',
        (LOCAL_NODE, _SUSPENDED, started),
    ).fetchone()[0]
    return LastRun(ended_how, boot_id), max(0.0, suspended - (slept_before or 0.0) - known)


def end_run(store: Store, run: int, now: float, how: str) -> None:
    """Put a proper end on record."""
    with store.writer.transaction() as connection:
        connection.execute("UPDATE runs SET ended = ?, ended_how = ? WHERE id = ?", (now, how, run))
        store.add_events(connection, [Event(now, "agent_stopped", f"agent stopped ({how})")])
