"""Takes out what is past its age: whole partitions on PostgreSQL, small batches on SQLite."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, text

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.store import schema
from gpu_monitor.server.store.batches import BATCH, delete_some
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.partitions import AGGREGATES, SAMPLES, Split, drop_partitions
from gpu_monitor.server.store.sense import EDGE_SECONDS

_LOG = logging.getLogger("retention")
_HOUR, _DAY = 3600, 86400
YEAR = 366 * _DAY
"""A whole one, whichever it was."""
RETENTION_LOCK = 0x6770756D7265
"""The advisory lock of the one process that prunes on PostgreSQL: the letters gpumre."""
_ROUND_SECONDS = 300.0
_AHEAD_SECONDS = 2 * _DAY
"""Partitions are made so long before their first row is due."""
_SPARE_SHARE, _SPARE_BYTES = 0.1, 64 << 20
"""Free pages of a SQLite file up to here are left to the rows of the next days."""
_VACUUM_PAGES = 512
"""2 MiB given back in one step."""
_OPTIMIZE_SECONDS = _DAY


def oldest_hour(now: float) -> int:
    """The oldest hour that is kept: rows of earlier ones are on their way out."""
    return math.ceil((now - YEAR) / _HOUR)


@dataclass(frozen=True)
class Rule:
    """Rows of `table` go when `column` (in units of `unit` seconds) is older than `seconds`.

    `within`: a time of the row, epoch s, that an index finds; it lies in the row's period.
    """

    table: Table
    column: str
    seconds: float
    unit: int = 1
    only: ColumnElement[bool] | None = None
    split: Split | None = None
    within: str | None = None


_SURPLUS = schema.tokens.c.parent.is_not(None) & schema.tokens.c.first_used.is_(None)
RULES: tuple[Rule, ...] = (
    Rule(schema.aggregates, "hour", YEAR, _HOUR, split=AGGREGATES),
    Rule(schema.host_hours, "hour", YEAR, _HOUR),
    # With their report, by its hour; found by the time that an index finds, which lies in its period.
    Rule(schema.gaps, "hour", YEAR, _HOUR, within="start"),
    Rule(schema.events, "hour", YEAR, _HOUR, within="time"),
    Rule(schema.processes, "hour", YEAR, _HOUR, within="last_seen"),
    Rule(schema.receipts, "hour", YEAR, _HOUR),
    Rule(schema.revisions, "hour", YEAR, _HOUR),
    Rule(schema.quarantine, "received", YEAR),
    Rule(schema.samples, "time", 7 * _DAY, split=SAMPLES),
    Rule(schema.live_processes, "until", 7 * _DAY),
    Rule(schema.live_events, "time", 7 * _DAY),
    Rule(schema.changes, "time", _HOUR),
    Rule(schema.alerts, "since", YEAR, only=schema.alerts.c.active.is_(None)),
    Rule(schema.deliveries, "time", YEAR),
    Rule(schema.outbox, "created", YEAR, only=schema.outbox.c.next_try.is_(None)),
    Rule(schema.silences, "stop", YEAR),
    Rule(schema.audit, "time", YEAR),
    # Surplus ones that an enrolling agent never used; used ones say which node has a token of its own.
    Rule(schema.tokens, "revoked", 30 * _DAY, only=_SURPLUS),
)
"""What is kept how long. Who there is (nodes, GPUs, facts) and the fleet's hours are small and stay."""


class Retention:
    """The thread that prunes every five minutes and makes partitions ahead; one of the server's parts."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._optimized = float("-inf")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch under way."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        self._guarded(self._make_room)
        while not self._clock.wait(self._stop, self._clock.monotonic() + _ROUND_SECONDS):
            self._guarded(self._make_room)
            self._guarded(self._prune)
            if self._clock.monotonic() >= self._optimized + _OPTIMIZE_SECONDS:
                self._optimized = self._clock.monotonic()
                self._guarded(lambda: optimize(self._store))

    def _make_room(self) -> None:
        now = self._clock.now()
        moments = (int(now), int(now) + _AHEAD_SECONDS // 2, int(now) + _AHEAD_SECONDS)
        self._store.make_room([moment // _HOUR for moment in moments], moments, now=now)

    def _prune(self) -> None:
        gone = prune(self._store, self._clock.now(), self._stop)
        if gone:
            _LOG.info("past their age: %s", ", ".join(f"{count} of {name}" for name, count in gone.items()))

    def _guarded(self, work: Callable[[], None]) -> None:
        """What could not be done now is due again in the next round."""
        try:
            work()
        except StorageError as error:
            _LOG.warning("nothing is pruned now: %s", error.message)


def prune(
    store: Store, now: float, stop: threading.Event | None = None, batch: int = BATCH
) -> dict[str, int]:
    """Take out what is too old; how many rows (or partitions, whole) went, by table.

    Every batch of so many rows is a transaction of its own. `stop` ends it after the one under way.
    """
    gone: dict[str, int] = {}
    for rule in RULES:
        limit = (now - rule.seconds) / rule.unit
        count = _by_batches(store, rule, limit, stop, batch)
        if count:
            gone[rule.table.name] = count
        if stop is not None and stop.is_set():
            return gone
    if store.dialect == "sqlite":
        _give_back(store, stop)
    return gone


def optimize(store: Store) -> None:
    """Let SQLite learn how its tables are filled, which its choice of an index rests on; PostgreSQL does by itself."""
    if store.dialect == "sqlite":
        with store.write() as connection:
            connection.exec_driver_sql("PRAGMA analysis_limit=1000")
            connection.exec_driver_sql("ANALYZE")


def _by_batches(store: Store, rule: Rule, limit: float, stop: threading.Event | None, batch: int) -> int:
    total = 0
    while stop is None or not stop.is_set():
        with store.write() as connection:
            if store.dialect == "postgresql":
                if not _is_ours(connection):
                    return total
                if rule.split is not None:
                    return drop_partitions(connection, rule.split, int(limit))
            count = _delete_some(connection, rule, limit, batch)
        total += count
        if count < batch:
            break
    return total


def _is_ours(connection: Connection) -> bool:
    """Whether no other process prunes at this moment."""
    asked = text("SELECT pg_try_advisory_xact_lock(:key)")
    return bool(connection.execute(asked, {"key": RETENTION_LOCK}).scalar_one())


def _delete_some(connection: Connection, rule: Rule, limit: float, batch: int) -> int:
    """Delete the rows of one batch; fewer than a batch where no more is left."""
    table = rule.table
    is_old = table.c[rule.column] < limit
    if rule.within is not None:
        is_old = and_(is_old, table.c[rule.within] <= limit * rule.unit + _DAY + EDGE_SECONDS)
    if rule.only is not None:
        is_old = and_(is_old, rule.only)
    return delete_some(connection, table, is_old, batch)


def _give_back(store: Store, stop: threading.Event | None) -> None:
    """Make a SQLite file smaller that was far larger once."""
    while stop is None or not stop.is_set():
        with store.write() as connection:
            pages, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
            if free * size <= max(_SPARE_BYTES, _SPARE_SHARE * pages * size):
                return
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()  # a step for each page
