"""Stores made by hand for tests, written through the agent's own store, one call per stretch of minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpu_monitor.agent.collect import Absence, Collection, GpuRow
from gpu_monitor.agent.rollup import Rollup
from gpu_monitor.agent.store import Store
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.model import Event, GpuProcess, Identity
from gpu_monitor.storage.database import Writer

HOUR = 1_710_943_200  # 2024-03-20T14:00:00Z
GIB = 1 << 30
CARD = Identity("GPU-aaaaaaaa-1111-2222-3333-444444444444", "nvml", "Card", "00000000:01:00.0", 80 * GIB, 0)
OTHER = Identity("GPU-bbbbbbbb-1111-2222-3333-444444444444", "nvml", "Card", "00000000:02:00.0", 80 * GIB, 1)
PRETENDED = Identity("SIM-cccccccc-0", "simulated", "H100", "00000000:03:00.0", 80 * GIB, 0)

Devices = Mapping[Identity, Mapping[str, float]]


class MadeStore:
    """A store at `path` with one run of 60 s intervals on record; close it before it is read."""

    def __init__(self, path: Path, interval: int = 60, started: float = HOUR - 86400) -> None:
        self.path = path
        self.interval = interval
        self.writer = Writer(path)
        with self.writer.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO nodes VALUES (1, 'here', 'local', NULL)")
            connection.execute(
                "INSERT INTO runs (started, interval_seconds) VALUES (?, ?)", (started, interval)
            )
        self.store = Store(self.writer, PeriodPlan())

    def minutes(
        self,
        start: int,
        count: int,
        devices: Devices,
        processes: Mapping[str, tuple[GpuProcess, ...]] | None = None,
        seconds: float | None = None,
    ) -> MadeStore:
        """`count` intervals from `start` on, each GPU with the same values in all of them."""
        lasted = seconds or float(self.interval)
        with self.writer.transaction():
            for number in range(count):
                begin = start + number * self.interval
                rows = tuple(
                    GpuRow(identity, lasted, values, {}, {}, (processes or {}).get(identity.uid))
                    for identity, values in devices.items()
                )
                self.store.write(Collection(begin, self.interval, begin + lasted, rows))
        return self

    def write(self, collection: Collection) -> MadeStore:
        """One collection as it is."""
        self.store.write(collection)
        return self

    def record(self, *things: Event | Absence) -> MadeStore:
        """Events and gaps."""
        self.store.record(
            [one for one in things if isinstance(one, Event)],
            [one for one in things if isinstance(one, Absence)],
        )
        return self

    def roll_up(self, until: float) -> MadeStore:
        """Roll up every period that ends by `until`."""
        rollup = Rollup(self.writer, lambda *_: None, self.store.rolled_up)
        while rollup.run(until, until):
            pass
        return self

    def prune_rows(self) -> MadeStore:
        """Delete every row of an interval, as retention does once they are past their age."""
        with self.writer.transaction() as connection:
            connection.execute("DELETE FROM samples_raw")
        return self

    def close(self) -> Path:
        """Close it; returns its path."""
        self.writer.close()
        return self.path
