"""Reads what rules look at: the readings, gaps, events and states of a few hundred nodes at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)

from gpu_monitor.core.catalogue import BY_NAME, HOST_METRICS, Metric
from gpu_monitor.core.xid import EVENT_KIND
from gpu_monitor.server.alerts.window import Basis, Happening, Hole, Reading, Values
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    aggregates,
    events,
    gaps,
    gpus,
    has_extremes,
    host_hours,
    latest,
    live_events,
    nodes,
    receipts,
    samples,
    scale_of,
)

HOUR = 3600
LONGEST_PERIOD = 24
"""Hours: a period that reaches into an hour begins less than this before it."""
_KEYS_AT_ONCE = 1000
"""GPUs in one question: SQLite takes 32,766 parameters, PostgreSQL 65,535."""
SAME_SECONDS = 0.5
"""Two tellings of one Xid of a GPU: the agent itself lets none through twice within five seconds."""
_ORDINALS = 1 << 16
"""More than the GPUs of a node: agent and ordinal make one number."""
Key = tuple[int, int]
"""A GPU: agent, ordinal."""
_HOST = {metric.name: metric for metric in HOST_METRICS}
_LIVE = {metric.name for metric in LIVE_METRICS}


class NodeFacts(msgspec.Struct, frozen=True, gc=False):
    """A node as alerts name it, and when it was heard of."""

    agent: int
    uuid: str
    contract: int
    hostname: str | None
    simulated: bool
    first_seen: float
    last_report: float | None
    last_live: float | None
    last_hour: int | None
    period_seconds: int | None
    interval_seconds: int | None
    skew_seconds: float | None
    skew_measured: float | None


_NODES = select(
    nodes.c.id, *(nodes.c[name] for name in NodeFacts.__struct_fields__ if name != "agent")
).where(nodes.c.id.in_(bindparam("agents", expanding=True)))


class GpuFacts(msgspec.Struct, frozen=True):
    """A GPU and its newest status; `time` is the end of what its newest values cover."""

    key: Key
    uid: str
    name: str | None
    simulated: bool
    status: str | None
    time: float | None
    live: bool


class Receipt(msgspec.Struct, frozen=True):
    """When a period's report came. `end` is the end of the period (UTC epoch s)."""

    end: float
    received: float


@dataclass
class Histories:
    """What was read, by GPU or node. Hours are those that the reports' periods begin with."""

    live: dict[Key, list[Reading]] = field(default_factory=dict)
    hours: dict[Key, list[tuple[int, Reading]]] = field(default_factory=dict)
    hosts: dict[int, list[tuple[int, Reading]]] = field(default_factory=dict)
    holes: dict[int, list[tuple[int, Hole]]] = field(default_factory=dict)
    happenings: dict[int, list[tuple[int, str, Happening]]] = field(default_factory=dict)
    receipts: dict[tuple[int, int], Receipt] = field(default_factory=dict)


def every_agent(connection: Connection) -> list[int]:
    """The numbers of all nodes."""
    return list(connection.execute(select(nodes.c.id).order_by(nodes.c.id)).scalars())


def load_nodes(connection: Connection, agents: Sequence[int]) -> dict[int, NodeFacts]:
    """The nodes of these numbers."""
    found = connection.execute(_NODES, {"agents": agents})
    return {row[0]: NodeFacts(*row) for row in found}


def load_gpus(connection: Connection, agents: Sequence[int]) -> dict[int, list[GpuFacts]]:
    """The GPUs of these nodes, by node."""
    query = (
        select(
            gpus.c.agent,
            gpus.c.ordinal,
            gpus.c.uid,
            gpus.c.name,
            gpus.c.simulated,
            latest.c.status,
            latest.c.time,
            latest.c.live,
        )
        .outerjoin(latest, (latest.c.agent == gpus.c.agent) & (latest.c.gpu == gpus.c.ordinal))
        .where(gpus.c.agent.in_(agents))
        .order_by(gpus.c.agent, gpus.c.ordinal)
    )
    found: dict[int, list[GpuFacts]] = defaultdict(list)
    for agent, ordinal, uid, name, simulated, status, time, live in connection.execute(query):
        found[agent].append(GpuFacts((agent, ordinal), uid, name, simulated, status, time, bool(live)))
    return found


def load_live(
    connection: Connection, keys: Sequence[Key], since: float, metrics: Iterable[str], into: Histories
) -> None:
    """The live minutes of these GPUs that begin at `since` or later."""
    names = [name for name in metrics if name in _LIVE]
    if not names:
        return
    query = select(
        samples.c.agent,
        samples.c.gpu,
        samples.c.time,
        samples.c.seconds,
        *(samples.c[name] for name in names),
    ).order_by(samples.c.time)
    within = samples.c.time >= int(since)
    scales = [scale_of(BY_NAME[name]) for name in names]
    found: dict[Key, list[Reading]] = defaultdict(list)
    for agent, gpu, time, seconds, *whole in _of_gpus(connection, query, samples, within, keys):
        values = {}
        for name, scale, value in zip(names, scales, whole, strict=True):
            if value is not None:
                mean = value / scale
                values[name] = Values(mean, mean, mean)
        found[agent, gpu].append(Reading(float(time), time + seconds / 10, True, values))
    into.live.update(found)


def load_receipts(
    connection: Connection, agents: Sequence[int], first: int, last: int, into: Histories
) -> None:
    """When the reports of the hours from `first` to `last` came, and how long their periods are."""
    query = select(receipts.c.agent, receipts.c.hour, receipts.c.period_seconds, receipts.c.received)
    query = query.where(receipts.c.agent.in_(agents), receipts.c.hour.between(first, last))
    for agent, hour, period, received in connection.execute(query):
        into.receipts[agent, hour] = Receipt(float(hour * HOUR + period), received)


def load_hours(
    connection: Connection,
    keys: Sequence[Key],
    first: int,
    last: int,
    metrics: Iterable[str],
    into: Histories,
) -> None:
    """These GPUs' periods that begin in the hours from `first` to `last`; their receipts must be there."""
    wanted = [BY_NAME[name] for name in metrics if name in aggregates.c]
    basis = ("seconds", "coverage", "held_idle_seconds")
    query = select(
        aggregates.c.agent,
        aggregates.c.gpu,
        aggregates.c.hour,
        *(aggregates.c[name] for name in basis),
        *_columns(aggregates, wanted),
    ).order_by(aggregates.c.hour)
    within = aggregates.c.hour.between(first, last)
    shadows = _shadows(connection, keys, first, into)
    found: dict[Key, list[tuple[int, Reading]]] = defaultdict(list)
    for agent, gpu, hour, seconds, coverage, held, *whole in _of_gpus(
        connection, query, aggregates, within, keys
    ):
        start = float(hour * HOUR)
        receipt = into.receipts.get((agent, hour))
        end = start + HOUR if receipt is None else receipt.end
        live = sum(shadows.get((agent, gpu, one), 0.0) for one in range(hour, int(end) // HOUR))
        told = Basis(_tenths(seconds), None if coverage is None else coverage / 10_000, _tenths(held))
        reading = Reading(start, end, False, _values(wanted, whole), told, live >= (end - start) / 2)
        found[agent, gpu].append((hour, reading))
    into.hours.update(found)


def load_hosts(
    connection: Connection,
    agents: Sequence[int],
    first: int,
    last: int,
    metrics: Iterable[str],
    into: Histories,
) -> None:
    """The machines' periods, likewise."""
    wanted = [_HOST[name] for name in metrics if name in _HOST]
    if not wanted:
        return
    query = (
        select(host_hours.c.agent, host_hours.c.hour, *_columns(host_hours, wanted))
        .where(host_hours.c.hour.between(first, last), host_hours.c.agent.in_(agents))
        .order_by(host_hours.c.hour)
    )
    found: dict[int, list[tuple[int, Reading]]] = defaultdict(list)
    for agent, hour, *whole in connection.execute(query):
        receipt = into.receipts.get((agent, hour))
        start = float(hour * HOUR)
        end = start + HOUR if receipt is None else receipt.end
        found[agent].append((hour, Reading(start, end, False, _values(wanted, whole))))
    into.hosts.update(found)


def load_holes(connection: Connection, agents: Sequence[int], first: int, last: int, into: Histories) -> None:
    """The gaps in reports of those hours."""
    query = select(gaps.c.agent, gaps.c.hour, gaps.c.start, gaps.c.stop, gaps.c.cause, gaps.c.uid)
    query = query.where(gaps.c.agent.in_(agents), gaps.c.hour.between(first, last))
    for agent, hour, start, stop, cause, uid in connection.execute(query):
        into.holes.setdefault(agent, []).append((hour, Hole(start, stop, cause, uid)))


def load_happenings(
    connection: Connection, agents: Sequence[int], first: int, last: int, into: Histories
) -> None:
    """The Xids in reports of those hours, with the uid of their GPU."""
    query = select(
        events.c.agent, events.c.hour, events.c.time, events.c.uid, events.c.message, events.c.detail
    )
    query = query.where(
        events.c.agent.in_(agents), events.c.hour.between(first, last), events.c.kind == EVENT_KIND
    )
    for agent, hour, time, uid, message, detail in connection.execute(query):
        if uid is not None:
            told = _xid_of(detail)
            one = Happening(time, EVENT_KIND, message, told.xid, told.text or "")
            into.happenings.setdefault(agent, []).append((hour, uid, one))


def load_live_happenings(
    connection: Connection, agents: Sequence[int], since: float, into: Histories
) -> None:
    """The Xids since then of which live messages told, beside those that are there from reports already."""
    row = live_events.c
    query = select(row.agent, row.time, row.uid, row.message, row.detail)
    query = query.where(
        row.agent.in_(agents), row.time >= since, row.kind == EVENT_KIND, row.uid != ""
    ).order_by(row.time)
    for agent, time, uid, message, detail in connection.execute(query):
        told = _xid_of(detail)
        held = into.happenings.setdefault(agent, [])
        if any(
            uid == of and told.xid == one.xid and abs(time - one.time) < SAME_SECONDS for _, of, one in held
        ):
            continue
        one = Happening(time, EVENT_KIND, message, told.xid, told.text or "")
        held.append((int(time) // HOUR, uid, one))


class _Detail(msgspec.Struct, frozen=True):
    xid: int | None = None
    text: str | None = None


_detail = msgspec.json.Decoder(_Detail)


def _xid_of(text: str | None) -> _Detail:
    """What the event says of its Xid; nothing where it says it in another form than ours."""
    try:
        return _Detail() if text is None else _detail.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return _Detail()


def _shadows(
    connection: Connection, keys: Sequence[Key], first: int, into: Histories
) -> dict[tuple[int, int, int], float]:
    """How many seconds of each hour live minutes tell of, by agent, GPU and hour."""
    hour = (samples.c.time - samples.c.time % HOUR) / HOUR
    until = max((receipt.end for receipt in into.receipts.values()), default=0.0)
    query = select(samples.c.agent, samples.c.gpu, hour, func.sum(samples.c.seconds)).group_by(
        samples.c.agent, samples.c.gpu, hour
    )
    within = (samples.c.time >= first * HOUR) & (samples.c.time < int(until))
    found = _of_gpus(connection, query, samples, within, keys)
    return {(agent, gpu, int(of)): total / 10 for agent, gpu, of, total in found}


def _of_gpus(
    connection: Connection, query: Select[Any], table: Table, within: ColumnElement[bool], keys: Sequence[Key]
) -> Iterator[Sequence[Any]]:
    """The rows of a table `within` a time that belong to these GPUs; the query's order holds for each of them."""
    # A left join, or SQLite would begin with the table: with all that the fleet has of this time, or with all
    # that ever was of these nodes.
    of_gpu = (table.c.agent == gpus.c.agent) & (table.c.gpu == gpus.c.ordinal) & within
    wanted = query.outerjoin_from(gpus, table, of_gpu)
    number = cast(gpus.c.agent, BigInteger) * literal_column(str(_ORDINALS)) + gpus.c.ordinal
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        part = keys[start : start + _KEYS_AT_ONCE]
        agents = sorted({agent for agent, _ in part})
        numbers = [agent * _ORDINALS + gpu for agent, gpu in part]
        found = connection.execute(wanted.where(gpus.c.agent.in_(agents), number.in_(numbers))).all()
        yield from (row for row in found if row[0] is not None)


def _columns(table: Table, wanted: Iterable[Metric]) -> list[ColumnElement[Any]]:
    found: list[ColumnElement[Any]] = []
    for metric in wanted:
        found.append(table.c[metric.name])
        if has_extremes(metric):
            found += [table.c[f"{metric.name}_lo"], table.c[f"{metric.name}_hi"]]
    return found


def _values(wanted: Iterable[Metric], whole: Sequence[int | None]) -> dict[str, Values]:
    values: dict[str, Values] = {}
    at = 0
    for metric in wanted:
        middle, scale = whole[at], scale_of(metric)
        at += 1
        low = high = 0
        if has_extremes(metric):
            low, high = whole[at] or 0, whole[at + 1] or 0
            at += 2
        if middle is not None:
            values[metric.name] = Values(middle / scale, (middle - low) / scale, (middle + high) / scale)
    return values


def _tenths(whole: int | None) -> float | None:
    return None if whole is None else whole / 10
