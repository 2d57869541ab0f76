"""Hours from minutes: a hand-made hour whose aggregates are worked out beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Collection, GpuRow
from gpu_monitor.agent.rollup import Rollup, expected_rows
from gpu_monitor.agent.store import Store
from gpu_monitor.core.buckets import Period, PeriodPlan
from gpu_monitor.core.model import Identity
from gpu_monitor.storage.database import Writer

HOUR = 1_710_943_200  # 2024-03-20T14:00:00Z
GPU = Identity("GPU-a", "nvml", "Card", "0", 80 << 30, 0)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "s.db")
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (1, 'here', 'local', NULL)")
        connection.execute("INSERT INTO runs (started, interval_seconds) VALUES (?, 60)", (HOUR - 86400,))
    yield writer
    writer.close()


def collection(minute: int, seconds: float, values: dict[str, float], identity: Identity = GPU) -> Collection:
    start = HOUR + minute * 60
    return Collection(start, 60, start + seconds, (GpuRow(identity, seconds, values, {}, {}, None),))


def rolled(writer: Writer, store: Store, until: float) -> list[Period]:
    seen: list[Period] = []

    def refresh(connection: sqlite3.Connection, node: int, period: Period, now: float) -> None:
        seen.append(period)

    Rollup(writer, refresh, store.rolled_up).run(until, until)
    return seen


def aggregate(writer: Writer, *names: str) -> tuple[object, ...]:
    return writer.rows(f"SELECT {', '.join(names)} FROM aggregates WHERE period = ?", (HOUR,))[0]


def test_an_hour(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(
        collection(
            0,
            60,
            {
                "power_usage": 100.0,
                "power_usage_min": 90.0,
                "power_usage_max": 120.0,
                "gpu_utilization": 0.0,
                "memory_used": 1 << 30,
                "energy": 6000.0,
                "throttle_reasons": 4,
            },
        )
    )
    store.write(
        collection(
            1,
            30,
            {
                "power_usage": 400.0,
                "gpu_utilization": 90.0,
                "memory_used": 3 << 30,
                "energy": 12000.0,
                "throttle_reasons": 0x40,
            },
        )
    )
    store.write(collection(2, 60, {"gpu_utilization": 4.0, "memory_used": 1 << 20}))
    assert rolled(writer, store, HOUR + 3600) == [Period(HOUR, 3600)]
    assert aggregate(writer, "samples", "expected_samples", "coverage", "seconds") == (
        3,
        60,
        round(150 / 3600, 4),
        150,
    )
    # Power: the third minute is unknown and skipped. (100*60 + 400*30) / 90 = 200.
    assert aggregate(writer, "power_usage", "power_usage_min", "power_usage_max") == (200, 90, 400)
    # Utilisation: zero counts. (0*60 + 90*30 + 4*60) / 150 = 19.6.
    assert aggregate(writer, "gpu_utilization", "gpu_utilization_min", "gpu_utilization_max") == (19.6, 0, 90)
    assert aggregate(writer, "energy", "energy_seconds", "throttle_reasons") == (18000, 90, 0x44)
    # Idle in the first and third minute; memory held only in the first.
    assert aggregate(writer, "idle_seconds", "held_idle_seconds") == (120, 60)
    assert aggregate(writer, "temperature", "fan_speed") == (None, None)
    memory = ((1 << 30) * 60 + (3 << 30) * 30 + (1 << 20) * 60) / 150
    assert abs(float(str(aggregate(writer, "memory_used")[0])) - memory) < 1024


def test_running_twice_changes_nothing_and_a_late_row_makes_it_run_again(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(collection(0, 60, {"temperature": 40.0}))
    assert len(rolled(writer, store, HOUR + 3600)) == 1
    before = writer.rows("SELECT * FROM aggregates")
    assert rolled(writer, store, HOUR + 3600) == []
    store.write(collection(5, 60, {"temperature": 60.0}))
    assert len(rolled(writer, store, HOUR + 3600)) == 1
    assert aggregate(writer, "temperature", "samples") == (50, 2)
    assert before != writer.rows("SELECT * FROM aggregates")


def test_an_open_period_waits(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(collection(0, 60, {"temperature": 40.0}))
    assert rolled(writer, store, HOUR + 3599) == []


def test_missed_hours_are_caught_up_from_the_data(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    for hour in range(5):
        store.write(collection(hour * 60, 60, {"temperature": 40.0 + hour}))
    assert [p.start for p in rolled(writer, store, HOUR + 5 * 3600)] == [HOUR + n * 3600 for n in range(5)]


def test_a_gpu_that_moved_slots_is_one_gpu(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(collection(0, 60, {"temperature": 40.0}))
    moved = Identity("GPU-a", "nvml", "Card", "9", 80 << 30, 3)
    store.write(collection(1, 60, {"temperature": 60.0}, moved))
    rolled(writer, store, HOUR + 3600)
    assert writer.rows("SELECT count(*), sum(samples), max(temperature) FROM aggregates") == [(1, 2, 50)]
    assert writer.rows('SELECT g."index" FROM aggregates a JOIN gpus g ON g.id = a.gpu') == [(3,)]


def test_pruned_rows_do_not_take_their_aggregates_along(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(collection(0, 60, {"temperature": 40.0}))
    rolled(writer, store, HOUR + 3600)
    with writer.transaction() as connection:
        connection.execute("DELETE FROM samples_raw")
        connection.execute("UPDATE periods SET dirty = 1")
    rolled(writer, store, HOUR + 3600)
    assert aggregate(writer, "temperature") == (40,)


def test_expected_rows() -> None:
    assert expected_rows(0, 3600, [(0.0, 60)]) == 60
    assert expected_rows(0, 3600, [(0.0, 7)]) == 515  # 0, 7, ..., 3598
    assert expected_rows(3600, 7200, [(0.0, 7)]) == 514  # 3605 .. 7196
    # From 1800 on every 30 s: 30 + 60.
    assert expected_rows(0, 3600, [(0.0, 60), (1800.0, 30)]) == 90
    assert expected_rows(0, 3600, [(500.0, 60), (9000.0, 1)]) == 60
