"""What happened: gaps, events and processes, newest first, as the reports told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select, tuple_
from sqlalchemy.sql.elements import Label

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.nodes import node_condition
from gpu_monitor.server.store.schema import contracts, events, gaps, gpus, nodes, processes
from gpu_monitor.server.store.span import Span
from gpu_monitor.server.store.values import stamp

_LONGEST_HOURS = 24
"""No period is longer: what is told of a time stands in a report that began at most a day before."""

Mark = tuple[float, int]
"""The place of a row in a list by time: its time and number."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch without data and its cause, as one report told of it. `uid` null: of the whole node.

    A gap that lasts over several periods is told piece by piece, each in the report of its period.
    """

    start: str
    end: str
    seconds: float
    cause: str
    detail: str | None
    uid: str | None
    node: str
    hostname: str | None
    contract_number: str
    simulated: bool


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `uid` null: to the whole node."""

    time: str
    kind: str
    severity: str
    message: str
    uid: str | None
    node: str
    hostname: str | None
    contract_number: str
    simulated: bool
    detail: Any


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a GPU, over all periods asked for in which it was seen. Memory in bytes, known when it ended."""

    uid: str
    pid: int
    kind: str
    user: str | None
    command: str | None
    first_seen: str
    last_seen: str
    ended: bool
    memory: int | None
    memory_max: int | None
    container: str | None
    job: str | None
    experiment_id: str | None
    boot_id: str | None
    start_ticks: int | None
    ns_pid: int | None
    node: str
    hostname: str | None
    contract_number: str
    simulated: bool


@dataclass(frozen=True)
class Wanted:
    """Which rows: None does not restrict. `node` is an id or a host name."""

    node: str | None = None
    gpu: str | None = None
    contract: str | None = None
    equal: tuple[tuple[str, str], ...] = ()
    """(column, value) pairs, such as a cause or a kind."""


def list_gaps(
    connection: Connection, who: Principal, wanted: Wanted, span: Span, before: Mark | None, limit: int
) -> tuple[list[Gap], Mark | None]:
    """Gaps that touch the span, newest begun first, and the mark to go on after."""
    inside = and_(
        gaps.c.start < span.until,
        gaps.c.stop > span.since,
        gaps.c.start > span.since - _LONGEST_HOURS * 3600.0,
    )
    query = _of_nodes(gaps, who, wanted).where(inside)
    rows, mark = _page(connection, query, gaps.c.start, gaps.c.id, before, limit)
    return [
        Gap(
            start=stamp(row.start) or "", end=stamp(row.stop) or "", seconds=round(row.stop - row.start, 3),
            cause=row.cause, detail=row.detail, uid=row.uid, **_node(row),
        )
        for row in rows
    ], mark  # fmt: skip


def list_events(
    connection: Connection, who: Principal, wanted: Wanted, span: Span, before: Mark | None, limit: int
) -> tuple[list[Event], Mark | None]:
    """Events in the span, newest first, and the mark to go on after."""
    query = _of_nodes(events, who, wanted).where(events.c.time >= span.since, events.c.time < span.until)
    rows, mark = _page(connection, query, events.c.time, events.c.id, before, limit)
    return [
        Event(
            time=stamp(row.time) or "", kind=row.kind, severity=row.severity, message=row.message, uid=row.uid,
            detail=None if row.detail is None else msgspec.json.decode(row.detail), **_node(row),
        )
        for row in rows
    ], mark  # fmt: skip


def list_processes(
    connection: Connection, who: Principal, wanted: Wanted, span: Span, before: Mark | None, limit: int
) -> tuple[list[Process], Mark | None]:
    """Processes that were there in the span, last seen first, and the mark to go on after."""
    row = processes.c
    first = func.max(row.id).label("number")
    last_seen = func.max(row.last_seen).label("last")
    inner = (
        select(
            row.agent, row.uid, row.pid, row.kind, row.boot_id, row.start_ticks, first, last_seen,
            func.min(row.first_seen).label("first_seen"),
            func.max(case((row.ended.is_(True), 1), else_=0)).label("has_ended"),
            func.max(row.memory_max).label("most"),
        )
        .where(
            row.last_seen >= span.since, row.first_seen < span.until,
            row.hour >= span.first_hour - _LONGEST_HOURS, row.hour < span.end_hour,
            *_filters(processes, wanted),
        )
        .group_by(row.agent, row.uid, row.pid, row.kind, row.boot_id, row.start_ticks)
        .subquery()
    )  # fmt: skip
    query = (
        select(
            inner.c.uid, inner.c.pid, inner.c.kind, inner.c.boot_id, inner.c.start_ticks, inner.c.number,
            inner.c.last, inner.c.first_seen, inner.c.has_ended, inner.c.most,
            row.user, row.command, row.container, row.job, row.experiment_id, row.ns_pid, row.memory, *_NODE,
        )
        .join(processes, row.id == inner.c.number)
        .join(nodes, nodes.c.id == inner.c.agent)
        .join(contracts, contracts.c.id == nodes.c.contract)
        .where(contract_filter(who, nodes.c.contract), *_node_filters(wanted))
    )  # fmt: skip
    rows, mark = _page(connection, query, inner.c.last, inner.c.number, before, limit)
    return [_process(one) for one in rows], mark


def _process(row: Any) -> Process:
    return Process(
        uid=row.uid, pid=row.pid, kind=row.kind, user=row.user, command=row.command,
        first_seen=stamp(row.first_seen) or "", last_seen=stamp(row.last) or "", ended=bool(row.has_ended),
        memory=row.memory, memory_max=row.most, container=row.container, job=row.job,
        experiment_id=row.experiment_id, boot_id=row.boot_id, start_ticks=row.start_ticks, ns_pid=row.ns_pid,
        **_node(row),
    )  # fmt: skip


_NODE: tuple[Any, ...] = (
    nodes.c.uuid,
    nodes.c.hostname,
    contracts.c.number.label("contract_number"),
    nodes.c.simulated,
)


def _node(row: Any) -> dict[str, Any]:
    return {
        "node": row.uuid,
        "hostname": row.hostname,
        "contract_number": row.contract_number,
        "simulated": row.simulated,
    }


def _of_nodes(table: Any, who: Principal, wanted: Wanted) -> Select[Any]:
    """Rows of a table with their nodes, as far as they are asked for and to be seen."""
    return (
        select(table, *_NODE)
        .join(nodes, nodes.c.id == table.c.agent)
        .join(contracts, contracts.c.id == nodes.c.contract)
        .where(contract_filter(who, nodes.c.contract), *_node_filters(wanted), *_filters(table, wanted))
    )


def _node_filters(wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.node is not None:
        found.append(node_condition(wanted.node))
    if wanted.contract is not None:
        found.append(contracts.c.number == wanted.contract)
    return found


def _filters(table: Any, wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [table.c[name] == value for name, value in wanted.equal]
    if wanted.gpu is not None:
        found.append(table.c.uid == wanted.gpu)
        # The GPU's nodes: their index is the short way to its rows.
        found.append(table.c.agent.in_(select(gpus.c.agent).where(gpus.c.uid == wanted.gpu)))
    return found


def _page(
    connection: Connection,
    query: Select[Any],
    time: ColumnElement[Any] | Label[Any],
    number: ColumnElement[Any],
    before: Mark | None,
    limit: int,
) -> tuple[Sequence[Any], Mark | None]:
    """One page of a query, by time and number downwards."""
    if before is not None:
        query = query.where(tuple_(time, number) < before)
    asked = query.add_columns(time.label("page_time"), number.label("page_number"))
    rows = connection.execute(asked.order_by(time.desc(), number.desc()).limit(limit + 1)).all()
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], (rows[limit - 1].page_time, rows[limit - 1].page_number)
