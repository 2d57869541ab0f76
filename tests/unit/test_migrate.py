"""Schemas: the oldest file we still open, and migrations killed at every statement."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_monitor.storage.database import Reader, Writer
from gpu_monitor.storage.migrate import NEWEST, grow, migrate
from tests.fakes.stores import START, fill

GOLDEN = Path(__file__).parents[1] / "data" / "store" / "schema_1.sql"


def oldest(path: Path) -> Path:
    """A store as the first release made it, with a row in each of the main tables."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(GOLDEN.read_text())
    connection.execute("INSERT INTO nodes VALUES (1, 'here', 'local', NULL)")
    connection.execute(
        "INSERT INTO gpus (id, node, uid, source, name, memory_total, first_seen)"
        " VALUES (1, 1, 'GPU-1', 'nvml', 'NVIDIA H100', 85520809984, 0)"
    )
    connection.execute("INSERT INTO runs (started, interval_seconds) VALUES (?, 60)", (START,))
    connection.execute(
        "INSERT INTO samples_raw (id, seconds, temperature, power_usage, power_usage_max, memory_used)"
        " VALUES (?, 600, 455, 69812, 70021, 1048576)",
        ((START << 20) | 1,),
    )
    connection.execute(
        "INSERT INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage, seconds, power_usage)"
        " VALUES (?, 1, 3600, 60, 60, 1.0, 3600, 698.12)",
        (START,),
    )
    connection.close()
    return path


def schema(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Columns (name, type, not null, default, key) of every table, view and index."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    names = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    ]
    found = {
        name: sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({name})")) for name in names
    }
    found["indexes"] = sorted(
        connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'").fetchall()
    )
    connection.close()
    return found


def version(path: Path) -> tuple[int, int]:
    """Version and number of tables, seen by a reader that knows nothing of us."""
    connection = sqlite3.connect(path)
    found = (
        connection.execute("PRAGMA user_version").fetchone()[0],
        connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0],
    )
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return found


def test_the_oldest_store_is_opened_and_says_what_it_said(tmp_path: Path) -> None:
    path, fresh = oldest(tmp_path / "old.db"), tmp_path / "new.db"
    Writer(fresh).close()
    Writer(path).close()
    assert version(path)[0] == NEWEST
    # A difference here after a release means: the catalogue or a step was changed where a step had to be added.
    assert schema(path) == schema(fresh)
    reader = Reader(path)
    assert reader.rows(
        "SELECT start, uid, seconds, temperature, power_usage, power_usage_max, memory_used FROM samples"
    ) == [(START, "GPU-1", 60.0, 45.5, 698.12, 700.21, 1 << 30)]
    assert reader.rows("SELECT period, gpu, power_usage FROM aggregates") == [(START, 1, 698.12)]
    reader.close()


def test_new_metrics_are_a_step_that_changes_nothing_on_new_files(tmp_path: Path) -> None:
    fresh = tmp_path / "new.db"
    Writer(fresh).close()
    old = tmp_path / "old.db"
    shutil.copy(fresh, old)
    connection = sqlite3.connect(old, isolation_level=None)
    connection.execute("DROP VIEW samples")
    connection.execute("ALTER TABLE samples_raw DROP COLUMN dram_active")
    connection.execute("ALTER TABLE aggregates DROP COLUMN dram_active_max")
    for path in (old, fresh):
        before = schema(path)
        connection = sqlite3.connect(path, isolation_level=None)
        migrate(connection, NEWEST, [*[grow] * NEWEST, grow])
        connection.close()
        assert version(path)[0] == NEWEST + 1
        assert (schema(path) == before) == (path == fresh)
    assert schema(old) == schema(fresh)


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = oldest(tmp_path / "s.db")

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    connection = sqlite3.connect(path, isolation_level=None)
    before = version(path)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, 1, [half, half])
    connection.close()
    assert version(path) == before


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path

path, step, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
real, count = sqlite3.connect, 0

def seen(statement):
    global count
    count += 1
    if count == step:
        os.kill(os.getpid(), signal.SIGKILL)

def connect(*words, **more):
    connection = real(*words, **more)
    if not words[0].__class__.__name__ == "str" or "mode=ro" not in words[0]:
        connection.set_trace_callback(seen)
    return connection

sqlite3.connect = connect
if what == "new":
    from gpu_monitor.storage.database import Writer
    Writer(path).close()
else:
    from gpu_monitor.storage.migrate import migrate

    def second(connection):
        connection.execute("ALTER TABLE samples_raw ADD COLUMN fresh INTEGER")
        connection.execute("UPDATE samples_raw SET fresh = temperature")
        connection.execute("CREATE TABLE more (x)")

    def third(connection):
        connection.execute("DROP TABLE more")
        connection.execute("DELETE FROM samples_raw WHERE id % 2")

    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, 1, [second, second, third])
    connection.close()
"""


def killed_at_every_statement(
    tmp_path: Path, what: str, make: Callable[[Path], object]
) -> list[tuple[int, int, int]]:
    """(version, tables, samples) of what each kill left, until the migration got to its end."""
    left = []
    for step in range(1, 200):
        path = tmp_path / f"{step}.db"
        make(path)
        command = [sys.executable, "-c", KILLED, str(path), str(step), what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        found, tables = version(path)
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT count(*) FROM samples_raw").fetchone()[0] if tables else 0
        connection.close()
        left.append((found, tables, rows))
        if what == "new":
            Writer(path).close()
            assert version(path)[0] == NEWEST
        if done.returncode == 0:
            return left
    raise AssertionError("it never came to its end")


def test_a_new_store_killed_at_every_statement_is_empty_or_whole(tmp_path: Path) -> None:
    Writer(tmp_path / "whole.db").close()
    whole = (NEWEST, version(tmp_path / "whole.db")[1], 0)
    left = killed_at_every_statement(tmp_path, "new", lambda path: None)
    assert set(left) == {(0, 0, 0), whole}
    assert left == sorted(left)
    assert len(left) > 30


def test_a_migration_killed_at_every_statement_leaves_one_version_or_the_next(tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    oldest(source)
    connection = sqlite3.connect(source)
    tables = version(source)[1]
    connection.executemany(
        "INSERT INTO samples_raw (id, seconds) VALUES (?, 1)", [(n,) for n in range(1, 400)]
    )
    connection.commit()
    rows = connection.execute("SELECT count(*) FROM samples_raw").fetchone()[0]
    odd = connection.execute("SELECT count(*) FROM samples_raw WHERE id % 2").fetchone()[0]
    connection.close()
    left = killed_at_every_statement(tmp_path, "steps", lambda path: shutil.copy(source, path))
    assert set(left) == {(1, tables, rows), (2, tables + 1, rows), (3, tables, rows - odd)}
    assert [entry[0] for entry in left] == sorted(entry[0] for entry in left)


def test_a_store_filled_before_is_read_by_a_plain_sqlite(tmp_path: Path) -> None:
    """Nothing of ours is needed to read a store: it is SQLite with views."""
    writer = Writer(tmp_path / "s.db")
    fill(writer, 10, 2)
    writer.close()
    connection = sqlite3.connect(tmp_path / "s.db")
    assert connection.execute("SELECT count(*), count(DISTINCT uid) FROM samples").fetchone() == (20, 2)
    connection.close()
