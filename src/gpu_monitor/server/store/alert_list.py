"""Questions about alerts, with the names of their nodes and GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, update

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.alert_runs import RUN_SUBJECT
from gpu_monitor.server.store.nodes import node_condition
from gpu_monitor.server.store.schema import alerts, contracts, gpus, nodes, rules
from gpu_monitor.server.store.schema_experiments import experiments
from gpu_monitor.server.store.values import stamp


class AlertRow(msgspec.Struct, frozen=True, kw_only=True):
    """An alert. `since`: when the condition began; `seen`: up to when data has shown it; `past`: never notified.

    It is about a node, a GPU of it, an experiment (its id), or the server where none of them is named.
    """

    id: str
    rule: str
    state: str
    severity: str
    node: str | None
    hostname: str | None
    contract_number: str | None
    gpu: str | None
    gpu_name: str | None
    experiment: str | None
    experiment_name: str | None
    since: str
    seen: str
    fired: str | None
    resolved: str | None
    ending: str | None
    value: float | None
    message: str
    advice: str | None
    past: bool
    silenced: bool
    simulated: bool
    acknowledged: str | None
    acknowledged_by: str | None


@dataclass(frozen=True)
class AlertFilter:
    """Which alerts: None does not restrict. `state` may be `active`: pending and firing. Times are of `since`."""

    state: str | None = None
    severity: str | None = None
    rule: str | None = None
    node: str | None = None
    gpu: str | None = None
    simulated: bool | None = None
    since: float | None = None
    until: float | None = None


def list_alerts(
    connection: Connection, who: Principal, wanted: AlertFilter, after: tuple[float, str] | None, limit: int
) -> tuple[list[AlertRow], tuple[float, str] | None]:
    """Up to `limit` alerts, the newest first, from the one after `after`; and where to go on (None: that is all)."""
    query = _query().where(contract_filter(who, alerts.c.contract), *_conditions(wanted))
    if after is not None:
        since, name = after
        query = query.where(or_(alerts.c.since < since, and_(alerts.c.since == since, alerts.c.id > name)))
    rows = connection.execute(query.order_by(alerts.c.since.desc(), alerts.c.id).limit(limit + 1)).all()
    found = [_row(row) for row in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    return found, None if last is None else (last.since, last.id)


def one_alert(connection: Connection, who: Principal, name: str) -> AlertRow | None:
    """The alert with this id; None where there is none to see."""
    row = connection.execute(
        _query().where(alerts.c.id == name, contract_filter(who, alerts.c.contract))
    ).first()
    return None if row is None else _row(row)


def contract_of(connection: Connection, name: str) -> int | None:
    """The contract of an alert; None where it has none, as those about the server."""
    found: int | None = connection.execute(select(alerts.c.contract).where(alerts.c.id == name)).scalar()
    return found


def acknowledge(connection: Connection, name: str, by: str | None, now: float) -> None:
    """Note who looks after an alert; None: nobody any more."""
    values = {"acknowledged": None if by is None else now, "acknowledged_by": by}
    connection.execute(update(alerts).where(alerts.c.id == name).values(values))


def _query() -> Select[Any]:
    name = (
        select(gpus.c.name)
        .where(gpus.c.agent == alerts.c.agent, gpus.c.uid == alerts.c.uid)
        .order_by(gpus.c.last_hour.desc())
        .limit(1)
        .scalar_subquery()
    )
    run_name = (
        select(experiments.c.name)
        .where(
            alerts.c.subject.startswith(RUN_SUBJECT),
            experiments.c.uid == func.substr(alerts.c.subject, len(RUN_SUBJECT) + 1),
        )
        .scalar_subquery()
    )
    return (
        select(
            alerts,
            nodes.c.uuid,
            nodes.c.hostname,
            contracts.c.number,
            name.label("gpu_name"),
            run_name.label("run_name"),
            rules.c.advice,
        )
        .outerjoin(nodes, nodes.c.id == alerts.c.agent)
        .outerjoin(contracts, contracts.c.id == alerts.c.contract)
        .outerjoin(rules, rules.c.id == alerts.c.rule)
    )


def _conditions(wanted: AlertFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.state == "active":
        found.append(alerts.c.active == 1)
    elif wanted.state is not None:
        found.append(alerts.c.state == wanted.state)
    for column, value in (
        (alerts.c.severity, wanted.severity),
        (alerts.c.rule, wanted.rule),
        (alerts.c.uid, wanted.gpu),
    ):
        if value is not None:
            found.append(column == value)
    if wanted.node is not None:
        found.append(node_condition(wanted.node))
    if wanted.simulated is not None:
        found.append(alerts.c.simulated.is_(wanted.simulated))
    if wanted.since is not None:
        found.append(alerts.c.since >= wanted.since)
    if wanted.until is not None:
        found.append(alerts.c.since < wanted.until)
    return found


def _row(row: Any) -> AlertRow:
    is_run = row.subject.startswith(RUN_SUBJECT)
    return AlertRow(
        id=row.id, rule=row.rule, state=row.state, severity=row.severity, node=row.uuid, hostname=row.hostname,
        contract_number=row.number, gpu=row.uid, gpu_name=row.gpu_name,
        experiment=row.subject.removeprefix(RUN_SUBJECT) if is_run else None, experiment_name=row.run_name,
        since=stamp(_fine(row.since)) or "",
        seen=stamp(_fine(row.seen)) or "", fired=stamp(_fine(row.fired)), resolved=stamp(_fine(row.resolved)),
        ending=row.ending,
        value=None if row.value is None else round(row.value, 3), message=row.message, advice=row.advice, past=row.past,
        silenced=row.silenced, simulated=row.simulated, acknowledged=stamp(_fine(row.acknowledged)),
        acknowledged_by=row.acknowledged_by,
    )  # fmt: skip


def _fine(time: float | None) -> float | None:
    """To the millisecond."""
    return None if time is None else round(time, 3)
