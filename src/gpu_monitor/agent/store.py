"""Writes collections: one transaction each, with everything that changed beside the rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu_monitor.agent.collect import Absence, Collection, GpuRow, scaled_gpu, scaled_host
from gpu_monitor.agent.merge import combine
from gpu_monitor.agent.numbers import GpuNumbers
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Metric
from gpu_monitor.core.errors import StorageError
from gpu_monitor.core.model import Event, GpuProcess
from gpu_monitor.storage.database import Writer, insert_sql
from gpu_monitor.storage.tables import (
    MAX_ERAS,
    MAX_GPUS,
    key_era,
    key_floor,
    sample_columns,
    sample_key,
)

LOCAL_NODE = 1

_SAMPLES = insert_sql("samples_raw", ["id", "seconds", *sample_columns()], "INSERT OR REPLACE")
_HOSTS = insert_sql("hosts_raw", ["id", "seconds", *sample_columns(HOST_METRICS)], "INSERT OR REPLACE")


def mark_dirty(
    connection: sqlite3.Connection, node: int, plan: PeriodPlan, start: float, end: float
) -> list[tuple[int, int]]:
    """Ask for a (new) rollup of every period that touches [start, end); returns (start, seconds) of them."""
    periods = [(p.start, p.seconds) for p in plan.between(start, max(end, start + 0.001))]
    connection.executemany(
        "INSERT INTO periods (node, start, seconds, dirty) VALUES (?, ?, ?, 1)"
        " ON CONFLICT DO UPDATE SET dirty = 1 WHERE dirty = 0",
        [(node, begin, seconds) for begin, seconds in periods],
    )
    return periods


@dataclass
class _Seen:
    """An open interval of one process on one GPU."""

    row: int
    memory_max: int | None


class Store:
    """What the agent writes, on the one writer. One thread at a time calls it.

    `write` is all or nothing; after an error nothing is kept in memory that the file does not hold.
    """

    def __init__(self, writer: Writer, plan: PeriodPlan) -> None:
        self.writer = writer
        self.plan = plan
        self._numbers = GpuNumbers(LOCAL_NODE)
        self._states: dict[int, dict[str, object]] = {}
        self._reasons: dict[int, dict[str, str]] = {}
        self._processes: dict[tuple[str, int, int | None, str], _Seen] = {}
        self._dirty: set[int] = set()
        self._base: dict[int, tuple[int, ...]] = {}
        self._base_start: int | None = None
        self.era = 0
        self.era_until = -1
        self._load()

    def _load(self) -> None:
        """Take the state of the file as the last one known."""
        with self.writer.transaction() as connection:
            self._numbers.forget()
            self._numbers.load(connection)
            self._states = _latest(
                connection, "SELECT gpu, key, value, max(since) FROM states GROUP BY gpu, key"
            )
            self._reasons = _latest(
                connection, "SELECT gpu, metric, reason, max(since) FROM reasons GROUP BY gpu, metric"
            )
        self._processes.clear()
        self._dirty.clear()

    def begin_at(self, now: float, interval: int) -> None:
        """Prepare for rows from `now` on: rows of later times (the clock was put back) are kept beside new ones.

        A row of the interval that holds `now`, left by a run before, is completed in place.
        """
        slot = int(now // interval) * interval
        data_end = self.data_end()
        self._base, self._base_start, self.era, self.era_until = {}, None, 0, -1
        if data_end is None or data_end <= slot:
            return
        if data_end > now + 1:
            self.set_back(now)
            return
        eras = self.writer.rows(
            "SELECT max(id) FROM samples_raw WHERE id >= ? AND id < ?", _bounds(slot, interval)
        )
        if eras and eras[0][0] is not None:
            self.era = key_era(eras[0][0])
            self.era_until = slot if self.era else -1
        self._base_start = slot
        for table in ("samples_raw", "hosts_raw"):
            for row in self.writer.rows(
                f"SELECT * FROM {table} WHERE id >= ? AND id < ?", _bounds(slot, interval)
            ):
                if key_era(row[0]) == self.era:
                    self._base[row[0] if table == "samples_raw" else -row[0]] = row[1:]

    def set_back(self, now: float) -> None:
        """The clock was put back to `now`: rows from here on do not replace those already there."""
        last = self.writer.value(
            "SELECT max(m) FROM (SELECT max(id) m FROM samples_raw s WHERE id & ? IN (SELECT id FROM gpus WHERE node = ?)"
            " UNION ALL SELECT max(id) FROM hosts_raw)",
            (MAX_GPUS - 1, LOCAL_NODE),
        )
        self._base, self._base_start = {}, None
        if last is None:
            return
        used = self.writer.value(
            "SELECT max((id >> 16) & 15) FROM (SELECT id FROM samples_raw WHERE id >= ? UNION ALL"
            " SELECT id FROM hosts_raw WHERE id >= ?)",
            (key_floor(now - 3600), key_floor(now - 3600)),
        )
        era = int(used or 0) + 1
        if era >= MAX_ERAS:
            raise StorageError(
                f"the clock was put back {MAX_ERAS} times over the same hour",
                "Set the clock right (NTP), then restart.",
            )
        self.era, self.era_until = era, last >> 20

    def data_end(self) -> float | None:
        """Until when the local node has data (UTC epoch), None where it has none."""
        value = self.writer.get_meta("data_end")
        return None if value is None else float(value)

    def write(self, collection: Collection) -> None:
        """Store one collection; StorageError (and nothing changed) where that fails."""
        try:
            with self.writer.transaction() as connection:
                self._write(connection, collection)
        except StorageError:
            self._load_quietly()
            raise

    def _load_quietly(self) -> None:
        """Forget what the failed transaction may have put into memory; the next write reads it again."""
        self._numbers.forget()
        self._states.clear()
        self._reasons.clear()
        self._processes.clear()
        self._dirty.clear()
        try:
            self._load()
        except StorageError:
            # The file cannot be read either; maps stay empty, so changes are written once more, which is harmless.
            return

    def _write(self, connection: sqlite3.Connection, collection: Collection) -> None:
        start = collection.start
        era = self.era if start <= self.era_until else 0
        rows = []
        for row in collection.gpus:
            number = self._numbers.number(connection, row.identity, collection.until)
            key = sample_key(start, era, number)
            rows.append(self._merged(key, key, row.seconds, scaled_gpu(row.values), SAMPLED))
            self._write_changes(connection, number, row, collection.until)
            if row.processes is not None:
                self._write_processes(connection, row.identity.uid, row.processes, start, collection.until)
        connection.executemany(_SAMPLES, rows)
        if collection.host is not None:
            key = sample_key(start, era, 0)
            connection.execute(
                _HOSTS,
                self._merged(key, -key, collection.host[0], scaled_host(collection.host[1]), HOST_METRICS),
            )
        self.add_events(connection, collection.events)
        self.add_absences(connection, collection.absences)
        self._touch(connection, start, start + 1)
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('data_end', ?)", (collection.until,))

    def _merged(
        self, key: int, base_key: int, seconds: float, columns: list[int | None], metrics: tuple[Metric, ...]
    ) -> tuple[int | None, ...]:
        """The row to store; the interval a run before left half done is completed, not replaced."""
        tenths = int(seconds * 10 + 1e-6)  # never more than was covered: 59.97 s are not a whole minute
        base = self._base.get(base_key) if self._base_start == key >> 20 else None
        if base is None:
            return (key, tenths, *columns)
        return (key, tenths + base[0], *combine(base[0], list(base[1:]), tenths, columns, metrics))

    def _touch(self, connection: sqlite3.Connection, start: float, end: float) -> None:
        """Mark the periods of [start, end) for rollup, once per period and process."""
        period = self.plan.period(start)
        if period.start in self._dirty and end <= period.end:
            return
        self._dirty.update(begin for begin, _ in mark_dirty(connection, LOCAL_NODE, self.plan, start, end))

    def rolled_up(self, period_start: int) -> None:
        """A period's mark was taken off; the next row in it must set it again."""
        self._dirty.discard(period_start)

    def _write_changes(self, connection: sqlite3.Connection, number: int, row: GpuRow, at: float) -> None:
        states = self._states.setdefault(number, {})
        for key, value in row.states.items():
            if states.get(key) != value:
                connection.execute(
                    "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", (number, key, at, value)
                )
                states[key] = value
        reasons = self._reasons.get(number, {})
        if reasons == row.reasons:
            return
        for metric in reasons.keys() | row.reasons.keys():
            reason = row.reasons.get(metric)
            if reasons.get(metric) != reason:
                connection.execute(
                    "INSERT OR REPLACE INTO reasons VALUES (?, ?, ?, ?)", (number, metric, at, reason)
                )
        self._reasons[number] = dict(row.reasons)

    def _write_processes(
        self, connection: sqlite3.Connection, uid: str, found: Iterable[GpuProcess], start: float, at: float
    ) -> None:
        """Extend the intervals of processes that are still there; begin those of new ones; end the others'."""
        present: set[tuple[str, int, int | None, str]] = set()
        for process in found:
            key = (uid, process.pid, process.start_ticks, process.kind)
            present.add(key)
            seen = self._processes.get(key) or self._reopen(connection, process, uid, start)
            if seen is None:
                row = connection.execute(
                    "INSERT INTO processes (node, uid, pid, kind, start_ticks, boot_id, ns_pid, user, command, container,"
                    " job, experiment_id, first_seen, last_seen, memory, memory_max)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        LOCAL_NODE,
                        uid,
                        process.pid,
                        process.kind,
                        process.start_ticks,
                        process.boot_id,
                        process.ns_pid,
                        process.user,
                        process.command,
                        process.container,
                        process.job,
                        process.experiment_id,
                        at,
                        at,
                        process.memory,
                        process.memory,
                    ),
                ).lastrowid
                self._processes[key] = _Seen(int(row or 0), process.memory)
                continue
            if process.memory is not None:
                seen.memory_max = max(process.memory, seen.memory_max or 0)
            connection.execute(
                "UPDATE processes SET last_seen = ?, memory = ?, memory_max = ?,"
                " experiment_id = coalesce(experiment_id, ?) WHERE id = ?",
                (at, process.memory, seen.memory_max, process.experiment_id, seen.row),
            )
            self._processes[key] = seen
        for key in [key for key in self._processes if key[0] == uid and key not in present]:
            del self._processes[key]

    def _reopen(
        self, connection: sqlite3.Connection, process: GpuProcess, uid: str, start: float
    ) -> _Seen | None:
        """The interval of a process that was already being recorded when the agent was restarted."""
        if process.start_ticks is None or process.boot_id is None:
            return None
        found = connection.execute(
            "SELECT id, memory_max FROM processes WHERE node = ? AND uid = ? AND pid = ? AND kind = ? AND start_ticks = ?"
            " AND boot_id = ? AND last_seen >= ? ORDER BY id DESC LIMIT 1",
            (LOCAL_NODE, uid, process.pid, process.kind, process.start_ticks, process.boot_id, start - 86400),
        ).fetchone()
        return None if found is None else _Seen(found[0], found[1])

    def add_events(self, connection: sqlite3.Connection, events: Iterable[Event]) -> None:
        """Append events; the periods they fall into are rolled up (again)."""
        for event in events:
            connection.execute(
                "INSERT INTO events (time, node, uid, kind, severity, message, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    event.time,
                    LOCAL_NODE,
                    event.uid,
                    event.kind,
                    event.severity,
                    event.message,
                    json.dumps(dict(event.detail), sort_keys=True) if event.detail else None,
                ),
            )
            self._touch(connection, event.time, event.time)

    def add_absences(self, connection: sqlite3.Connection, absences: Iterable[Absence]) -> None:
        """Open, close or add gaps."""
        for absence in absences:
            open_row = connection.execute(
                'SELECT id FROM gaps WHERE node = ? AND uid IS ? AND "end" IS NULL AND cause = ? ORDER BY id DESC LIMIT 1',
                (LOCAL_NODE, absence.uid, absence.cause),
            ).fetchone()
            if open_row is None:
                connection.execute(
                    'INSERT INTO gaps (node, uid, start, "end", cause, detail) VALUES (?, ?, ?, ?, ?, ?)',
                    (LOCAL_NODE, absence.uid, absence.start, absence.end, absence.cause, absence.detail),
                )
            elif absence.end is not None:
                connection.execute('UPDATE gaps SET "end" = ? WHERE id = ?', (absence.end, open_row[0]))
            mark_dirty(connection, LOCAL_NODE, self.plan, absence.start, absence.end or absence.start)
            self._dirty.clear()

    def record(self, events: Iterable[Event] = (), absences: Iterable[Absence] = ()) -> None:
        """Events and gaps that come without rows, in one transaction."""
        with self.writer.transaction() as connection:
            self.add_events(connection, events)
            self.add_absences(connection, absences)


def _latest(connection: sqlite3.Connection, sql: str) -> dict[int, dict[str, Any]]:
    """The newest value of each key by GPU number (SQLite gives the row of max())."""
    found: dict[int, dict[str, Any]] = {}
    for gpu, key, value, _ in connection.execute(sql):
        if value is not None:
            found.setdefault(gpu, {})[key] = value
    return found


def _bounds(slot: int, interval: int) -> tuple[int, int]:
    return key_floor(slot), key_floor(slot + interval)
