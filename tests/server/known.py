"""A small fleet whose every number is known, written straight into the server's tables.

Contract 100 has node-a with two NVIDIA GPUs and node-s with a simulated one; contract 200 has node-b with a GPU
without an energy counter and a MIG instance of it, and node-c, whose periods are two hours long. The hours are
FIRST to FIRST + 3, 100 hours before the hour of `now`. GPU-busy was in another slot in its first two hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, insert

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import (
    EVERYONE,
    aggregates,
    contracts,
    events,
    facts,
    fleet_hours,
    gaps,
    gpus,
    host_hours,
    latest,
    nodes,
    processes,
    quarantine,
    receipts,
    samples,
)

HOUR = 3600
GIB = 1 << 30
A, B, C, S = (f"00000000-0000-4000-8000-00000000000{letter}" for letter in "abcd")
BUSY, LAZY, PLAIN, PART, LONG, PRETENDED = (
    "GPU-busy",
    "GPU-lazy",
    "GPU-plain",
    "MIG-part",
    "GPU-long",
    "SIM-0",
)


@dataclass
class Row:
    """One GPU-hour in documented units; None is unknown."""

    uid: str
    hour: int  # from FIRST
    used: float | None
    power: float
    joules: float | None
    seconds: float = 3600.0
    idle: float | None = 0.0
    held: float | None = 0.0
    memory: int = 10 * GIB


def rows() -> Iterator[Row]:
    """Every aggregate."""
    for hour in range(4):
        yield Row(BUSY, hour, 80.0 + hour, 300.0, 1_080_000.0)
        half = hour == 2
        yield Row(LAZY, hour, 0.0, 60.0, 108_000.0 if half else 216_000.0, 1800.0 if half else 3600.0,
                  1800.0 if half else 3600.0, 900.0 if half else 3600.0)  # fmt: skip
        yield Row(PRETENDED, hour, 50.0, 200.0, 720_000.0)
    for hour in range(2):
        yield Row(PLAIN, hour, 40.0, 100.0, None, idle=600.0)
        yield Row(PART, hour, None, 50.0, None, idle=None, held=None)
    yield Row(LONG, 2, 20.0, 150.0, 1_080_000.0, 7200.0)


@dataclass
class Known:
    """Where the fleet stands in time, and the numbers that the database gave."""

    now: float
    agents: dict[str, int] = field(default_factory=dict)
    contracts: dict[str, int] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    identities: dict[str, int] = field(default_factory=dict)
    moved: int = 0

    @property
    def first(self) -> int:
        """FIRST, in hours since 1970."""
        return int(self.now // HOUR) - 100

    def at(self, hours: float) -> float:
        """UTC epoch s of a moment, from FIRST."""
        return (self.first + hours) * HOUR


_NODES = (
    (A, "node-a", "100", 3600),
    (B, "node-b", "200", 3600),
    (C, "node-c", "200", 7200),
    (S, "node-s", "100", 3600),
)
_GPUS = (
    (A, BUSY, "nvml", "NVIDIA H100", 0, None), (A, LAZY, "nvml", "NVIDIA H100", 1, None),
    (B, PLAIN, "nvml", "NVIDIA T4", 0, None), (B, PART, "nvml", "NVIDIA T4", None, PLAIN),
    (C, LONG, "nvml", "NVIDIA T4", 0, None), (S, PRETENDED, "simulated", "Simulated H100", 0, None),
)  # fmt: skip


def make_known(store: Store, now: float) -> Known:
    """Write it all; `now` is when the newest live sample ended."""
    known = Known(now)
    with store.write() as connection:
        for number in ("100", "200"):
            known.contracts[number] = _put(connection, contracts, number=number)
        for node in _NODES:
            _node(connection, known, *node)
        for gpu in _GPUS:
            _gpu(connection, known, *gpu)
    hours = {known.first + row.hour for row in rows()}
    times = [int(now) - 60 * minute for minute in range(1, 11)]
    store.make_room(hours, times, now=now)
    with store.write() as connection:
        for row in rows():
            _aggregate(connection, known, row)
        _receipts(connection, known)
        _fleet(connection, known)
        _samples(connection, known)
        _latest(connection, known)
        _told(connection, known)
    return known


def _put(connection: Connection, table: Any, **values: Any) -> int:
    made = connection.execute(insert(table).values(**values))
    return int(made.inserted_primary_key[0])


def _node(connection: Connection, known: Known, uuid: str, hostname: str, contract: str, period: int) -> None:
    speaks = uuid in (A, S)
    known.agents[uuid] = _put(
        connection, nodes, uuid=uuid, contract=known.contracts[contract], hostname=hostname, simulated=uuid == S,
        os="Linux", agent_version="0.1.0", driver_version="550.54.15", first_seen=known.at(0),
        last_report=known.at(4) + 60, last_live=known.now if speaks else None, last_hour=known.first + 3,
        period_seconds=period, longest_seconds=period, interval_seconds=60,
    )  # fmt: skip


def _gpu(
    connection: Connection,
    known: Known,
    node: str,
    uid: str,
    source: str,
    name: str,
    index: int | None,
    parent: str | None,
) -> None:
    agent = known.agents[node]
    ordinal = sum(place[0] == agent for place in known.places.values())
    body = {"uid": uid, "name": name, "pci_bus_id": f"0000:0{ordinal}:00.0", "memory_total": 80 * GIB, "index": index,
            "serial": "1", "minor_number": index, "parent_uid": parent}  # fmt: skip
    identity = known.identities[uid] = _fact(connection, body)
    if uid == BUSY:
        known.moved = _fact(connection, {**body, "index": 5, "pci_bus_id": "0000:55:00.0"})
    known.places[uid] = (agent, ordinal)
    connection.execute(
        insert(gpus).values(
            agent=agent, ordinal=ordinal, uid=uid, source=source, simulated=source == "simulated", name=name,
            identity=identity, first_hour=known.first, last_hour=known.first + 3,
        )
    )  # fmt: skip


def _fact(connection: Connection, body: dict[str, Any]) -> int:
    text = msgspec.json.encode(body).decode()
    return _put(connection, facts, digest=hashlib.sha256(text.encode()).digest()[:16], body=text)


def _tenths(value: float | None) -> int | None:
    return None if value is None else round(value * 10)


def _aggregate(connection: Connection, known: Known, row: Row) -> None:
    agent, ordinal = known.places[row.uid]
    period = 7200 if row.uid == LONG else 3600
    connection.execute(
        insert(aggregates).values(
            hour=known.first + row.hour, agent=agent, gpu=ordinal,
            identity=known.moved if row.uid == BUSY and row.hour < 2 else known.identities[row.uid], facts=1,
            samples=round(row.seconds / 60), expected_samples=period // 60,
            coverage=round(row.seconds / period * 10_000), seconds=_tenths(row.seconds), idle_seconds=_tenths(row.idle),
            held_idle_seconds=_tenths(row.held), energy_seconds=None if row.joules is None else _tenths(row.seconds),
            memory_used=row.memory, memory_used_lo=GIB, memory_used_hi=2 * GIB, gpu_utilization=_tenths(row.used),
            gpu_utilization_lo=None if row.used is None else min(100, round(row.used * 10)),
            gpu_utilization_hi=None if row.used is None else 50, power_usage=round(row.power * 100),
            power_usage_lo=1000, power_usage_hi=2000, energy=_tenths(row.joules),
            throttle_reasons=4 if row.uid == BUSY and row.hour == 1 else 1,
        )
    )  # fmt: skip


def _receipts(connection: Connection, known: Known) -> None:
    """node-a: the third hour half, the fourth 20 minutes late; node-b the first two hours; node-c one of two hours."""
    told = [(A, hour, 3600, 7500 if hour == 2 else 10_000) for hour in range(4)]
    told += [(B, hour, 3600, 10_000) for hour in range(2)] + [(C, 2, 7200, 10_000)]
    told += [(S, hour, 3600, 10_000) for hour in range(4)]
    for node, hour, period, coverage in told:
        after = 1200 if (node, hour) == (A, 3) else 60
        contract = known.contracts["100" if node in (A, S) else "200"]
        connection.execute(
            insert(receipts).values(
                agent=known.agents[node], hour=known.first + hour, contract=contract, period_seconds=period,
                interval_seconds=60, revision=1 + (hour == 2), body_digest=bytes([hour]) * 32, row_digest=bytes(32),
                body_bytes=7000, rows=2, quarantined=int((node, hour) == (A, 1)), coverage=coverage, simulated=node == S,
                received=known.at(hour) + period + after,
            )
        )  # fmt: skip


def _fleet(connection: Connection, known: Known) -> None:
    """The sums that the writer keeps, worked out from the rows one by one."""
    owners = {
        BUSY: "100",
        LAZY: "100",
        PRETENDED: "100",
        PLAIN: "200",
        LONG: "200",
    }  # an instance is part of its GPU
    numbers = {EVERYONE: {"100", "200"}, **{known.contracts[number]: {number} for number in ("100", "200")}}
    for hour in range(4):
        for contract, mine in numbers.items():
            for simulated in (False, True):
                held = [
                    row
                    for row in rows()
                    if row.hour == hour
                    and owners.get(row.uid) in mine
                    and (row.uid == PRETENDED) == simulated
                ]
                if held:
                    values = _fleet_row(known, hour, contract, simulated, held)
                    connection.execute(insert(fleet_hours).values(values))


def _fleet_row(known: Known, hour: int, contract: int, simulated: bool, mine: list[Row]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "hour": known.first + hour, "contract": contract, "simulated": simulated, "reports": 1,
        "gpus": len(mine), "seconds": sum(round(row.seconds * 10) for row in mine),
        "period_seconds": sum(7200 if row.uid == LONG else 3600 for row in mine),
        "idle_seconds": sum(_tenths(row.idle) or 0 for row in mine),
        "held_idle_seconds": sum(_tenths(row.held) or 0 for row in mine),
        "energy_seconds": sum(round(row.seconds * 10) for row in mine if row.joules is not None),
        "energy": sum(_tenths(row.joules) or 0 for row in mine),
        "energy_rows": sum(row.joules is not None for row in mine),
    }  # fmt: skip
    for name, scale, pick in (
        ("gpu_utilization", 10, lambda row: row.used),
        ("power_usage", 100, lambda row: row.power),
        ("memory_used", 1 / (1 << 20), lambda row: row.memory),
        ("temperature", 10, lambda row: None),
        ("memory_utilization", 10, lambda row: None),
    ):
        has = [row for row in mine if pick(row) is not None]
        values[f"{name}_sum"] = sum(round(pick(row) * scale) * round(row.seconds * 10) for row in has)
        values[f"{name}_seconds"] = sum(round(row.seconds * 10) for row in has)
    return values


def _samples(connection: Connection, known: Known) -> None:
    """Ten live minutes of GPU-busy up to now, 10 W more each; the fifth is missing."""
    agent, ordinal = known.places[BUSY]
    for minute in range(10):
        if minute != 4:
            connection.execute(
                insert(samples).values(
                    time=int(known.now) - 600 + 60 * minute, agent=agent, gpu=ordinal, seconds=600,
                    power_usage=(100 + 10 * minute) * 100, gpu_utilization=500, throttle_reasons=0,
                )
            )  # fmt: skip


def _latest(connection: Connection, known: Known) -> None:
    """node-a and node-s speak; GPU-lazy is hung; the others' newest values are days old."""
    for uid, (agent, ordinal) in known.places.items():
        is_live = uid in (BUSY, LAZY, PRETENDED)
        used = {BUSY: 905, LAZY: 0, PRETENDED: 500}.get(uid, 400)
        connection.execute(
            insert(latest).values(
                agent=agent, gpu=ordinal, time=known.now if is_live else known.at(4), live=is_live,
                status="driver hung" if uid == LAZY else "ok", temperature=615, memory_used=20 * GIB,
                gpu_utilization=used, power_usage=35_025, graphics_clock=1980, throttle_reasons=5, coverage=10_000, facts=1,
            )
        )  # fmt: skip


def _told(connection: Connection, known: Known) -> None:
    """Gaps, events, processes, a machine, an entry set aside."""
    agent = known.agents[A]
    for uid, start, stop, cause in ((LAZY, 2.5, 3.0, "gpu lost"), (None, 3.0, 3.25, "agent killed")):
        connection.execute(
            insert(gaps).values(
                hour=known.first + int(start), agent=agent, uid=uid, start=known.at(start), stop=known.at(stop), cause=cause
            )
        )  # fmt: skip
    for hour, kind, severity in (
        (0.5, "xid", "error"),
        (1.5, "agent_started", "info"),
        (1.5, "xid", "error"),
    ):
        connection.execute(
            insert(events).values(
                hour=known.first + int(hour), agent=agent, time=known.at(hour), uid=BUSY if kind == "xid" else None,
                kind=kind, severity=severity, message='=HYPERLINK("x")', detail='{"xid":79}' if kind == "xid" else None,
            )
        )  # fmt: skip
    for user, pid, seen in (
        ("ann", 7, ((0, 0.0, 1.0), (1, 0.0, 1.5))),
        ("bob", 8, ((1, 1.0, 2.0), (2, 1.0, 3.0))),
    ):
        for hour, first_seen, last_seen in seen:
            connection.execute(
                insert(processes).values(
                    hour=known.first + hour, agent=agent, uid=BUSY, pid=pid, kind="compute", user=user, command="python",
                    first_seen=known.at(first_seen) + 60, last_seen=known.at(last_seen), ended=last_seen % 1 != 0,
                    boot_id="boot", start_ticks=pid, memory_max=pid * GIB,
                )
            )  # fmt: skip
    connection.execute(
        insert(host_hours).values(
            hour=known.first + 3, agent=agent, samples=60, expected_samples=60, coverage=9950, seconds=35_820,
            cpu_utilization=125, cpu_utilization_lo=25, cpu_utilization_hi=875, network_rx=12,
        )
    )  # fmt: skip
    connection.execute(
        insert(quarantine).values(
            kind="entry", agent=agent, hour=known.first + 1, revision=1, uid=LAZY, field="temperature",
            reason="over 200", raw=b"{}", received=known.at(2),
        )
    )  # fmt: skip
