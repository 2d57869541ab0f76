"""A killed agent against its unkilled twin on the same seeded GPUs: nothing lost, nothing twice, every hole named."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest

from tests.e2e.program import ask, configure, kill, query, running

START, END = 1_710_892_800, 1_710_892_800 + 6 * 3600  # 2024-03-20, midnight to six, UTC
SPEED = 1500
KILLS = 20
GPUS = 3


def flags(config: Path) -> tuple[str, ...]:
    return (
        "-c", str(config), "--simulate", f"{GPUS}:h100", "--seed", "7", "--speed", str(SPEED),
        "--start", "2024-03-20T00:00:00Z", "--until", "2024-03-20T06:00:00Z",
    )  # fmt: skip


def whole_rows(store: Path) -> dict[tuple[int, str], tuple[object, ...]]:
    """(start, uid) to all stored values of every row that covers its whole minute."""
    columns = [row[1] for row in query(store, "PRAGMA table_info(samples_raw)")][2:]
    rows = query(
        store,
        f"SELECT r.id >> 20, g.uid, {', '.join(f'r.{name}' for name in columns)} FROM samples_raw r"
        " JOIN gpus g ON g.id = r.id & 65535 WHERE r.seconds = 600",
    )
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an agent that ran the six hours undisturbed."""
    folder = tmp_path_factory.mktemp("twin")
    done = ask(folder, *flags(configure(folder)))
    assert done.returncode == 0, done.stderr
    return folder / "gpu_metrics.db"


def test_an_undisturbed_agent_misses_nothing(twin: Path) -> None:
    starts = [row[0] for row in query(twin, "SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")]
    assert starts == list(range(START, END, 60))
    assert query(twin, "SELECT count(*) FROM gaps") == [(0,)]
    hours = query(
        twin, "SELECT period, count(*), min(samples), max(coverage) FROM aggregates GROUP BY period"
    )
    assert [hour[:2] for hour in hours] == [(START + n * 3600, GPUS) for n in range(6)]
    assert {hour[2] for hour in hours} == {60}


def test_killed_at_random_instants(twin: Path, tmp_path: Path) -> None:
    config = configure(tmp_path)
    store = tmp_path / "gpu_metrics.db"
    chance = random.Random(20240320)
    kills, finished = 0, False
    while not finished:
        with running(tmp_path, *flags(config)) as process:
            try:
                code = process.wait(timeout=chance.uniform(0.3, 1.2) if kills < KILLS else 120)
                assert code == 0, (tmp_path / "console.txt").read_text()
                finished = True
            except subprocess.TimeoutExpired:
                assert kills < KILLS, "the agent did not come to its end"
                kill(process)
                kills += 1
    assert kills >= 10, "the six hours were over before the agent was killed often enough"
    assert query(store, "PRAGMA integrity_check") == [("ok",)]
    check_rows_equal_the_twins(store, twin)
    check_every_missing_minute_is_named_once(store)


def check_rows_equal_the_twins(store: Path, twin: Path) -> None:
    expected, found = whole_rows(twin), whole_rows(store)
    assert len(found) > 0.2 * len(expected)
    for key, values in found.items():
        assert values == expected[key], key


def check_every_missing_minute_is_named_once(store: Path) -> None:
    present = {row[0] for row in query(store, "SELECT DISTINCT id >> 20 FROM samples_raw")}
    gaps = query(store, 'SELECT start, "end", cause FROM gaps WHERE uid IS NULL ORDER BY start')
    assert {gap[2] for gap in gaps} <= {"agent killed"}
    for minute in range(START, END, 60):
        if minute not in present:
            holding = [gap for gap in gaps if gap[0] <= minute and gap[1] >= minute + 60]
            assert len(holding) == 1, (minute, gaps)
    for before, after in itertools.pairwise(gaps):
        assert before[1] <= after[0]
    # Hours that were rolled up say how much of them is there.
    for period, coverage, expected in query(
        store,
        "SELECT a.period, a.coverage, (SELECT sum(seconds) FROM samples_raw r WHERE r.id >> 20 BETWEEN a.period AND"
        " a.period + 3599 AND r.id & 65535 = a.gpu) / 36000.0 FROM aggregates a",
    ):
        assert abs(coverage - expected) < 1e-3, period
