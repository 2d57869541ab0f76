"""Keeps a store under a size: the oldest rows go first, and every row that goes is counted as lost."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable

from gpu_monitor.agent.prune import batch_sql
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.tables import key_floor, key_start

_LOG = logging.getLogger("retain")
DAY = 86400
_BATCH = 1000
_FILLED = 0.95
"""Part of the cap that may be in use: the rest is for the rows of the next hour."""


class Cap:
    """The cap of one store in MB (10^6 bytes). What is owed to a server goes last of all."""

    def __init__(self, writer: Writer, max_mb: int, has_server: bool) -> None:
        self._writer = writer
        self._bytes = max_mb * 1_000_000
        self._cause = f"database.max_mb = {max_mb}"
        self._has_server = has_server

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        pages, free, size = self._pages()
        return (pages - free) * size

    def _pages(self) -> tuple[int, int, int]:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._writer.value(f"PRAGMA {name}")) for name in names)
        return pages, free, size

    def enforce(self, now: float) -> int:
        """Drop what must go, give the room back to the system, and return how many rows were lost."""
        lost: Counter[str] = Counter()
        # Rows but of the last day, then hours that nobody waits for, then all rows of closed hours, then what is owed.
        drops: tuple[Callable[[], Counter[str]], ...] = (
            lambda: self._drop_rows(now, int(now // DAY) * DAY - DAY),
            lambda: self._drop_hours(now, False),
            lambda: self._drop_rows(now, int(now // 3600) * 3600),
            lambda: self._drop_hours(now, True),
        )
        for drop in drops:
            while self._is_over():
                dropped = drop()
                if not dropped:
                    break
                lost += dropped
        if lost:
            told = ", ".join(f"{count} {name}" for name, count in lost.items())
            _LOG.error("dropped the oldest %s: the store is at its cap (%s)", told, self._cause)
        self._give_back()
        return sum(lost.values())

    def _is_over(self) -> bool:
        return self.used_bytes() > self._bytes * _FILLED

    def _drop_rows(self, now: float, before: int) -> Counter[str]:
        """The oldest whole period (an hour where none is on record) of rows that ends by `before`."""
        oldest = self._writer.value(
            "SELECT min(id) FROM (SELECT min(id) AS id FROM samples_raw UNION ALL SELECT min(id) FROM hosts_raw)"
        )
        if oldest is None:
            return Counter()
        start = key_start(oldest)
        hour_end = (start // 3600 + 1) * 3600
        end = self._writer.value(
            "SELECT max(start + seconds) FROM periods WHERE start <= ? AND start + seconds > ?",
            (start, start),
        )
        end = max(hour_end, end or 0)
        if end > before:
            return Counter()
        lost: Counter[str] = Counter()
        for table in ("samples_raw", "hosts_raw"):
            while count := self._delete(table, f"id < {key_floor(end)}", now):
                lost[table.removesuffix("_raw")] += count
        return lost

    def _drop_hours(self, now: float, owed: bool) -> Counter[str]:
        """The oldest day of aggregates with their ledger and events; those owed to a server only when asked to."""
        states = "('pending', 'parked')" if self._has_server and not owed else "('')"
        free = f"NOT EXISTS (SELECT 1 FROM reports p WHERE p.state IN {states} AND p.period = t.period)"
        oldest = self._writer.value(f"SELECT min(period) FROM aggregates t WHERE {free}")
        if oldest is None:
            oldest = self._writer.value(f"SELECT min(period) FROM reports t WHERE state NOT IN {states}")
        end = None if oldest is None else (oldest // DAY + 1) * DAY
        if end is None or end > now:
            return Counter()
        lost: Counter[str] = Counter()
        reports = f"SELECT id FROM reports WHERE period < {end} AND state NOT IN {states}"
        for table, where in (
            ("aggregates", f"period < {end} AND {free}"),
            ("host_aggregates", f"period < {end} AND {free}"),
            ("attempts", f"report IN ({reports})"),
            ("reports", f"period < {end} AND state NOT IN {states}"),
            ("events", f"time < {end}"),
            ("gaps", f'"end" < {end}'),
            ("processes", f"last_seen < {end}"),
        ):
            while count := self._delete(table, where, now):
                lost[table] += count
        return lost

    def _delete(self, table: str, where: str, now: float) -> int:
        """Delete a batch and count it as lost, in one transaction."""
        with self._writer.transaction() as connection:
            count = connection.execute(batch_sql(table, where, _BATCH)).rowcount
            if count > 0:
                self._count(connection, table.removesuffix("_raw"), count, now)
        return max(count, 0)

    def _count(self, connection: sqlite3.Connection, what: str, count: int, now: float) -> None:
        """Add to the day's losses of that kind."""
        updated = connection.execute(
            "UPDATE losses SET rows = rows + ?, time = ? WHERE what = ? AND cause = ? AND time >= ?",
            (count, now, what, self._cause, now // DAY * DAY),
        )
        if updated.rowcount == 0:
            connection.execute(
                "INSERT INTO losses (time, what, cause, rows) VALUES (?, ?, ?, ?)",
                (now, what, self._cause, count),
            )

    def _give_back(self) -> None:
        """Shorten the file where it is over the cap for its free pages."""
        pages, free, size = self._pages()
        while free and pages * size > self._bytes:
            self._writer.maintain("PRAGMA incremental_vacuum(128)")
            before = pages
            pages, free, size = self._pages()
            if pages >= before:
                return
