"""What a series is of: a GPU, a node, a contract's, a model's, or all GPUs that the asker may see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Connection, func, select
from sqlalchemy.sql.elements import ColumnElement

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.gpus import Place, places_of
from gpu_monitor.server.store.nodes import find_agents
from gpu_monitor.server.store.schema import contracts, facts, gpus, nodes
from gpu_monitor.server.store.values import identity_of

TargetKind = Literal["gpu", "node", "contract", "model", "fleet"]
_INTERVAL = 60


@dataclass(frozen=True)
class Target:
    """Which rows: None does not restrict. `interval`: seconds between live samples, `spacing`: beyond which one is missing.

    `period` is that of the longest report. `gpus` and `simulated_gpus` count what it has of each.
    """

    kind: TargetKind
    places: tuple[Place, ...] | None = None
    agents: tuple[int, ...] | None = None
    contracts: tuple[int, ...] | None = None
    model: str | None = None
    gpus: int = 0
    simulated_gpus: int = 0
    spacing: int = _INTERVAL * 3 // 2
    interval: int = _INTERVAL
    period: int = 3600
    instances: tuple[Place, ...] = ()
    """MIG instances whose GPU is there too: no part of sums. Set by `with_instances`."""

    @property
    def is_whole_contracts(self) -> bool:
        """Whether it is every GPU of some contracts, or of all."""
        return self.kind in ("fleet", "contract")


def find_target(connection: Connection, who: Principal, kind: TargetKind, name: str) -> Target | None:
    """The target of this kind and name; None where there is none to see. The fleet has no name."""
    visible = None if who.contracts is None else tuple(sorted(who.contracts))
    if kind == "gpu":
        found = places_of(connection, who, name)
        places = tuple((row.agent, row.ordinal) for row in found)
        agents = tuple({row.agent for row in found})
        if not found:
            return None
        return _described(connection, Target(kind, places=places, agents=agents), gpus.c.uid == name)
    if kind == "node":
        agents = tuple(find_agents(connection, who, name))
        return (
            _described(connection, Target(kind, agents=agents), gpus.c.agent.in_(agents)) if agents else None
        )
    if kind == "contract":
        query = select(contracts.c.id).where(contracts.c.number == name, contract_filter(who, contracts.c.id))
        number = connection.execute(query).scalar()
        if number is None:
            return None
        agents = _agents_of(connection, (number,))
        return _described(
            connection, Target(kind, agents=agents, contracts=(number,)), gpus.c.agent.in_(agents)
        )
    limits = None if visible is None else _agents_of(connection, visible)
    target = Target(kind, agents=limits, contracts=visible, model=name if kind == "model" else None)
    conditions: list[ColumnElement[bool]] = [] if limits is None else [gpus.c.agent.in_(limits)]
    if kind == "model":
        conditions.append(gpus.c.name == name)
    described = _described(connection, target, *conditions)
    return described if described.gpus or described.simulated_gpus or kind == "fleet" else None


def _agents_of(connection: Connection, numbers: tuple[int, ...]) -> tuple[int, ...]:
    query = select(nodes.c.id).where(nodes.c.contract.in_(numbers)).order_by(nodes.c.id)
    return tuple(connection.execute(query).scalars())


def _described(connection: Connection, target: Target, *conditions: ColumnElement[bool]) -> Target:
    """The target with how many GPUs it has, and how often its nodes sample and report."""
    query = (
        select(
            gpus.c.simulated,
            func.count().label("gpu_count"),
            func.max(nodes.c.interval_seconds).label("interval"),
            func.max(nodes.c.period_seconds).label("period"),
        )
        .join(nodes, nodes.c.id == gpus.c.agent)
        .where(*conditions)
        .group_by(gpus.c.simulated)
    )
    rows = connection.execute(query).all()
    interval = max((row.interval or _INTERVAL for row in rows), default=_INTERVAL)
    return Target(
        target.kind, target.places, target.agents, target.contracts, target.model,
        gpus=sum(row.gpu_count for row in rows if not row.simulated),
        simulated_gpus=sum(row.gpu_count for row in rows if row.simulated),
        spacing=interval * 3 // 2, interval=interval,
        period=max((row.period or 3600 for row in rows), default=3600),
    )  # fmt: skip


def with_instances(connection: Connection, target: Target) -> Target:
    """The target with its MIG instances named, for sums over single GPUs."""
    if target.kind == "gpu":
        return target
    conditions: list[ColumnElement[bool]] = []
    if target.agents is not None:
        conditions.append(gpus.c.agent.in_(target.agents))
    if target.model is not None:
        conditions.append(gpus.c.name == target.model)
    query = (
        select(gpus.c.agent, gpus.c.ordinal, gpus.c.uid, facts.c.body)
        .join(nodes, nodes.c.id == gpus.c.agent)
        .join(facts, facts.c.id == gpus.c.identity)
        .where(*conditions)
    )
    found = [(row[0], row[1], row[2], identity_of(row[3]).parent_uid) for row in connection.execute(query)]
    uids = {uid for _, _, uid, _ in found}
    instances = tuple((agent, ordinal) for agent, ordinal, _, parent in found if parent in uids)
    return replace(target, instances=instances)
