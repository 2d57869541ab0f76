"""The store's file is removed, replaced or overwritten under the running program."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from gpu_monitor.storage.locks import is_held, lock_path
from tests.e2e.program import ask, configure, kill, query, running
from tests.e2e.waiting import until

WORDS = ("--simulate", "2", "--seed", "5")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return configure(tmp_path, logging={"file": None}, collection={"interval_seconds": 1})


def starts(store: Path) -> list[int]:
    """The intervals that have rows; none while the store is away or half made."""
    try:
        return [row[0] for row in query(store, "SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")]
    except sqlite3.Error:
        return []


def assert_explained(store: Path, first: int) -> None:
    """Every second from `first` to the newest row has rows or lies in a gap."""
    present = set(starts(store))
    gaps = query(store, 'SELECT start, "end" FROM gaps WHERE uid IS NULL')
    for second in range(first, max(present)):
        covered = any(start < second + 1 and (end is None or end > second) for start, end in gaps)
        assert second in present or covered, (second, sorted(present), gaps)


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm")])
def test_a_removed_store_is_there_again_with_all_it_held(
    tmp_path: Path, config: Path, suffixes: tuple[str, ...]
) -> None:
    store = tmp_path / "gpu_metrics.db"
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: len(starts(store)) >= 3, "three intervals")
        before = starts(store)
        run = query(store, "SELECT started, pid FROM runs")
        for suffix in suffixes:
            os.unlink(f"{store}{suffix}")
        until(lambda: any(start > before[-1] + 1 for start in starts(store)), "rows after the removal")
        kill(agent)
    assert set(before) <= set(starts(store))
    assert query(store, "SELECT started, pid FROM runs") == run
    assert query(store, "SELECT count(*) FROM events WHERE kind = 'store_restored'") == [(1,)]
    assert query(store, "SELECT count(*) FROM losses") == [(0,)]
    assert query(store, "PRAGMA integrity_check") == [("ok",)]
    assert not list(tmp_path.glob("*.deleted-*")) + list(tmp_path.glob("*.saving"))
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        last = starts(store)[-1]
        until(lambda: starts(store)[-1] > last, "rows of the next run")
        kill(agent)
    assert_explained(store, before[0])
    assert query(store, "SELECT ended_how FROM runs") == [("killed",), (None,)]


def test_another_store_in_its_place_is_gone_on_with_and_says_what_is_missing(
    tmp_path: Path, config: Path
) -> None:
    store, older = tmp_path / "gpu_metrics.db", tmp_path / "older.db"
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: len(starts(store)) >= 2, "two intervals")
        kill(agent)
    with sqlite3.connect(store) as source, sqlite3.connect(older) as target:
        source.backup(target)
    source.close()
    target.close()
    old = starts(older)
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: len(starts(store)) >= len(old) + 3, "three intervals of the second run")
        seen = starts(store)
        run = query(store, "SELECT started, pid FROM runs ORDER BY id DESC LIMIT 1")
        older.replace(store)
        until(lambda: any(start > seen[-1] + 1 for start in starts(store)), "rows in the other store")
        kill(agent)
    (kept,) = tmp_path.glob("gpu_metrics.db.deleted-*")
    assert set(seen) <= set(starts(kept))
    assert set(old) <= set(starts(store))
    assert query(store, "SELECT started, pid FROM runs WHERE ended_how IS NULL") == run
    (event,) = query(store, "SELECT severity, message FROM events WHERE kind = 'store_replaced'")
    assert event[0] == "critical"
    assert kept.name in event[1]
    assert query(store, "SELECT what, cause FROM losses") == [
        ("samples", f"store replaced; it is kept as {kept.name}")
    ]
    assert query(store, "PRAGMA foreign_key_check") == []
    assert_explained(store, old[0])
    assert f"CRITICAL agent: {store}" in (tmp_path / "console.txt").read_text()


def test_a_removed_store_that_cannot_be_saved_leaves_a_gap_and_the_run(tmp_path: Path, config: Path) -> None:
    store, draft = tmp_path / "gpu_metrics.db", tmp_path / "gpu_metrics.db.saving"
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: len(starts(store)) >= 3, "three intervals")
        before = starts(store)
        (run,) = query(store, "SELECT started, pid FROM runs")
        draft.mkdir()
        os.unlink(store)
        until(lambda: starts(store), "rows in the new store")
        kill(agent)
    assert query(store, "SELECT started, pid FROM runs") == [run]
    assert query(store, "SELECT severity FROM events WHERE kind = 'store_replaced'") == [("critical",)]
    assert_explained(store, before[0])


def test_a_log_overwritten_under_the_agent_is_not_called_stored(tmp_path: Path, config: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    log = Path(f"{store}-wal")
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: len(starts(store)) >= 3, "three intervals")
        with log.open("r+b") as file:
            file.write(random.Random(1).randbytes(log.stat().st_size))
        agent.terminate()
        code = agent.wait(timeout=60)
    text = (tmp_path / "console.txt").read_text()
    whole = shutil.copyfile(store, tmp_path / "copy.db")
    try:
        is_whole = query(whole, "PRAGMA integrity_check") == [("ok",)]
    except sqlite3.DatabaseError:
        is_whole = False
    assert not is_whole
    assert code == 1
    assert "everything collected is stored" not in text
    assert "CRITICAL agent: stopped; " in text
    again = ask(tmp_path, "-c", str(config), *WORDS, "--until", "+2s")
    assert again.returncode == 0, again.stderr
    assert query(store, "PRAGMA integrity_check") == [("ok",)]
    assert query(store, "PRAGMA foreign_key_check") == []


def test_a_lock_file_removed_with_the_store_is_there_again_and_keeps_a_second_agent_out(
    tmp_path: Path, config: Path
) -> None:
    store, lock = tmp_path / "gpu_metrics.db", tmp_path / "gpu_metrics.db.agent"
    with running(tmp_path, "-c", str(config), *WORDS) as agent:
        until(lambda: starts(store), "a first interval")
        for path in tmp_path.glob("gpu_metrics.db*"):
            path.unlink()
        until(lambda: is_held(lock), "the lock is held again")
        until(lambda: starts(store), "the store is there again")
        second = ask(tmp_path, "-c", str(config), *WORDS)
        assert second.returncode == 1
        assert f"pid {agent.pid}" in second.stderr
        kill(agent)


def test_an_agent_whose_store_was_taken_over_stops_and_writes_nothing_more(tmp_path: Path) -> None:
    config = configure(tmp_path, logging={"file": None}, collection={"reading_seconds": 1})
    store = tmp_path / "gpu_metrics.db"
    with running(tmp_path, "-c", str(config), *WORDS) as first:
        until(lambda: starts(store), "a first row")
        first.send_signal(signal.SIGSTOP)
        while is_held(lock_path(store)):  # not in the midst of writing
            first.send_signal(signal.SIGCONT)
            first.send_signal(signal.SIGSTOP)
        for path in tmp_path.glob("gpu_metrics.db*"):
            path.unlink()
        with running(tmp_path, "-c", str(config), *WORDS) as second:
            until(lambda: starts(store), "a row of the second agent")
            first.send_signal(signal.SIGCONT)
            assert first.wait(timeout=30) == 1
            assert query(store, "SELECT pid, ended_how FROM runs") == [(second.pid, None)]
            kill(second)
    (kept,) = tmp_path.glob("gpu_metrics.db.deleted-*")
    assert query(kept, "SELECT pid FROM runs") == [(first.pid,)]
    assert f"another agent (pid {second.pid})" in (tmp_path / "console.txt").read_text()
