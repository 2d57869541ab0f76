"""The fleet as live pages see it now: every node and GPU as it goes out, and in which turn it last changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from gpu_monitor.core.catalogue import BY_NAME, Metric, round_value
from gpu_monitor.core.tally import HELD_BYTES, IDLE_BELOW
from gpu_monitor.server.live.messages import Subscription
from gpu_monitor.server.live.rows import GpuRow, NodeRow, Share
from gpu_monitor.server.store.schema import scale_of

_UTILIZATION, _POWER = BY_NAME["gpu_utilization"], BY_NAME["power_usage"]
_IDLE_WHOLE = IDLE_BELOW * scale_of(_UTILIZATION)


@dataclass(slots=True)
class _Gpu:
    row: GpuRow
    turn: int


@dataclass(slots=True)
class _Node:
    row: NodeRow
    turn: int
    gpus: dict[int, _Gpu] = field(default_factory=dict)


@dataclass(slots=True)
class Picture:
    """All nodes. Only the thread of the event loop touches it."""

    _nodes: dict[int, _Node] = field(default_factory=dict)
    _by_uuid: dict[str, _Node] = field(default_factory=dict)
    _by_uid: dict[str, set[int]] = field(default_factory=dict)

    def take(self, rows: Iterable[NodeRow], turn: int) -> None:
        """Take nodes as they are in this turn; what is as it was keeps the turn of its last change."""
        for row in rows:
            node = self._nodes.get(row.agent)
            if node is None:
                node = self._nodes[row.agent] = self._by_uuid[row.uuid] = _Node(row, turn)
            elif node.row.body != row.body:
                node.turn = turn
            node.row = row
            for gpu in row.gpus:
                held = node.gpus.get(gpu.ordinal)
                if held is None or held.row.body != gpu.body:
                    node.gpus[gpu.ordinal] = _Gpu(gpu, turn)
                self._by_uid.setdefault(gpu.uid, set()).add(row.agent)

    def node_bodies(
        self, wanted: Subscription, since: int, agents: frozenset[int] | None = None
    ) -> list[bytes]:
        """The nodes asked for that changed after turn `since`, or are among `agents` where given."""
        named = self._nodes.values() if wanted.nodes is None else self._named(wanted.nodes)
        return [
            node.row.body
            for node in named
            if _sees(wanted, node) and (node.turn > since if agents is None else node.row.agent in agents)
        ]

    def gpu_bodies(
        self, wanted: Subscription, since: int, agents: frozenset[int] | None = None
    ) -> list[bytes]:
        """The GPUs asked for, likewise."""
        return [
            gpu.row.body
            for node, gpu in self._gpus(wanted)
            if (gpu.turn > since if agents is None else node.row.agent in agents)
        ]

    def count_gpus(self, wanted: Subscription) -> int:
        """How many GPUs a subscription is about."""
        return sum(1 for _ in self._gpus(wanted))

    def watched(self, wanted: Subscription) -> set[str]:
        """The ids of the nodes that are asked for by name, or by the name of a GPU."""
        names = (wanted.nodes or frozenset()) | (wanted.gpus or frozenset())
        found = {name for name in names if name in self._by_uuid}
        for name in names:
            found.update(self._nodes[agent].row.uuid for agent in self._by_uid.get(name, ()))
        return {uuid for uuid in found if _sees(wanted, self._by_uuid[uuid])}

    def _named(self, names: Iterable[str]) -> list[_Node]:
        return [self._by_uuid[name] for name in sorted(names) if name in self._by_uuid]

    def _gpus(self, wanted: Subscription) -> Iterator[tuple[_Node, _Gpu]]:
        if wanted.gpus is None:
            for node in self._nodes.values():
                if _sees(wanted, node):
                    for gpu in node.gpus.values():
                        yield node, gpu
            return
        for name in sorted(wanted.gpus):
            whole = self._by_uuid.get(name)
            if whole is not None and _sees(wanted, whole):
                for gpu in whole.gpus.values():
                    yield whole, gpu
            for agent in self._by_uid.get(name, ()):
                node = self._nodes[agent]
                if _sees(wanted, node) and node.row.uuid not in wanted.gpus:
                    for gpu in node.gpus.values():
                        if gpu.row.uid == name:
                            yield node, gpu

    def totals(self, now: float) -> dict[tuple[int, bool], Totals]:
        """Sums by contract and whether they are of simulated GPUs, of what counts as now; MIG instances are counted
        with the GPU they are part of."""
        found: dict[tuple[int, bool], Totals] = {}
        for node in self._nodes.values():
            row = node.row
            of_nodes = found.setdefault((row.contract, row.is_simulated), Totals())
            of_nodes.nodes += 1
            of_nodes.silent_nodes += row.seen_until < now
            uids = {gpu.uid for gpu in row.gpus}
            for gpu in row.gpus:
                if gpu.share.parent_uid not in uids:
                    found.setdefault((row.contract, gpu.share.is_simulated), Totals()).add(
                        gpu.share, now, row.seen_until
                    )
        return found


def _sees(wanted: Subscription, node: _Node) -> bool:
    return wanted.contracts is None or node.row.contract in wanted.contracts


@dataclass(slots=True)
class Totals:
    """What a fleet comes to, in whole units of the catalogue's scales."""

    nodes: int = 0
    silent_nodes: int = 0
    gpus: int = 0
    gpus_now: int = 0
    gpus_failed: int = 0
    gpus_idle: int = 0
    gpus_held_idle: int = 0
    utilization: int = 0
    utilization_of: int = 0
    power: int = 0
    power_of: int = 0
    memory_used: int = 0
    memory_total: int = 0
    memory_of: int = 0

    def add(self, share: Share, now: float, seen_until: float) -> None:
        """Add a GPU of a node that speaks until `seen_until`; its values only where they count as now."""
        self.gpus += 1
        if not share.is_ok:
            self.gpus_failed += seen_until >= now
            return
        if share.until < now:
            return
        self.gpus_now += 1
        if share.utilization is not None:
            self.utilization += share.utilization
            self.utilization_of += 1
            if share.utilization < _IDLE_WHOLE:
                self.gpus_idle += 1
                self.gpus_held_idle += (share.memory_used or 0) >= HELD_BYTES
        if share.power is not None:
            self.power += share.power
            self.power_of += 1
        if share.memory_used is not None and share.memory_total is not None:
            self.memory_used += share.memory_used
            self.memory_total += share.memory_total
            self.memory_of += 1

    def join(self, other: Totals) -> None:
        """Add another fleet's totals."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def fleet_body(totals: dict[tuple[int, bool], Totals], wanted: Subscription) -> bytes:
    """The fleet as somebody with this subscription sees it, as JSON."""
    whole, simulated = Totals(), 0
    for (contract, is_simulated), one in totals.items():
        if wanted.contracts is not None and contract not in wanted.contracts:
            continue
        simulated += one.gpus if is_simulated else 0
        if wanted.simulated or not is_simulated:
            whole.join(one)
    return msgspec.json.encode(
        {
            "nodes": whole.nodes,
            "silent_nodes": whole.silent_nodes,
            "gpus": whole.gpus,
            "gpus_now": whole.gpus_now,
            "gpus_failed": whole.gpus_failed,
            "gpus_idle": whole.gpus_idle,
            "gpus_held_idle": whole.gpus_held_idle,
            "gpu_utilization": _value(_UTILIZATION, whole.utilization, whole.utilization_of),
            "power_usage": _value(_POWER, whole.power, 1 if whole.power_of else 0),
            "memory_used": whole.memory_used if whole.memory_of else None,
            "memory_total": whole.memory_total if whole.memory_of else None,
            "simulated_gpus": simulated,
            "includes_simulated": wanted.simulated,
        }
    )


def _value(metric: Metric, total: int, count: int) -> float | int | None:
    return round_value(metric, total / count / scale_of(metric)) if count else None
