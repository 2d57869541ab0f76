"""Makes a server's database of a year: many GPUs, every hour, written by SQLite itself as fast as it can.

The rows are shaped as those of full H100 nodes: what such cards do not give is null, extremes lie near
the mean, one hour in three a GPU idles, a fifth of those with memory held. Values follow from hour and
GPU alone, so that the same call makes the same database.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy.engine import make_url

from gpu_monitor.core.catalogue import SAMPLED, Metric
from gpu_monitor.server.store.engine import open_store
from gpu_monitor.server.store.schema import (
    EVERYONE,
    FLEET_UNITS,
    LIVE_METRICS,
    aggregates,
    fleet_hours,
    has_extremes,
    scale_of,
)

GPUS_PER_NODE = 8
_ABSENT = {"fan_speed", "nvlink_rx", "nvlink_tx", "sm_active", "tensor_active", "dram_active"}
# In documented units: the least value, and how much more it may be.
_RANGES = {
    "temperature": (35, 40), "memory_used": (2_000_000_000, 70_000_000_000), "gpu_utilization": (0, 100),
    "memory_utilization": (0, 60), "power_usage": (70, 600), "graphics_clock": (345, 1600),
    "memory_clock": (2619, 0), "memory_free": (2_000_000_000, 70_000_000_000), "memory_temperature": (45, 40),
    "power_instant": (70, 600), "energy": (250_000, 2_000_000), "sm_clock": (345, 1600), "video_clock": (765, 800),
    "encoder_utilization": (0, 0), "decoder_utilization": (0, 0), "pcie_rx": (0, 2_000_000_000),
    "pcie_tx": (0, 2_000_000_000), "throttle_reasons": (0, 4), "throttle_time": (0, 60),
}  # fmt: skip


@dataclass(frozen=True)
class Year:
    """How much: `gpus` over `hours` until `last_hour` (UTC epoch s // 3600), under `contracts` customers."""

    gpus: int = 1000
    hours: int = 8760
    last_hour: int = 482_000
    contracts: int = 4
    live_minutes: int = 60


def questions(year: Year) -> tuple[tuple[str, str, float], ...]:
    """What the year is asked, over HTTP: name, path, and the milliseconds that an answer may take."""
    end = (year.last_hour + 1) * 3600
    month, week, whole = (f"from={end - days * 86400}&to={end}" for days in (30, 7, year.hours // 24))
    uid = f"GPU-00000000-0000-4000-9000-{year.gpus // 2:012d}"
    return (
        ("fleet now", "/api/fleet", 15),
        ("one GPU 30 days", f"/api/series?metric=gpu_utilization&gpu={uid}&{month}", 15),
        ("top 50 idle of 7 days", f"/api/usage/idle?limit=50&{week}", 100),
        ("fleet per hour for a year", f"/api/series?metric=gpu_utilization&{whole}", 15),
    )


def make_year(path: Path, year: Year) -> None:
    """Write the database to `path`, which must not be there yet."""
    open_store(make_url(f"sqlite:///{path}")).close()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-262144", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        _who(connection, year)
        first = year.last_hour - year.hours + 1
        for hour in range(first, year.last_hour + 1):
            _hour(connection, hour)
        _samples(connection, year)
        _latest(connection, year)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("ANALYZE")
    finally:
        connection.close()


def _who(connection: sqlite3.Connection, year: Year) -> None:
    first = year.last_hour - year.hours + 1
    began, ended = first * 3600.0, (year.last_hour + 1) * 3600.0
    connection.executemany(
        "INSERT INTO contracts (id, number) VALUES (?, ?)",
        [(n, str(1000 + n)) for n in range(1, year.contracts + 1)],
    )
    count = -(-year.gpus // GPUS_PER_NODE)
    connection.executemany(
        "INSERT INTO nodes (id, uuid, contract, hostname, simulated, os, agent_version, driver_version, first_seen,"
        " last_report, last_live, last_hour, period_seconds, longest_seconds, interval_seconds)"
        " VALUES (?,?,?,?,0,?,?,?,?,?,?,?,3600,3600,60)",
        [
            (
                n, f"00000000-0000-4000-8000-{n:012d}", 1 + n % year.contracts, f"gpu-{n:04d}", "Linux", "0.1.0",
                "550.54.15", began, ended + 60, ended + 60, year.last_hour,
            )
            for n in range(1, count + 1)
        ],
    )  # fmt: skip
    connection.execute("INSERT INTO facts (id, digest, body) VALUES (1, x'00', ?)", (_STATES,))
    for number in range(year.gpus):
        agent, ordinal, identity = number // GPUS_PER_NODE + 1, number % GPUS_PER_NODE, number + 2
        uid = f"GPU-00000000-0000-4000-9000-{number:012d}"
        body = {
            "uid": uid, "pci_bus_id": f"00000000:{0x18 + ordinal:02X}:00.0", "name": "NVIDIA H100 80GB HBM3",
            "memory_total": 85_520_809_984, "index": ordinal, "serial": str(165_000_000 + number),
            "minor_number": ordinal, "parent_uid": None, "mig_instance": None, "memory_kind": "dedicated",
        }  # fmt: skip
        connection.execute(
            "INSERT INTO facts (id, digest, body) VALUES (?, ?, ?)",
            (identity, identity.to_bytes(16, "big"), msgspec.json.encode(body).decode()),
        )
        connection.execute(
            "INSERT INTO gpus (agent, ordinal, uid, source, simulated, name, identity, first_hour, last_hour)"
            " VALUES (?, ?, ?, 'nvml', 0, ?, ?, ?, ?)",
            (agent, ordinal, uid, body["name"], identity, first, year.last_hour),
        )


_STATES = msgspec.json.encode(
    {
        "states": {"driver_version": "550.54.15", "power_limit": 700, "memory_reserved": 500_000_000},
        "reasons": {"fan_speed": "unsupported"},
    }
).decode()


def _wave(metric: Metric, spread: str) -> str:
    """SQL of a scaled value that depends on hour `h` and identity `g.identity`; 0 in idle hours for shares."""
    low, more = (round(part * scale_of(metric)) for part in _RANGES[metric.name])
    steps = f"({spread}) % 997"
    value = f"{low} + {more} * ({steps}) / 997"
    return f"CASE WHEN idle THEN {low} ELSE {value} END"


def _row_sql() -> tuple[list[str], list[str]]:
    names: list[str] = [
        "hour",
        "agent",
        "gpu",
        "identity",
        "facts",
        "samples",
        "expected_samples",
        "coverage",
    ]
    values = ["h", "agent", "ordinal", "identity", "1", "60", "60", "10000"]
    names += ["seconds", "idle_seconds", "held_idle_seconds", "energy_seconds"]
    values += ["36000", "CASE WHEN idle THEN 36000 ELSE (h * 7 + identity) % 900 END"]
    values += ["CASE WHEN idle AND identity % 5 = 0 THEN 36000 ELSE 0 END", "36000"]
    for number, metric in enumerate(m for m in SAMPLED if m.name not in _ABSENT):
        names.append(metric.name)
        values.append(_wave(metric, f"h * {number + 3} + identity * {2 * number + 11}"))
        if has_extremes(metric) and _RANGES[metric.name][1]:
            names += [f"{metric.name}_lo", f"{metric.name}_hi"]
            low, more = (round(part * scale_of(metric)) for part in _RANGES[metric.name])
            values += [f"({values[-1]} - {low}) / 29", f"({low + more} - {values[-1]}) / 31"]
    return names, values


_NAMES, _VALUES = _row_sql()
_INSERT = (
    f"INSERT INTO aggregates ({', '.join(_NAMES)}) SELECT {', '.join(_VALUES)} FROM"
    " (SELECT ? AS h, agent, ordinal, identity, (? / 4 + identity * 7) % 3 = 0 AS idle FROM gpus ORDER BY agent, ordinal)"
)
_SUMMED = ("gpu_utilization", "memory_utilization", "power_usage", "temperature", "memory_used")
_FLEET = (
    f"INSERT INTO fleet_hours ({', '.join(column.name for column in fleet_hours.c)})"
    " SELECT a.hour, n.contract, 0, count(DISTINCT a.agent), count(*), sum(a.seconds), 3600 * count(*),"
    " sum(a.idle_seconds), sum(a.held_idle_seconds), sum(a.energy_seconds), sum(a.energy), count(a.energy), "
    + ", ".join(f"sum(a.{name} / {FLEET_UNITS.get(name, 1)} * a.seconds), sum(a.seconds)" for name in _SUMMED)
    + " FROM aggregates a JOIN nodes n ON n.id = a.agent WHERE a.hour = ? GROUP BY n.contract"
)


_ALL = (
    f"INSERT INTO fleet_hours ({', '.join(column.name for column in fleet_hours.c)}) SELECT hour, {EVERYONE}, simulated, "
    + ", ".join(f"sum({column.name})" for column in list(fleet_hours.c)[3:])
    + " FROM fleet_hours WHERE hour = ? GROUP BY hour, simulated"
)


def _hour(connection: sqlite3.Connection, hour: int) -> None:
    connection.execute(_INSERT, (hour, hour))
    connection.execute(_FLEET, (hour,))
    connection.execute(_ALL, (hour,))
    connection.execute(
        "INSERT INTO receipts (agent, hour, contract, period_seconds, interval_seconds, revision, body_digest, row_digest,"
        " body_bytes, rows, quarantined, coverage, simulated, received)"
        " SELECT id, ?, contract, 3600, 60, 1, randomblob(32), randomblob(32), 7000, 8, 0, 10000, 0, ? FROM nodes",
        (hour, (hour + 1) * 3600.0 + 60),
    )


def _samples(connection: sqlite3.Connection, year: Year) -> None:
    """The last minutes, live."""
    names = [m.name for m in LIVE_METRICS if m.name not in _ABSENT]
    end = (year.last_hour + 1) * 3600
    for minute in range(end - 60 * year.live_minutes, end, 60):
        connection.execute(
            f"INSERT INTO samples (time, agent, gpu, seconds, {', '.join(names)})"
            f" SELECT ?, agent, gpu, 600, {', '.join(names)} FROM aggregates WHERE hour = ? ORDER BY agent, gpu",
            (minute, year.last_hour),
        )


def _latest(connection: sqlite3.Connection, year: Year) -> None:
    names = ", ".join(m.name for m in LIVE_METRICS)
    connection.execute(
        f"INSERT INTO latest (agent, gpu, time, live, status, {names}, coverage, facts)"
        f" SELECT agent, gpu, ?, 1, 'ok', {names}, coverage, facts FROM aggregates WHERE hour = ?",
        ((year.last_hour + 1) * 3600.0 + 60, year.last_hour),
    )


def row_count(path: Path) -> int:
    """How many GPU-hours the database holds."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {aggregates.name}").fetchone()[0])
    finally:
        connection.close()
