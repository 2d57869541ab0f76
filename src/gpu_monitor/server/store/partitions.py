"""PostgreSQL keeps `aggregates` by month and `samples` by day, so that what is too old is dropped whole."""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from sqlalchemy import Connection, Engine, text

PARTITIONS_LOCK = 0x6770756D7061
"""The advisory lock under which partitions come and go: the letters gpumpa."""
_HOUR, _DAY = 3600, 86400


@dataclass(frozen=True)
class Split:
    """How one table is divided: by `column`, whose unit is `seconds`, into months or days."""

    table: str
    column: str
    seconds: int
    monthly: bool
    trusted_seconds: int
    """A partition that was seen and is younger than this is taken to be there: retention keeps it longer."""


@dataclass(frozen=True, order=True)
class Partition:
    """One part of a table: rows from `start` to before `stop`, in the unit of its column."""

    start: int
    stop: int
    name: str
    table: str


AGGREGATES = Split("aggregates", "hour", _HOUR, monthly=True, trusted_seconds=60 * _DAY)
SAMPLES = Split("samples", "time", 1, monthly=False, trusted_seconds=3 * _DAY)
SPLITS = (AGGREGATES, SAMPLES)


def partition_of(split: Split, key: int) -> Partition:
    """The partition that a row with this hour or time belongs in."""
    moment = datetime.fromtimestamp(key * split.seconds, timezone.utc)
    first = moment.replace(hour=0, minute=0, second=0)
    if split.monthly:
        first = first.replace(day=1)
        after = first + timedelta(days=calendar.monthrange(first.year, first.month)[1])
        name = f"{split.table}_{first:%Y_%m}"
    else:
        after = first + timedelta(days=1)
        name = f"{split.table}_{first:%Y_%m_%d}"
    start, stop = (int(edge.timestamp()) // split.seconds for edge in (first, after))
    return Partition(start, stop, name, split.table)


def partitions_held(connection: Connection, split: Split) -> list[Partition]:
    """The partitions there are, oldest first."""
    names = connection.execute(
        text("SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
             " WHERE i.inhparent = to_regclass(:table)"),
        {"table": split.table},
    ).scalars()  # fmt: skip
    return sorted(_named(split, name) for name in names)


def _named(split: Split, name: str) -> Partition:
    year, month, *day = (int(part) for part in name.removeprefix(split.table + "_").split("_"))
    moment = datetime(year, month, day[0] if day else 1, tzinfo=timezone.utc)
    return partition_of(split, int(moment.timestamp()) // split.seconds)


class Partitions:
    """Makes partitions as rows for them come, and remembers which there are."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def make(self, engine: Engine, hours: Iterable[int], times: Iterable[int], now: float) -> None:
        """Make what is missing, in a transaction of its own."""
        wanted = {partition_of(AGGREGATES, hour): AGGREGATES for hour in set(hours)}
        wanted |= {partition_of(SAMPLES, time): SAMPLES for time in {time - time % _DAY for time in times}}
        unsure = [
            part
            for part, split in wanted.items()
            # Another process may have dropped an old one since.
            if part.name not in self._seen or part.stop * split.seconds < now - split.trusted_seconds
        ]
        if unsure:
            with engine.begin() as connection:
                make_partitions(connection, unsure)
            self._seen |= {part.name for part in unsure}


def make_partitions(connection: Connection, wanted: Iterable[Partition]) -> None:
    """Make those of `wanted` that are not there.

    A table is made first and attached then, which blocks nobody: PARTITION OF would wait for every reader
    of the whole table, and hold up all that come after.
    """
    named = {part.name: part for part in wanted}
    missing = named.keys() - _there(connection, list(named))
    if not missing:
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": PARTITIONS_LOCK})
    missing -= _there(connection, list(named))  # another process may have been first
    for part in sorted(named[name] for name in missing):
        connection.exec_driver_sql(f"CREATE TABLE {part.name} (LIKE {part.table} INCLUDING ALL)")
        connection.exec_driver_sql(
            f"ALTER TABLE {part.table} ATTACH PARTITION {part.name} FOR VALUES FROM ({part.start}) TO ({part.stop})"
        )


def drop_partitions(connection: Connection, split: Split, limit: int) -> int:
    """Drop the partitions whose rows are all before `limit`; how many there were.

    StorageBusy (through the store) where a long reader is in the way: waiting for it would hold up all others.
    """
    old = [part for part in partitions_held(connection, split) if part.stop <= limit]
    if old:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": PARTITIONS_LOCK})
    for part in old:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {part.name}")
    return len(old)


def _there(connection: Connection, names: list[str]) -> set[str]:
    found = connection.execute(
        # Not to_regclass: within a transaction it may remember that there was none before we had the lock.
        text(
            "SELECT relname FROM pg_class WHERE relname = ANY(CAST(:names AS text[]))"
            " AND relnamespace = CAST(current_schema() AS regnamespace)"
        ),
        {"names": names},
    )
    return set(found.scalars())
