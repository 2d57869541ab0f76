"""What watching costs: CPU of the thread that judges, by the scheduler's count. Linux only.

`python -m tests.measure.server_alerts [NODES ...]`: fleets of that many nodes with 8 GPUs in a SQLite file, with
three hours of reports and ten live minutes of each GPU, judged by the built-in rules after everything changed.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from gpu_monitor.server.alerts.engine import Engine, Setting
from gpu_monitor.server.alerts.record import Audience
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.leader import Leadership
from gpu_monitor.server.store.schema import (
    aggregates,
    alerts,
    changes,
    contracts,
    facts,
    gpus,
    host_hours,
    latest,
    nodes,
    receipts,
    samples,
)
from tests.fakes.clock import FakeClock

HOUR = 3600
GPUS = 8
NOW = 1_710_943_200.0 + 120  # two minutes past the hour
LAST = int(NOW) // HOUR - 1
_MINUTES = 10
_HELD = 0.1
"""Share of GPUs, in the second fleet of each size, that somebody holds and leaves idle: each of them has an alert."""
_GIB = 1 << 30


def thread_ms() -> float:
    """CPU time of this thread so far, in ms."""
    words = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    return int(words[0]) / 1e6


@dataclass
class Fleet:
    """Nodes in a database, and the engine that watches them."""

    store: Store
    count: int
    share: float = _HELD

    def __post_init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.draw = random.Random(7)
        self.held: set[tuple[int, int]] = set()
        lead = Leadership(self.store)
        assert lead.take()
        setting = Setting(lambda _: Audience(), list, lambda _: None)
        self.engine = Engine(self.store, self.clock, lead, setting, OwnMetrics())
        with self.store.write() as connection:
            self._fill(connection)
        self.engine.lead()

    def _fill(self, connection: Connection) -> None:
        connection.execute(insert(contracts).values(id=1, number="12345"))
        connection.execute(insert(facts).values(id=1, digest=b"f" * 16, body="{}"))
        agents = range(1, self.count + 1)
        pairs = [(agent, gpu) for agent in agents for gpu in range(GPUS)]
        self.held = {pair for pair in pairs if self.draw.random() < self.share}
        connection.execute(insert(nodes), [
            {"id": agent, "uuid": f"00000000-0000-4000-8000-{agent:012x}", "contract": 1, "hostname": f"host-{agent}",
             "simulated": False, "first_seen": NOW - 86400, "last_report": NOW - 60, "last_live": NOW - 5,
             "last_hour": LAST, "period_seconds": HOUR, "interval_seconds": 60, "skew_seconds": 0.1,
             "skew_measured": NOW - 60} for agent in agents
        ])  # fmt: skip
        connection.execute(insert(gpus), [
            {"agent": agent, "ordinal": gpu, "uid": f"GPU-{agent}-{gpu}", "source": "nvml", "simulated": False,
             "name": "NVIDIA H100", "identity": 1, "first_hour": 0, "last_hour": LAST} for agent, gpu in pairs
        ])  # fmt: skip
        connection.execute(insert(latest), [
            {"agent": agent, "gpu": gpu, "time": NOW - 5, "live": True, "status": "ok"} for agent, gpu in pairs
        ])  # fmt: skip
        for hour in range(LAST - 2, LAST + 1):
            self._hour(connection, hour, pairs)
        for minute in range(_MINUTES, 0, -1):
            self.minute(connection, NOW - 60 * minute)

    def _hour(self, connection: Connection, hour: int, pairs: list[tuple[int, int]]) -> None:
        came = float((hour + 1) * HOUR + 60)
        plain = {"hour": hour, "contract": 1, "period_seconds": HOUR, "interval_seconds": 60, "revision": 1,
                 "body_digest": b"b" * 32, "row_digest": b"r" * 32, "body_bytes": 7000, "rows": GPUS,
                 "quarantined": 0, "simulated": False, "received": came}  # fmt: skip
        connection.execute(
            insert(receipts), [{"agent": agent, **plain} for agent in range(1, self.count + 1)]
        )
        connection.execute(insert(host_hours), [
            {"hour": hour, "agent": agent, "disk_used": 100 * _GIB, "disk_total": 900 * _GIB}
            for agent in range(1, self.count + 1)
        ])  # fmt: skip
        rows = []
        for agent, gpu in pairs:
            is_held = (agent, gpu) in self.held
            rows.append(
                {"hour": hour, "agent": agent, "gpu": gpu, "identity": 1, "facts": 1, "seconds": 36000,
                 "coverage": 10000, "idle_seconds": 36000 * is_held, "held_idle_seconds": 36000 * is_held,
                 **self._values(is_held), "temperature_lo": 30, "temperature_hi": 25, "throttle_time": 0}
            )  # fmt: skip
        connection.execute(insert(aggregates), rows)

    def minute(self, connection: Connection, start: float) -> None:
        """A live minute of every GPU."""
        connection.execute(insert(samples), [
            {"time": int(start), "agent": agent, "gpu": gpu, "seconds": 600,
             **self._values((agent, gpu) in self.held)}
            for agent in range(1, self.count + 1) for gpu in range(GPUS)
        ])  # fmt: skip

    def _values(self, is_held: bool) -> dict[str, Any]:
        warm = self.draw.randrange(300, 850)
        return {"temperature": warm, "gpu_utilization": 0 if is_held else self.draw.randrange(100, 1000),
                "memory_used": 40 * _GIB, "power_usage": 40_000, "throttle_reasons": 0}  # fmt: skip

    def changed(self, kind: str) -> None:
        """The same kind of news of every node."""
        with self.store.write() as connection:
            newest = connection.execute(select(func.max(changes.c.seq))).scalar() or 0
            connection.execute(insert(changes), [
                {"seq": newest + agent, "time": self.clock.now(), "kind": kind, "agent": agent, "hour": LAST}
                for agent in range(1, self.count + 1)
            ])  # fmt: skip

    def next_minute(self) -> None:
        """A minute passes, and a live minute of everything comes."""
        self.clock.advance(60)
        with self.store.write() as connection:
            self.minute(connection, self.clock.now() - 60)
            connection.execute(update(nodes).values(last_live=self.clock.now()))
            connection.execute(update(latest).values(time=self.clock.now()))
        self.changed("samples")

    def turns(self) -> float:
        """CPU of this thread until all that is new is judged, in ms."""
        began = thread_ms()
        self.engine.turn()
        while not self.engine.is_idle:
            self.clock.advance(1)
            self.engine.turn()
        return thread_ms() - began


@contextlib.contextmanager
def fleet_of(count: int, folder: Path, share: float = _HELD) -> Iterator[Fleet]:
    """A fleet in a database of its own."""
    store = open_store(f"sqlite:///{folder / 'server.db'}")
    try:
        yield Fleet(store, count, share)
    finally:
        store.close()


def measure(count: int, share: float) -> None:
    """Print the costs of a fleet."""
    with tempfile.TemporaryDirectory() as folder, fleet_of(count, Path(folder), share) as fleet:

        def say(what: str, spent: float) -> None:
            print(
                f"{count} nodes, {share:.0%} of GPUs held idle, {what}: {spent / count:.3f} ms a node",
                flush=True,
            )

        say("the first look at everything", fleet.turns())
        fleet.changed("report")
        say("a report of each", fleet.turns())
        for _ in range(2):
            fleet.next_minute()
            say("a live minute of each", fleet.turns())
        with fleet.store.read() as connection:
            active = connection.execute(
                select(alerts.c.rule, alerts.c.state, func.count()).group_by(alerts.c.rule, alerts.c.state)
            ).all()
        print("   alerts:", sorted(tuple(row) for row in active), f"of {len(fleet.held)} held GPUs")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    for text in sys.argv[1:] or ["500", "5000"]:
        for share in (0.0, _HELD):
            measure(int(text), share)
