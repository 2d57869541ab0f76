"""Questions about nodes: the list, one of them, and which nodes a filter means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from gpu_monitor.core.catalogue import HOST_METRICS
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.freshness import REPORT_SECONDS, live_counts, seen_until
from gpu_monitor.server.store.schema import contracts, gpus, host_hours, nodes
from gpu_monitor.server.store.values import hour_stamp, shower, stamp


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with an agent. Times are ISO 8601; `silent`: it has said nothing since `silent_after`."""

    id: str
    hostname: str | None
    contract_number: str
    simulated: bool
    silent: bool
    silent_after: str
    gpus: int
    last_report: str | None
    last_live: str | None
    last_period: str | None
    first_seen: str
    period_seconds: int | None
    collection_interval_seconds: int | None
    skew_seconds: float | None
    skew_measured: str | None
    os: str | None
    agent_version: str | None
    driver_version: str | None


class HostPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """The machine around the GPUs over its newest period: means, null where unknown."""

    aggregation_time: str
    coverage: float | None
    values: dict[str, float | int | None]


@dataclass(frozen=True)
class NodeFilter:
    """Which nodes: None does not restrict. `node` is an id or a host name."""

    node: str | None = None
    contract: str | None = None
    simulated: bool | None = None
    silent: bool | None = None


def node_condition(name: str) -> ColumnElement[bool]:
    """Whether a row of `nodes` is meant by an id or host name."""
    return or_(nodes.c.uuid == name.lower(), nodes.c.uuid == name, nodes.c.hostname == name)


def find_agents(connection: Connection, who: Principal, name: str) -> list[int]:
    """The numbers of the nodes with this id or host name that `who` may see."""
    query = select(nodes.c.id).where(node_condition(name), contract_filter(who, nodes.c.contract))
    return list(connection.execute(query.order_by(nodes.c.id)).scalars())


def node_ids(connection: Connection, who: Principal, name: str) -> list[str]:
    """The ids of the nodes with this id or host name that `who` may see."""
    query = select(nodes.c.uuid).where(node_condition(name), contract_filter(who, nodes.c.contract))
    return list(connection.execute(query.order_by(nodes.c.id)).scalars())


def list_nodes(
    connection: Connection, who: Principal, wanted: NodeFilter, now: float, after: int, limit: int
) -> tuple[list[Node], int | None]:
    """Up to `limit` nodes whose number is over `after`, and the number to go on after (None: that is all)."""
    query = _NODES.where(
        nodes.c.id > after, contract_filter(who, nodes.c.contract), *_conditions(wanted, now)
    )
    rows = connection.execute(query.order_by(nodes.c.id).limit(limit + 1)).all()
    found = [_node(row, now) for row in rows[:limit]]
    return found, rows[limit - 1].id if len(rows) > limit else None


def one_node(connection: Connection, who: Principal, uuid: str, now: float) -> tuple[int, Node] | None:
    """The node with this id and its number; None where there is none to see."""
    query = _NODES.where(nodes.c.uuid == uuid, contract_filter(who, nodes.c.contract))
    row = connection.execute(query).first()
    return None if row is None else (row.id, _node(row, now))


def newest_host(connection: Connection, agent: int) -> HostPeriod | None:
    """The machine's newest period; None where it is not recorded."""
    query = select(host_hours).where(host_hours.c.agent == agent).order_by(host_hours.c.hour.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    coverage = row["coverage"]
    return HostPeriod(
        aggregation_time=hour_stamp(row["hour"]) or "",
        coverage=None if coverage is None else coverage / 10_000,
        values={metric.name: shower(metric)(row[metric.name]) for metric in HOST_METRICS},
    )


def count_nodes(connection: Connection, who: Principal, now: float) -> tuple[int, int]:
    """How many nodes there are to see, and how many of them report."""
    query = select(*_LIFE).where(contract_filter(who, nodes.c.contract))
    rows = connection.execute(query).all()
    return len(rows), sum(seen_until(*row) >= now for row in rows)


_LIFE = (
    nodes.c.first_seen,
    nodes.c.last_report,
    nodes.c.last_live,
    nodes.c.period_seconds,
    nodes.c.interval_seconds,
)
"""The columns that `seen_until` takes, in its order."""
_COUNTED = select(func.count()).where(gpus.c.agent == nodes.c.id).correlate(nodes).scalar_subquery()
_NODES = select(nodes, contracts.c.number, _COUNTED.label("gpu_count")).join(
    contracts, contracts.c.id == nodes.c.contract
)


def _conditions(wanted: NodeFilter, now: float) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.node is not None:
        conditions.append(node_condition(wanted.node))
    if wanted.contract is not None:
        conditions.append(contracts.c.number == wanted.contract)
    if wanted.simulated is not None:
        conditions.append(nodes.c.simulated.is_(wanted.simulated))
    if wanted.silent is not None:
        speaks = _speaks(now)
        conditions.append(~speaks if wanted.silent else speaks)
    return conditions


def _speaks(now: float) -> ColumnElement[bool]:
    """`seen_until` in SQL: whether a node is not silent at `now`."""
    period = func.coalesce(nodes.c.period_seconds, 3600)
    reported = func.coalesce(nodes.c.last_report, nodes.c.first_seen)
    interval = func.coalesce(nodes.c.interval_seconds, 0)
    is_live = and_(nodes.c.last_live.is_not(None), nodes.c.last_live >= reported - period)
    # The longer of the two counts; a constant minimum spares a CASE.
    lives = or_(nodes.c.last_live + live_counts(0) >= now, nodes.c.last_live + 3.0 * interval >= now)
    reports = reported + period + REPORT_SECONDS >= now
    return or_(and_(is_live, lives), and_(~is_live, reports))


def _node(row: Any, now: float) -> Node:
    until = seen_until(
        row.first_seen, row.last_report, row.last_live, row.period_seconds, row.interval_seconds
    )
    return Node(
        id=row.uuid,
        hostname=row.hostname,
        contract_number=row.number,
        simulated=row.simulated,
        silent=until < now,
        silent_after=stamp(until) or "",
        gpus=row.gpu_count,
        last_report=stamp(row.last_report),
        last_live=stamp(row.last_live),
        last_period=hour_stamp(row.last_hour),
        first_seen=stamp(row.first_seen) or "",
        period_seconds=row.period_seconds,
        collection_interval_seconds=row.interval_seconds,
        skew_seconds=None if row.skew_seconds is None else round(row.skew_seconds, 3),
        skew_measured=stamp(row.skew_measured),
        os=row.os,
        agent_version=row.agent_version,
        driver_version=row.driver_version,
    )
