"""Lets go of what is past its age, in small batches, and never of what is still owed to a server."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gpu_monitor.agent.store import LOCAL_NODE
from gpu_monitor.core.errors import StorageError
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.tables import MAX_GPUS, key_floor, key_start

_LOG = logging.getLogger("retain")
DAY = 86400.0
_BATCH = 1000
"""Rows a transaction deletes: about 5 ms, so that a sample never waits."""


def whole_day(moment: float) -> float:
    """The start of the UTC day: whole periods go, so that a period is never rolled up from half its rows."""
    return moment // DAY * DAY


@dataclass(frozen=True)
class Limits:
    """Ages in days, the cap in MB (None: none), and whether a server is owed the hours."""

    raw_days: float
    aggregate_days: float
    max_mb: int | None
    has_server: bool


class Retention:
    """Prunes one store. Each call does everything that is due, batch by batch."""

    def __init__(self, writer: Writer, limits: Limits) -> None:
        self._writer = writer
        self.limits = limits

    def run(self, now: float) -> dict[str, int]:
        """Delete what is past its age or over the cap; returns rows removed by table."""
        removed = {
            "samples_raw": self._prune_samples(now - self.limits.raw_days * DAY, now),
            "hosts_raw": self._prune_keys(
                "hosts_raw", self._rolled_floor(now - self.limits.raw_days * DAY), ""
            ),
            **self._prune_old(now - self.limits.aggregate_days * DAY),
        }
        removed["capped"] = self._cap(now)
        self._shrink()
        return {name: count for name, count in removed.items() if count}

    def _rolled_floor(self, limit: float) -> float:
        """`limit`, or the start of the first period before it that still waits for its rollup."""
        waiting = self._writer.value(
            "SELECT min(start) FROM periods WHERE dirty = 1 AND node = ? AND start < ?", (LOCAL_NODE, limit)
        )
        return limit if waiting is None else float(waiting)

    def _prune_samples(self, limit: float, now: float) -> int:
        """Local rows by their own age; imported rows by the age of their import."""
        imported = "(SELECT id FROM gpus WHERE node <> 1)"
        count = self._prune_keys(
            "samples_raw", self._rolled_floor(limit), f"AND id & {MAX_GPUS - 1} NOT IN {imported}"
        )
        due = [
            row[0]
            for row in self._writer.rows(
                "SELECT node FROM imports GROUP BY node HAVING max(time) < ?",
                (now - self.limits.raw_days * DAY,),
            )
        ]
        for node in due:
            own = f"AND id & {MAX_GPUS - 1} IN (SELECT id FROM gpus WHERE node = {int(node)})"
            count += self._prune_keys("samples_raw", now, own)
        return count

    def _prune_keys(self, table: str, limit: float, condition: str) -> int:
        """Delete rows of intervals before `limit`, walking the key upwards so that nothing is scanned twice."""
        total, low = 0, -1
        while True:
            rows = self._writer.rows(
                f"SELECT id FROM {table} WHERE id > ? AND id < ? {condition} ORDER BY id LIMIT {_BATCH}",
                (low, key_floor(limit)),
            )
            if not rows:
                return total
            first, low = rows[0][0], rows[-1][0]
            with self._writer.transaction() as connection:
                connection.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ? {condition}", (first, low))
            total += len(rows)

    def _prune_old(self, limit: float) -> dict[str, int]:
        """Aggregates with their reports, and all that tells of the same time.

        History that was imported lately is kept, however old the time is that it tells of.
        """
        fresh = f"(SELECT node FROM imports GROUP BY node HAVING max(time) >= {limit})"
        lived = f"AND node NOT IN {fresh}"
        of_gpu = f"AND gpu NOT IN (SELECT id FROM gpus WHERE node IN {fresh})"
        owed = "AND NOT EXISTS (SELECT 1 FROM reports p WHERE p.period = t.period AND p.state IN ('pending', 'parked'))"
        keep = owed if self.limits.has_server else ""
        removed = {
            "aggregates": self._prune_rows("aggregates", f"period < {limit} {of_gpu} {keep}", "period, gpu")
        }
        self._prune_rows("host_aggregates", f"period < {limit} {keep}", "period")
        settled = "AND state NOT IN ('pending', 'parked')" if self.limits.has_server else ""
        self._prune_rows(
            "attempts", f"report IN (SELECT id FROM reports WHERE period < {limit} {lived} {settled})", "id"
        )
        removed["reports"] = self._prune_rows("reports", f"period < {limit} {lived} {settled}", "id")
        gone = f"start < {limit} {lived} AND dirty = 0 AND NOT EXISTS (SELECT 1 FROM reports p WHERE p.period = t.start)"
        self._prune_rows("periods", gone, "node, start")
        removed["events"] = self._prune_rows("events", f"time < {limit} {lived}", "id")
        removed["gaps"] = self._prune_rows("gaps", f'"end" < {limit} {lived}', "id")
        removed["processes"] = self._prune_rows("processes", f"last_seen < {limit} {lived}", "id")
        for table, key in (("states", "key"), ("reasons", "metric")):
            newer = f"SELECT 1 FROM {table} n WHERE n.gpu = t.gpu AND n.{key} = t.{key} AND n.since > t.since"
            self._prune_rows(
                table,
                f"since < {limit} {of_gpu} AND EXISTS ({newer} AND n.since < {limit})",
                f"gpu, {key}, since",
            )
        return removed

    def _prune_rows(self, table: str, condition: str, key: str) -> int:
        total = 0
        sql = f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} t WHERE {condition} LIMIT {_BATCH})"
        while True:
            with self._writer.transaction() as connection:
                count = connection.execute(sql).rowcount
            total += max(count, 0)
            if count < _BATCH:
                return total

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        pages, free, size = (
            int(self._writer.value(f"PRAGMA {name}"))
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _cap(self, now: float) -> int:
        """Drop the oldest rows while the store is over its cap; they are counted as lost."""
        if self.limits.max_mb is None:
            return 0
        cap, lost = self.limits.max_mb * 1_000_000, 0
        while self.used_bytes() > cap * 0.95:
            oldest = self._writer.value("SELECT min(id) FROM samples_raw")
            if oldest is None:
                break
            hour_end = (key_start(oldest) // 3600 + 1) * 3600
            with self._writer.transaction() as connection:
                count = connection.execute(
                    "DELETE FROM samples_raw WHERE id < ?", (key_floor(hour_end),)
                ).rowcount
                connection.execute("DELETE FROM hosts_raw WHERE id < ?", (key_floor(hour_end),))
                connection.execute(
                    "INSERT INTO losses (time, what, cause, rows) VALUES (?, 'samples', ?, ?)",
                    (now, f"database.max_mb = {self.limits.max_mb}", count),
                )
            lost += count
        if lost:
            _LOG.error(
                "dropped the %d oldest rows: the store is at its cap of %d MB", lost, self.limits.max_mb
            )
        return lost

    def _shrink(self) -> None:
        """Give pages back to the system where more than a quarter of the file is free."""
        free, pages = (
            int(self._writer.value("PRAGMA freelist_count")),
            int(self._writer.value("PRAGMA page_count")),
        )
        while free > pages // 4 and free > 256:
            self._writer.maintain("PRAGMA incremental_vacuum(256)")
            left = int(self._writer.value("PRAGMA freelist_count"))
            if left >= free:
                raise StorageError("the store gives no free pages back", "Run gpu_monitor doctor.")
            free, pages = left, int(self._writer.value("PRAGMA page_count"))
