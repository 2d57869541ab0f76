"""Questions about GPUs: the list, and one of them with everything it ever said it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, tuple_

from gpu_monitor.core.catalogue import STATES
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.nodes import node_condition
from gpu_monitor.server.store.schema import aggregates, contracts, facts, gpus, latest, nodes
from gpu_monitor.server.store.values import condition_of, hour_stamp, identity_of, stamp

_CHANGES = 100
"""Identity changes that are told of one place: a card that moves more often has other troubles."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU in one node, as it last said it was. `last_period`: the newest period with data of it."""

    uid: str
    pci_bus_id: str | None
    name: str | None
    memory_total: int | None
    index: int | None
    serial: str | None
    minor_number: int | None
    parent_uid: str | None
    mig_instance: str | None
    memory_kind: str | None
    source: str
    simulated: bool
    node: str
    hostname: str | None
    contract_number: str
    first_period: str
    last_period: str
    status: str | None
    last_value: str | None


class PastIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a GPU said it was from the period `since` on, until the period `until` (null: it still does)."""

    node: str
    source: str
    since: str
    until: str | None
    pci_bus_id: str | None
    name: str | None
    memory_total: int | None
    index: int | None
    serial: str | None
    minor_number: int | None
    parent_uid: str | None
    mig_instance: str | None
    memory_kind: str | None


class GpuDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU everywhere it was seen, newest place first.

    `identities`: how its identity changed, newest first. `states`: what seldom changes, as last reported.
    `reasons`: why metrics are null, likewise.
    """

    uid: str
    simulated: bool
    places: list[Gpu]
    identities: list[PastIdentity]
    states: dict[str, Any]
    reasons: dict[str, str]


@dataclass(frozen=True)
class GpuFilter:
    """Which GPUs: None does not restrict. `node` is an id or a host name, `model` a product name."""

    node: str | None = None
    contract: str | None = None
    model: str | None = None
    source: str | None = None
    simulated: bool | None = None
    status: str | None = None

    @property
    def picks_nodes(self) -> bool:
        """Whether only some nodes are meant."""
        return self.node is not None or self.contract is not None

    @property
    def picks_gpus(self) -> bool:
        """Whether some GPUs of a node may be meant and others not."""
        return any(part is not None for part in (self.model, self.source, self.simulated, self.status))

    def conditions(self) -> list[ColumnElement[bool]]:
        """For a query over gpus, nodes, contracts and latest."""
        return self.node_conditions() + self.gpu_conditions()

    def node_conditions(self) -> list[ColumnElement[bool]]:
        """Those on nodes and contracts."""
        found: list[ColumnElement[bool]] = []
        if self.node is not None:
            found.append(node_condition(self.node))
        if self.contract is not None:
            found.append(contracts.c.number == self.contract)
        return found

    def gpu_conditions(self) -> list[ColumnElement[bool]]:
        """Those on gpus and latest."""
        found: list[ColumnElement[bool]] = []
        if self.model is not None:
            found.append(gpus.c.name == self.model)
        if self.source is not None:
            found.append(gpus.c.source == self.source)
        if self.simulated is not None:
            found.append(gpus.c.simulated.is_(self.simulated))
        if self.status is not None:
            found.append(latest.c.status == self.status)
        return found


Place = tuple[int, int]
"""A GPU's number: of its node, and in it."""


def list_gpus(
    connection: Connection, who: Principal, wanted: GpuFilter, after: Place, limit: int
) -> tuple[list[Gpu], Place | None]:
    """Up to `limit` GPUs after a place, by node and order in it, and the place to go on after."""
    query = _GPUS.where(
        tuple_(gpus.c.agent, gpus.c.ordinal) > after,
        contract_filter(who, nodes.c.contract),
        *wanted.conditions(),
    )
    rows = connection.execute(query.order_by(gpus.c.agent, gpus.c.ordinal).limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return [_gpu(row) for row in rows[:limit]], None if last is None else (last.agent, last.ordinal)


def places_of(connection: Connection, who: Principal, uid: str) -> list[Any]:
    """Every (agent, ordinal, simulated) that a uid has, where `who` may see it; newest first."""
    query = (
        select(gpus.c.agent, gpus.c.ordinal, gpus.c.simulated)
        .join(nodes, nodes.c.id == gpus.c.agent)
        .where(gpus.c.uid == uid, contract_filter(who, nodes.c.contract))
        .order_by(gpus.c.last_hour.desc(), gpus.c.agent, gpus.c.ordinal)
    )
    return list(connection.execute(query).all())


def one_gpu(connection: Connection, who: Principal, uid: str) -> GpuDetail | None:
    """Everything about the GPU with this uid; None where there is none to see."""
    query = _GPUS.where(gpus.c.uid == uid, contract_filter(who, nodes.c.contract))
    rows = connection.execute(query.order_by(gpus.c.last_hour.desc(), gpus.c.agent, gpus.c.ordinal)).all()
    if not rows:
        return None
    condition = condition_of(rows[0].condition)
    known = {metric.name for metric in STATES}
    return GpuDetail(
        uid=uid,
        simulated=any(row.simulated for row in rows),
        places=[_gpu(row) for row in rows],
        identities=[past for row in rows for past in _past(connection, row)],
        states={name: value for name, value in condition.states.items() if name in known},
        reasons=condition.reasons,
    )


_identities = facts.alias("identities")
_GPUS = (
    select(
        gpus.c.agent,
        gpus.c.ordinal,
        gpus.c.uid,
        gpus.c.source,
        gpus.c.simulated,
        gpus.c.name,
        gpus.c.first_hour,
        gpus.c.last_hour,
        nodes.c.uuid,
        nodes.c.hostname,
        contracts.c.number,
        latest.c.status,
        latest.c.time,
        _identities.c.body.label("identity"),
        facts.c.body.label("condition"),
    )
    .join(nodes, nodes.c.id == gpus.c.agent)
    .join(contracts, contracts.c.id == nodes.c.contract)
    .outerjoin(latest, and_(latest.c.agent == gpus.c.agent, latest.c.gpu == gpus.c.ordinal))
    .outerjoin(_identities, _identities.c.id == gpus.c.identity)
    .outerjoin(facts, facts.c.id == latest.c.facts)
)


def _gpu(row: Any) -> Gpu:
    return Gpu(
        uid=row.uid,
        name=row.name,
        source=row.source,
        simulated=row.simulated,
        node=row.uuid,
        hostname=row.hostname,
        contract_number=row.number,
        first_period=hour_stamp(row.first_hour) or "",
        last_period=hour_stamp(row.last_hour) or "",
        status=row.status,
        last_value=stamp(row.time),
        **msgspec.structs.asdict(identity_of(row.identity)),
    )


def _past(connection: Connection, place: Any) -> list[PastIdentity]:
    """The identities of a GPU in one node, newest first, from the rows that carry them."""
    before = func.lag(aggregates.c.identity).over(order_by=aggregates.c.hour).label("before")
    each = (
        select(aggregates.c.hour, aggregates.c.identity, before)
        .where(aggregates.c.agent == place.agent, aggregates.c.gpu == place.ordinal)
        .subquery()
    )
    query = (
        select(each.c.hour, facts.c.body)
        .join(facts, facts.c.id == each.c.identity)
        .where(or_(each.c.before.is_(None), each.c.before != each.c.identity))
        .order_by(each.c.hour.desc())
        .limit(_CHANGES)
    )
    found: list[PastIdentity] = []
    until: str | None = None
    for row in connection.execute(query):
        since = hour_stamp(row.hour) or ""
        identity = msgspec.structs.asdict(identity_of(row.body))
        named = _name(row.body)
        found.append(
            PastIdentity(
                node=place.uuid, source=place.source, since=since, until=until, name=named, **identity
            )
        )
        until = since
    return found


class _Named(msgspec.Struct):
    name: str | None = None


_decode_name = msgspec.json.Decoder(_Named).decode


def _name(body: str) -> str | None:
    return _decode_name(body).name
