"""The fleet now: one row per GPU from the newest values, and what they come to. Scans no history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, select

from gpu_monitor.core.catalogue import BY_NAME, DEFAULT_FIELDS, round_value
from gpu_monitor.core.tally import HELD_BYTES, IDLE_BELOW
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.freshness import seen_until, values_until
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.schema import LIVE_METRICS, contracts, facts, gpus, latest, nodes, scale_of
from gpu_monitor.server.store.values import identity_of, shower, stamp

OK = "ok"
"""The status of a GPU with which nothing is wrong."""
SILENT = "silent"
"""The status of a GPU whose newest value is too old to count as now."""


class FleetTotals(msgspec.Struct, kw_only=True):
    """What the fleet comes to; MIG instances count as part of their GPU.

    GPUs count as now while their newest value does and nothing is wrong with them; null where nothing is known.

    `gpus_failed`: the node, which speaks, said last why it gives nothing; so it has no values, and is not among
    `gpus_now`. Idle and held are meant as in usage.
    `gpu_utilization` is the mean over the GPUs that tell it; the rest are sums over those that tell it.
    """

    nodes: int = 0
    silent_nodes: int = 0
    gpus: int = 0
    gpus_now: int = 0
    gpus_failed: int = 0
    gpus_idle: int = 0
    gpus_held_idle: int = 0
    gpu_utilization: float | int | None = None
    power_usage: float | int | None = None
    memory_used: int | None = None
    memory_total: int | None = None


_EXTRA = tuple(metric.name for metric in LIVE_METRICS if metric.name not in DEFAULT_FIELDS)
_TYPES: dict[str, Any] = {
    "uid": str,
    "pci_bus_id": str | None,
    "name": str | None,
    "memory_total": int | None,
    "throttle_reasons": list[str] | None,
}
_OF_PLACE: list[tuple[str, Any]] = [
    ("index", int | None),
    ("node", str),
    ("hostname", str | None),
    ("contract_number", str),
    ("source", str),
    ("simulated", bool),
    ("status", str | None),
    ("time", str | None),
    ("live", bool | None),
    ("coverage", float | None),
]
FleetGpu = msgspec.defstruct(
    "FleetGpu",
    [(name, _TYPES.get(name, float | int | None)) for name in (*DEFAULT_FIELDS, *_EXTRA)] + _OF_PLACE,
    frozen=True,
    module=__name__,
)
FleetGpu.__doc__ = (
    "One GPU now: the default columns, then where it is. `time` is the end of what the values cover; `live`: they"
    " are a live sample, else the means of a whole period, of which `coverage` was recorded. Values that are too"
    " old to count as now are null, and `status` is silent. Else it is ok, or why the GPU gives nothing: then values"
    " are null, too, for as long as its node speaks."
)
_make: Callable[..., msgspec.Struct] = FleetGpu


@dataclass(frozen=True)
class Fleet:
    """The rows (dicts are never made of them), what they come to, and how many simulated GPUs that leaves out."""

    totals: FleetTotals
    rows: list[msgspec.Struct]
    excluded: int


def fleet_now(
    connection: Connection, who: Principal, wanted: GpuFilter, now: float, simulated: bool
) -> Fleet:
    """Every GPU asked for, in order of nodes; simulated ones count in the totals only where that is said."""
    held = {
        row[0]: _Node._make(row)
        for row in connection.execute(
            _NODES.where(contract_filter(who, nodes.c.contract), *wanted.node_conditions())
        )
    }
    query = _GPUS.where(*wanted.gpu_conditions())
    if who.contracts is not None or wanted.picks_nodes:
        query = query.where(gpus.c.agent.in_(held))
    sums, excluded, rows = _Sums(), 0, []
    times: dict[float | None, str | None] = {None: None}  # many GPUs share one
    found = connection.execute(query).all()
    uids = {row[1] for row in found}
    since = {agent: node.now_since(now) for agent, node in held.items()}
    for row in found:
        agent, uid, source, is_simulated, name, body, time, live, status, coverage, *values = row
        node = held.get(agent)
        if node is None:
            continue
        has_failed = status not in (None, OK) and node.seen_until >= now
        is_now = not has_failed and time is not None and time >= since[agent][bool(live)]
        identity = identity_of(body)
        if is_simulated and not simulated:
            excluded += 1
        elif identity.parent_uid not in uids:
            sums.add(values, identity.memory_total, is_now, has_failed)
        if time not in times:
            times[time] = stamp(time)
        shown = [show(value) for show, value in zip(_SHOWERS, values, strict=True)] if is_now else _NOTHING
        rows.append(
            _make(
                uid, identity.pci_bus_id, name, *shown[:_CUT], identity.memory_total, *shown[_CUT:],
                identity.index, node.uuid, node.hostname, node.number, source, is_simulated,
                status if is_now or has_failed else SILENT, times[time], live,
                None if coverage is None or not is_now else coverage / 10_000,
            )
        )  # fmt: skip
        sums.agents.add(agent)
    for agent, node in held.items():
        if (simulated or not node.simulated) and (not wanted.picks_gpus or agent in sums.agents):
            sums.totals.nodes += 1
            sums.totals.silent_nodes += node.seen_until < now
    return Fleet(sums.finished(), rows, excluded)


_METRICS = [metric.name for metric in LIVE_METRICS]
_SHOWERS = [shower(metric) for metric in LIVE_METRICS]
_CUT = DEFAULT_FIELDS.index("memory_total") - len(("uid", "pci_bus_id", "name"))
"""Among the measured default columns, memory_total is the only one that identifies."""
_NOTHING = [None] * len(_METRICS)


class _Node(NamedTuple):
    """A row of `_NODES`: attributes of the database's own rows take ten times as long."""

    id: int
    uuid: str
    hostname: str | None
    number: str
    simulated: bool
    first_seen: float
    last_report: float | None
    last_live: float | None
    period_seconds: int | None
    interval_seconds: int | None

    def now_since(self, now: float) -> tuple[float, float]:
        """Values that end at this time or later count as now: means of periods, live samples."""
        after_period, after_live = (
            values_until(0.0, live, self.period_seconds, self.interval_seconds) for live in (False, True)
        )
        return now - after_period, now - after_live

    @property
    def seen_until(self) -> float:
        """Until when it is not silent, UTC epoch s."""
        return seen_until(
            self.first_seen, self.last_report, self.last_live, self.period_seconds, self.interval_seconds
        )


_NODES = select(
    nodes.c.id,
    nodes.c.uuid,
    nodes.c.hostname,
    contracts.c.number,
    nodes.c.simulated,
    nodes.c.first_seen,
    nodes.c.last_report,
    nodes.c.last_live,
    nodes.c.period_seconds,
    nodes.c.interval_seconds,
).join(contracts, contracts.c.id == nodes.c.contract)
_OF_GPU = (
    gpus.c.agent,
    gpus.c.uid,
    gpus.c.source,
    gpus.c.simulated,
    gpus.c.name,
    facts.c.body,
    latest.c.time,
    latest.c.live,
    latest.c.status,
    latest.c.coverage,
)
_GPUS = (
    select(*_OF_GPU, *(latest.c[name] for name in _METRICS))
    .select_from(gpus)
    .outerjoin(latest, and_(latest.c.agent == gpus.c.agent, latest.c.gpu == gpus.c.ordinal))
    .outerjoin(facts, facts.c.id == gpus.c.identity)
    .order_by(gpus.c.agent, gpus.c.ordinal)
)
_UTILIZATION, _POWER, _MEMORY = (BY_NAME[name] for name in ("gpu_utilization", "power_usage", "memory_used"))
_AT_UTILIZATION, _AT_POWER, _AT_MEMORY = (_METRICS.index(m.name) for m in (_UTILIZATION, _POWER, _MEMORY))
_IDLE_BELOW = IDLE_BELOW * scale_of(_UTILIZATION)


class _Sums:
    """Adds GPUs up in whole units."""

    def __init__(self) -> None:
        self.totals = FleetTotals()
        self.agents: set[int] = set()
        self._utilization = self._utilization_of = self._power = self._power_of = 0

    def add(self, values: Sequence[Any], memory_total: int | None, is_now: bool, has_failed: bool) -> None:
        """Add a GPU; its values only where they count as now."""
        totals = self.totals
        totals.gpus += 1
        totals.gpus_failed += has_failed
        if not is_now:
            return
        totals.gpus_now += 1
        used, power, memory = values[_AT_UTILIZATION], values[_AT_POWER], values[_AT_MEMORY]
        if used is not None:
            self._utilization += used
            self._utilization_of += 1
            if used < _IDLE_BELOW:
                totals.gpus_idle += 1
                totals.gpus_held_idle += memory is not None and memory >= HELD_BYTES
        if power is not None:
            self._power += power
            self._power_of += 1
        if memory is not None and memory_total is not None:
            totals.memory_used = (totals.memory_used or 0) + memory
            totals.memory_total = (totals.memory_total or 0) + memory_total

    def finished(self) -> FleetTotals:
        """The totals, with the means and sums of measured values."""
        if self._utilization_of:
            mean = self._utilization / self._utilization_of / scale_of(_UTILIZATION)
            self.totals.gpu_utilization = round_value(_UTILIZATION, mean)
        if self._power_of:
            self.totals.power_usage = round_value(_POWER, self._power / scale_of(_POWER))
        return self.totals
