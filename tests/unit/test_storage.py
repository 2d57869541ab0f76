"""The writer: all or nothing, one at a time, and an error that says what to do."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageError, StorageFull
from gpu_monitor.storage.database import Reader, Writer, looks_like
from gpu_monitor.storage.files import translated
from gpu_monitor.storage.salvage import find_damage, open_store
from tests.fakes.stores import make_store


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "s.db")
    yield writer
    writer.close()


def keys(writer: Writer) -> list[str]:
    return [row[0] for row in writer.rows("SELECT key FROM meta ORDER BY key")]


def put(connection: sqlite3.Connection, key: str) -> None:
    connection.execute("INSERT INTO meta VALUES (?, 1)", (key,))


def test_a_transaction_is_all_or_nothing(writer: Writer) -> None:
    with pytest.raises(ZeroDivisionError), writer.transaction() as connection:
        put(connection, "a")
        raise ZeroDivisionError
    with pytest.raises(StorageError), writer.transaction() as connection:
        put(connection, "b")
        put(connection, "b")
    with writer.transaction() as connection:
        put(connection, "c")
    assert keys(writer) == ["c"]


def test_one_inside_another_joins_it(writer: Writer) -> None:
    with writer.transaction() as connection:
        put(connection, "a")
        writer.set_meta("b", 1)
        with writer.transaction() as inner:
            put(inner, "c")
        reader = Reader(writer.path)
        assert reader.rows("SELECT key FROM meta") == []
        reader.close()
    assert keys(writer) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError), writer.transaction() as connection:
        put(connection, "d")
        with writer.transaction() as inner:
            put(inner, "e")
            raise ZeroDivisionError
    assert keys(writer) == ["a", "b", "c"]


def test_everything_committed_survives_the_process_that_wrote_it(tmp_path: Path) -> None:
    """Each commit is on its way to the disk before the call returns: WAL with synchronous FULL."""
    writer = Writer(tmp_path / "s.db")
    assert writer.value("PRAGMA journal_mode") == "wal"
    assert writer.value("PRAGMA synchronous") == 2
    assert writer.value("PRAGMA auto_vacuum") == 2
    pid = os.fork()
    if pid == 0:
        child = Writer(tmp_path / "child.db")
        child.set_meta("a", 1)
        os._exit(0)
    os.waitpid(pid, 0)
    left = Writer(tmp_path / "child.db")
    assert keys(left) == ["a"]
    left.close()
    writer.close()


def test_a_full_store_says_so_and_can_be_written_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.db", page_limit=120)
    with pytest.raises(StorageFull) as full:
        for number in range(100):
            with writer.transaction() as connection:
                connection.execute("INSERT INTO meta VALUES (?, zeroblob(9000))", (f"k{number}",))
    assert "s.db" in full.value.message
    assert full.value.hint is not None
    count = len(keys(writer))
    with writer.transaction() as connection:
        connection.execute("DELETE FROM meta")
    with writer.transaction() as connection:
        put(connection, "again")
    assert count > 10
    assert keys(writer) == ["again"]
    writer.close()


def test_another_program_that_holds_the_file_is_named_as_the_cause(
    tmp_path: Path,
) -> None:
    writer = Writer(tmp_path / "s.db", busy_seconds=0.05)
    browser = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    browser.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy):
        writer.set_meta("a", 1)
    browser.execute("ROLLBACK")
    writer.set_meta("a", 1)
    browser.close()
    writer.close()


def test_a_file_that_was_replaced_is_not_written_on(writer: Writer) -> None:
    other = writer.path.with_name("other.db")
    Writer(other).close()
    other.replace(writer.path)
    with pytest.raises(StorageCorrupt) as replaced:
        writer.set_meta("a", 1)
    assert "removed or replaced" in replaced.value.message


def test_errors_are_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    meanings = {
        "database or disk is full": StorageFull,
        "disk I/O error": StorageFull,
        "database disk image is malformed": StorageCorrupt,
        "file is not a database": StorageCorrupt,
        "database is locked": StorageBusy,
        "locking protocol": StorageBusy,
        "no such table: full": StorageError,
    }
    for text, meaning in meanings.items():
        error = translated(sqlite3.OperationalError(text), path)
        assert type(error) is meaning, text
        assert str(path) in error.message
        assert error.hint


def test_a_closed_writer_leaves_one_file_and_no_log(tmp_path: Path) -> None:
    make_store(tmp_path / "s.db", 50, 2)
    assert sorted(os.listdir(tmp_path)) == ["s.db", "s.db.lock"]
    writer = Writer(tmp_path / "s.db")
    writer.set_meta("a", 1)
    del writer
    gc.collect()
    assert sorted(os.listdir(tmp_path)) == ["s.db", "s.db.lock"]
    reader = Reader(tmp_path / "s.db")
    assert reader.value("SELECT value FROM meta WHERE key = 'a'") == 1
    reader.close()


def test_opening_a_store_changes_nothing_of_what_it_holds(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.db", 50, 2)
    before = path.read_bytes()
    Writer(path).close()
    assert path.read_bytes() == before
    assert find_damage(path) is None


def test_names_that_are_awkward_in_an_address(tmp_path: Path) -> None:
    for name in ("a b.db", "a%20b.db", "a?b.db", "a#b.db", "ä.db"):
        path = make_store(tmp_path / name, 5, 1)
        assert looks_like(path) == "ours"
        reader = Reader(path)
        assert reader.value("SELECT count(*) FROM samples") == 5
        reader.close()
        open_store(path).close()


def test_a_store_behind_a_link_is_one_store(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "s.db"
    link.symlink_to(tmp_path / "data" / "real.db")
    writer = open_store(link)
    writer.set_meta("a", 1)
    reader = Reader(tmp_path / "data" / "real.db")
    assert reader.value("SELECT value FROM meta WHERE key = 'a'") == 1
    reader.close()
    writer.close()
    assert sorted(os.listdir(tmp_path)) == ["data", "s.db"]
    assert sorted(os.listdir(tmp_path / "data")) == ["real.db", "real.db.lock"]
