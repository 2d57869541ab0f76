"""The real program on damaged and foreign files, and beside another of its kind."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.e2e.program import ask, configure, kill, query, running
from tests.e2e.waiting import until

NOON = 1_774_008_000
"""2026-03-20T12:00:00Z."""
GPUS = 4


def flags(config: Path, end: str) -> tuple[str, ...]:
    return (
        "-c", str(config), "--simulate", str(GPUS), "--seed", "5", "--speed", "7200",
        "--start", "2026-03-20T12:00:00Z", "--until", f"2026-03-20T{end}:00Z",
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A store with two simulated hours, its agent stopped properly."""
    config = configure(tmp_path, logging={"file": None})
    done = ask(tmp_path, *flags(config, "14:00"))
    assert done.returncode == 0, done.stderr
    return config


def damage(store: Path, page: int, data: bytes | None = None) -> None:
    with store.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(data or random.Random(1).randbytes(4096))


def root_of(store: Path, table: str) -> int:
    return int(query(store, "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))[0][0])


@pytest.mark.parametrize("what", ["header", "samples", "index"])
def test_a_damaged_store_is_salvaged_and_the_agent_goes_on(tmp_path: Path, config: Path, what: str) -> None:
    store = tmp_path / "gpu_metrics.db"
    if what == "header":
        damage(store, 1, bytes(100))
    else:
        damage(store, root_of(store, "samples_raw" if what == "samples" else "reports_state"))
    before = store.read_bytes()
    done = ask(tmp_path, *flags(config, "15:00"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "salvaged" in done.stderr
    (kept,) = tmp_path.glob("gpu_metrics.db.corrupt-*")
    assert kept.read_bytes() == before
    assert query(store, "PRAGMA integrity_check") == [("ok",)]
    (detail,) = query(store, "SELECT detail FROM events WHERE kind = 'store_salvaged'")
    assert json.loads(detail[0])["kept"] == kept.name
    assert query(store, "SELECT count(*) FROM losses")[0][0] >= 1
    per_minute = query(store, "SELECT id >> 20, count(*) FROM samples_raw GROUP BY 1")
    assert {count for _, count in per_minute} == {GPUS}
    present = {start for start, _ in per_minute}
    gaps = query(store, 'SELECT start, "end" FROM gaps WHERE uid IS NULL')
    for minute in range(NOON, NOON + 3 * 3600, 60):
        if minute not in present:
            assert len([gap for gap in gaps if gap[0] <= minute and minute + 60 <= gap[1]]) == 1, minute
    assert set(range(NOON, NOON + 2 * 3600, 60)) <= present
    assert len(present) > 150
    # The cards of before are the cards of now: no number was given twice.
    assert query(store, "SELECT count(*), count(DISTINCT uid) FROM gpus") == [(GPUS, GPUS)]
    answer = ask(tmp_path, "-c", str(config), "-sc", "2026-03-20T13:30:30Z")
    assert len(json.loads(answer.stdout)[0]["gpus"]) == GPUS


def test_killed_while_it_salvages_it_ends_with_the_same_rows(tmp_path: Path, config: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    damage(store, 1, bytes(4096))
    before = store.read_bytes()
    chance = random.Random(11)
    for _ in range(6):
        with running(tmp_path, *flags(config, "14:30")) as process:
            try:
                process.wait(timeout=chance.uniform(0.15, 0.6))
                break
            except subprocess.TimeoutExpired:
                kill(process)
    done = ask(tmp_path, *flags(config, "14:30"))
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.glob("gpu_metrics.db.corrupt-*")
    assert kept.read_bytes() == before
    assert query(store, "SELECT count(*) FROM events WHERE kind = 'store_salvaged'") == [(1,)]
    assert query(
        store, "SELECT count(*) FROM samples_raw WHERE id >> 20 BETWEEN ? AND ?", (NOON, NOON + 7199)
    ) == [(120 * GPUS,)]
    assert not [name for name in os.listdir(tmp_path) if "salvag" in name]


@pytest.mark.parametrize("content", [b"my notes\n" * 1000, b"\x7fELF" + bytes(9000), b"x"])
def test_a_foreign_file_is_refused_untouched_however_often(tmp_path: Path, content: bytes) -> None:
    config = configure(tmp_path, database={"file": "notes.txt"}, logging={"file": None})
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for _ in range(3):
        done = ask(tmp_path, *flags(config, "13:00"))
        assert done.returncode == 1
        assert "notes.txt" in done.stderr
        assert "untouched" in done.stderr
        assert "database.file" in done.stderr
        assert "Traceback" not in done.stderr
        assert path.read_bytes() == content
    assert ask(tmp_path, "-c", str(config), "-sc").returncode == 1
    assert path.read_bytes() == content


def test_a_second_agent_is_refused_and_a_killed_one_is_followed_at_once(tmp_path: Path) -> None:
    config = configure(tmp_path, logging={"file": None}, collection={"interval_seconds": 1})
    words = ("-c", str(config), "--simulate", "1")
    store = tmp_path / "gpu_metrics.db"

    def count() -> int:
        try:
            return int(query(store, "SELECT count(*) FROM samples_raw")[0][0])
        except sqlite3.OperationalError as error:
            assert "unable to open" in str(error) or "no such table" in str(error), error
            return 0

    with running(tmp_path, *words) as first:
        until(lambda: count() > 0, "a first row")
        second = ask(tmp_path, *words)
        assert second.returncode == 1
        assert str(first.pid) in second.stderr
        assert "Traceback" not in second.stderr
        rows = count()
        kill(first)
    with running(tmp_path, *words) as third:
        until(lambda: count() > rows, "rows of the third agent")
        assert third.poll() is None
        kill(third)
