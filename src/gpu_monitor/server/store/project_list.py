"""Projects: what experiments are kept in, by contract."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, and_, case, func, or_, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import project_filter
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import experiments, projects
from gpu_monitor.server.store.values import stamp

Mark = tuple[str, int]
"""The place of a project in the list: its name and row."""


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project with how many experiments it holds, archived ones and those that run among them."""

    name: str
    contract_number: str
    created: str
    experiments: int
    running: int
    archived: int
    last_started: str | None


def list_projects(
    connection: Connection, who: Principal, contract: str | None, after: Mark | None, limit: int
) -> tuple[list[Project], Mark | None]:
    """Up to `limit` projects by name, and the mark to go on after."""
    held = and_(experiments.c.project == projects.c.id, experiments.c.removed.is_(None))

    query = (
        select(
            projects.c.id,
            projects.c.name,
            projects.c.created,
            contracts.c.number,
            func.count(experiments.c.id).label("held"),
            func.count(case((experiments.c.status == "running", 1))).label("running"),
            func.count(experiments.c.archived).label("shelved"),
            func.max(experiments.c.started).label("last_started"),
        )
        .join(contracts, contracts.c.id == projects.c.contract)
        .outerjoin(experiments, held)
        .where(project_filter(who, projects.c.contract, projects.c.name))
        .group_by(projects.c.id, projects.c.name, projects.c.created, contracts.c.number)
    )
    if contract is not None:
        query = query.where(contracts.c.number == contract)
    if after is not None:
        name, row = after
        query = query.where(or_(projects.c.name > name, and_(projects.c.name == name, projects.c.id > row)))
    rows = connection.execute(query.order_by(projects.c.name, projects.c.id).limit(limit + 1)).all()
    found = [
        Project(
            name=row.name,
            contract_number=row.number,
            created=stamp(round(row.created, 3)) or "",
            experiments=row.held,
            running=row.running,
            archived=row.shelved,
            last_started=stamp(row.last_started),
        )
        for row in rows[:limit]
    ]
    return found, (rows[limit - 1].name, rows[limit - 1].id) if len(rows) > limit else None
