"""What is let go of and what never: on stores made by hand, over months of simulated days."""

from __future__ import annotations

import itertools
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.agent.cap import Cap
from gpu_monitor.agent.retain import Limits, Retention
from gpu_monitor.agent.rollup import roll_up
from gpu_monitor.core.buckets import Period
from gpu_monitor.storage.database import Writer, insert_sql
from gpu_monitor.storage.tables import sample_key
from tests.fakes.stores import COLUMNS, fill, hours, sample_row

DAY = 86_400
TODAY = 1_774_051_200
"""2026-03-21T00:00:00Z."""
KEEP = Limits(raw_days=30, aggregate_days=365, max_mb=None, has_server=True)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "s.db")
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (1, 'here', 'local', NULL)")
        connection.execute(
            "INSERT INTO runs (started, interval_seconds) VALUES (?, 60)", (TODAY - 400 * DAY,)
        )
        for gpu in (1, 2):
            add_gpu(connection, gpu, 1)
    yield writer
    writer.close()


def add_gpu(connection: sqlite3.Connection, gpu: int, node: int) -> None:
    connection.execute(
        "INSERT INTO gpus (id, node, uid, source, first_seen) VALUES (?, ?, ?, 'nvml', 0)",
        (gpu, node, f"GPU-{gpu}"),
    )


def add_rows(writer: Writer, start: int, end: int, step: int = 3600, gpus: tuple[int, ...] = (1, 2)) -> None:
    """A row per GPU, and one of the host, each `step` seconds."""
    with writer.transaction() as connection:
        connection.executemany(
            insert_sql("samples_raw", COLUMNS, "INSERT OR REPLACE"),
            [sample_row(at, gpu) for at in range(start, end, step) for gpu in gpus],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO hosts_raw (id, seconds) VALUES (?, 600)",
            [(sample_key(at, 0, 0),) for at in range(start, end, step)],
        )


def starts(writer: Writer, table: str = "samples_raw") -> list[int]:
    return [row[0] for row in writer.rows(f"SELECT DISTINCT id >> 20 FROM {table} ORDER BY 1")]


def test_rows_are_kept_by_whole_days(writer: Writer) -> None:
    add_rows(writer, TODAY - 40 * DAY, TODAY)
    removed = Retention(writer, KEEP).run(TODAY + 5 * 3600)
    # 30 days before today 05:00 lies in the day that began 30 days ago; ten whole days lie before it.
    assert starts(writer) == list(range(TODAY - 30 * DAY, TODAY, 3600))
    assert starts(writer, "hosts_raw") == starts(writer)
    assert removed == {"samples_raw": 10 * 24 * 2, "hosts_raw": 10 * 24}
    assert Retention(writer, KEEP).run(TODAY + 5 * 3600) == {}


def test_rows_wait_for_their_rollup(writer: Writer) -> None:
    add_rows(writer, TODAY - 40 * DAY, TODAY)
    waiting = TODAY - 35 * DAY + 7 * 3600
    with writer.transaction() as connection:
        connection.execute("INSERT INTO periods VALUES (1, ?, 3600, 1, NULL)", (waiting,))
    retention = Retention(writer, KEEP)
    retention.run(TODAY)
    assert starts(writer)[0] == waiting
    with writer.transaction() as connection:
        connection.execute("UPDATE periods SET dirty = 0")
    retention.run(TODAY)
    assert starts(writer)[0] == TODAY - 30 * DAY


def test_a_clock_that_leapt_ahead_deletes_nothing_for_a_day(writer: Writer) -> None:
    add_rows(writer, TODAY - 20 * DAY, TODAY)
    hours(writer, TODAY - 20 * DAY, TODAY, gpus=2)
    later = TODAY + 3650 * DAY
    before = writer.value("SELECT count(*) FROM samples_raw"), writer.value("SELECT count(*) FROM aggregates")
    retention = Retention(writer, KEEP)
    assert retention.run(later) == {}
    add_rows(writer, later, later + 3600, step=60)
    assert retention.run(later + 3600) == {}
    assert writer.value("SELECT count(*) FROM aggregates") == before[1]
    # After a day of rows it is believed.
    add_rows(writer, later + 3600, later + DAY + 3600)
    retention.run(later + DAY + 7200)
    assert starts(writer)[0] == later


def test_imported_rows_keep_the_age_of_their_import(writer: Writer) -> None:
    old = TODAY - 700 * DAY
    add_rows(writer, TODAY - 40 * DAY, TODAY)
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (2, 'cluster', 'import', NULL)")
        connection.execute(
            "INSERT INTO imports (node, time, file, rows, step) VALUES (2, ?, 'a.csv', 1, 60)", (TODAY,)
        )
        add_gpu(connection, 3, 2)
    add_rows(writer, old, old + 3 * DAY, gpus=(3,))
    with writer.transaction() as connection:
        connection.execute("DELETE FROM hosts_raw WHERE id < ?", (sample_key(old + 4 * DAY, 0, 0),))
        connection.execute(
            "INSERT INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage, seconds)"
            " VALUES (?, 3, 3600, 60, 60, 1, 3600)",
            (old,),
        )
    imported = "SELECT count(*) FROM samples_raw WHERE id & 65535 = 3"
    retention = Retention(writer, KEEP)
    retention.run(TODAY + 29 * DAY)
    assert writer.value(imported) == 72
    add_rows(writer, TODAY, TODAY + 31 * DAY, step=6 * 3600)
    retention.run(TODAY + 31 * DAY)
    assert writer.value(imported) == 0
    assert writer.value("SELECT count(*) FROM aggregates WHERE gpu = 3") == 1
    add_rows(writer, TODAY + 31 * DAY, TODAY + 366 * DAY, step=6 * 3600)
    retention.run(TODAY + 366 * DAY)
    assert writer.value("SELECT count(*) FROM aggregates WHERE gpu = 3") == 0


@pytest.mark.parametrize(
    ("state", "has_server", "is_kept"),
    [
        ("pending", True, True),
        ("parked", True, True),
        ("pending", False, False),
        ("parked", False, False),
        ("sent", True, False),
        ("rejected", True, False),
        ("replaced", True, False),
        ("sent", False, False),
    ],
)
def test_hours_owed_to_a_server_are_never_deleted_by_age(
    writer: Writer, state: str, has_server: bool, is_kept: bool
) -> None:
    add_rows(writer, TODAY - 10 * DAY, TODAY)
    old = TODAY - 500 * DAY
    hours(writer, old, old + 2 * 3600, gpus=2, state=state)
    hours(writer, TODAY - DAY, TODAY, gpus=2, state="sent")
    Retention(writer, Limits(30, 365, None, has_server)).run(TODAY)
    left = writer.value("SELECT count(*) FROM aggregates WHERE period < ?", (TODAY - 2 * DAY,))
    reports = writer.value("SELECT count(*) FROM reports WHERE period < ?", (TODAY - 2 * DAY,))
    attempts = writer.value("SELECT count(*) FROM attempts WHERE started < ?", (TODAY - 2 * DAY,))
    periods = writer.value("SELECT count(*) FROM periods WHERE start < ?", (TODAY - 2 * DAY,))
    assert (left, reports, attempts, periods) == ((4, 2, 2, 2) if is_kept else (0, 0, 0, 0))
    assert writer.value("SELECT count(*) FROM aggregates WHERE period >= ?", (TODAY - DAY,)) == 48


def test_values_kept_on_change_stay_in_force(writer: Writer) -> None:
    add_rows(writer, TODAY - 10 * DAY, TODAY)
    limit = TODAY - 365 * DAY
    with writer.transaction() as connection:
        for gpu, since, value in [
            (1, limit - 300, "535"), (1, limit - 200, "545"), (1, limit + 100, "550"),
            (2, limit - 9000 * 100, "470"),
        ]:  # fmt: skip
            connection.execute("INSERT INTO states VALUES (?, 'driver_version', ?, ?)", (gpu, since, value))
        for since, reason in [(limit - 300, "denied"), (limit - 200, None), (limit + 50, "lost")]:
            connection.execute("INSERT INTO reasons VALUES (1, 'fan_speed', ?, ?)", (since, reason))
    Retention(writer, KEEP).run(TODAY)
    assert writer.rows("SELECT gpu, since, value FROM states ORDER BY 1, 2") == [
        (1, limit - 200, "545"), (1, limit + 100, "550"), (2, limit - 9000 * 100, "470"),
    ]  # fmt: skip
    assert writer.rows("SELECT since, reason FROM reasons ORDER BY 1") == [
        (limit - 200, None),
        (limit + 50, "lost"),
    ]


def test_an_hour_rolled_up_again_from_fewer_rows_keeps_what_it_was(writer: Writer) -> None:
    hour = TODAY - 3600
    add_rows(writer, hour, TODAY, step=60)
    with writer.transaction() as connection:
        roll_up(connection, 1, Period(hour, 3600))
        whole = connection.execute("SELECT * FROM aggregates ORDER BY gpu").fetchall()
        hosts = connection.execute("SELECT * FROM host_aggregates").fetchall()
        connection.execute("DELETE FROM samples_raw WHERE id < ?", (sample_key(hour + 1800, 0, 0),))
        connection.execute("DELETE FROM samples_raw WHERE id & 65535 = 2")
        connection.execute("DELETE FROM hosts_raw WHERE id < ?", (sample_key(hour + 1800, 0, 0),))
        roll_up(connection, 1, Period(hour, 3600))
        assert connection.execute("SELECT * FROM aggregates ORDER BY gpu").fetchall() == whole
        assert connection.execute("SELECT * FROM host_aggregates").fetchall() == hosts
        assert [row[3] for row in whole] == [60, 60]


def test_the_cap_drops_whole_hours_oldest_first_and_counts_every_row(writer: Writer) -> None:
    fill(writer, 4 * 1440, gpus=8, start=TODAY - 4 * DAY)
    rows = writer.value("SELECT count(*) FROM samples_raw")
    used = Cap(writer, 1, True).used_bytes()
    cap = used * 6 // 10 // 1_000_000
    lost = Cap(writer, cap, True).enforce(float(TODAY))
    left = starts(writer)
    assert left[0] % 3600 == 0
    assert left == list(range(left[0], TODAY, 60))
    assert lost == rows - writer.value("SELECT count(*) FROM samples_raw") > 0
    assert writer.rows("SELECT what, cause, rows FROM losses") == [
        ("samples", f"database.max_mb = {cap}", lost)
    ]
    assert writer.value("SELECT count(*) FROM aggregates") == 4 * 24 * 8
    assert Cap(writer, cap, True).used_bytes() <= cap * 1_000_000
    pages, size = writer.value("PRAGMA page_count"), writer.value("PRAGMA page_size")
    assert pages * size <= cap * 1_000_000
    assert Cap(writer, cap, True).enforce(float(TODAY)) == 0


def test_the_cap_takes_what_is_owed_last_and_says_so(writer: Writer) -> None:
    with writer.transaction() as connection:
        connection.execute("CREATE TABLE heavy (x)")
        connection.execute("INSERT INTO heavy VALUES (zeroblob(6000000))")
    old, recent = TODAY - 40 * DAY, TODAY - 20 * DAY
    hours(writer, old, recent, state="sent")
    hours(writer, recent, TODAY, state="pending")
    add_rows(writer, TODAY - 3 * DAY, TODAY, step=600)
    each = 20 * 24 * 8
    seen = set()
    for cap in range(Cap(writer, 1, True).used_bytes() // 1_000_000 + 1, 5, -1):
        Cap(writer, cap, True).enforce(float(TODAY))
        rows = starts(writer)
        sent = writer.value("SELECT count(*) FROM aggregates WHERE period < ?", (recent,))
        owed = writer.value("SELECT count(*) FROM aggregates WHERE period >= ?", (recent,))
        if sent < each:
            assert not rows or rows[0] >= TODAY - DAY
        if owed < each:
            assert (rows, sent) == ([], 0)
        seen.add((bool(rows), sent > 0, owed > 0))
    assert seen >= {(True, True, True), (False, False, False)}
    lost = dict(writer.rows("SELECT what, sum(rows) FROM losses GROUP BY what"))
    assert lost == {
        "samples": 3 * 144 * 2, "hosts": 3 * 144, "aggregates": 2 * each,
        "reports": 960, "attempts": 960, "events": 960,
    }  # fmt: skip


def test_the_file_does_not_grow_over_months(writer: Writer) -> None:
    chance = random.Random(3)
    retention = Retention(writer, Limits(raw_days=5, aggregate_days=20, max_mb=None, has_server=True))
    sizes = []
    for day in range(80):
        start = TODAY + day * DAY
        add_rows(writer, start, start + DAY, step=120, gpus=(1, 2))
        hours(writer, start, start + DAY, gpus=2, state="sent")
        retention.run(float(start + DAY + chance.randrange(3600)))
        sizes.append(writer.value("PRAGMA page_count"))
    assert starts(writer)[0] == TODAY + 75 * DAY
    assert max(sizes[40:]) <= max(sizes[25:40]) * 1.02
    assert writer.value("PRAGMA integrity_check") == "ok"


def test_a_sample_waits_for_one_batch_at_most(writer: Writer) -> None:
    """While a day is deleted another thread gets its turn between any two batches."""
    add_rows(writer, TODAY - 40 * DAY, TODAY - 31 * DAY, step=60)
    add_rows(writer, TODAY - 10 * DAY, TODAY, step=3600)
    batches = 0
    turns: list[int] = []
    begun, done = threading.Event(), threading.Event()

    def count(sql: str) -> None:
        nonlocal batches
        if sql.startswith("DELETE FROM samples_raw"):
            batches += 1
            begun.set()

    def sample() -> None:
        begun.wait(30)
        while not done.is_set():
            with writer.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('turn', 1)")
                turns.append(batches)

    with writer.transaction() as connection:
        connection.set_trace_callback(count)
    other = threading.Thread(target=sample)
    other.start()
    Retention(writer, KEEP).run(TODAY)
    done.set()
    other.join(30)
    assert batches >= 9 * 1440 * 2 // 1000
    seen = sorted(set(turns))
    assert all(after - before <= 2 for before, after in itertools.pairwise(seen))
