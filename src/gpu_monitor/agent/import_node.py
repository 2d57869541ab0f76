"""Writes imported intervals under their node: what is there already stays, unless more is known now."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gpu_monitor.agent.collect import scaled_gpu
from gpu_monitor.agent.import_bins import BinnedInterval, LostStretch
from gpu_monitor.agent.numbers import GpuNumbers
from gpu_monitor.agent.store import LOCAL_NODE, mark_dirty
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.catalogue import SAMPLED, Reason
from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.model import Identity
from gpu_monitor.storage.database import Writer, insert_sql
from gpu_monitor.storage.tables import (
    GPU_FIELDS,
    MAX_GPUS,
    key_floor,
    key_gpu,
    key_start,
    sample_columns,
    sample_key,
)

SOURCE = "import"
_LOST = "lost"
_KIND = "import"
_SAMPLES = insert_sql("samples_raw", ["id", "seconds", *sample_columns()], "INSERT OR REPLACE")
_SAMPLED = frozenset(metric.name for metric in SAMPLED)


@dataclass
class Counts:
    """What came of the intervals of one file."""

    stored: int = 0
    """New in the store."""
    completed: int = 0
    """Were there with fewer seconds, and now hold what covers more."""
    present: int = 0
    """Were there already."""
    pruned: int = 0
    """Are part of an hour whose rows are past their age; the hour's aggregate stays as it is."""

    def add(self, other: Counts) -> None:
        """Count what `other` counted, too."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


@dataclass(frozen=True)
class ImportedFile:
    """A file whose readings are in a batch: its name, and what came of it."""

    name: str
    counts: Counts


Placed = tuple[Identity, BinnedInterval]


class ImportedNode:
    """One node of imported history. `now` is the time of the import (UTC epoch)."""

    def __init__(self, writer: Writer, plan: PeriodPlan, name: str, now: float) -> None:
        self.name = name
        self._writer = writer
        self._plan = plan
        self._now = now
        local = writer.value("SELECT name FROM nodes WHERE id = ?", (LOCAL_NODE,))
        if name in (local, "local"):
            raise UsageError(
                f"{name!r} is the name of this machine's own history", "Give the import another --node."
            )
        self._number: int | None = None
        self._forget()

    def _forget(self) -> None:
        """Take the file's state as the last known one; called at start and after a failed write."""
        self._number = self._writer.value(
            "SELECT id FROM nodes WHERE kind = ? AND name = ?", (_KIND, self.name)
        )
        self._numbers: GpuNumbers | None = None
        self._identities: dict[str, Identity] = {}
        self._numbers_of: dict[str, set[int]] = {}
        self._states = _History("states", "key", "value")
        self._reasons = _History("reasons", "metric", "reason")
        self._pruned: dict[tuple[str, int], bool] = {}

    @property
    def number(self) -> int | None:
        """The store's number of the node, None while nothing was written under it."""
        return self._number

    def write(self, interval: int, batch: list[Placed], files: Sequence[ImportedFile]) -> None:
        """Store a batch in one transaction; all or nothing. The counts of `files` are brought up to date.

        An interval with readings of several files is new by the first and completed by the others.
        """
        try:
            with self._writer.transaction() as connection:
                found = self._write(connection, interval, batch, files)
        except BaseException:
            self._forget()
            raise
        for file, counts in zip(files, found, strict=True):
            file.counts.add(counts)

    def _write(
        self,
        connection: sqlite3.Connection,
        interval: int,
        batch: list[Placed],
        files: Sequence[ImportedFile],
    ) -> list[Counts]:
        counts = [Counts() for _ in files]
        rows = [0 for _ in files]
        if self._number is not None:
            self._load(connection, self._number)
        present = self._present(connection, [interval.start for _, interval in batch])
        changed: list[int] = []
        for identity, binned in batch:
            if self._is_pruned(connection, identity.uid, binned.start):
                for file in binned.files:
                    counts[file].pruned += 1
                continue
            tenths = round(binned.seconds * 10)
            before = present.get((identity.uid, binned.start))
            if before is not None and before[1] >= tenths:
                for file in binned.files:
                    counts[file].present += 1
                continue
            node = self._ensure_node(connection)
            number = self._gpu(connection, identity, node)
            key = sample_key(binned.start, 0, number)
            if before is not None and before[0] != key:
                connection.execute("DELETE FROM samples_raw WHERE id = ?", (before[0],))
            connection.execute(_SAMPLES, (key, tenths, *scaled_gpu(binned.values)))
            self._write_changes(connection, number, binned)
            present[identity.uid, binned.start] = (key, tenths)
            for place, file in enumerate(binned.files):
                if place == 0 and before is None:
                    counts[file].stored += 1
                else:
                    counts[file].completed += 1
            rows[binned.files[0]] += 1
            changed.append(binned.start)
        if changed and self._number is not None:
            for imported, number_of in zip(files, rows, strict=True):
                if number_of:
                    self._register(connection, self._number, imported.name, interval, number_of)
            for start in sorted(set(changed)):
                mark_dirty(connection, self._number, self._plan, start, start + interval)
        return counts

    def write_lost(self, uid: str, stretches: Iterable[LostStretch]) -> None:
        """Put on record when a GPU was lost, once however often it is imported."""
        stretches = list(stretches)
        if not stretches:
            return
        with self._writer.transaction() as connection:
            node = self._ensure_node(connection)
            for one in stretches:
                known = connection.execute(
                    'SELECT id, "end" FROM gaps WHERE node = ? AND uid = ? AND start = ? AND cause = ?',
                    (node, uid, one.start, _LOST),
                ).fetchone()
                if known is not None and known[1] >= one.end:
                    continue
                if known is None:
                    connection.execute(
                        'INSERT INTO gaps (node, uid, start, "end", cause, detail) VALUES (?, ?, ?, ?, ?, ?)',
                        (node, uid, one.start, one.end, _LOST, "as the imported log says"),
                    )
                else:
                    connection.execute('UPDATE gaps SET "end" = ? WHERE id = ?', (one.end, known[0]))
                mark_dirty(connection, node, self._plan, one.start, one.end)

    def _ensure_node(self, connection: sqlite3.Connection) -> int:
        if self._number is None:
            # Number 1 is this machine's, also in a store in which its agent has never run.
            row = connection.execute(
                "SELECT max(?, coalesce(max(id), 0)) + 1 FROM nodes", (LOCAL_NODE,)
            ).fetchone()
            number = int(row[0])
            connection.execute(
                "INSERT INTO nodes (id, name, kind) VALUES (?, ?, ?)", (number, self.name, _KIND)
            )
            self._number = number
            self._load(connection, number)
        return self._number

    def _load(self, connection: sqlite3.Connection, node: int) -> GpuNumbers:
        if self._numbers is not None:
            return self._numbers
        self._numbers = GpuNumbers(node)
        self._numbers.load(connection)
        for number, *parts in connection.execute(
            f"SELECT id, {', '.join(GPU_FIELDS)} FROM gpus WHERE node = ? ORDER BY id", (node,)
        ):
            identity = Identity(*parts)
            self._identities[identity.uid] = identity
            self._numbers_of.setdefault(identity.uid, set()).add(int(number))
        return self._numbers

    def _gpu(self, connection: sqlite3.Connection, identity: Identity, node: int) -> int:
        """The number of a GPU; what an earlier log knew of it and this one does not say still holds."""
        known = self._identities.get(identity.uid)
        if known is not None:
            identity = merged(known, identity)
        number = self._load(connection, node).number(connection, identity, self._now)
        self._identities[identity.uid] = identity
        self._numbers_of.setdefault(identity.uid, set()).add(number)
        return number

    def _present(
        self, connection: sqlite3.Connection, starts: list[int]
    ) -> dict[tuple[str, int], tuple[int, int]]:
        """(key, tenths of a second) of the node's rows over the batch's time, by uid and start."""
        uids = {number: uid for uid, numbers in self._numbers_of.items() for number in numbers}
        if not uids:
            return {}
        rows = connection.execute(
            f"SELECT id, seconds FROM samples_raw WHERE id >= ? AND id < ? AND id & {MAX_GPUS - 1} IN"
            " (SELECT id FROM gpus WHERE node = ?)",
            (key_floor(min(starts)), key_floor(max(starts) + 1), self._number),
        )
        return {(uids[key_gpu(key)], key_start(key)): (key, tenths) for key, tenths in rows}

    def _is_pruned(self, connection: sqlite3.Connection, uid: str, start: int) -> bool:
        """Whether the interval's hour was aggregated from rows that are no longer there."""
        period = self._plan.period(start)
        known = self._pruned.get((uid, period.start))
        if known is None:
            known = self._pruned[uid, period.start] = self._find_pruned(
                connection, uid, period.start, period.end
            )
        return known

    def _find_pruned(self, connection: sqlite3.Connection, uid: str, start: int, end: int) -> bool:
        numbers = ",".join(str(number) for number in self._numbers_of.get(uid, ()))
        if not numbers:
            return False
        row = connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM aggregates WHERE period = ? AND gpu IN ({numbers})) AND NOT EXISTS"
            f" (SELECT 1 FROM samples_raw WHERE id >= ? AND id < ? AND id & {MAX_GPUS - 1} IN ({numbers}))",
            (start, key_floor(start), key_floor(end)),
        ).fetchone()
        return bool(row[0])

    def _write_changes(self, connection: sqlite3.Connection, number: int, binned: BinnedInterval) -> None:
        # Rows kept on change are stamped inside their interval: its start would still be the period before.
        at = binned.start + 1.0
        for key, value in binned.states.items():
            self._states.put(connection, number, key, at, value)
        missing = _SAMPLED - binned.values.keys()
        for metric in _SAMPLED:
            reason = binned.reasons.get(metric, Reason.NOT_IN_LOG) if metric in missing else None
            self._reasons.put(connection, number, metric, at, reason)

    def _register(
        self, connection: sqlite3.Connection, node: int, file: str, interval: int, rows: int
    ) -> None:
        """Keep the import on record: its rows' age counts from it, and their hours' expected number."""
        updated = connection.execute(
            "UPDATE imports SET rows = rows + ? WHERE node = ? AND time = ? AND file = ?",
            (rows, node, self._now, file),
        )
        if updated.rowcount == 0:
            connection.execute(
                "INSERT INTO imports (node, time, file, rows, step) VALUES (?, ?, ?, ?, ?)",
                (node, self._now, file, rows, float(interval)),
            )


class _History:
    """What is kept on change, per GPU and key, as steps in time."""

    def __init__(self, table: str, key: str, value: str) -> None:
        self._insert = f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)"
        self._select = f"SELECT {key}, since, {value} FROM {table} WHERE gpu = ? ORDER BY since"
        self._steps: dict[int, dict[str, list[tuple[float, Any]]]] = {}

    def put(self, connection: sqlite3.Connection, gpu: int, key: str, at: float, value: Any) -> None:
        """From `at` on it is `value`; nothing is written where that is known."""
        steps = self._steps.get(gpu)
        if steps is None:
            steps = self._steps[gpu] = {}
            for name, since, content in connection.execute(self._select, (gpu,)):
                steps.setdefault(name, []).append((since, content))
        of_key = steps.setdefault(key, [])
        place = bisect_right(of_key, at, key=_since)
        if (of_key[place - 1][1] if place else None) == value:
            return
        connection.execute(self._insert, (gpu, key, at, value))
        if place and of_key[place - 1][0] == at:
            of_key[place - 1] = (at, value)
        else:
            of_key.insert(place, (at, value))


def _since(step: tuple[float, Any]) -> float:
    return step[0]


def merged(known: Identity, found: Identity) -> Identity:
    """`found`, and from `known` what it does not say."""
    kept: dict[str, Any] = {
        field.name: getattr(known, field.name)
        for field in fields(found)
        if getattr(found, field.name) is None
    }
    return replace(found, **kept)
