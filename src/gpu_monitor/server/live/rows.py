"""Reads what live pages show of nodes and their GPUs, as JSON that goes out unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, select

from gpu_monitor.core.catalogue import Kind, round_value, throttle_names
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    changes,
    contracts,
    facts,
    gpus,
    latest,
    nodes,
    scale_of,
)

_LIVE_COUNTS = 180.0
"""Seconds that a live value counts as now: three of the default interval; of longer ones, three of those."""
_REPORT_COUNTS = 900.0
"""Seconds beyond the next period's end that a report's means count: it is sent within five minutes of it."""
_NAMED_AT_ONCE = 500
"""Agents in one IN list: SQLite takes 32,766 parameters, and a plan for a few hundred is soon made."""


class _Shown(msgspec.Struct):
    """Of a GPU's identity, what live pages show beside its uid."""

    pci_bus_id: str | None = None
    memory_total: int | None = None
    index: int | None = None


_identity = msgspec.json.Decoder(_Shown).decode


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

    Integers of the catalogue's scale; None where unknown. Utilisation in tenths of a percent.
    """

    until: float
    is_simulated: bool
    is_ok: bool
    utilization: int | None
    memory_utilization: int | None
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
    until = _seen_until(row)
    body = {
        "id": row["uuid"],
        "hostname": row["hostname"],
        "contract_number": row["contract_number"],
        "simulated": row["simulated"],
        "gpus": len(held),
        "agent_version": row["agent_version"],
        "driver_version": row["driver_version"],
        "last_report": _time(row["last_report"]),
        "last_live": _time(row["last_live"]),
        "silent_after": _time(until),
        "skew_seconds": row["skew_seconds"],
    }
    return NodeRow(
        row["id"], row["uuid"], row["contract"], row["simulated"], until, msgspec.json.encode(body), held
    )


def _seen_until(row: Any) -> float:
    """Until when a node that says nothing more is not silent yet."""
    period = row["period_seconds"] or 3600
    reported = row["last_report"] or row["first_seen"]
    live = row["last_live"]
    # One that has sent no live sample for a whole period no longer sends any.
    if live is not None and live >= reported - period:
        return float(live + _live_counts(row))
    return float(reported + period + _REPORT_COUNTS)


def _live_counts(node: Any) -> float:
    return max(_LIVE_COUNTS, 3.0 * (node["interval_seconds"] or 0))


def _gpu(row: Any, node: Any) -> GpuRow:
    identity = _identity(row["identity"]) if row["identity"] is not None else _Shown()
    body = {
        "node": node["uuid"],
        "uid": row["uid"],
        "source": row["source"],
        "simulated": row["simulated"],
        "pci_bus_id": identity.pci_bus_id,
        "index": identity.index,
        "name": row["name"],
        "memory_total": identity.memory_total,
        "status": row["status"],
        "time": _time(row["time"]),
        "live": row["live"],
    }
    for metric in LIVE_METRICS:
        whole = row[metric.name]
        if metric.kind is Kind.FLAGS:
            body[metric.name] = None if whole is None else throttle_names(whole)
        else:
            body[metric.name] = None if whole is None else round_value(metric, whole / scale_of(metric))
    return GpuRow(row["ordinal"], row["uid"], msgspec.json.encode(body), _share(row, node, identity))


def _share(row: Any, node: Any, identity: _Shown) -> Share:
    until = 0.0
    if row["time"] is not None:
        period = node["period_seconds"] or 3600
        until = row["time"] + (_live_counts(node) if row["live"] else period + _REPORT_COUNTS)
    return Share(
        until=until,
        is_simulated=row["simulated"],
        is_ok=row["status"] in (None, "ok"),
        utilization=row["gpu_utilization"],
        memory_utilization=row["memory_utilization"],
        power=row["power_usage"],
        memory_used=row["memory_used"],
        memory_total=identity.memory_total,
    )


def _time(epoch: float | None) -> str | None:
    return None if epoch is None else format_time(epoch)
