"""A store with hours in it, made by hand: what rollup leaves behind, without an agent."""

from __future__ import annotations

from pathlib import Path

from gpu_monitor.agent.identity import establish
from gpu_monitor.agent.ledger import refresh
from gpu_monitor.core.buckets import Period
from gpu_monitor.storage.database import Writer

HOUR = 3600
FIRST = 1_700_002_800
"""2023-11-14T23:00:00+00:00: the first hour of these stores."""


def make_store(folder: Path, *, machine: str | None = "machine-1", gpus: int = 1) -> Writer:
    """A store of one node with `gpus` GPUs and one run, before any hour."""
    writer = Writer(folder / "gpu_metrics.db")
    # What a power cut would lose is not what these stores are for.
    writer.maintain("PRAGMA synchronous = OFF")
    with writer.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO nodes (id, name, kind) VALUES (1, 'node-1', 'local')")
        connection.execute(
            "INSERT INTO runs (started, version, interval_seconds, hostname, os) VALUES (?, '0.1.0', 60, 'node-1', 'Linux')",
            (FIRST - 30,),
        )
        for number in range(1, gpus + 1):
            connection.execute(
                'INSERT OR IGNORE INTO gpus (id, node, uid, source, name, pci_bus_id, memory_total, "index", first_seen)'
                " VALUES (?, 1, ?, 'nvml', 'NVIDIA H100', ?, 85899345920, ?, ?)",
                (number, f"GPU-{number}", f"0000:0{number}:00.0", number - 1, FIRST),
            )
    establish(writer, machine, FIRST)
    return writer


def add_hour(writer: Writer, number: int = 0, *, gpus: int = 1, temperature: float = 50.0) -> Period:
    """Hour `number` (0: the one from FIRST), rolled up and in the ledger."""
    period = Period(FIRST + number * HOUR, HOUR)
    with writer.transaction() as connection:
        for gpu in range(1, gpus + 1):
            connection.execute(
                "INSERT OR REPLACE INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage, seconds,"
                " temperature, temperature_min, temperature_max, memory_used, energy, energy_seconds)"
                " VALUES (?, ?, 3600, 60, 60, 1.0, 3600.0, ?, ?, ?, 1073741824, 720000.5, 3600.0)",
                (period.start, gpu, temperature + number, temperature - 1, temperature + number + 1),
            )
        refresh(connection, 1, period, period.end)
    return period


def add_event(writer: Writer, period: Period, text: str = "late") -> None:
    """An event half way through `period`, found after it was closed."""
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO events (time, node, kind, severity, message) VALUES (?, 1, 'xid', 'warning', ?)",
            (period.start + 1800.5, text),
        )
        refresh(connection, 1, period, period.end + 60)
