"""Opening the database, its transactions, and what its errors mean, on both dialects."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.core.errors import (
    ConfigError,
    StorageBusy,
    StorageCorrupt,
    StorageError,
    StorageForeign,
    StorageFull,
    StorageUnreachable,
)
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.rows import rows_of
from gpu_monitor.server.store.schema import aggregates, contracts, metadata, value_of
from gpu_monitor.server.store.url import parse_url, shown
from tests.server.postgres import WHY_NOT, Cluster, running_cluster


def numbers(store: Store) -> list[str]:
    with store.read() as connection:
        return list(connection.execute(select(contracts.c.number).order_by(contracts.c.id)).scalars())


def test_what_was_written_is_read_and_what_failed_is_not(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="kept"))
    with pytest.raises(KeyError), store.write() as connection:
        connection.execute(insert(contracts).values(number="dropped"))
        raise KeyError
    assert numbers(store) == ["kept"]


def test_an_empty_database_gets_every_table_and_opens_again(empty_database: str) -> None:
    open_store(empty_database).close()
    store = open_store(empty_database)
    with store.read() as connection:
        for table in metadata.tables.values():
            assert connection.execute(select(table)).fetchall() == []
    store.close()


def test_a_reader_sees_one_moment_and_cannot_write(store: Store) -> None:
    with store.read() as reader:
        assert reader.execute(select(contracts)).fetchall() == []
        with store.write() as writer:
            writer.execute(insert(contracts).values(number="1"))
        assert reader.execute(select(contracts)).fetchall() == []
    assert numbers(store) == ["1"]
    with pytest.raises(StorageError, match=r"readonly|read-only|takes no writes"), store.read() as reader:
        reader.execute(insert(contracts).values(number="2"))
    assert numbers(store) == ["1"]


def test_threads_write_side_by_side_without_losing_one(store: Store) -> None:
    def write(name: int) -> None:
        for number in range(20):
            with store.write() as connection:
                store.lock_sequence(connection)
                last = connection.execute(text("SELECT coalesce(max(id), 0) FROM contracts")).scalar_one()
                connection.execute(insert(contracts).values(id=last + 1, number=f"{name}-{number}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as connection:
        ids = connection.execute(select(contracts.c.id).order_by(contracts.c.id)).scalars().all()
    assert ids == list(range(1, 81))


def test_a_constraint_that_fails_stays_what_it_is(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="1"))
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(insert(contracts).values(number="1"))


def test_a_value_comes_back_in_its_unit(store: Store) -> None:
    hour = 475_000
    store.make_room([hour], now=hour * 3600)
    row = {"hour": hour, "agent": 1, "gpu": 0, "identity": 1, "facts": 1}
    with store.write() as connection:
        connection.execute(
            insert(aggregates).values(
                **row, temperature=615, temperature_lo=15, temperature_hi=25, memory_used=80 << 30, pcie_rx=73_901,
                pcie_rx_lo=901, pcie_rx_hi=99,
            )
        )  # fmt: skip
    asked = [("temperature", "mean"), ("temperature", "min"), ("temperature", "max"), ("memory_used", "mean"),
             ("pcie_rx", "mean"), ("pcie_rx", "min"), ("pcie_rx", "max"), ("power_usage", "mean")]  # fmt: skip
    with store.read() as connection:
        found = connection.execute(
            select(
                *(value_of(aggregates, BY_NAME[name], stat).label(f"{name}_{stat}") for name, stat in asked)
            )  # type: ignore[arg-type]
        ).one()
    assert list(found) == [61.5, 60.0, 64.0, 85_899_345_920.0, 73_901_000.0, 73_000_000.0, 74_000_000.0, None]
    assert {type(value) for value in found} == {float, type(None)}


# --- which database --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_every_form_of_postgresql_is_psycopg_3(scheme: str) -> None:
    url = parse_url(f"{scheme}://ann:p%40ss@db.example:6432/fleet?sslmode=require")
    assert (url.drivername, url.host, url.port, url.database) == (
        "postgresql+psycopg",
        "db.example",
        6432,
        "fleet",
    )
    assert (url.username, url.password) == ("ann", "p@ss")
    assert shown(url) == "postgresql://ann:***@db.example:6432/fleet?sslmode=require"


def test_a_relative_path_begins_at_the_servers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_url("sqlite:///x.db", tmp_path).database == str(tmp_path / "x.db")
    assert parse_url("sqlite:////var/lib/x.db", tmp_path).database == "/var/lib/x.db"
    monkeypatch.chdir(tmp_path)
    assert parse_url("sqlite:///sub/x y.db").database == str(tmp_path / "sub/x y.db")
    name = "50% of #1?.db"
    store = open_store(parse_url("sqlite:///x.db", tmp_path).set(database=str(tmp_path / name)))
    store.close()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://u:secret@h/d", "asks for mysql: .*tested on SQLite and PostgreSQL only"),
        ("oracle://h/d", "asks for oracle"),
        ("postgresql+asyncpg://u:secret@h/d", "psycopg 3 only"),
        ("sqlite+aiosqlite:///x.db", "Python's own module only"),
        ("sqlite://", "in memory would lose"),
        ("sqlite:///:memory:", "in memory would lose"),
        ("sqlite:///file:x?mode=memory", "options|in memory"),
        ("sqlite:///x.db?cache=shared", "options"),
        ("sqlite://x.db", "three slashes"),
        ("postgresql://u:secret@h", "names no database"),
        ("secret", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_another_engine_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)
    assert "sqlite:///" in str(refused.value.hint)


# --- one server per file ---------------------------------------------------------------------------------


def test_a_second_server_on_a_file_names_the_first(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{path}"
    program = (
        "import sys; from gpu_monitor.server.store.engine import open_store; open_store(sys.argv[1], alone=True);"
        "print('open', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(StorageBusy, match=f"in use by process {first.pid}"):
            open_store(f"sqlite:///{name}", alone=True)
    beside = open_store(url)  # a command may work beside it
    with beside.write() as connection:
        connection.execute(insert(contracts).values(number="beside"))
    beside.close()
    first.kill()
    first.communicate()
    store = open_store(url, alone=True)  # a killed one holds nothing
    assert numbers(store) == ["beside"]
    assert (tmp_path / "server.db.server").read_text() == f"{os.getpid()}\n"
    store.close()
    open_store(url, alone=True).close()


# --- how SQLite is asked ---------------------------------------------------------------------------------


def test_sqlite_is_durable_and_small(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    if os.name != "nt":
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
            "server.db": 0o600, "server.db-wal": 0o600, "server.db-shm": 0o600,
        }  # fmt: skip
    names = (
        "journal_mode",
        "synchronous",
        "mmap_size",
        "auto_vacuum",
        "foreign_keys",
        "query_only",
        "cache_size",
    )
    with store.write() as writer, store.read() as reader:
        asked = [
            [c.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names] for c in (writer, reader)
        ]
    store.close()
    # FULL is 2, INCREMENTAL 2; a negative cache is in KiB.
    assert [one[:-1] for one in asked] == [["wal", 2, 0, 2, 1, 0], ["wal", 2, 0, 2, 1, 1]]
    written, read = (-one[-1] for one in asked)
    assert written + 8 * read <= 32 * 1024


def test_no_more_than_eight_readers_at_once(tmp_path: Path) -> None:
    """Each has its cache; whoever is the ninth waits for a place."""
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    held = [store.read() for _ in range(8)]
    for reader in held:
        reader.__enter__()
    got = threading.Event()

    def ninth() -> None:
        with store.read():
            got.set()

    thread = threading.Thread(target=ninth)
    thread.start()
    assert not got.wait(0.05)
    held.pop().__exit__(None, None, None)
    assert got.wait(30)
    thread.join()
    for reader in held:
        reader.__exit__(None, None, None)
    store.close()


def test_write_inside_write_is_told_at_once(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    with pytest.raises(RuntimeError, match="inside"), store.write(), store.write():
        raise AssertionError("not reached")
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="1"))
    store.close()


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"no database at all" * 99, StorageForeign), (b"SQLite format 3\0" + b"\xff" * 8000, StorageError)],
)
def test_a_file_that_is_no_database_is_left_untouched(
    tmp_path: Path, content: bytes, error: type[Exception]
) -> None:
    path = tmp_path / "server.db"
    path.write_bytes(content)
    with pytest.raises(error, match=r"server\.db"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_no_folder_no_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder") as refused:
        open_store(f"sqlite:///{tmp_path}/absent/server.db")
    assert "Make it" in str(refused.value.hint)
    with pytest.raises(StorageError, match="is a folder"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_full_disk_is_told_and_recovered_from(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    with store.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageFull, match=r"no room to write .*server\.db"), store.write() as connection:
        connection.execute(insert(contracts), [{"number": "x" * 2000 + str(n)} for n in range(50)])
    with store.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        connection.execute(insert(contracts).values(number="1"))
    assert numbers(store) == ["1"]
    store.close()


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    store = open_store(f"sqlite:///{path}")
    with store.write() as connection:
        connection.execute(insert(contracts), [{"number": "x" * 2000 + str(n)} for n in range(50)])
    store.close()
    content = bytearray(path.read_bytes())
    content[-40 * 4096 :] = b"\xff" * (40 * 4096)
    path.write_bytes(content)
    store = open_store(f"sqlite:///{path}")
    with pytest.raises(StorageCorrupt, match="damaged") as told:
        numbers(store)
    assert "restore" in str(told.value.hint)
    store.close()


def test_a_file_that_another_program_writes_for_long_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_monitor.server.store.engine._BUSY_SECONDS", 0.05)
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    other = sqlite3.connect(tmp_path / "server.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy, match="another process is writing"), store.write():
        raise AssertionError("not reached")
    other.close()
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="1"))
    store.close()


# --- how PostgreSQL is asked -----------------------------------------------------------------------------


def test_each_connection_of_postgresql_commits_to_the_disk(cluster: Cluster) -> None:
    url = cluster.create()
    cluster.execute("ALTER SYSTEM SET synchronous_commit = off")
    cluster.execute("SELECT pg_reload_conf()")
    store = open_store(f"{url}&options=-c%20work_mem%3D5MB")
    names = (
        "synchronous_commit",
        "jit",
        "work_mem",
        "application_name",
        "idle_in_transaction_session_timeout",
    )
    with store.write() as connection:
        found = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]
    store.close()
    cluster.execute("ALTER SYSTEM RESET synchronous_commit")
    cluster.drop(url)
    assert found == ["on", "off", "5MB", "gpu_monitor", "1min"]


def test_a_statement_that_is_wrong_is_our_own_fault(cluster: Cluster) -> None:
    url = cluster.create()
    store = open_store(url)
    with pytest.raises(ProgrammingError), store.read() as connection:
        connection.execute(text("SELECT absent FROM contracts"))
    store.close()
    cluster.drop(url)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("/test", "/absent_"), StorageError, "does not let us in|cannot reach"),
        (("gpu_monitor@", "nobody:secret@"), StorageError, "does not let us in|cannot reach"),
        (("host=", "host=/absent"), StorageUnreachable, "cannot reach"),
        (("@/", "@127.0.0.1:1/"), StorageUnreachable, "cannot reach"),
    ],
)
def test_what_is_wrong_with_the_address_is_told(
    cluster: Cluster, change: tuple[str, str], error: type[Exception], words: str
) -> None:
    url = cluster.url("test").replace(*change)
    if "127.0.0.1" in url:
        url = url.partition("?")[0]
    with pytest.raises(error, match=words) as told:
        open_store(url)
    assert "secret" not in str(told.value)
    assert "DATABASE_URL" in str(told.value)


def test_an_encoding_that_loses_letters_is_refused(cluster: Cluster) -> None:
    cluster.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(StorageError, match="encoded in LATIN1"):
        open_store(cluster.url("latin"))
    cluster.execute("DROP DATABASE latin")


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "PostgreSQL is there")
def test_postgresql_goes_away_and_comes_back() -> None:
    with running_cluster(fsync=True) as cluster:
        store = open_store(cluster.create())
        with store.write() as connection:
            connection.execute(insert(contracts).values(number="before"))
        for signal in ("INT", "QUIT"):
            cluster.stop(signal)
            with pytest.raises(StorageUnreachable, match="cannot reach"), store.write() as connection:
                connection.execute(insert(contracts).values(number="lost"))
            with pytest.raises(StorageUnreachable, match="cannot reach"):
                numbers(store)
            cluster.start()
            assert numbers(store)[0] == "before"
            with store.write() as connection:
                connection.execute(insert(contracts).values(number=f"after {signal}"))
        assert numbers(store) == ["before", "after INT", "after QUIT"]
        # A connection that is cut off alone is found out at its next use at the latest, and replaced.
        cluster.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        with contextlib.suppress(StorageUnreachable):
            numbers(store)
        with contextlib.suppress(StorageUnreachable), store.write() as connection:
            rows_of(connection).facts_of([b"x"])
        with store.write() as connection:
            assert rows_of(connection).facts_of([b"x"]) == []
        assert len(numbers(store)) == 3
        # Stopped in the middle of a transaction: none of it is there.
        with pytest.raises(StorageUnreachable), store.write() as connection:
            connection.execute(insert(contracts).values(number="half"))
            cluster.stop("QUIT")
            connection.execute(insert(contracts).values(number="other half"))
        cluster.start()
        assert numbers(store) == ["before", "after INT", "after QUIT"]
        store.close()
