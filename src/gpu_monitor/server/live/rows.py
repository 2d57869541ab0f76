"""Reads what live pages show of nodes and their GPUs, as JSON that goes out unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, select

from gpu_monitor.server.store.fleet import OK
from gpu_monitor.server.store.freshness import seen_until, values_until
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    changes,
    contracts,
    facts,
    gpus,
    latest,
    nodes,
)
from gpu_monitor.server.store.values import hour_stamp, identity_of, shower, stamp

_NAMED_AT_ONCE = 500
"""Agents in one IN list: SQLite takes 32,766 parameters, and a plan for a few hundred is soon made."""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU as it goes out, and what the fleet's totals take from it."""

    ordinal: int
    uid: str
    body: bytes
    share: Share


@dataclass(frozen=True, slots=True)
class Share:
    """What one GPU adds to the totals: `until` is how long its values count as now, UTC epoch s.

    Integers of the catalogue's scale; None where unknown. Utilisation in tenths of a percent. `parent_uid`: of
    the GPU that a MIG instance is part of, with which it is counted.
    """

    until: float
    parent_uid: str | None
    is_simulated: bool
    is_ok: bool
    utilization: int | None
    power: int | None
    memory_used: int | None
    memory_total: int | None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node as it goes out, with its GPUs. After `seen_until` (UTC epoch s) it counts as silent."""

    agent: int
    uuid: str
    contract: int
    is_simulated: bool
    seen_until: float
    body: bytes
    gpus: tuple[GpuRow, ...]


@dataclass(frozen=True)
class Mark:
    """The newest change: its number and time; 0 and 0.0 where there is none."""

    seq: int
    time: float


def newest_mark(connection: Connection) -> Mark:
    """The newest change that is committed."""
    found = connection.execute(
        select(changes.c.seq, changes.c.time).order_by(changes.c.seq.desc()).limit(1)
    ).first()
    return Mark(0, 0.0) if found is None else Mark(found.seq, found.time)


def is_mark(connection: Connection, mark: Mark) -> bool:
    """Whether this database made that change and still remembers it."""
    found = connection.execute(select(changes.c.time).where(changes.c.seq == mark.seq)).scalar()
    return found is not None and found == mark.time


def changed_since(connection: Connection, seq: int) -> set[int]:
    """The agents that changes after `seq` are about."""
    found = connection.execute(
        select(changes.c.agent).where(changes.c.seq > seq, changes.c.agent.is_not(None)).distinct()
    )
    return set(found.scalars())


def load(connection: Connection, agents: Iterable[int] | None) -> list[NodeRow]:
    """These nodes (None: all) with their GPUs."""
    if agents is None:
        return _load(connection, None)
    wanted = sorted(agents)
    parts = (wanted[at : at + _NAMED_AT_ONCE] for at in range(0, len(wanted), _NAMED_AT_ONCE))
    return [row for part in parts for row in _load(connection, part)]


def _load(connection: Connection, agents: Sequence[int] | None) -> list[NodeRow]:
    node_rows = connection.execute(_limited(_NODES, agents, nodes.c.id)).mappings().all()
    held: dict[int, list[GpuRow]] = {row["id"]: [] for row in node_rows}
    of = {row["id"]: row for row in node_rows}
    for row in connection.execute(_limited(_GPUS, agents, gpus.c.agent)).mappings():
        if row["agent"] in of:
            held[row["agent"]].append(_gpu(row, of[row["agent"]]))
    return [_node(row, tuple(held[row["id"]])) for row in node_rows]


def _limited(query: Select[Any], agents: Sequence[int] | None, column: Any) -> Select[Any]:
    return query if agents is None else query.where(column.in_(agents))


_NODES = select(nodes, contracts.c.number.label("contract_number")).join(
    contracts, contracts.c.id == nodes.c.contract
)
_GPUS = (
    select(
        gpus.c.agent,
        gpus.c.ordinal,
        gpus.c.uid,
        gpus.c.source,
        gpus.c.simulated,
        gpus.c.name,
        facts.c.body.label("identity"),
        latest.c.time,
        latest.c.live,
        latest.c.status,
        latest.c.coverage,
        *(latest.c[metric.name] for metric in LIVE_METRICS),
    )
    .outerjoin(latest, (latest.c.agent == gpus.c.agent) & (latest.c.gpu == gpus.c.ordinal))
    .outerjoin(facts, facts.c.id == gpus.c.identity)
    .order_by(gpus.c.agent, gpus.c.ordinal)
)


def _node(row: Any, held: tuple[GpuRow, ...]) -> NodeRow:
    until = seen_until(
        row["first_seen"],
        row["last_report"],
        row["last_live"],
        row["period_seconds"],
        row["interval_seconds"],
    )
    body = {
        "id": row["uuid"],
        "hostname": row["hostname"],
        "contract_number": row["contract_number"],
        "simulated": row["simulated"],
        "silent_after": stamp(until),
        "gpus": len(held),
        "last_report": stamp(row["last_report"]),
        "last_live": stamp(row["last_live"]),
        "last_period": hour_stamp(row["last_hour"]),
        "period_seconds": row["period_seconds"],
        "collection_interval_seconds": row["interval_seconds"],
        "skew_seconds": row["skew_seconds"],
        "os": row["os"],
        "agent_version": row["agent_version"],
        "driver_version": row["driver_version"],
    }
    encoded = msgspec.json.encode(body)
    return NodeRow(row["id"], row["uuid"], row["contract"], row["simulated"], until, encoded, held)


_SHOWERS = [(metric.name, shower(metric)) for metric in LIVE_METRICS]


def _gpu(row: Any, node: Any) -> GpuRow:
    """The names are those of the fleet's list; `silent_after` is until when the values count as now. A GPU whose node
    said why it gives nothing has none."""
    identity = identity_of(row["identity"])
    until = values_until(row["time"], row["live"], node["period_seconds"], node["interval_seconds"])
    is_ok = row["status"] in (None, OK)
    body = {
        "uid": row["uid"],
        "pci_bus_id": identity.pci_bus_id,
        "name": row["name"],
        "memory_total": identity.memory_total,
        **{name: show(row[name]) if is_ok else None for name, show in _SHOWERS},
        "index": identity.index,
        "node": node["uuid"],
        "hostname": node["hostname"],
        "contract_number": node["contract_number"],
        "source": row["source"],
        "simulated": row["simulated"],
        "status": row["status"],
        "time": stamp(row["time"]),
        "live": row["live"],
        "coverage": None if row["coverage"] is None else row["coverage"] / 10_000,
        "silent_after": stamp(until) if until else None,
    }
    share = Share(
        until=until,
        parent_uid=identity.parent_uid,
        is_simulated=row["simulated"],
        is_ok=is_ok,
        utilization=row["gpu_utilization"] if is_ok else None,
        power=row["power_usage"] if is_ok else None,
        memory_used=row["memory_used"] if is_ok else None,
        memory_total=identity.memory_total,
    )
    return GpuRow(row["ordinal"], row["uid"], msgspec.json.encode(body), share)
