"""Takes a report that a better one replaces out of the tables again, without a trace but its revision."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, select

from gpu_monitor.server.store.judge import HOUR, Receipt, Refusal
from gpu_monitor.server.store.put import LATEST_COLUMNS
from gpu_monitor.server.store.rollup import NEEDED, FleetKey, Sums, fleet_part, merge, without_instances
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    aggregates,
    events,
    facts,
    gaps,
    gpus,
    host_hours,
    latest,
    processes,
    quarantine,
    receipts,
    revisions,
)


def refuse_stranger(connection: Connection, receipt: Receipt, uids: Collection[str]) -> Refusal | None:
    """Why a better revision may not replace what is held: not one of its GPUs is among those; None where one is.

    A copied disk brings its node's id to another machine, whose reports would take the first one's place.
    """
    query = (
        select(gpus.c.uid)
        .join(aggregates, (gpus.c.agent == aggregates.c.agent) & (gpus.c.ordinal == aggregates.c.gpu))
        .where(aggregates.c.hour == receipt.hour, aggregates.c.agent == receipt.agent)
    )
    held = set(connection.execute(query).scalars())
    if not held or not uids or not held.isdisjoint(uids):
        return None
    return Refusal(
        409,
        "Conflict",
        "node.id",
        f"revision {receipt.revision} of this period is held with GPUs none of which this report has: another machine"
        " seems to report under this node id, as after a disk was copied. Give one of the two a machine id of its"
        " own (remove /etc/machine-id and /var/lib/dbus/machine-id, run systemd-machine-id-setup) and start its agent"
        " again: it makes a new node id",
        receipt.revision,
    )


def take_off(
    connection: Connection, receipt: Receipt, now: float, fleet: dict[FleetKey, Sums]
) -> frozenset[int]:
    """Remove the rows of a receipt; the ordinals it had. What the fleet's hours lose is added to `fleet`."""
    held = connection.execute(
        select(
            aggregates.c.gpu,
            gpus.c.simulated,
            gpus.c.uid,
            facts.c.body,
            *(aggregates.c[name] for name in NEEDED),
        )
        .join(gpus, (gpus.c.agent == aggregates.c.agent) & (gpus.c.ordinal == aggregates.c.gpu))
        .join(facts, facts.c.id == aggregates.c.identity)
        .where(aggregates.c.hour == receipt.hour, aggregates.c.agent == receipt.agent)
    ).all()
    counted = without_instances(held, lambda row: (row.uid, row.body))
    rows = [(bool(simulated), values) for _gpu, simulated, _uid, _body, *values in counted]
    part = fleet_part(receipt.hour, receipt.contract, receipt.period_seconds, receipt.simulated, rows)
    merge(fleet, part, -1)
    for table in (aggregates, host_hours, gaps, events, processes, receipts):
        connection.execute(delete(table).where(_is_of(table, receipt)))
    connection.execute(delete(quarantine).where(_is_of(quarantine, receipt), quarantine.c.kind == "entry"))
    connection.execute(
        revisions.insert().values(
            agent=receipt.agent,
            hour=receipt.hour,
            revision=receipt.revision,
            body_digest=receipt.body_digest,
            received=now,
            outcome="replaced",
        )
    )
    return frozenset(row.gpu for row in held)


def restore_latest(connection: Connection, receipt: Receipt, ordinals: Iterable[int]) -> None:
    """GPUs that a better report no longer tells of: what they show comes from their newest row that is left."""
    end = receipt.hour * HOUR + receipt.period_seconds
    for ordinal in ordinals:
        mine = (latest.c.agent == receipt.agent) & (latest.c.gpu == ordinal)
        gone = connection.execute(delete(latest).where(mine, latest.c.time == end, latest.c.live.is_(False)))
        if not gone.rowcount:
            continue
        newest = connection.execute(
            select(
                receipts.c.hour,
                receipts.c.period_seconds,
                *(aggregates.c[metric.name] for metric in LIVE_METRICS),
                aggregates.c.coverage,
                aggregates.c.facts,
            )
            .join(receipts, (receipts.c.agent == aggregates.c.agent) & (receipts.c.hour == aggregates.c.hour))
            .where(aggregates.c.agent == receipt.agent, aggregates.c.gpu == ordinal)
            .order_by(aggregates.c.hour.desc())
            .limit(1)
        ).first()
        if newest is not None:
            hour, seconds, *values = newest
            row = (receipt.agent, ordinal, float(hour * HOUR + seconds), False, "ok", *values)
            connection.execute(latest.insert().values(dict(zip(LATEST_COLUMNS, row, strict=True))))


def digest_of_superseded(connection: Connection, receipt: Receipt, revision: int) -> bytes | None:
    """What is known of an older revision's body; None where it never came."""
    found = connection.execute(
        select(revisions.c.body_digest).where(
            revisions.c.agent == receipt.agent,
            revisions.c.hour == receipt.hour,
            revisions.c.revision == revision,
        )
    ).scalar()
    return None if found is None else bytes(found)


def remember_superseded(
    connection: Connection, receipt: Receipt, revision: int, digest: bytes, now: float
) -> None:
    """An older revision came after a better one: only its digest is kept."""
    connection.execute(
        revisions.insert().values(
            agent=receipt.agent,
            hour=receipt.hour,
            revision=revision,
            body_digest=digest,
            received=now,
            outcome="superseded",
        )
    )


def _is_of(table: Table, receipt: Receipt) -> ColumnElement[Any]:
    return (table.c.hour == receipt.hour) & (table.c.agent == receipt.agent)
