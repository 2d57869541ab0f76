"""Forgets a node: everything that one machine reported and that was noted about it, the node itself last.

What it added to the fleet's hours stays: they are sums over all GPUs, kept for good, and name nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, delete, func, or_, select

from gpu_monitor.core.errors import NothingFound, StorageBusy, UsageError
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.batches import BATCH, delete_some
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.lock import ServerLock
from gpu_monitor.server.store.nodes import node_condition
from gpu_monitor.server.store.schema import (
    aggregates,
    alerts,
    changes,
    contracts,
    deliveries,
    events,
    gaps,
    gpus,
    host_hours,
    latest,
    live_events,
    live_processes,
    nodes,
    outbox,
    processes,
    quarantine,
    receipts,
    revisions,
    samples,
    silences,
    tokens,
)

Progress = Callable[[str, int, int], None]
"""What is removed, how far, of how much."""


@dataclass(frozen=True)
class Known:
    """A node as people know it, and how many rows of each kind are its. Times: UTC epoch s."""

    agent: int
    uuid: str
    hostname: str | None
    contract_number: str
    first_seen: float
    last_report: float | None
    rows: dict[str, int]

    @property
    def count(self) -> int:
        """How many rows in all."""
        return sum(self.rows.values())


def find_node(connection: Connection, name: str) -> Known:
    """The node with this id or host name, with what is held of it; NothingFound, UsageError where several have it."""
    query = select(
        nodes.c.id,
        nodes.c.uuid,
        nodes.c.hostname,
        contracts.c.number,
        nodes.c.first_seen,
        nodes.c.last_report,
    ).join(contracts, contracts.c.id == nodes.c.contract)
    found = connection.execute(query.where(node_condition(name)).order_by(nodes.c.id)).all()
    if not found:
        raise NothingFound(f"there is no node {name}", "GET /api/nodes lists them, with their ids.")
    if len(found) > 1:
        ids = ", ".join(row.uuid for row in found)
        raise UsageError(f"{len(found)} nodes have the name {name}", f"Say which one by its id: {ids}")
    (row,) = found
    counts = {
        table.name: _count(connection, table, which)
        for table, which in (*_many(row.id), *_few(row.id, row.uuid))
    }
    return Known(*row, rows={name: count for name, count in counts.items() if count})


def forget_node(
    store: Store, node: Known, now: float, actor: str, progress: Progress, batch: int = BATCH
) -> dict[str, int]:
    """Remove everything of the node; how many rows went, by table.

    It is in the audit log before the first row goes; ended halfway, it can be done again. Its tokens go first. On
    PostgreSQL it works beside running servers. StorageBusy where one runs on SQLite: that one knows its nodes by heart.
    """
    lock = _lock(store)
    try:
        with store.write() as connection:
            tokens_gone = connection.execute(delete(tokens).where(tokens.c.node == node.uuid)).rowcount
            raise_version(connection)
            record(
                connection, now, actor, "node.forget", node.uuid, detail={**_named(node), "rows": node.rows}
            )
        gone = {tokens.name: tokens_gone}
        for table, which in _many(node.agent):
            gone[table.name] = 0
            count = batch
            while count >= batch:
                with store.write() as connection:
                    count = delete_some(connection, table, which, batch)
                gone[table.name] += count
                progress(f"removing {table.name}", gone[table.name], node.rows.get(table.name, 0))
        with store.write() as connection:
            store.lock_sequence(connection)  # a report of this moment is before or after all of it
            for table, which in (*_many(node.agent), *_few(node.agent, node.uuid)):
                gone[table.name] = (
                    gone.get(table.name, 0) + connection.execute(delete(table).where(which)).rowcount
                )
            raise_version(connection)
    finally:
        if lock is not None:
            lock.close()
    return {name: count for name, count in gone.items() if count}


def _lock(store: Store) -> ServerLock | None:
    if store.dialect != "sqlite":
        return None
    lock = ServerLock(Path(str(store.url.database)))
    try:
        lock.acquire()
    except StorageBusy as error:
        raise StorageBusy(error.message, "Stop the server first; with PostgreSQL it may run on.") from None
    return lock


def _named(node: Known) -> dict[str, object]:
    return {"hostname": node.hostname, "contract_number": node.contract_number}


def _many(agent: int) -> tuple[tuple[Table, ColumnElement[bool]], ...]:
    """What grows with time, in the order in which it can go: hours of machines are found by their receipts."""
    told = select(receipts.c.hour).where(receipts.c.agent == agent)
    return (
        (aggregates, aggregates.c.agent == agent),
        (samples, samples.c.agent == agent),
        (processes, processes.c.agent == agent),
        (live_processes, live_processes.c.agent == agent),
        (live_events, live_events.c.agent == agent),
        (events, events.c.agent == agent),
        (gaps, gaps.c.agent == agent),
        (host_hours, (host_hours.c.agent == agent) & host_hours.c.hour.in_(told)),
        (revisions, revisions.c.agent == agent),
        (quarantine, quarantine.c.agent == agent),
        (receipts, receipts.c.agent == agent),
    )


def _few(agent: int, uuid: str) -> tuple[tuple[Table, ColumnElement[bool]], ...]:
    """What there is little of, those first that are found by others."""
    its = alerts.c.agent == agent
    told = outbox.c.alert.in_(select(alerts.c.id).where(its))
    return (
        (deliveries, deliveries.c.outbox.in_(select(outbox.c.id).where(told))),
        (outbox, told),
        (alerts, its),
        (
            silences,
            or_(silences.c.subject == uuid, silences.c.subject.startswith(f"{uuid}/", autoescape=True)),
        ),
        (tokens, tokens.c.node == uuid),
        (changes, changes.c.agent == agent),
        (latest, latest.c.agent == agent),
        (gpus, gpus.c.agent == agent),
        (nodes, nodes.c.id == agent),
    )


def _count(connection: Connection, table: Table, which: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(which)).scalar_one())
