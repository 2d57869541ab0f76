"""What happened while no agent ran: closes what the last run left open and puts the hole on record."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_monitor.agent.collect import Absence
from gpu_monitor.agent.store import LOCAL_NODE, Store
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.model import Event
from gpu_monitor.core.times import format_duration


@dataclass(frozen=True)
class Machine:
    """Which boot this is. `boot_time` in UTC epoch seconds; None where the system does not tell."""

    boot_id: str | None
    boot_time: float | None


def find_hole(
    data_end: float | None,
    last: tuple[str | None, str | None, float | None] | None,
    machine: Machine,
    now: float,
    suspended: float,
) -> tuple[list[Event], list[Absence]]:
    """Events and gaps for the time from `data_end` to `now`.

    `last`: how the last run ended (None: it was killed), its boot id, and how long the machine had slept
    when it began. Without an earlier run there is no hole.
    """
    if last is None or data_end is None or data_end >= now:
        return [], []
    ended_how, boot_id, slept_before = last
    rebooted = machine.boot_id is not None and boot_id is not None and machine.boot_id != boot_id
    events, gaps, since = [], [], data_end
    if ended_how is None:
        text = "the host went down" if rebooted else "the agent was killed"
        events.append(
            Event(now, "agent_killed", f"{text}; no data since {format_duration(now - data_end)}", "warning")
        )
    cause = "agent stopped" if ended_how is not None else "agent killed"
    if rebooted and machine.boot_time is not None and data_end < machine.boot_time < now:
        down_cause = "host down" if ended_how is None else "agent stopped"
        gaps.append(Absence(since, machine.boot_time, down_cause, None, "until the host was booted"))
        since, cause = machine.boot_time, "agent not started"
    slept = suspended - (slept_before or 0.0)
    detail = None
    if not rebooted and slept > 1.0:
        cause = "host suspended" if slept > (now - since) * 0.5 else cause
        detail = f"the machine slept for {format_duration(slept)} since the last run began"
    gaps.append(Absence(since, now, cause, None, detail))
    return events, gaps


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
        row = connection.execute(
            "SELECT ended_how, boot_id, suspended FROM runs ORDER BY id DESC LIMIT 1"
        ).fetchone()
        data_end = store.data_end()
        events, gaps = find_hole(data_end, row, machine, now, clock.suspended())
        connection.execute(
            'UPDATE gaps SET "end" = max(start, ?) WHERE node = ? AND "end" IS NULL',
            (min(now, data_end or now), LOCAL_NODE),
        )
        connection.execute(
            "UPDATE runs SET ended = ?, ended_how = 'killed' WHERE ended_how IS NULL", (data_end,)
        )
        store.add_absences(connection, gaps)
        started = Event(
            now, "agent_started", f"agent {version} started ({describe})", "info", detail={"pid": pid}
        )
        store.add_events(connection, [*events, started])
        cursor = connection.execute(
            "INSERT INTO runs (started, pid, boot_id, version, interval_seconds, suspended) VALUES (?, ?, ?, ?, ?, ?)",
            (now, pid, machine.boot_id, version, interval, clock.suspended()),
        )
        # From here on the hole is on record; a kill before the first row must not put it there twice.
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('data_end', ?)", (max(now, data_end or now),))
    store.begin_at(now, interval)
    return int(cursor.lastrowid or 0)


def end_run(store: Store, run: int, now: float, how: str) -> None:
    """Put a proper end on record."""
    with store.writer.transaction() as connection:
        connection.execute("UPDATE runs SET ended = ?, ended_how = ? WHERE id = ?", (now, how, run))
        store.add_events(connection, [Event(now, "agent_stopped", f"agent stopped ({how})")])
