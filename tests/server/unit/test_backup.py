"""Copies of the database, made beside writers, and the way back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageError, StorageForeign
from gpu_monitor.server.store import migrate
from gpu_monitor.server.store.backup import back_up, restore_postgresql, restore_sqlite, verify_copy
from gpu_monitor.server.store.check import check
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.migrate import VERSIONS
from gpu_monitor.server.store.postgres_tools import restore_dump
from gpu_monitor.server.store.schema import aggregates, contracts, receipts
from gpu_monitor.server.store.url import parse_url
from tests.fakes.clock import FakeClock
from tests.server.receipts import HOUR, NOW, Fleet, count

UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
CLOCK = FakeClock(NOW + 86400)


def quiet(name: str, done: int, total: int) -> None:
    assert name in ("copied", "checked")
    assert 0 <= done <= total


@pytest.fixture
def filled(store: Store) -> Store:
    if store.dialect == "postgresql" and shutil.which("pg_dump") is None:
        pytest.skip("there is no pg_dump on the path")
    fleet = Fleet(store)
    agent = fleet.add_node(UUID)
    for hour in range(HOUR, HOUR + 5):
        fleet.add_report(agent, hour)
    return store


def restore(url: str, source: Path) -> None:
    parsed = parse_url(url)
    verify_copy(parsed, source, CLOCK, quiet)
    if parsed.get_backend_name() == "postgresql":
        restore_postgresql(parsed, source, CLOCK, quiet)
    else:
        restore_sqlite(parsed, source, CLOCK)


def test_what_was_there_at_the_copy_is_back_after_it(filled: Store, database: str, tmp_path: Path) -> None:
    target = tmp_path / "week.backup"
    copy = back_up(filled, target, CLOCK, quiet)
    assert (copy.receipts, copy.rows, copy.size) == (5, 30, target.stat().st_size)
    assert os.stat(target).st_mode & 0o777 == 0o600
    with filled.write() as connection:
        connection.execute(update(aggregates).values(power_usage=None))
        connection.execute(insert(contracts).values(number="later"))
    filled.close()
    restore(database, target)
    store = open_store(database)
    report = check(store.read, CLOCK)
    assert (report.receipts, report.count) == (5, 0)
    with store.read() as connection:
        assert connection.execute(select(contracts.c.number)).scalars().all() == ["12345"]
    with store.write() as connection:  # ids go on behind those that came back
        connection.execute(insert(contracts).values(number="next"))
    store.close()
    left = {path.name for path in tmp_path.iterdir() if path.suffix not in ("-wal", "-shm")}
    assert not [name for name in left if name.endswith((".part", ".restoring"))]


def test_a_copy_beside_a_writer_is_of_one_moment(filled: Store, database: str, tmp_path: Path) -> None:
    writing = open_store(database)
    stop, failures = threading.Event(), []

    def write() -> None:
        """Each transaction adds a report of a new node; half of one would be found."""
        try:
            for hour in range(HOUR + 100, HOUR + 400):
                if stop.is_set():
                    return
                with writing.write() as connection:
                    connection.execute(
                        insert(aggregates),
                        [{"hour": hour, "agent": 9, "gpu": n, "identity": 1, "facts": 1} for n in (0, 1)],
                    )
                    connection.execute(aggregates.delete().where(aggregates.c.agent == 9))
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            copy = back_up(filled, tmp_path / f"{number}.backup", CLOCK, quiet)
            assert (copy.receipts, copy.rows) == (5, 30)
    finally:
        stop.set()
        thread.join()
        writing.close()
    assert failures == []


def test_what_differs_is_not_copied(filled: Store, tmp_path: Path) -> None:
    with filled.write() as connection:
        connection.execute(update(aggregates).where(aggregates.c.hour == HOUR + 2).values(power_usage=1))
    with pytest.raises(StorageCorrupt, match=rf"1 differences .*{UUID}, 2024-03-09T18:00:00") as refused:
        back_up(filled, tmp_path / "week.backup", CLOCK, quiet)
    assert "server check" in str(refused.value.hint)
    assert not [path.name for path in tmp_path.iterdir() if "backup" in path.name]


def test_no_copy_is_made_where_there_is_no_folder(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        back_up(filled, tmp_path / "absent" / "week.backup", CLOCK, quiet)


def test_a_running_server_keeps_its_database(filled: Store, database: str, tmp_path: Path) -> None:
    target = tmp_path / "week.backup"
    back_up(filled, target, CLOCK, quiet)
    filled.close()
    serving = open_store(database, alone=True)
    with serving.write() as connection:
        connection.execute(insert(contracts).values(number="kept"))
    with pytest.raises(StorageBusy, match=f"process {os.getpid()}|in use by a server"):
        restore(database, target)
    assert count(serving, contracts) == 2
    serving.close()


def test_a_copy_that_was_damaged_is_refused(filled: Store, database: str, tmp_path: Path) -> None:
    target = tmp_path / "week.backup"
    back_up(filled, target, CLOCK, quiet)
    filled.close()
    content = bytearray(target.read_bytes())
    middle = content.index(b"agent_down") if b"agent_down" in content else len(content) // 2
    content[middle : middle + 64] = bytes(64)
    target.write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged|differences"):
        restore(database, target)
    store = open_store(database)
    assert count(store, receipts) == 5
    store.close()


@pytest.mark.parametrize("content", [b"", b"hello", b"PGDM", b"SQLite format 3"])
def test_another_file_is_no_copy(database: str, tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    with pytest.raises(StorageForeign, match="no copy"):
        restore(database, other)


def test_the_copy_of_one_kind_does_not_go_into_the_other(database: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if database.startswith("sqlite"):
        other.write_bytes(b"PGDMP" + bytes(50))
    else:
        connection = sqlite3.connect(other)
        connection.execute("CREATE TABLE t (a)")
        connection.close()
    with pytest.raises(StorageForeign, match=r"copy of a .* database"):
        restore(database, other)


def test_an_agents_store_is_no_copy(tmp_path: Path) -> None:
    other = tmp_path / "other"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE samples_raw (a)")
    connection.close()
    with pytest.raises(StorageForeign, match="samples_raw"):
        restore(f"sqlite:///{tmp_path / 'server.db'}", other)


def test_the_database_that_is_replaced_is_kept(sqlite_template: Path, tmp_path: Path) -> None:
    path, copy = tmp_path / "server.db", tmp_path / "copy"
    shutil.copyfile(sqlite_template, copy)
    store = open_store(f"sqlite:///{path}")
    Fleet(store).add_node(UUID)
    store.close()
    kept = restore_sqlite(parse_url(f"sqlite:///{path}"), copy, CLOCK)
    # NOW is 2024-03-09T16:00:00Z, and a day later it is the 10th.
    assert kept == tmp_path / "server.db.2024-03-10T160000+0000"
    old, new = open_store(f"sqlite:///{kept}"), open_store(f"sqlite:///{path}")
    assert (count(old, contracts), count(new, contracts)) == (1, 0)
    old.close()
    new.close()


def test_a_database_that_another_program_has_open_is_not_replaced(
    sqlite_template: Path, tmp_path: Path
) -> None:
    path = tmp_path / "server.db"
    open_store(f"sqlite:///{path}").close()
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM contracts").fetchone() == (0,)
    with pytest.raises(StorageBusy, match="another program"):
        restore_sqlite(parse_url(f"sqlite:///{path}"), sqlite_template, CLOCK)
    other.close()
    restore_sqlite(parse_url(f"sqlite:///{path}"), sqlite_template, CLOCK)


def test_a_damaged_database_can_be_replaced(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    restore_sqlite(parse_url(f"sqlite:///{path}"), sqlite_template, CLOCK)
    store = open_store(f"sqlite:///{path}")
    assert count(store, contracts) == 0
    store.close()


def test_a_restore_that_fails_changes_nothing(filled: Store, database: str, tmp_path: Path) -> None:
    target = tmp_path / "week.backup"
    back_up(filled, target, CLOCK, quiet)
    filled.close()
    url = parse_url(database)
    if url.get_backend_name() == "postgresql":
        target.write_bytes(target.read_bytes()[:-200])
        with pytest.raises(StorageError, match="nothing was changed"):
            restore_dump(url, target)
    else:
        with pytest.raises(StorageError, match="No such file"):
            restore_sqlite(url, tmp_path / "gone.backup", CLOCK)
    store = open_store(database)
    report = check(store.read, CLOCK)
    assert (report.receipts, report.count) == (5, 0)
    store.close()


def set_version(store: Store, version: str) -> None:
    with store.write() as connection:
        connection.execute(text(f"UPDATE {VERSIONS} SET version_num = :version"), {"version": version})


def test_a_copy_of_a_newer_version_is_refused(filled: Store, database: str, tmp_path: Path) -> None:
    target = tmp_path / "week.backup"
    set_version(filled, "9999")
    back_up_unseen = pytest.MonkeyPatch()
    with back_up_unseen.context() as newer:
        newer.setattr(migrate, "REVISIONS", (*migrate.REVISIONS, "9999"))
        back_up(filled, target, CLOCK, quiet)
    set_version(filled, migrate.REVISIONS[-1])
    filled.close()
    with pytest.raises(StorageForeign, match="version 9999"):
        restore(database, target)
    store = open_store(database)
    assert count(store, receipts) == 5
    store.close()


def test_a_copy_of_an_older_version_comes_back_and_up(
    filled: Store, database: str, tmp_path: Path, newer: Path
) -> None:
    target = tmp_path / "week.backup"
    back_up_older = pytest.MonkeyPatch()
    with back_up_older.context() as older:
        older.setattr(migrate, "REVISIONS", migrate.REVISIONS[:-1])
        back_up(filled, target, CLOCK, quiet)
    filled.close()
    restore(database, target)
    store = open_store(database)
    assert check(store.read, CLOCK).receipts == 5
    with store.read() as connection:
        assert connection.execute(text("SELECT rack FROM nodes")).fetchall() == [(None,)]
    store.close()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("week.backup.")] == []
