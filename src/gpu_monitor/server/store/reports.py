"""Questions about reports: which were received, what of them was set aside, and where some are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, select, tuple_

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.nodes import node_condition
from gpu_monitor.server.store.schema import contracts, nodes, quarantine, receipts
from gpu_monitor.server.store.span import HOUR, Span
from gpu_monitor.server.store.values import hour_stamp, stamp

LATE_SECONDS = 900.0
"""A report that comes later than this after its period's end is late: agents send within five minutes of it."""
WHOLE = 0.99
"""Less of a period is partial: a start or stop of the agent costs less than one interval of an hour."""
PRESENT, PARTIAL, LATE, MISSING, NOT_DUE = "p", "a", "l", "m", "."
LEGEND = {
    PRESENT: "present",
    PARTIAL: "partial: under 99 % of the period was recorded",
    LATE: "late: whole, but received more than 15 minutes after its end",
    MISSING: "missing: due, and not received",
    NOT_DUE: "not due: before the node's first period, or not over yet",
}
_LONGEST_HOURS = 24

Mark = tuple[int, int]
"""The place of a receipt or of a quarantined entry in its list."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt of one node's period. `sha256` is of the newest body; `late_seconds` after the period's end."""

    aggregation_time: str
    period_seconds: int
    collection_interval_seconds: int
    revision: int
    sha256: str
    rows_sha256: str
    body_bytes: int
    gpus: int
    quarantined: int
    coverage: float | None
    received: str
    late_seconds: float
    node: str
    hostname: str | None
    contract_number: str
    simulated: bool


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """What was set aside: one GPU's entry, or a report from the future, which is taken up when it is `due`."""

    kind: str
    aggregation_time: str
    revision: int
    uid: str | None
    field: str | None
    reason: str
    bytes: int
    received: str
    due: str | None
    node: str
    hostname: str | None
    contract_number: str
    simulated: bool


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """One node's hours: `hours` holds a letter for each, see the answer's legend. `coverage` is of whole hours due."""

    node: str
    hostname: str | None
    contract_number: str
    simulated: bool
    hours: str
    present: int
    partial: int
    late: int
    missing: int


@dataclass(frozen=True)
class ReportFilter:
    """Which receipts: None does not restrict. `node` is an id or a host name."""

    node: str | None = None
    contract: str | None = None
    quarantined: bool | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Those on nodes and contracts."""
        found: list[ColumnElement[bool]] = []
        if self.node is not None:
            found.append(node_condition(self.node))
        if self.contract is not None:
            found.append(contracts.c.number == self.contract)
        return found


_NODE = (nodes.c.uuid, nodes.c.hostname, contracts.c.number, nodes.c.simulated.label("is_simulated"))


def list_reports(
    connection: Connection, who: Principal, wanted: ReportFilter, span: Span, before: Mark | None, limit: int
) -> tuple[list[Report], Mark | None]:
    """Receipts of periods that begin in the span, newest period first, and the mark to go on after."""
    query = (
        select(receipts, *_NODE)
        .join(nodes, nodes.c.id == receipts.c.agent)
        .join(contracts, contracts.c.id == nodes.c.contract)
        .where(
            receipts.c.hour >= span.first_hour,
            receipts.c.hour < span.end_hour,
            contract_filter(who, nodes.c.contract),
            *wanted.conditions(),
        )
    )
    if wanted.quarantined is not None:
        query = query.where(receipts.c.quarantined > 0 if wanted.quarantined else receipts.c.quarantined == 0)
    if before is not None:
        query = query.where(tuple_(receipts.c.hour, receipts.c.agent) < before)
    order = (receipts.c.hour.desc(), receipts.c.agent.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return [_report(row) for row in rows[:limit]], None if last is None else (last.hour, last.agent)


def _report(row: Any) -> Report:
    return Report(
        aggregation_time=hour_stamp(row.hour) or "", period_seconds=row.period_seconds,
        collection_interval_seconds=row.interval_seconds, revision=row.revision, sha256=row.body_digest.hex(),
        rows_sha256=row.row_digest.hex(), body_bytes=row.body_bytes, gpus=row.rows, quarantined=row.quarantined,
        coverage=None if row.coverage is None else row.coverage / 10_000, received=stamp(row.received) or "",
        late_seconds=round(row.received - row.hour * HOUR - row.period_seconds, 3), node=row.uuid,
        hostname=row.hostname, contract_number=row.number, simulated=row.simulated,
    )  # fmt: skip


def list_quarantined(
    connection: Connection, who: Principal, wanted: ReportFilter, before: int | None, limit: int
) -> tuple[list[Quarantined], int | None]:
    """What is set aside, newest first, and the number to go on after. The raw bytes are not shown."""
    query = (
        select(quarantine, *_NODE)
        .join(nodes, nodes.c.id == quarantine.c.agent)
        .join(contracts, contracts.c.id == nodes.c.contract)
        .where(contract_filter(who, nodes.c.contract), *wanted.conditions())
    )
    if before is not None:
        query = query.where(quarantine.c.id < before)
    rows = connection.execute(query.order_by(quarantine.c.id.desc()).limit(limit + 1)).all()
    found = [
        Quarantined(
            kind=row.kind, aggregation_time=hour_stamp(row.hour) or "", revision=row.revision, uid=row.uid,
            field=row.field, reason=row.reason, bytes=len(row.raw), received=stamp(row.received) or "",
            due=stamp(row.due), node=row.uuid, hostname=row.hostname, contract_number=row.number,
            simulated=row.is_simulated,
        )
        for row in rows[:limit]
    ]  # fmt: skip
    return found, rows[limit - 1].id if len(rows) > limit else None


def strips(
    connection: Connection,
    who: Principal,
    wanted: ReportFilter,
    span: Span,
    now: float,
    after: int,
    limit: int,
) -> tuple[list[Strip], int | None]:
    """A letter for each hour of the span and each of up to `limit` nodes after a number."""
    query = (
        select(
            nodes.c.id, nodes.c.first_seen, nodes.c.period_seconds, *_NODE,
        )
        .join(contracts, contracts.c.id == nodes.c.contract)
        .where(nodes.c.id > after, contract_filter(who, nodes.c.contract), *wanted.conditions())
    )  # fmt: skip
    held = connection.execute(query.order_by(nodes.c.id).limit(limit + 1)).all()
    shown = held[:limit]
    received: dict[int, list[Any]] = {row.id: [] for row in shown}
    first = span.first_hour - _LONGEST_HOURS
    asked = select(
        receipts.c.agent, receipts.c.hour, receipts.c.period_seconds, receipts.c.coverage, receipts.c.received
    ).where(receipts.c.agent.in_(list(received)), receipts.c.hour >= first, receipts.c.hour < span.end_hour)
    for row in connection.execute(asked):
        received[row.agent].append(row)
    begun = _first_hours(connection, list(received))
    found = [_strip(row, received[row.id], begun.get(row.id), span, now) for row in shown]
    return found, shown[-1].id if len(held) > limit else None


def _first_hours(connection: Connection, agents: list[int]) -> dict[int, int]:
    """The first period ever received of each node."""
    found = {}
    for agent in agents:
        query = select(receipts.c.hour).where(receipts.c.agent == agent).order_by(receipts.c.hour).limit(1)
        hour = connection.execute(query).scalar()
        if hour is not None:
            found[agent] = hour
    return found


def _strip(node: Any, rows: list[Any], begun: int | None, span: Span, now: float) -> Strip:
    first, end = span.first_hour, span.end_hour
    expected = int(node.first_seen // HOUR) if begun is None else min(begun, int(node.first_seen // HOUR))
    period = node.period_seconds or HOUR
    letters = []
    for hour in range(first, end):
        over = (hour * HOUR // period + 1) * period + LATE_SECONDS
        letters.append(MISSING if hour >= expected and over <= now else NOT_DUE)
    for row in rows:
        letter = _letter(row)
        for hour in range(max(first, row.hour), min(end, row.hour + max(1, row.period_seconds // HOUR))):
            letters[hour - first] = letter
    hours = "".join(letters)
    return Strip(
        node=node.uuid, hostname=node.hostname, contract_number=node.number, simulated=node.is_simulated,
        hours=hours, present=hours.count(PRESENT), partial=hours.count(PARTIAL), late=hours.count(LATE),
        missing=hours.count(MISSING),
    )  # fmt: skip


def _letter(row: Any) -> str:
    if (row.coverage or 0) < WHOLE * 10_000:
        return PARTIAL
    is_late = row.received > row.hour * HOUR + row.period_seconds + LATE_SECONDS
    return LATE if is_late else PRESENT
