"""Does every receipt still stand for the rows that are there? Reads everything in batches, changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, exists, func, or_, select

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store import digest
from gpu_monitor.server.store.check_experiments import point_faults, segment_faults
from gpu_monitor.server.store.digest import GpuPart, fact_digest, row_digest
from gpu_monitor.server.store.retention import oldest_hour
from gpu_monitor.server.store.schema import (
    aggregates,
    events,
    facts,
    gaps,
    gpus,
    host_hours,
    nodes,
    processes,
    receipts,
)
from gpu_monitor.server.store.schema_experiments import experiments

Read = Callable[[], AbstractContextManager[Connection]]
Progress = Callable[[int, int], None]
Key = tuple[int, int]
"""Hour and agent."""

_BATCH = 500
_ROWS = 5000
"""Receipts and GPU rows at once: some 5 MB. A report may have 4,096 rows."""
_FACTS = 5000
_TOLD = 1000
"""Differences that are kept to be told; all are counted."""
_LEAST, _MOST = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was written. `node` and `hour` (UTC epoch s // 3600) where it belongs to a report."""

    what: str
    node: str | None = None
    hour: int | None = None

    @property
    def period(self) -> str | None:
        """The start of the period, ISO 8601."""
        return None if self.hour is None else format_time(self.hour * 3600)


@dataclass
class CheckReport:
    """What was read, and what differs."""

    receipts: int = 0
    rows: int = 0
    experiments: int = 0
    segments: int = 0
    count: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, found: Iterable[Difference]) -> None:
        """Count what differs, and keep the first thousand."""
        for difference in found:
            self.count += 1
            if len(self.differences) < _TOLD:
                self.differences.append(difference)


def check(read: Read, clock: Clock, progress: Progress | None = None) -> CheckReport:
    """Compare every receipt's digest with one over the rows read back, and every fact and segment with its own.

    `read` opens a snapshot; each batch asks for one, so that a server beside it is not held up. Hours that are
    past their age are left out: a running server takes their rows and receipts away one after the other.
    """
    report = CheckReport()
    with read() as connection:
        if connection.dialect.name == "sqlite":
            report.add(_of_the_file(connection))
        total = connection.execute(select(func.count()).select_from(receipts)).scalar_one()
    report.add(_facts(read))
    after: Key = (_LEAST, _LEAST)
    while True:
        with read() as connection:
            connection.execute(select(receipts.c.id).limit(1)).first()  # the snapshot is of now
            after = max(after, (oldest_hour(clock.now()) - 1, _MOST))
            batch, is_last = _receipts_after(connection, after)
            upto = (_MOST, _MOST) if is_last else (batch[-1].hour, batch[-1].agent)
            report.add(_compare(connection, batch, after, upto, report))
        report.receipts += len(batch)
        if progress is not None:
            progress(report.receipts, max(total, report.receipts))
        if is_last:
            break
        after = upto
    with read() as connection:
        connection.execute(select(receipts.c.id).limit(1)).first()
        report.add(_without_receipt(connection, oldest_hour(clock.now())))
        held = select(func.count()).select_from(experiments).where(experiments.c.removed.is_(None))
        report.experiments = connection.execute(held).scalar_one()
    for fault in segment_faults(read):
        report.segments += 1
        if fault is not None:
            report.add([Difference(fault)])
    report.add(Difference(fault) for fault in point_faults(read))
    return report


def _of_the_file(connection: Connection) -> Iterator[Difference]:
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield Difference(f"the file: {line}")
    for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield Difference(f"row {row} of {table} names a row of {parent} that is not there")


def _facts(read: Read) -> Iterator[Difference]:
    after = 0
    while True:
        asked = select(facts).where(facts.c.id > after).order_by(facts.c.id).limit(_FACTS)
        with read() as connection:
            found = connection.execute(asked).fetchall()
        for row in found:
            if fact_digest(row.body) != bytes(row.digest):
                yield Difference(f"fact {row.id} is not what its digest says")
        if len(found) < _FACTS:
            return
        after = found[-1].id


def _receipts_after(connection: Connection, after: Key) -> tuple[Sequence[Any], bool]:
    """The next receipts, as many as are compared at once, and whether no more come after them."""
    hour, agent = after
    held = receipts.c
    found = connection.execute(
        select(held.hour, held.agent, held.rows, held.row_digest, nodes.c.uuid)
        .join(nodes, nodes.c.id == held.agent)
        .where(held.hour >= hour, or_(held.hour > hour, held.agent > agent))
        .order_by(held.hour, held.agent)
        .limit(_BATCH)
    ).fetchall()
    rows = 0
    for number, receipt in enumerate(found, 1):
        rows += receipt.rows
        if rows >= _ROWS:
            return found[:number], False
    return found, len(found) < _BATCH


def _between(table: Table, after: Key, upto: Key) -> ColumnElement[bool]:
    """Rows whose (hour, agent) is behind `after` and not behind `upto`; the hours alone choose partitions."""
    hour, agent = table.c.hour, table.c.agent
    return and_(
        hour.between(after[0], upto[0]),
        or_(hour > after[0], agent > after[1]),
        or_(hour < upto[0], agent <= upto[1]),
    )


_identity, _states = facts.alias("identity_fact"), facts.alias("states_fact")
_GPU_ROWS = (
    select(
        aggregates.c.hour, aggregates.c.agent, gpus.c.uid, gpus.c.source, _identity.c.digest, _states.c.digest,
        aggregates.c.extra, *(aggregates.c[name] for name in digest.AGGREGATE_COLUMNS),
    )
    .outerjoin(gpus, and_(gpus.c.agent == aggregates.c.agent, gpus.c.ordinal == aggregates.c.gpu))
    .outerjoin(_identity, _identity.c.id == aggregates.c.identity)
    .outerjoin(_states, _states.c.id == aggregates.c.facts)
)  # fmt: skip
_OTHERS = (
    (host_hours, digest.HOST_COLUMNS),
    (gaps, digest.GAP_COLUMNS),
    (events, digest.EVENT_COLUMNS),
    (processes, digest.PROCESS_COLUMNS),
)
_LISTS = (gaps, events, processes)


def _compare(
    connection: Connection, batch: Sequence[Any], after: Key, upto: Key, report: CheckReport
) -> Iterator[Difference]:
    """What differs between `after` and `upto`."""
    parts: dict[Key, list[GpuPart]] = defaultdict(list)
    for row in connection.execute(_GPU_ROWS.where(_between(aggregates, after, upto))).fetchall():
        parts[row[0], row[1]].append(GpuPart(row[2], row[3], row[4] or b"", row[5] or b"", row[6], row[7:]))
    others = [_rows_by_key(connection, table, columns, after, upto) for table, columns in _OTHERS]
    report.rows += sum(len(rows) for group in (parts, *others) for rows in group.values())
    for receipt in batch:
        key = (receipt.hour, receipt.agent)
        held, (host, *lists) = parts.pop(key, []), [group.get(key, []) for group in others]
        if len(held) != receipt.rows:
            what = f"{len(held)} GPU rows are there, the receipt is for {receipt.rows}"
            yield Difference(what, receipt.uuid, receipt.hour)
        elif row_digest(receipt.uuid, receipt.hour, held, *(host or [None]), *lists) != bytes(
            receipt.row_digest
        ):
            yield Difference("the rows are not those of the receipt", receipt.uuid, receipt.hour)
    for hour, agent in parts:
        yield Difference(f"GPU rows of agent {agent} without a receipt", None, hour)


def _rows_by_key(
    connection: Connection, table: Table, columns: Sequence[str], after: Key, upto: Key
) -> dict[Key, list[Any]]:
    """The rows of a table under receipts of a range (which its index finds by agent and hour)."""
    asked: Select[Any] = select(table.c.hour, table.c.agent, *(table.c[name] for name in columns))
    if table in _LISTS:
        asked = asked.join(receipts, and_(receipts.c.agent == table.c.agent, receipts.c.hour == table.c.hour))
        asked = asked.where(_between(receipts, after, upto))
    else:
        asked = asked.where(_between(table, after, upto))
    found: dict[Key, list[Any]] = defaultdict(list)
    for row in connection.execute(asked).fetchall():
        found[row[0], row[1]].append(row[2:])
    return found


def _without_receipt(connection: Connection, oldest: int) -> Iterator[Difference]:
    for table, _ in _OTHERS:
        has_one = exists().where(receipts.c.agent == table.c.agent, receipts.c.hour == table.c.hour)
        asked = (
            select(table.c.hour, table.c.agent)
            .where(table.c.hour >= oldest, ~has_one)
            .distinct()
            .limit(_TOLD)
        )
        for hour, agent in connection.execute(asked):
            yield Difference(f"rows of {table.name} of agent {agent} without a receipt", None, hour)
