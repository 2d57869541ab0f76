"""Stores with rows in them, made by hand: what each row holds follows from its place, so a test can say it again."""

from __future__ import annotations

from pathlib import Path

from gpu_monitor.storage.database import Writer, insert_sql
from gpu_monitor.storage.tables import sample_columns, sample_key

START = 1_774_000_800
"""2026-03-20T10:00:00Z, a full hour."""
COLUMNS = ["id", "seconds", *sample_columns()]


def value_at(start: int, gpu: int, column: int) -> int | None:
    """What `fill` puts into a column; every eleventh is null."""
    mixed = (start // 60 * 31 + gpu * 17 + column * 7) * 2_654_435_761 % (1 << 32)
    return None if column % 11 == 10 else mixed % 70_000


def sample_row(start: int, gpu: int, era: int = 0) -> tuple[int | None, ...]:
    """One row of `samples_raw`."""
    values = (value_at(start, gpu, column) for column in range(len(COLUMNS) - 2))
    return (sample_key(start, era, gpu), 600, *values)


def fill(
    writer: Writer, intervals: int, gpus: int = 8, start: int = START, interval: int = 60, batch: int = 600
) -> None:
    """Rows of `intervals` intervals for GPUs 1 to `gpus`, a run, hours, events, states and a little ledger."""
    with writer.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO nodes VALUES (1, 'here', 'local', NULL)")
        connection.execute(
            "INSERT INTO runs (started, interval_seconds, pid) VALUES (?, ?, 1)", (start, interval)
        )
        for gpu in range(1, gpus + 1):
            connection.execute(
                "INSERT OR IGNORE INTO gpus (id, node, uid, source, name, memory_total, first_seen)"
                " VALUES (?, 1, ?, 'nvml', 'NVIDIA H100', 85520809984, ?)",
                (gpu, f"GPU-{gpu:04d}", start),
            )
            connection.execute(
                "INSERT OR IGNORE INTO states VALUES (?, 'driver_version', ?, '550.54')", (gpu, start)
            )
    sql = insert_sql("samples_raw", COLUMNS)
    for first in range(0, intervals, batch):
        starts = range(start + first * interval, start + min(first + batch, intervals) * interval, interval)
        with writer.transaction() as connection:
            connection.executemany(sql, [sample_row(at, gpu) for at in starts for gpu in range(1, gpus + 1)])
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('data_end', ?)", (float(starts[-1] + interval),)
            )
    hours(writer, start // 3600 * 3600, start + intervals * interval, gpus)


def hours(writer: Writer, start: int, end: int, gpus: int = 8, state: str = "sent") -> None:
    """Aggregates, periods, reports and attempts of every hour in [start, end)."""
    with writer.transaction() as connection:
        for period in range(start, end, 3600):
            connection.execute("INSERT OR IGNORE INTO periods VALUES (1, ?, 3600, 0, NULL)", (period,))
            connection.executemany(
                "INSERT OR IGNORE INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage,"
                " seconds, temperature) VALUES (?, ?, 3600, 60, 60, 1.0, 3600.0, 55.5)",
                [(period, gpu) for gpu in range(1, gpus + 1)],
            )
            report = connection.execute(
                "INSERT INTO reports (node, period, period_seconds, revision, state, changed)"
                " VALUES (1, ?, 3600, 1, ?, ?)",
                (period, state, period + 3700),
            ).lastrowid
            connection.execute(
                "INSERT INTO attempts (report, number, started) VALUES (?, 1, ?)", (report, period + 3650)
            )
            connection.execute(
                "INSERT INTO events (time, node, kind, severity, message) VALUES (?, 1, 'note', 'info', ?)",
                (period + 1, f"hour {period}"),
            )


def make_store(path: Path, intervals: int, gpus: int = 8) -> Path:
    """A closed store of `intervals` minutes."""
    writer = Writer(path)
    fill(writer, intervals, gpus)
    writer.close()
    return path
