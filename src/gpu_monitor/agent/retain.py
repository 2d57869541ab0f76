"""Lets go of what is past its age, in small batches, and never of what is still owed to a server."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_monitor.agent.cap import Cap
from gpu_monitor.agent.prune import SCAN, delete_rows
from gpu_monitor.agent.store import LOCAL_NODE
from gpu_monitor.core.errors import StorageError
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.tables import MAX_GPUS, key_floor

DAY = 86400.0
_VACUUM_PAGES = 128
"""Pages a step gives back to the system: about 5 ms."""


def whole_day(moment: float) -> float:
    """The start of the UTC day: every period lies within one, so none is left with half its rows."""
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
        self._settled_imports: dict[int, float] = {}

    def run(self, now: float) -> dict[str, int]:
        """Delete what is past its age or over the cap; returns rows removed by table."""
        removed = {"samples_raw": self._prune_imports(now)}
        if self._is_believable(now):
            limit = self._rolled_floor(whole_day(now - self.limits.raw_days * DAY))
            removed["samples_raw"] += self._prune_keys("samples_raw", limit, self._gpus("node <> 1"), False)
            removed["hosts_raw"] = self._prune_keys("hosts_raw", limit, [], False)
            removed |= self._prune_old(whole_day(now - self.limits.aggregate_days * DAY))
        if self.limits.max_mb is not None:
            removed["capped"] = Cap(self._writer, self.limits.max_mb, self.limits.has_server).enforce(now)
        self._shrink()
        return {name: count for name, count in removed.items() if count}

    def _is_believable(self, now: float) -> bool:
        """Whether rows of another day stand for the clock: one that jumped ahead must not delete history.

        Who sets such a clock right within a day loses nothing.
        """
        window = key_floor(now - max(self.limits.raw_days, 3) * DAY), key_floor(now - DAY)
        for table in ("samples_raw", "hosts_raw"):
            if self._writer.value(f"SELECT 1 FROM {table} WHERE id >= ? AND id < ? LIMIT 1", window):
                return True
        newest = self._writer.value(
            "SELECT max(id) FROM (SELECT max(id) AS id FROM samples_raw UNION ALL SELECT max(id) FROM hosts_raw)"
        )
        return newest is None

    def _rolled_floor(self, limit: float) -> float:
        """`limit`, or the start of the first period before it that still waits for its rollup."""
        waiting = self._writer.value(
            "SELECT min(start) FROM periods WHERE dirty = 1 AND node = ? AND start < ?", (LOCAL_NODE, limit)
        )
        return limit if waiting is None else float(waiting)

    def _gpus(self, condition: str) -> list[int]:
        return [row[0] for row in self._writer.rows(f"SELECT id FROM gpus WHERE {condition}")]

    def _prune_imports(self, now: float) -> int:
        """Imported rows keep the age of their import, once their hours are rolled up."""
        count = 0
        due = self._writer.rows(
            "SELECT node, max(time) FROM imports GROUP BY node HAVING max(time) < ? AND NOT EXISTS"
            " (SELECT 1 FROM periods WHERE periods.node = imports.node AND dirty = 1)",
            (now - self.limits.raw_days * DAY,),
        )
        for node, imported in due:
            if self._settled_imports.get(node) != imported:
                count += self._prune_keys("samples_raw", None, self._gpus(f"node = {int(node)}"), True)
                self._settled_imports[node] = imported
        return count

    def _prune_keys(self, table: str, limit: float | None, gpus: list[int], are_theirs: bool) -> int:
        """Delete the rows before `limit` that are those GPUs' (or are not), walking the key upwards once."""
        end = key_floor(limit) if limit is not None else (1 << 63) - 1
        chosen = f"id & {MAX_GPUS - 1} {'' if are_theirs else 'NOT'} IN ({','.join(map(str, gpus))})"
        total, low = 0, -1
        while True:
            last, count = self._writer.rows(
                f"SELECT max(id), total({chosen}) FROM"
                f" (SELECT id FROM {table} WHERE id > ? AND id < ? ORDER BY id LIMIT {SCAN})",
                (low, end),
            )[0]
            if last is None:
                return total
            if count:
                with self._writer.transaction() as connection:
                    sql = f"DELETE FROM {table} WHERE id > ? AND id <= ? AND {chosen}"
                    total += connection.execute(sql, (low, last)).rowcount
            low = last

    def _prune_old(self, limit: float) -> dict[str, int]:
        """Aggregates with their reports, and all that tells of the same time.

        History that was imported lately is kept, however old the time is that it tells of.
        """
        fresh = f"(SELECT node FROM imports GROUP BY node HAVING max(time) >= {limit})"
        lived = f"AND node NOT IN {fresh}"
        open_states = "('pending', 'parked')" if self.limits.has_server else "('')"
        settled = f"AND state NOT IN {open_states}"
        owed = f"SELECT 1 FROM reports p WHERE p.state IN {open_states} AND p.period = t.period"
        old_reports = f"SELECT id FROM reports WHERE period < {limit} {lived} {settled}"
        no_report = "NOT EXISTS (SELECT 1 FROM reports p WHERE p.node = t.node AND p.period = t.start)"
        of_gpu = f"AND gpu NOT IN (SELECT id FROM gpus WHERE node IN {fresh})"
        newest_run = "(SELECT max(id) FROM runs)"
        conditions = {
            "aggregates": f"period < {limit} {of_gpu} AND NOT EXISTS ({owed})",
            "host_aggregates": f"period < {limit} AND NOT EXISTS ({owed})",
            "attempts": f"report IN ({old_reports})",
            "reports": f"period < {limit} {lived} {settled}",
            "periods": f"start < {limit} {lived} AND dirty = 0 AND {no_report}",
            "events": f"time < {limit} {lived}",
            "gaps": f'"end" < {limit} {lived}',
            "processes": f"last_seen < {limit} {lived}",
            "runs": f"ended < {limit} AND id <> {newest_run}",
            "losses": f"time < {limit}",
        }
        removed = {table: delete_rows(self._writer, table, where) for table, where in conditions.items()}
        for gpu in self._gpus(f"node NOT IN {fresh}"):
            for table, key in (("states", "key"), ("reasons", "metric")):
                # The value in force at the limit stays, however old it is.
                newer = (
                    f"SELECT 1 FROM {table} n WHERE n.gpu = t.gpu AND n.{key} = t.{key} AND n.since > t.since"
                )
                where = f"gpu = {gpu} AND since < {limit} AND EXISTS ({newer} AND n.since <= {limit})"
                delete_rows(self._writer, table, where)
        return removed

    def _shrink(self) -> None:
        """Give pages back to the system where more than a quarter of the file is free."""
        free = int(self._writer.value("PRAGMA freelist_count"))
        while free > int(self._writer.value("PRAGMA page_count")) // 4 and free > 256:
            self._writer.maintain(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            left = int(self._writer.value("PRAGMA freelist_count"))
            if left >= free:
                raise StorageError("the store gives no free pages back", "Run gpu_monitor doctor.")
            free = left
