"""A damage that takes the GPUs' names: what kind of store it was is still known, or left open."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

from tests.e2e.program import ask, configure, query

GPUS = 2


def flags(config: Path, end: str) -> tuple[str, ...]:
    return (
        "-c", str(config), "--simulate", str(GPUS), "--seed", "5", "--speed", "7200",
        "--start", "2026-03-20T12:00:00Z", "--until", f"2026-03-20T{end}:00Z",
    )  # fmt: skip


def test_a_simulated_store_that_lost_its_nodes_and_gpus_stays_one(tmp_path: Path) -> None:
    config, store = configure(tmp_path, logging={"file": None}), tmp_path / "gpu_metrics.db"
    assert ask(tmp_path, *flags(config, "13:00")).returncode == 0
    roots = [
        query(store, "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))[0][0]
        for name in ("nodes", "gpus", "gpus_uid")
    ]
    with store.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * 4096)
            file.write(random.Random(root).randbytes(4096))
    for end in ("14:00", "15:00"):
        done = ask(tmp_path, *flags(config, end))
        assert done.returncode == 0, done.stderr
    assert query(store, "PRAGMA foreign_key_check") == []
    assert query(store, "SELECT id, kind FROM nodes") == [(1, "local")]
    assert query(store, "SELECT DISTINCT source FROM gpus") == [("simulated",)]
    # The lost cards keep their numbers, and the same cards seen again have new ones.
    assert query(store, "SELECT count(*) FROM gpus WHERE uid GLOB 'LOST-*'") == [(GPUS,)]
    real = ask(tmp_path, "-c", str(config), "--until", "+1s")
    assert real.returncode == 78
    assert "holds simulated rows" in real.stderr


def test_gpus_of_no_known_kind_keep_no_start_away(tmp_path: Path) -> None:
    config, store = configure(tmp_path, logging={"file": None}), tmp_path / "gpu_metrics.db"
    assert ask(tmp_path, *flags(config, "12:30")).returncode == 0
    for source, code in (("unknown", 0), ("nvml", 78)):
        connection = sqlite3.connect(store)
        with connection:
            connection.execute("UPDATE gpus SET source = ?", (source,))
        connection.close()
        done = ask(tmp_path, *flags(config, "13:00"))
        assert done.returncode == code, done.stderr
