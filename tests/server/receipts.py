"""Receipts with their rows, written straight into the tables with digests that fit, for tests of the storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select

from gpu_monitor.server.store import digest
from gpu_monitor.server.store.digest import GpuPart, fact_digest, row_digest
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import (
    aggregates,
    contracts,
    events,
    facts,
    gaps,
    gpus,
    host_hours,
    nodes,
    processes,
    receipts,
)

HOUR = 475_000  # 2024-03-09T16:00:00Z
NOW = HOUR * 3600.0
STATES = '{"states":{"power_limit":700},"reasons":{}}'


class Fleet:
    """Writes reports of nodes with two GPUs each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.write() as connection:
            made = connection.execute(insert(contracts).values(number="12345"))
            self._contract = made.inserted_primary_key[0]  # type: ignore[index]
            made = connection.execute(insert(facts).values(digest=fact_digest(STATES), body=STATES))
            self._states = made.inserted_primary_key[0]  # type: ignore[index]
        self._identities: dict[tuple[int, int], int] = {}
        self._uuids: dict[int, str] = {}

    def add_node(self, uuid: str) -> int:
        """A node with two GPUs; its number."""
        with self._store.write() as connection:
            made = connection.execute(
                insert(nodes).values(uuid=uuid, contract=self._contract, simulated=False, first_seen=NOW)
            )
            agent = int(made.inserted_primary_key[0])  # type: ignore[index]
            self._uuids[agent] = uuid
            for ordinal in range(2):
                body = f'{{"uid":"{uuid}-{ordinal}","index":{ordinal}}}'
                made = connection.execute(insert(facts).values(digest=fact_digest(body), body=body))
                self._identities[agent, ordinal] = made.inserted_primary_key[0]  # type: ignore[index]
                connection.execute(
                    insert(gpus).values(
                        agent=agent, ordinal=ordinal, uid=f"{uuid}-{ordinal}", source="nvml", simulated=False,
                        name="H100", first_hour=HOUR, last_hour=HOUR,
                    )
                )  # fmt: skip
        return agent

    def add_report(self, agent: int, hour: int) -> None:
        """A report of an hour, with a row of each kind."""
        start, uuid = hour * 3600.0, self._uuids[agent]
        values = [
            tuple(hour % 1000 + at + ordinal for at in range(len(digest.AGGREGATE_COLUMNS)))
            for ordinal in (0, 1)
        ]
        host = tuple(range(7, 7 + len(digest.HOST_COLUMNS)))
        gap = (None, start, start + 60, "agent_down", None)
        event = (start + 5, f"{uuid}-0", "xid", "error", "Xid 79 – fällt aus", '{"code":79}')
        process = (
            f"{uuid}-0",
            7,
            "compute",
            start,
            start + 9,
            True,
            1 << 40,
            "boot",
            None,
            "ann",
            *[None] * 4,
            5,
            1 << 33,
        )
        parts = [
            GpuPart(f"{uuid}-{n}", "nvml", fact_digest(f'{{"uid":"{uuid}-{n}","index":{n}}}'), fact_digest(STATES),
                    None, values[n])
            for n in (0, 1)
        ]  # fmt: skip
        sealed = row_digest(uuid, hour, parts, host, [gap], [event], [process])
        self._store.make_room([hour], now=NOW)
        with self._store.write() as connection:
            for ordinal in (0, 1):
                row = _named(digest.AGGREGATE_COLUMNS, values[ordinal], hour, agent)
                identity = self._identities[agent, ordinal]
                connection.execute(
                    insert(aggregates), {**row, "gpu": ordinal, "identity": identity, "facts": self._states}
                )
            connection.execute(insert(host_hours), _named(digest.HOST_COLUMNS, host, hour, agent))
            connection.execute(insert(gaps), _named(digest.GAP_COLUMNS, gap, hour, agent))
            connection.execute(insert(events), _named(digest.EVENT_COLUMNS, event, hour, agent))
            connection.execute(insert(processes), _named(digest.PROCESS_COLUMNS, process, hour, agent))
            connection.execute(
                insert(receipts).values(
                    agent=agent, hour=hour, contract=self._contract, period_seconds=3600, interval_seconds=60,
                    revision=1, body_digest=b"b" * 32, row_digest=sealed, body_bytes=1000, rows=2, quarantined=0,
                    simulated=False, received=start + 3700,
                )
            )  # fmt: skip


def _named(columns: Sequence[str], values: Sequence[Any], hour: int, agent: int) -> dict[str, Any]:
    return {**dict(zip(columns, values, strict=True)), "hour": hour, "agent": agent}


def count(store: Store, table: Any) -> int:
    """How many rows a table has."""
    with store.read() as connection:
        return len(connection.execute(select(table)).fetchall())
