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
from gpu_monitor.agent.place import LAST_ROW, Place, find_place
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Metric
from gpu_monitor.core.errors import StorageError
from gpu_monitor.core.model import Event, GpuProcess, Identity
from gpu_monitor.storage.database import Row, Writer, insert_sql
from gpu_monitor.storage.tables import (
    MAX_GPUS,
    SALVAGED,
    key_floor,
    key_start,
    sample_columns,
    sample_key,
)

LOCAL_NODE = 1

LAST_ROW_OF_ALL = (
    "SELECT max(id) FROM (SELECT max(id) AS id FROM samples_raw UNION ALL SELECT max(id) FROM hosts_raw)"
)
"""The newest row of any node: a collection after it has its interval to itself."""
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


def mark_missed(connection: sqlite3.Connection, node: int, plan: PeriodPlan) -> None:
    """Ask for a rollup of every period that has rows of `node` and neither a mark nor an aggregate."""
    gpus = [row[0] for row in connection.execute("SELECT id FROM gpus WHERE node = ?", (node,))]
    own = f"id & {MAX_GPUS - 1} IN ({','.join(str(number) for number in gpus)})"
    moment = 0
    while True:
        found = connection.execute(
            f"SELECT min(id) FROM samples_raw WHERE id >= ? AND {own}", (key_floor(moment),)
        ).fetchone()[0]
        if found is None:
            return
        period = plan.period(key_start(found))
        done = connection.execute(
            "SELECT 1 FROM aggregates WHERE period = ? AND gpu IN (SELECT id FROM gpus WHERE node = ?) LIMIT 1",
            (period.start, node),
        ).fetchone()
        if done is None:
            mark_dirty(connection, node, plan, period.start, period.end)
        moment = period.end


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
        self._latest: dict[str, tuple[Identity, int]] = {}
        self._states: dict[int, dict[str, object]] = {}
        self._reasons: dict[int, dict[str, str]] = {}
        self._processes: dict[tuple[str, int, int | None, str], _Seen] = {}
        self._dirty: set[int] = set()
        self._place: Place | None = None
        self._newest: int | None = None
        self._load()

    def _load(self) -> None:
        """Take the state of the file as the last one known."""
        with self.writer.transaction() as connection:
            self._forget_numbers()
            self._numbers.load(connection)
            self._states = _latest(
                connection, "SELECT gpu, key, value, max(since) FROM states GROUP BY gpu, key"
            )
            self._reasons = _latest(
                connection, "SELECT gpu, metric, reason, max(since) FROM reasons GROUP BY gpu, metric"
            )
            last = connection.execute(LAST_ROW_OF_ALL).fetchone()[0]
            self._newest = None if last is None else key_start(last)
            if connection.execute("DELETE FROM meta WHERE key = ?", (SALVAGED,)).rowcount:
                mark_missed(connection, LOCAL_NODE, self.plan)
        self._processes.clear()
        self._dirty.clear()

    def known_states(self) -> list[tuple[str, str, object]]:
        """(uid, state, value) of the local node, each state's newest value last."""
        rows = self.writer.rows(
            "SELECT g.uid, s.key, s.value FROM states s JOIN gpus g ON g.id = s.gpu WHERE g.node = ? ORDER BY s.since",
            (LOCAL_NODE,),
        )
        return [(uid, key, value) for uid, key, value in rows]

    def data_end(self) -> float | None:
        """Until when the local node has data (UTC epoch), None where it has none."""
        value = self.writer.get_meta("data_end")
        return None if value is None else float(value)

    def write(self, collection: Collection) -> None:
        """Store one collection; StorageError (and nothing changed) where that fails.

        A later collection of the same part of an interval replaces it; what another part, another run or
        another pass of the clock stored is completed or kept beside it, never replaced.
        """
        try:
            with self.writer.transaction() as connection:
                place = self._find_place(connection, collection)
                self._write(connection, collection, place)
            self._place = place
            self._newest = max(collection.start, self._newest or 0)
        except StorageError:
            self.reload()
            raise

    def _find_place(self, connection: sqlite3.Connection, collection: Collection) -> Place:
        """Nearly always the interval after all that are stored; only else the file is asked what is there."""
        if self._newest is None or collection.start > self._newest:
            return Place(collection.start, collection.began, 0)
        return find_place(connection, collection, self._place)

    def reload(self) -> None:
        """Forget what is known of the file and read it again: a transaction failed, or the file is a new one."""
        self._forget_numbers()
        self._states.clear()
        self._reasons.clear()
        self._processes.clear()
        self._dirty.clear()
        try:
            self._load()
        except StorageError:
            # The file cannot be read either; maps stay empty, so changes are written once more, which is harmless.
            return

    def _write(self, connection: sqlite3.Connection, collection: Collection, place: Place) -> None:
        start, era = collection.start, place.era
        rows = []
        for row in collection.gpus:
            number = self._number(connection, row.identity, collection.until)
            key = sample_key(start, era, number)
            rows.append(_merged(place.gpus.get(key), key, row.seconds, scaled_gpu(row.values), SAMPLED))
            self._write_changes(connection, number, row, collection.until)
            if row.processes is not None:
                self._write_processes(connection, row.identity.uid, row.processes, start, collection.until)
        connection.executemany(_SAMPLES, rows)
        if collection.host is not None:
            key = sample_key(start, era, 0)
            connection.execute(
                _HOSTS,
                _merged(place.host, key, collection.host[0], scaled_host(collection.host[1]), HOST_METRICS),
            )
        self.add_events(connection, collection.events)
        self.add_absences(connection, collection.absences)
        self._touch(connection, start, start + 1)
        connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            (("data_end", collection.until), (LAST_ROW, place.mark)),
        )

    def _forget_numbers(self) -> None:
        self._numbers.forget()
        self._latest.clear()

    def _number(self, connection: sqlite3.Connection, identity: Identity, at: float) -> int:
        """The number of `identity`: nearly always that of the very same record as before."""
        known = self._latest.get(identity.uid)
        if known is None or known[0] is not identity:
            known = self._latest[identity.uid] = identity, self._numbers.number(connection, identity, at)
        return known[1]

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
        for key, value in row.states.items() if states != row.states else ():
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

    def record(
        self,
        events: Iterable[Event] = (),
        absences: Iterable[Absence] = (),
        losses: Iterable[tuple[str, str, int]] = (),
        now: float = 0.0,
    ) -> None:
        """Events, gaps and losses (what, cause, rows; as of `now`) that come without rows, in one transaction."""
        try:
            with self.writer.transaction() as connection:
                self.add_events(connection, events)
                self.add_absences(connection, absences)
                connection.executemany(
                    "INSERT INTO losses (time, what, cause, rows) VALUES (?, ?, ?, ?)",
                    [(now, *loss) for loss in losses],
                )
        except StorageError:
            self.reload()
            raise


def _latest(connection: sqlite3.Connection, sql: str) -> dict[int, dict[str, Any]]:
    """The newest value of each key by GPU number (SQLite gives the row of max())."""
    found: dict[int, dict[str, Any]] = {}
    for gpu, key, value, _ in connection.execute(sql):
        if value is not None:
            found.setdefault(gpu, {})[key] = value
    return found


def _merged(
    base: Row | None, key: int, seconds: float, columns: list[int | None], metrics: tuple[Metric, ...]
) -> Row:
    """The row to store: `base` is what an earlier part of the interval left, which is completed."""
    tenths = int(seconds * 10 + 1e-6)  # never more than was covered: 59.97 s are not a whole minute
    if base is None:
        return (key, tenths, *columns)
    return (key, tenths + base[0], *combine(base[0], list(base[1:]), tenths, columns, metrics))
