"""What is past its age goes, what is not stays; partitions come before their rows and go whole."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, text

from gpu_monitor.core.errors import StorageBusy
from gpu_monitor.server.store import retention, schema_experiments
from gpu_monitor.server.store.check import check
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.partitions import AGGREGATES, SAMPLES, partition_of, partitions_held
from gpu_monitor.server.store.retention import Retention, prune
from gpu_monitor.server.store.schema import (
    aggregates,
    alerts,
    audit,
    changes,
    deliveries,
    events,
    gaps,
    host_hours,
    metadata,
    outbox,
    processes,
    receipts,
    samples,
)
from tests.fakes.clock import FakeClock
from tests.server.receipts import HOUR, NOW, Fleet, count

DAY = 86400
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
# Two whole months and a year on: what follows is of a month that is wholly past its age.
LATER = NOW + (366 + 62) * DAY


def test_reports_go_after_a_year_and_what_is_left_is_whole(store: Store) -> None:
    fleet = Fleet(store)
    agent = fleet.add_node(UUID)
    for hour in (HOUR, HOUR + 24 * 62, HOUR + 24 * 62 + 1):
        fleet.add_report(agent, hour)
    assert prune(store, NOW + 366 * DAY - 1) == {}
    gone = prune(store, LATER)
    one = {"host_hours": 1, "gaps": 1, "events": 1, "processes": 1, "receipts": 1}
    assert gone == {"aggregates": 1 if store.dialect == "postgresql" else 2, **one}
    assert [count(store, table) for table in (aggregates, host_hours, gaps, events, processes, receipts)] == [
        4, 2, 2, 2, 2, 2,
    ]  # fmt: skip
    assert check(store.read, FakeClock(LATER)).count == 0


@pytest.mark.parametrize(
    ("table", "values", "column", "seconds"),
    [
        (changes, {"seq": 1, "kind": "report"}, "time", 3600),
        (audit, {"actor": "cli", "action": "x"}, "time", 366 * DAY),
        (deliveries, {"outbox": 1, "channel": "c", "ok": True, "status": "200"}, "time", 366 * DAY),
        (
            outbox,
            {"alert": "a", "moment": "fired", "channel": "c", "body": "{}", "attempts": 1, "next_try": None},
            "created",
            366 * DAY,
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_rows_live_as_long_as_is_said(
    store: Store, table: Table, values: dict[str, Any], column: str, seconds: int
) -> None:
    with store.write() as connection:
        connection.execute(insert(table).values(**values, **{column: NOW}))
    assert prune(store, NOW + seconds) == {}
    assert prune(store, NOW + seconds + 1) == {table.name: 1}
    assert count(store, table) == 0


def test_what_is_not_over_stays_however_old(store: Store) -> None:
    alert = {
        "rule": "gpu-lost", "subject": "n", "severity": "critical", "since": NOW, "message": "m", "past": False,
        "simulated": False, "seen": NOW, "silenced": False,
    }  # fmt: skip
    owed = {"alert": "a", "moment": "fired", "channel": "c", "body": "{}", "attempts": 1, "created": NOW}
    with store.write() as connection:
        connection.execute(insert(alerts).values(id="1", state="firing", active=1, **alert))
        connection.execute(insert(alerts).values(id="2", state="resolved", active=None, **alert))
        connection.execute(insert(outbox).values(next_try=NOW, **owed))
    assert prune(store, LATER) == {"alerts": 1}
    with store.read() as connection:
        assert connection.execute(select(alerts.c.id)).scalars().all() == ["1"]
    assert count(store, outbox) == 1


def test_live_minutes_go_after_a_week(store: Store) -> None:
    start = (int(NOW) // DAY) * DAY
    times = (start, start + DAY - 60, start + DAY)
    store.make_room(times=times, now=NOW)
    with store.write() as connection:
        for time in times:
            connection.execute(insert(samples).values(time=time, agent=1, gpu=0, seconds=600))
    assert prune(store, start + 7 * DAY) == {}
    # A day goes whole on PostgreSQL, once all of it is a week old.
    assert prune(store, start + 8 * DAY)["samples"] == (1 if store.dialect == "postgresql" else 2)
    with store.read() as connection:
        assert connection.execute(select(samples.c.time)).scalars().all() == [start + DAY]


def test_many_rows_go_in_batches_that_let_others_in_between(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(changes), [{"seq": n, "time": NOW, "kind": "node"} for n in range(25)])
    stop = threading.Event()
    stop.set()
    assert prune(store, LATER, stop) == {}
    assert count(store, changes) == 25
    assert prune(store, LATER, batch=10) == {"changes": 25}


def test_a_month_begins_and_ends_where_the_calendar_says() -> None:
    # 2024-03-01T00:00Z is 1709251200 s, 2024-04-01T00:00Z 1711929600 s, 744 hours later.
    part = partition_of(AGGREGATES, 475_000)
    assert (part.name, part.start, part.stop) == (
        "aggregates_2024_03",
        1_709_251_200 // 3600,
        1_711_929_600 // 3600,
    )
    assert partition_of(AGGREGATES, part.stop - 1) == part
    assert partition_of(AGGREGATES, part.stop).name == "aggregates_2024_04"
    assert partition_of(AGGREGATES, 1_733_011_200 // 3600).stop == 1_735_689_600 // 3600  # December 2024
    day = partition_of(SAMPLES, 1_709_164_800 + 5)  # 2024-02-29, a leap day
    assert (day.name, day.start, day.stop) == ("samples_2024_02_29", 1_709_164_800, 1_709_251_200)


@pytest.fixture
def postgresql(request: pytest.FixtureRequest, dialect: str) -> Store:
    """The store, for what only PostgreSQL has: the test of the other dialect looks that it is no harm there."""
    store: Store = request.getfixturevalue("store")
    return store


def test_partitions_are_made_once_however_many_ask(postgresql: Store) -> None:
    hours = [HOUR + 24 * day for day in range(0, 400, 20)]
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            postgresql.make_room(hours, [hour * 3600 for hour in hours[:5]], now=NOW)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    if postgresql.dialect == "postgresql":
        with postgresql.read() as connection:
            held = partitions_held(connection, AGGREGATES)
            # March 2024 (the 9th and 380 days on) to March 2025 (the 24th).
            assert len(held) == 13
            assert all(first.stop == second.start for first, second in itertools.pairwise(held))
            assert len(partitions_held(connection, SAMPLES)) == 5


def test_a_partition_that_was_dropped_is_made_again(postgresql: Store) -> None:
    fleet = Fleet(postgresql)
    agent = fleet.add_node(UUID)
    fleet.add_report(agent, HOUR)
    assert prune(postgresql, LATER)["aggregates"]
    postgresql.make_room([HOUR], now=LATER)
    with postgresql.write() as connection:
        connection.execute(insert(aggregates).values(hour=HOUR, agent=agent, gpu=0, identity=1, facts=1))
    assert count(postgresql, aggregates) == 1


def test_a_long_reader_is_not_waited_for(postgresql: Store) -> None:
    fleet = Fleet(postgresql)
    agent = fleet.add_node(UUID)
    fleet.add_report(agent, HOUR)
    with postgresql.read() as reader:
        assert len(reader.execute(select(aggregates)).fetchall()) == 2
        if postgresql.dialect == "postgresql":
            with pytest.raises(StorageBusy):
                prune(postgresql, LATER)
        else:
            prune(postgresql, LATER)
        assert len(reader.execute(select(aggregates)).fetchall()) == 2
    prune(postgresql, LATER)
    assert count(postgresql, aggregates) == 0


def test_only_one_of_several_processes_prunes(postgresql: Store) -> None:
    with postgresql.write() as connection:
        connection.execute(insert(changes).values(seq=1, time=NOW, kind="node"))
    if postgresql.dialect == "postgresql":
        with postgresql.write() as other:
            other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": retention.RETENTION_LOCK})
            assert prune(postgresql, LATER) == {}
    assert prune(postgresql, LATER) == {"changes": 1}


class Stopping(FakeClock):
    """Says when the third round would begin, and waits for real then."""

    def __init__(self) -> None:
        super().__init__(LATER)
        self.rounds = 0
        self.reached = threading.Event()

    def wait(self, event: threading.Event, deadline: float) -> bool:
        self.rounds += 1
        if self.rounds < 3:
            return super().wait(event, deadline)
        self.reached.set()
        return event.wait(30)


def test_the_thread_makes_room_ahead_and_prunes(store: Store) -> None:
    fleet = Fleet(store)
    fleet.add_report(fleet.add_node(UUID), HOUR)
    clock = Stopping()
    keeper = Retention(store, clock)
    keeper.start()
    assert clock.reached.wait(30)
    keeper.stop()
    assert count(store, receipts) == 0
    if store.dialect == "sqlite":
        with store.read() as connection:
            known = connection.exec_driver_sql("SELECT DISTINCT tbl FROM sqlite_stat1").scalars().all()
        assert "nodes" in known
    if store.dialect == "postgresql":
        with store.read() as connection:
            days = [part.start for part in partitions_held(connection, SAMPLES)]
        today = int(LATER) // DAY * DAY
        assert days == [today, today + DAY, today + 2 * DAY]


def test_a_sqlite_file_that_was_far_larger_once_gives_its_pages_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_SPARE_BYTES", 0)
    with store.write() as connection:
        rows = [{"time": NOW, "actor": "a", "action": "b" * 4000, "detail": str(n)} for n in range(400)]
        connection.execute(insert(audit), rows)
    assert prune(store, LATER) == {"audit": 400}
    if store.dialect == "sqlite":
        with store.read() as connection:
            free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        assert free <= 0.1 * pages
        assert pages < 400


def test_every_table_is_either_pruned_or_known_to_stay_small() -> None:
    pruned = {rule.table.name for rule in retention.RULES}
    accounts = {"contracts", "users", "memberships", "versions"}
    fleet = {"nodes", "gpus", "facts", "latest", "fleet_hours"}
    watching = {"rules", "channels", "engine_state"}
    # Cleared by who fills them: sessions when they expire, watches when nobody looks any more.
    cleared = {"sessions", "watches"}
    # They stay until somebody deletes their experiment; points go by METRICS_RETENTION_DAYS (experiment_removal).
    runs = {one.name for one in vars(schema_experiments).values() if isinstance(one, Table)}
    assert set(metadata.tables) - pruned == accounts | fleet | watching | cleared | runs


def test_each_pruned_time_is_found_by_an_index() -> None:
    """Every five minutes all of them are asked; those without an index hold a few rows."""
    few = {"revisions", "quarantine", "outbox", "silences", "tokens"}
    for rule in retention.RULES:
        keys = [next(iter(index.columns)).name for index in rule.table.indexes]
        keys += [next(iter(one.columns)).name for one in rule.table.constraints if list(one.columns)]
        assert (rule.within or rule.column) in keys or rule.table.name in few, rule.table.name
