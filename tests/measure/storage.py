"""Bytes, and the times of single steps: one collection, one hour's rollup, one day's retention."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from gpu_monitor.agent.retain import Limits, Retention
from gpu_monitor.storage.database import Writer
from tests.measure.figures import Figure
from tests.measure.made import (
    DAY,
    HOUR,
    Life,
    Made,
    add_older_hours,
    make_store,
    only_the_twelve,
    settle_ledger,
)

GPUS = 8
YEAR_HOURS = 365 * 24
MEMORY_DISK = Path("/dev/shm")


class TimedWriter(Writer):
    """A writer that knows how long its longest transaction took, in seconds."""

    longest = 0.0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """As it is, and timed."""
        began = time.perf_counter()
        with super().transaction() as connection:
            yield connection
        self.longest = max(self.longest, time.perf_counter() - began)


def milliseconds(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and the longest, in ms."""
    ordered = sorted(seconds)
    ninety_ninth = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return statistics.median(ordered) * 1e3, ninety_ninth * 1e3, ordered[-1] * 1e3


def table_bytes(path: Path) -> dict[str, int]:
    """Bytes of each table and index by name (whole pages); empty where this SQLite cannot tell."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        try:
            return dict(connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
        except sqlite3.OperationalError:
            return {}


def bytes_figure(path: Path, minutes: int, limit: float, label: str, days: int) -> Figure:
    """Stored bytes per GPU-minute of a store that holds `minutes` of eight GPUs."""
    count = minutes * GPUS
    size = path.stat().st_size
    tables = table_bytes(path)
    largest = sorted(tables.items(), key=lambda one: -one[1])[:6]
    notes = [
        "the whole file: rows, hours, host rows, processes, ledger, indexes, free pages",
        "per GPU-minute: " + ", ".join(f"{name} {size / count:.1f} B" for name, size in largest),
        f"{days} days, {count:,} rows, file of {size / 1e6:.1f} MB, never vacuumed",
    ]
    what = f"stored bytes per GPU-minute, {label}"
    return Figure(what, limit, size / count, "B", 1, tuple(notes))


@contextmanager
def full_store(folder: Path, days: int, say: Callable[[str, float], None]) -> Iterator[tuple[Made, Figure]]:
    """A store as after a year: `days` of rows, 8,760 hours and their ledger; and its bytes before the year was added."""
    end = int(time.time()) // HOUR * HOUR
    start = end - days * DAY
    life = Life(GPUS, start)
    path = folder / "gpu_metrics.db"
    with make_store(path, start, life, writer_class=TimedWriter) as made:
        made.extend(end, lambda share: say(f"writing {days} days of 8 GPUs", share))
        made.writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
        figure = bytes_figure(path, days * 1440, 180, "all fields of an H100", days)
        add_older_hours(made.writer, start, YEAR_HOURS - days * 24)
        settle_ledger(made.writer, lambda share: say("filling the ledger of a year", share))
        made.writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
        yield made, figure


def twelve_bytes(folder: Path, days: int, say: Callable[[str, float], None]) -> Figure:
    """Bytes where the card gives the twelve default fields only."""
    end = int(time.time()) // HOUR * HOUR
    start = end - days * DAY
    path = folder / "twelve.db"
    with make_store(path, start, Life(GPUS, start, model="rtx4090", shape=only_the_twelve)) as made:
        made.extend(end, lambda share: say(f"writing {days} days of the twelve fields", share))
    return bytes_figure(path, days * 1440, 120, "only the twelve", days)


def collection_figure(count: int, say: Callable[[str, float], None]) -> Figure:
    """One collection stored, where a disk's fsync costs nothing."""
    what = "one collection stored (8 GPUs, one transaction, FULL), without the fsync"
    if not MEMORY_DISK.is_dir():
        return Figure(
            what, 3, None, "ms", 2, (f"there is no {MEMORY_DISK}: a disk's fsync would be measured",)
        )
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK, prefix="gpu_monitor-bench-") as folder:
        start = int(time.time()) // DAY * DAY - 2 * DAY
        with make_store(Path(folder) / "gpu_metrics.db", start, Life(GPUS, start)) as made:
            made.extend(start + DAY)
            taken = []
            for number in range(count):
                collection = made.life.next()
                began = time.perf_counter()
                made.store.write(collection)
                taken.append(time.perf_counter() - began)
                say("storing collections in memory", number / count)
    median, ninety_ninth, longest = milliseconds(taken)
    notes = (
        f"median of {count}; 99th percentile {ninety_ninth:.2f} ms, longest {longest:.2f} ms (checkpoints included)",
        "on a file system in memory, onto a day of rows, with processes and host",
    )
    return Figure(what, 3, median, "ms", 2, notes)


def rollup_figure(made: Made) -> Figure:
    """The hours that were rolled up while the store was made, each when it closed."""
    taken = made.rollup_seconds[-100:]
    median, _, longest = milliseconds(taken)
    notes = (
        f"median of the last {len(taken)} hours of the full store, longest {longest:.1f} ms; fsync included",
    )
    return Figure("rollup of one hour (8 GPUs)", 20, median, "ms", 1, notes)


def retention_figure(made: Made, scratch: Path) -> Figure:
    """Day after day past its age, on a copy of the full store."""
    copy = scratch / "retained.db"
    made.writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(made.path, copy)
    writer = TimedWriter(copy)
    days: list[tuple[int, float, str]] = []
    try:
        first = writer.value("SELECT min(id) >> 20 FROM samples_raw")
        rows = writer.value("SELECT count(*) FROM samples_raw")
        retention = Retention(writer, Limits((made.life.slot - first) / DAY, 365, None, has_server=True))
        retention.run(float(made.life.slot))
        writer.longest = 0.0
        for day in range(1, 8):
            began = time.perf_counter()
            removed = retention.run(float(made.life.slot + day * DAY))
            taken = time.perf_counter() - began
            told = ", ".join(f"{count} {name}" for name, count in removed.items())
            days.append((removed.get("samples_raw", 0), taken, told))
    finally:
        writer.close()
        copy.unlink()
    most = max(count for count, _, _ in days)
    whole = sorted((taken, told) for count, taken, told in days if count == most)
    taken, told = whole[len(whole) // 2]
    notes = (
        f"median of {len(whole)} whole days of a store of {rows:,} rows: {told}; longest {whole[-1][0] * 1e3:.0f} ms",
        f"the longest transaction, which is what a sample may wait for: {writer.longest * 1e3:.1f} ms; fsync included",
    )
    return Figure("retention of one day", 100, taken * 1e3, "ms", 1, notes)
