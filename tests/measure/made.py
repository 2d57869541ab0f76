"""Makes stores of weeks: simulated GPUs through the collector into the agent's own store, faster than time.

The rows are those that an agent would have written: several rounds an interval, one collection each,
every hour rolled up when it closes. Only transactions are joined (an hour of intervals in one), so that
thirty days are not forty-three thousand waits for a disk.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_monitor import __version__
from gpu_monitor.agent.beat import reading_times, span_for
from gpu_monitor.agent.collect import Collection, Collector
from gpu_monitor.agent.identity import establish
from gpu_monitor.agent.ledger import Ledger, add_revision, refresh
from gpu_monitor.agent.recovery import Machine, begin_run
from gpu_monitor.agent.rollup import Rollup
from gpu_monitor.agent.store import LOCAL_NODE, Store
from gpu_monitor.cli.assembly import keep_plan, name_node
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.catalogue import DEFAULT_FIELDS, Reason
from gpu_monitor.core.model import HostReading, Round
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.sources.gpu.simulated import SimulatedSource
from gpu_monitor.storage.database import Writer
from tests.fakes.clock import FakeClock

INTERVAL, READING = 60, 10.0
HOUR, DAY = 3600, 86400
_LONGEST = 2.5 * READING


def only_the_twelve(found: Round) -> Round:
    """The round as a card would answer that gives the twelve default fields and nothing else."""
    devices = []
    for device in found.devices:
        values = {name: value for name, value in device.values.items() if name in DEFAULT_FIELDS}
        missing = dict.fromkeys(device.values.keys() - values.keys(), Reason.UNSUPPORTED)
        devices.append(replace(device, values=values, reasons={**device.reasons, **missing}))
    return replace(found, devices=tuple(devices))


class _Host:
    """A machine around the GPUs: levels that wander, counters that grow."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._counters = dict.fromkeys(("disk_read", "disk_write", "network_rx", "network_tx"), 0.0)
        self._memory = 300e9

    def read(self) -> HostReading:
        chance = self._chance
        for name in self._counters:
            self._counters[name] += chance.uniform(1e5, 5e9)
        self._memory = min(900e9, max(50e9, self._memory + chance.uniform(-4e9, 4e9)))
        return HostReading(
            {
                "cpu_utilization": chance.uniform(5, 60), "load_1m": chance.uniform(1, 40),
                "memory_used": self._memory, "memory_total": 1_081_101_176_832.0, "swap_used": 0.0,
                "disk_used": 4e11 + self._memory / 3, "disk_total": 3_840_755_982_336.0, **self._counters,
            }
        )  # fmt: skip


class Life:
    """Collections of simulated GPUs, one interval after another, as the beat makes them."""

    def __init__(
        self, gpus: int, start: int, *, model: str = "h100", seed: int = 1,
        shape: Callable[[Round], Round] = lambda found: found,
    ) -> None:  # fmt: skip
        self._source = SimulatedSource(gpus, model, seed=seed)
        self._collector = Collector(_LONGEST)
        self._host = _Host(seed)
        self._shape = shape
        self._before: float | None = None
        self.slot = start
        self._read(float(start), closes=False)

    def _read(self, at: float, closes: bool) -> None:
        found = self._source.read(at, span_for(at, self._before, closes))
        self._collector.add(self._shape(found), at)
        if closes or self._before is None:
            self._collector.add_host(self._host.read(), at)
        self._before = at

    def next(self) -> Collection:
        """The next interval."""
        times = reading_times(self.slot, INTERVAL, READING)
        for at in times:
            self._read(at, closes=at == times[-1])
        made = self._collector.close(self.slot, INTERVAL)
        self.slot += INTERVAL
        return made


@dataclass
class Made:
    """A store that is being made: `life` goes on where its rows end."""

    path: Path
    writer: Writer
    store: Store
    rollup: Rollup
    life: Life
    rollup_seconds: list[float] = field(default_factory=list)

    def extend(self, until: int, progress: Callable[[float], None] = lambda share: None) -> None:
        """Write every whole interval up to `until`; hours that close on the way are rolled up."""
        begun = self.life.slot
        while self.life.slot + INTERVAL <= until:
            with self.writer.transaction():
                hour_end = min((self.life.slot // HOUR + 1) * HOUR, until // INTERVAL * INTERVAL)
                while self.life.slot < hour_end:
                    self.store.write(self.life.next())
            if hour_end % HOUR == 0:
                began = time.perf_counter()
                self.rollup.run(hour_end, float(hour_end))
                self.rollup_seconds.append(time.perf_counter() - began)
            progress((self.life.slot - begun) / max(1, until - begun))

    def rows(self) -> int:
        """GPU rows in it."""
        return int(self.writer.value("SELECT count(*) FROM samples_raw"))

    def up_to_now(self) -> None:
        """Write the minutes that have passed since the last row."""
        self.extend(int(time.time()))
        self.writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def make_store(path: Path, start: int, life: Life, *, writer_class: type[Writer] = Writer) -> Iterator[Made]:
    """An empty store of this machine whose one run began at `start`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = writer_class(path)
    try:
        name_node(writer, "bench")
        establish(writer, "bench-machine", float(start))
        store = Store(writer, keep_plan(writer, 1, float(start)))
        begin_run(
            store, FakeClock(float(start)), Machine("bench-boot", float(start - DAY)), now=float(start),
            interval=INTERVAL, pid=1, version=__version__, describe="bench",
        )  # fmt: skip
        yield Made(path, writer, store, Rollup(writer, refresh, store.rolled_up), life)
    finally:
        writer.close()


def add_older_hours(writer: Writer, first: int, hours: int) -> None:
    """Aggregates of the `hours` before `first`: those that are there, again and again, further back."""
    known = writer.value("SELECT count(*) FROM periods WHERE node = 1 AND start >= ?", (first,)) * HOUR
    tables = {"aggregates": "period", "host_aggregates": "period", "periods": "start"}
    with writer.transaction() as connection:
        for table, key in tables.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(f'"{name}"' for name in columns if name != key)
            for back in range(known, hours * HOUR + known, known):
                connection.execute(
                    f'INSERT INTO {table} ("{key}", {others}) SELECT "{key}" - ?, {others} FROM {table}'
                    f' WHERE "{key}" >= ? AND "{key}" - ? >= ?',
                    (back, first, back, first - hours * HOUR),
                )


def settle_ledger(writer: Writer, progress: Callable[[float], None] = lambda share: None) -> int:
    """Every period sent and acknowledged, one in ten after a first failure; returns how many there are."""
    ledger = Ledger(writer, "12345", 60)
    periods = writer.rows("SELECT start, seconds FROM periods WHERE node = ? ORDER BY start", (LOCAL_NODE,))
    for place in range(0, len(periods), 24):
        with writer.transaction() as connection:
            for number, (start, seconds) in enumerate(periods[place : place + 24], place):
                _settle(connection, ledger, Period(start, seconds), fails=number % 10 == 0)
        progress((place + 24) / len(periods))
    return len(periods)


def _settle(connection: sqlite3.Connection, ledger: Ledger, period: Period, *, fails: bool) -> None:
    now = float(period.end + 60)
    row = connection.execute(
        "SELECT id, state FROM reports WHERE node = ? AND period = ? ORDER BY revision DESC LIMIT 1",
        (LOCAL_NODE, period.start),
    ).fetchone()
    if row is None:
        add_revision(connection, LOCAL_NODE, period, now, "content")
        row = connection.execute("SELECT max(id), 'pending' FROM reports").fetchone()
    if row[1] != "pending":
        return
    if fails:
        tries = ledger.begin([row[0]], now, 1 << 20)
        ledger.finish(
            tries,
            [Outcome(Verdict.RETRY, status=503, error="503 Service Unavailable")],
            now + 1,
            lambda *_: 1.0,
        )
    tries = ledger.begin([row[0]], now + 5, 1 << 20)
    done = Outcome(Verdict.ACKNOWLEDGED, status=200, uid=f"uid-{period.start}", proof="digest")
    ledger.finish(tries, [done], now + 6, lambda *_: None)
