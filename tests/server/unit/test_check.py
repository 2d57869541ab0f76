"""The check finds every row that is not what its receipt stands for, and nothing where all is right."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Table, delete, insert, text, update

from gpu_monitor.server.store import check as checking
from gpu_monitor.server.store.check import CheckReport, check
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.retention import prune
from gpu_monitor.server.store.schema import (
    aggregates,
    events,
    facts,
    gaps,
    gpus,
    host_hours,
    metadata,
    processes,
    receipts,
)
from tests.fakes.clock import FakeClock
from tests.server.receipts import HOUR, NOW, Fleet

UUIDS = ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "00000000-0000-4000-8000-000000000002")


@pytest.fixture
def filled(store: Store) -> Store:
    fleet = Fleet(store)
    agents = [fleet.add_node(uuid) for uuid in UUIDS]
    for hour in (HOUR, HOUR + 1, HOUR + 2):
        for agent in agents:
            fleet.add_report(agent, hour)
    return store


def look(store: Store) -> CheckReport:
    return check(store.read, FakeClock(NOW + 86400))


def test_all_is_as_it_was_written(filled: Store) -> None:
    told: list[tuple[int, int]] = []
    report = check(filled.read, FakeClock(NOW), lambda done, total: told.append((done, total)))
    # Of each of 6 reports: 2 GPUs, the host, a gap, an event, a process.
    assert (report.receipts, report.rows, report.count, report.differences) == (6, 36, 0, [])
    assert told == [(6, 6)]


def test_batches_meet_without_a_seam(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 4, 6):
        monkeypatch.setattr(checking, "_BATCH", size)
        report = look(filled)
        assert (report.receipts, report.rows, report.count) == (6, 36, 0)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        (aggregates, "power_usage_hi", None),
        (aggregates, "extra", "{}"),
        (aggregates, "facts", 2),
        (host_hours, "cpu_utilization", 500),
        (gaps, "stop", NOW + 3666.0),
        (events, "message", "Xid 80"),
        (processes, "user", "eve"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_changed_value_is_found(filled: Store, table: Table, column: str, value: object) -> None:
    with filled.write() as connection:
        where = (table.c.hour == HOUR + 1) & (table.c.agent == 2)
        connection.execute(update(table).where(where).values({column: value}))
    report = look(filled)
    assert [(one.node, one.hour, one.period) for one in report.differences] == [
        (UUIDS[1], HOUR + 1, "2024-03-09T17:00:00+00:00")
    ]


@pytest.mark.parametrize(
    "table", [aggregates, host_hours, gaps, events, processes], ids=lambda table: table.name
)
def test_a_row_that_is_gone_is_found(filled: Store, table: Table) -> None:
    with filled.write() as connection:
        connection.execute(delete(table).where(table.c.hour == HOUR, table.c.agent == 1))
    assert [(one.node, one.hour) for one in look(filled).differences] == [(UUIDS[0], HOUR)]


@pytest.mark.parametrize("hour", [HOUR - 5, HOUR + 1, HOUR + 9])
def test_rows_that_no_receipt_stands_for_are_found(filled: Store, hour: int) -> None:
    alone = insert(host_hours).values(hour=hour, agent=9)
    filled.make_room([hour], now=NOW)
    with filled.write() as connection:
        connection.execute(alone)
        connection.execute(insert(aggregates).values(hour=hour, agent=9, gpu=0, identity=1, facts=1))
    assert {(one.what, one.hour) for one in look(filled).differences} == {
        ("GPU rows of agent 9 without a receipt", hour),
        ("rows of host_hours of agent 9 without a receipt", hour),
    }


def test_a_fact_and_a_gpu_that_were_changed_are_found(filled: Store) -> None:
    with filled.write() as connection:
        connection.execute(update(facts).where(facts.c.id == 1).values(body="{}"))
        connection.execute(update(gpus).where(gpus.c.agent == 1, gpus.c.ordinal == 0).values(uid="GPU-other"))
    report = look(filled)
    assert report.differences[0].what == "fact 1 is not what its digest says"
    assert {(one.node, one.hour) for one in report.differences[1:]} == {
        (UUIDS[0], HOUR + at) for at in range(3)
    }


def test_what_is_past_its_age_is_not_looked_at(filled: Store) -> None:
    """A server takes such rows away one after the other."""
    with filled.write() as connection:
        connection.execute(delete(aggregates).where(aggregates.c.hour == HOUR))
    year_later = HOUR * 3600 + 366 * 86400
    report = check(filled.read, FakeClock(year_later + 1))
    assert (report.receipts, report.count) == (4, 0)
    assert check(filled.read, FakeClock(year_later)).count == 2


def test_beside_a_server_that_writes_and_prunes_nothing_false_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a report, or a receipt whose rows are on their way out, would be a difference."""
    monkeypatch.setattr(checking, "_BATCH", 3)
    fleet, year = Fleet(store), 366 * 24
    agents = [fleet.add_node(uuid) for uuid in UUIDS]
    for hour in range(HOUR, HOUR + 6):
        for agent in agents:
            fleet.add_report(agent, hour)
    clock, over = FakeClock((HOUR + year) * 3600.0 - 1800), threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            for step in range(1, 7):
                fleet.add_report(agents[step % 2], HOUR + 100 - step)
                clock.advance(3600)
                prune(store, clock.now())
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            over.set()

    thread = threading.Thread(target=serve)
    thread.start()
    checks = 0
    while not over.is_set() or not checks:
        report = check(store.read, clock)
        assert report.differences == []
        checks += 1
    thread.join()
    assert failures == []
    assert check(store.read, clock).receipts == 6


def test_every_table_that_a_report_fills_is_compared() -> None:
    by_report = {name for name, table in metadata.tables.items() if {"hour", "agent"} <= set(table.c.keys())}
    compared = {table.name for table, _ in checking._OTHERS} | {"aggregates"}
    # The others tell of reports (receipts, revisions), of what was not taken, or of commits.
    assert by_report - compared == {"receipts", "revisions", "quarantine", "changes"}


def test_a_damaged_file_is_found(filled: Store) -> None:
    if filled.dialect != "sqlite":
        with filled.write() as connection:
            connection.execute(
                text("UPDATE receipts SET rows = 3 WHERE agent = 1 AND hour = :hour"), {"hour": HOUR}
            )
        assert look(filled).differences[0].what == "2 GPU rows are there, the receipt is for 3"
        return
    with filled.write() as connection:
        # An index that lacks what the table has, as after a torn write.
        connection.exec_driver_sql("PRAGMA writable_schema=ON")
        connection.exec_driver_sql("DELETE FROM sqlite_master WHERE name = 'receipts_hour'")
    assert any("never used" in one.what for one in look(filled).differences)


def test_receipts_without_rows_are_right(store: Store) -> None:
    assert (look(store).receipts, look(store).count) == (0, 0)
    assert receipts.c.rows is not None
