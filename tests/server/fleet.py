"""A few nodes and GPUs written straight into the server's tables, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, insert, select, update

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import changes, contracts, facts, gpus, latest, nodes

NOW = 1_710_945_000.0  # 2024-03-20T14:30:00Z


def add_contract(store: Store, number: str) -> int:
    """A contract; its id."""
    with store.write() as connection:
        made = connection.execute(insert(contracts).values(number=number))
        return int(made.inserted_primary_key[0])  # type: ignore[index]


def add_node(store: Store, contract: int, uuid: str, count: int, *, simulated: bool = False) -> int:
    """A node with `count` GPUs of 80 GiB whose live minute ended at NOW; its number."""
    with store.write() as connection:
        made = connection.execute(
            insert(nodes).values(
                uuid=uuid, contract=contract, hostname=f"host-{uuid}", simulated=simulated, first_seen=NOW - 9000,
                last_report=NOW - 1500, last_live=NOW, period_seconds=3600, interval_seconds=60,
            )
        )  # fmt: skip
        agent = int(made.inserted_primary_key[0])  # type: ignore[index]
        for ordinal in range(count):
            uid = f"{uuid}-gpu{ordinal}"
            body = f'{{"uid":"{uid}","pci_bus_id":"0000:0{ordinal}:00.0","memory_total":85899345920,"index":{ordinal}}}'
            fact = connection.execute(insert(facts).values(digest=uid.encode()[-16:].rjust(16), body=body))
            connection.execute(
                insert(gpus).values(
                    agent=agent, ordinal=ordinal, uid=uid, source="simulated" if simulated else "nvml",
                    simulated=simulated, name="NVIDIA H100 80GB HBM3", identity=fact.inserted_primary_key[0],  # type: ignore[index]
                    first_hour=475_000, last_hour=475_261,
                )
            )  # fmt: skip
            connection.execute(
                insert(latest).values(
                    agent=agent, gpu=ordinal, time=NOW, live=True, status="ok", temperature=615, memory_used=1 << 30,
                    gpu_utilization=905, memory_utilization=300, power_usage=35025, graphics_clock=1980,
                    throttle_reasons=4, coverage=10_000,
                )
            )  # fmt: skip
    record_change(store, agent)
    return agent


def set_latest(store: Store, agent: int, gpu: int, values: Mapping[str, Any]) -> None:
    """Change the newest values of a GPU, as a commit of the writer would."""
    with store.write() as connection:
        connection.execute(
            update(latest).where(latest.c.agent == agent, latest.c.gpu == gpu).values(**values)
        )
    record_change(store, agent)


def record_change(store: Store, agent: int) -> int:
    """Append to `changes` under the lock; the number of the change."""
    with store.write() as connection:
        store.lock_sequence(connection)
        seq = (connection.execute(select(func.max(changes.c.seq))).scalar() or 0) + 1
        connection.execute(insert(changes).values(seq=seq, time=NOW + seq, kind="samples", agent=agent))
        return int(seq)
