"""The nodes of a group of reports and their GPUs, as they stand in the transaction and as they will."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from gpu_monitor.server.auth.contracts import ensure_contract, find_contract
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.rows import Rows
from gpu_monitor.server.store.schema import gpus, nodes
from gpu_monitor.server.store.shape import GpuRow, Shaped, text_of
from gpu_monitor.wire.entry import MADE_UP

_COLUMNS = (
    "id", "uuid", "contract", "hostname", "simulated", "os", "agent_version", "driver_version", "first_seen",
    "last_report", "last_live", "last_hour", "period_seconds", "longest_seconds", "interval_seconds",
    "skew_seconds", "skew_measured",
)  # fmt: skip
_NODES = f"SELECT {', '.join(_COLUMNS)} FROM nodes"
_KEPT = ("id", "uuid", "first_seen")
_UPDATE = "SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in _KEPT)
_GPU_COLUMNS = (
    "agent",
    "ordinal",
    "uid",
    "source",
    "simulated",
    "name",
    "identity",
    "first_hour",
    "last_hour",
)
_GPUS = f"SELECT {', '.join(_GPU_COLUMNS)} FROM gpus"
_GPU_UPDATE = (
    "SET name = excluded.name, identity = excluded.identity, first_hour = excluded.first_hour,"
    " last_hour = excluded.last_hour"
)
_CONTRACTS = 10_000
"""Kept in memory."""
NODE_GPUS = 8192
"""That a node may ever have: twice those of the largest report, for what is exchanged. Far below the 32,767 up to
which their numbers are stored."""


@dataclass(slots=True)
class Gpu:
    """One GPU of a node."""

    ordinal: int
    uid: str
    source: str
    name: str | None
    identity: int | None
    first_hour: int
    last_hour: int
    is_changed: bool = False
    is_seen: bool = False


@dataclass(slots=True)
class Node:
    """One node; `agent` is 0 until it has a number. Its GPUs are there once they were loaded."""

    uuid: str
    agent: int
    contract: int
    hostname: str | None = None
    simulated: bool = False
    os: str | None = None
    agent_version: str | None = None
    driver_version: str | None = None
    first_seen: float = 0.0
    last_report: float | None = None
    last_live: float | None = None
    last_hour: int | None = None
    period_seconds: int | None = None
    longest_seconds: int | None = None
    interval_seconds: int | None = None
    skew_seconds: float | None = None
    skew_measured: float | None = None
    gpus: dict[tuple[str, str], Gpu] = field(default_factory=dict)
    has_gpus: bool = False
    coming: set[tuple[str, str]] = field(default_factory=set)
    """New ones for which room was found and that have no number yet."""

    def note(self, shaped: Shaped) -> None:
        """Take over what a report that is held says of the node: the newest period describes it."""
        intake = shaped.intake
        self.longest_seconds = max(self.longest_seconds or 0, intake.period_seconds)
        if self.last_hour is not None and intake.hour < self.last_hour:
            return
        self.last_hour, self.simulated = intake.hour, shaped.simulated
        self.period_seconds, self.interval_seconds = intake.period_seconds, intake.interval_seconds
        self.describe(intake.node)

    def describe(self, told: Any) -> None:
        """Take over the names in a report or live message."""
        self.hostname, self.os = text_of(told.hostname), text_of(told.os)
        self.agent_version, self.driver_version = text_of(told.agent_version), text_of(told.driver_version)


class Contracts:
    """Numbers of contracts, which never change once they are committed."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._new: dict[str, int] = {}

    def find(self, connection: Connection, number: str) -> int | None:
        """The id of a contract; None where there is none."""
        known = self._held.get(number) or self._new.get(number)
        if known is None:
            known = find_contract(connection, number)
            if known is not None:
                self._new[number] = known
        return known

    def ensure(self, connection: Connection, number: str) -> int:
        """The id of a contract, made where it is missing."""
        known = self.find(connection, number)
        if known is None:
            known = self._new[number] = ensure_contract(connection, number)
        return known

    def keep(self) -> None:
        """The transaction was committed."""
        if len(self._held) > _CONTRACTS:
            self._held = {}
        self._held.update(self._new)
        self._new = {}

    def undo(self) -> None:
        """The transaction was rolled back."""
        self._new = {}


def load_nodes(rows: Rows, uuids: Iterable[str]) -> dict[str, Node]:
    """The nodes that are known, by UUID."""
    return {node.uuid: node for node in map(node_of, rows.select_in(_NODES, "uuid", set(uuids)))}


def node_of(row: Sequence[Any]) -> Node:
    """The node in a row of the table's columns."""
    agent, uuid, contract, hostname, simulated, *rest = row
    return Node(uuid, agent, contract, hostname, bool(simulated), *rest)


def refusal(principal: Principal, node: Node | None, uuid: str, contract: int | None) -> Refusal | None:
    """Why this principal may not write this node's rows under this contract; None where it may."""
    if principal.node is not None and principal.node != uuid:
        return _forbidden("node.id", f"{principal.name} is for another node")
    if principal.contracts is None:
        return None
    if contract not in principal.contracts:
        return _forbidden("contract_number", f"{principal.name} is not for this contract")
    if node is not None and node.contract != contract:
        return _forbidden("contract_number", "this node reports under another contract")
    return None


def _forbidden(field_name: str, reason: str) -> Refusal:
    return Refusal(403, "Not allowed", field_name, reason)


def insert_nodes(rows: Rows, fresh: Sequence[Node]) -> None:
    """Give new nodes their numbers."""
    if not fresh:
        return
    columns = ("uuid", "contract", "simulated", "first_seen")
    rows.insert(nodes, columns, [(n.uuid, n.contract, n.simulated, n.first_seen) for n in fresh])
    for row in rows.select_in("SELECT id, uuid FROM nodes", "uuid", [node.uuid for node in fresh]):
        next(node for node in fresh if node.uuid == row[1]).agent = row[0]


def load_gpus(rows: Rows, wanted: Iterable[Node]) -> None:
    """Read what is known of the nodes' GPUs."""
    by_agent = {node.agent: node for node in wanted}
    if not by_agent:
        return
    for row in rows.select_in(_GPUS, "agent", by_agent):
        agent, ordinal, uid, source, _simulated, name, identity, first, last = row
        by_agent[agent].gpus[uid, source] = Gpu(ordinal, uid, source, name, identity, first, last)
    for node in by_agent.values():
        node.has_gpus = True


def find_room(node: Node, wanted: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Keep room for the new ones among these GPUs (uid, source); those of them that the node has no room for.

    The node's GPUs must have been loaded.
    """
    fresh = {key: None for key in wanted if key not in node.gpus and key not in node.coming}
    left = NODE_GPUS - len(node.gpus) - len(node.coming)
    keys = list(fresh)
    node.coming.update(keys[:left] if left > 0 else ())
    return set(keys[max(left, 0) :])


def place_gpu(node: Node, row: GpuRow, hour: int, identity: int) -> Gpu:
    """The GPU of a report's row, with a new ordinal where it was never seen; the newest period describes it."""
    return place_gpu_of(node, row.uid, row.source, row.name, hour, identity)


def place_gpu_of(node: Node, uid: str, source: str, name: str | None, hour: int, identity: int) -> Gpu:
    """The same from its parts."""
    found = node.gpus.get((uid, source))
    if found is None:
        found = Gpu(len(node.gpus), uid, source, name, identity, hour, hour, is_changed=True)
        node.gpus[uid, source] = found
        node.coming.discard((uid, source))
        return found
    if hour < found.first_hour:
        found.first_hour, found.is_changed = hour, True
    if hour >= found.last_hour:
        if identity != found.identity:
            found.identity, found.name, found.is_changed = identity, name, True
        if hour > found.last_hour:
            found.last_hour, found.is_seen = hour, True
    return found


def store_nodes(rows: Rows, changed: Sequence[Node]) -> None:
    """Write nodes as they are now."""
    rows.upsert(nodes, _COLUMNS, ("id",), _UPDATE, [_node_row(node) for node in changed])


def store_gpus(rows: Rows, changed: Sequence[Node]) -> None:
    """Write what changed of the nodes' GPUs; where that is only that they were all seen again, at once."""
    told: list[tuple[Node, Gpu]] = []
    seen: list[tuple[int, int]] = []
    for node in changed:
        gpus_of = node.gpus.values()
        hours = {gpu.last_hour for gpu in gpus_of if gpu.is_seen}
        if len(hours) == 1 and all(gpu.is_seen and not gpu.is_changed for gpu in gpus_of):
            seen.append((hours.pop(), node.agent))
        else:
            told += [(node, gpu) for gpu in gpus_of if gpu.is_changed or gpu.is_seen]
        for gpu in gpus_of:
            gpu.is_changed = gpu.is_seen = False
    rows.upsert(
        gpus, _GPU_COLUMNS, ("agent", "ordinal"), _GPU_UPDATE, [_gpu_row(node, gpu) for node, gpu in told]
    )
    if seen:
        rows.set_last_hours(seen)


def _node_row(node: Node) -> tuple[Any, ...]:
    return (
        node.agent, node.uuid, node.contract, node.hostname, node.simulated, node.os, node.agent_version,
        node.driver_version, node.first_seen, node.last_report, node.last_live, node.last_hour, node.period_seconds,
        node.longest_seconds, node.interval_seconds, node.skew_seconds, node.skew_measured,
    )  # fmt: skip


def _gpu_row(node: Node, gpu: Gpu) -> tuple[Any, ...]:
    return (
        node.agent, gpu.ordinal, gpu.uid, gpu.source, gpu.source in MADE_UP, gpu.name, gpu.identity,
        gpu.first_hour, gpu.last_hour,
    )  # fmt: skip
