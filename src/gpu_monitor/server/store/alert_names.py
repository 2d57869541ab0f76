"""How nodes and GPUs of alerts are called, for those who read of them."""

from __future__ import annotations

from sqlalchemy import Connection, select

from gpu_monitor.server.notify.notice import Names
from gpu_monitor.server.store.schema import contracts, gpus, nodes


def find_names(connection: Connection, agent: int | None, uid: str | None) -> Names:
    """The names of a node and, where `uid` is given, of that GPU."""
    if agent is None:
        return Names()
    query = select(nodes.c.uuid, nodes.c.hostname, contracts.c.number).join(
        contracts, contracts.c.id == nodes.c.contract
    )
    row = connection.execute(query.where(nodes.c.id == agent)).first()
    if row is None:
        return Names()
    named = (
        select(gpus.c.name).where(gpus.c.agent == agent, gpus.c.uid == uid).order_by(gpus.c.last_hour.desc())
    )
    gpu = None if uid is None else connection.execute(named).scalar()
    return Names(row.uuid, row.hostname, gpu, row.number)
