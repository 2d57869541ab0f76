"""Builds a new store from what can be read of a damaged one."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_monitor.core.clock import Clock
from gpu_monitor.storage.amend import amend
from gpu_monitor.storage.files import translated
from gpu_monitor.storage.leaves import stray_rows
from gpu_monitor.storage.migrate import migrate
from gpu_monitor.storage.rescue import Rescue, Row, Shape, Stretch, quoted
from gpu_monitor.storage.tables import key_floor, key_start
from gpu_monitor.storage.wreck import open_wreck

_LOG = logging.getLogger("storage")
_SAY_SECONDS = 5.0
_SAMPLES = "samples_raw"
_LAST = ("hosts_raw", _SAMPLES)
"""The long tables come after the small ones, which everything else hangs on."""
_BATCH = 1000
_MINUTE = 60
_HOUR = 3600


@dataclass(frozen=True)
class Account:
    """What came of a salvage: rows by table, and by table the stretches of its key that could not be read."""

    kept: str
    trouble: str
    rows: dict[str, int] = field(default_factory=dict)
    lost: dict[str, list[Stretch]] = field(default_factory=dict)


def rebuild(wreck: Path, target: Path, clock: Clock, seconds: float, trouble: str) -> Account:
    """Fill `target` (which is not there yet) from the damaged store `wreck`, which is not changed.

    Reading takes `seconds` at most. StorageFull where there is no room.
    """
    account = Account(wreck.name, trouble)
    deadline = _Deadline(clock, seconds)
    try:
        connection = sqlite3.connect(target, isolation_level=None)
        try:
            # Nobody needs a half-built store: it is built without a journal of its own and synced at the end.
            for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = MEMORY", "synchronous = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            migrate(connection, 0)
            with open_wreck(wreck, target) as source:
                _copy_all(source, connection, account, deadline)
                _copy_strays(wreck, connection, account, deadline)
                amend(connection, source, account.lost, clock.now(), account.kept, trouble)
            account.rows.update(_counts(connection))
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(error, target) from error
    return account


class _Deadline:
    """Says when reading has taken too long, and tells from time to time how far it is."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._say = clock.monotonic() + _SAY_SECONDS
        self.highest = key_floor(clock.now() + 24 * _HOUR)
        self.doing = ""
        self.rows = 0

    def is_late(self) -> bool:
        now = self._clock.monotonic()
        if now >= self._say:
            self._say = now + _SAY_SECONDS
            _LOG.warning("salvaging %s: %d rows so far", self.doing, self.rows)
        return now >= self._end


def _copy_all(
    source: sqlite3.Connection | None,
    target: sqlite3.Connection,
    account: Account,
    deadline: _Deadline,
) -> None:
    names = list(_counts(target))
    for name in sorted(names, key=lambda name: (name in _LAST, names.index(name))):
        shape = None if source is None else _shape(source, target, name, deadline.highest)
        if source is None or shape is None:
            account.lost[name] = [(0, 0)]
            continue
        deadline.doing, deadline.rows = name, 0
        target.execute("BEGIN")
        lost = Rescue(source, shape, _taker(target, shape, deadline), deadline.is_late).run()
        target.execute("COMMIT")
        if lost:
            account.lost[name] = lost


def _copy_strays(wreck: Path, target: sqlite3.Connection, account: Account, deadline: _Deadline) -> None:
    """Samples on sound pages to which the way is broken."""
    stretches = account.lost.get(_SAMPLES, [])
    if not stretches:
        return
    columns = tuple(str(row[1]) for row in target.execute(f"PRAGMA table_info({_SAMPLES})"))
    take = _taker(target, Shape(_SAMPLES, columns, ("id",)), deadline)
    bounded = [(0, deadline.highest)] if stretches == [(0, 0)] else stretches
    found = stray_rows(wreck, len(columns), bounded)
    target.execute("BEGIN")
    while batch := list(itertools.islice(found, _BATCH)):
        take(batch)
        if deadline.is_late():
            break
    target.execute("COMMIT")


def _taker(target: sqlite3.Connection, shape: Shape, deadline: _Deadline) -> Callable[[list[Row]], None]:
    marks = ", ".join("?" * len(shape.columns))
    sql = f"INSERT OR IGNORE INTO {shape.name} ({quoted(shape.columns)}) VALUES ({marks})"

    def take(rows: list[Row]) -> None:
        try:
            target.executemany(sql, rows)
        except sqlite3.Error as error:  # of the new file: no reason to stop reading quietly
            raise translated(error, Path(shape.name)) from error
        deadline.rows += len(rows)

    return take


def _shape(source: sqlite3.Connection, target: sqlite3.Connection, name: str, highest: int) -> Shape | None:
    """How table `name` is read: the columns that both files have; None where the damaged one lacks it."""
    try:
        there = {str(row[1]) for row in source.execute(f"PRAGMA table_info({name})")}
    except sqlite3.Error:
        return None
    known = [row for row in target.execute(f"PRAGMA table_info({name})") if row[1] in there]
    key = tuple(str(row[1]) for row in sorted(known, key=lambda row: int(row[5])) if row[5])
    if not known or not key:
        return None
    columns = tuple(str(row[1]) for row in known)
    if name in _LAST:
        return Shape(name, columns, key, key_floor(_MINUTE), highest, integers=True)
    if key[0] == "period":
        return Shape(name, columns, key, _HOUR, key_start(highest))
    return Shape(name, columns, key)


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Rows by table."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    ).fetchall()
    return {
        str(name): int(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for (name,) in names
    }
