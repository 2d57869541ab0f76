"""How nodes, GPUs and experiments of alerts are called, for those who read of them."""

from __future__ import annotations

from sqlalchemy import Connection, select

from gpu_monitor.server.notify.notice import Names
from gpu_monitor.server.store.alert_runs import RUN_SUBJECT
from gpu_monitor.server.store.schema import contracts, gpus, nodes
from gpu_monitor.server.store.schema_experiments import experiments


def find_names(connection: Connection, agent: int | None, uid: str | None, subject: str = "") -> Names:
    """The names of a node and, where `uid` is given, of that GPU; or of the experiment that is the `subject`."""
    if subject.startswith(RUN_SUBJECT):
        return _names_of_run(connection, subject.removeprefix(RUN_SUBJECT))
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


def _names_of_run(connection: Connection, uid: str) -> Names:
    query = (
        select(experiments.c.name, contracts.c.number)
        .join(contracts, contracts.c.id == experiments.c.contract)
        .where(experiments.c.uid == uid)
    )
    row = connection.execute(query).first()
    if row is None:
        return Names(experiment=uid)
    return Names(contract_number=row.number, experiment=uid, experiment_name=row.name)
