"""`gpu_monitor server check`, `backup`, `restore` and `forget-node`, as an operator types them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import update

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import events
from tests.e2e.program import ask
from tests.e2e.terminal import answered
from tests.server.receipts import Fleet
from tests.server.runs import Segment, write_segment

UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
HOUR = int(SystemClock().now()) // 3600 - 5  # the program looks at what is no older than a year


@pytest.fixture
def filled(store: Store) -> Store:
    if store.dialect == "postgresql" and shutil.which("pg_dump") is None:
        pytest.skip("there is no pg_dump on the path")
    fleet = Fleet(store)
    agent = fleet.add_node(UUID)
    for hour in (HOUR, HOUR + 1):
        fleet.add_report(agent, hour)
    return store


def test_check_tells_by_its_exit_code(filled: Store, database: str, tmp_path: Path) -> None:
    found = ask(tmp_path, "server", "check", DATABASE_URL=database)
    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r".*: 2 reports with 12 rows: all as it was written\n", found.stdout)
    with filled.write() as connection:
        connection.execute(update(events).where(events.c.hour == HOUR + 1).values(kind="other"))
    found = ask(tmp_path, "server", "check", "--json", "--database", database)
    told = json.loads(found.stdout)
    assert found.returncode == 1
    assert (told["ok"], told["receipts"], told["rows"], told["differences"]) == (False, 2, 12, 1)
    [one] = told["differs"]
    assert (one["node"], one["hour"]) == (UUID, HOUR + 1)
    found = ask(tmp_path, "server", "check", DATABASE_URL=database)
    assert (found.returncode, found.stdout.splitlines()[-1].endswith("1 DIFFERENCES")) == (1, True)


def test_a_copy_and_the_way_back(filled: Store, database: str, tmp_path: Path) -> None:
    made = ask(tmp_path, "server", "backup", "week.backup", DATABASE_URL=database)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == (
        f"{tmp_path}/week.backup: {(tmp_path / 'week.backup').stat().st_size} bytes, 2 reports with 12 rows, verified\n"
    )
    assert ask(tmp_path, "server", "backup", "week.backup", DATABASE_URL=database).returncode == 2
    with filled.write() as connection:
        connection.execute(events.delete())
    filled.close()
    asked = ask(tmp_path, "server", "restore", "week.backup", DATABASE_URL=database)
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    back = ask(tmp_path, "server", "restore", "week.backup", "--yes", "--json", DATABASE_URL=database)
    assert (back.returncode, back.stderr) == (0, "")
    assert (json.loads(back.stdout)["receipts"], json.loads(back.stdout)["rows"]) == (2, 12)
    assert ask(tmp_path, "server", "check", DATABASE_URL=database).returncode == 0


def test_a_copy_of_experiments_alone_says_that_it_holds_them(
    store: Store, database: str, tmp_path: Path
) -> None:
    if store.dialect == "postgresql" and shutil.which("pg_dump") is None:
        pytest.skip("there is no pg_dump on the path")
    now = SystemClock().now()
    for number in (1, 2):
        write_segment(
            store, "100", Segment(f"run-{number}", "net", "vision", now - 60).log(1, 0, loss=0.5), now
        )
    again = Segment("run-2", "net", "vision", now - 30, segment="seg-00000002", resumed=True)
    write_segment(store, "100", again, now)
    made = ask(tmp_path, "server", "backup", "runs.backup", DATABASE_URL=database)
    held = "0 reports with 0 rows, 2 experiments with 3 segments"
    assert (made.returncode, made.stdout.endswith(f" bytes, {held}, verified\n")) == (0, True), made.stdout
    store.close()
    back = ask(tmp_path, "server", "restore", "runs.backup", "--yes", DATABASE_URL=database)
    assert (back.returncode, f": {held} are back\n" in back.stdout) == (0, True), back
    told = json.loads(ask(tmp_path, "server", "check", "--json", DATABASE_URL=database).stdout)
    assert (told["ok"], told["experiments"], told["segments"]) == (True, 2, 3)


def test_nothing_is_restored_under_a_server(filled: Store, database: str, tmp_path: Path) -> None:
    assert ask(tmp_path, "server", "backup", "week.backup", DATABASE_URL=database).returncode == 0
    filled.close()
    serving = open_store(database, alone=True)
    refused = ask(tmp_path, "server", "restore", "week.backup", "--yes", DATABASE_URL=database)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.search(r"in use by (process \d+|a server)", refused.stderr)
    serving.close()


def test_a_node_is_forgotten_after_it_was_said_what_that_means(
    filled: Store, database: str, tmp_path: Path
) -> None:
    asked = ask(tmp_path, "server", "forget-node", UUID, DATABASE_URL=database)
    assert (asked.returncode, asked.stdout) == (2, "")
    for words in (
        f"node {UUID} of contract 12345",
        "2 GPUs, 2 reports, 4 hours of GPUs",
        "comes back",
        "--yes",
    ):
        assert words in asked.stderr
    assert ask(tmp_path, "server", "check", DATABASE_URL=database).stdout.count("2 reports with 12 rows")
    filled.close()
    gone = ask(tmp_path, "server", "forget-node", UUID, "--yes", "--json", DATABASE_URL=database)
    assert (gone.returncode, gone.stderr) == (0, "")
    told = json.loads(gone.stdout)
    assert (told["node"], told["hostname"]) == (UUID, None)
    assert told["removed"]["aggregates"] == 4
    assert "nodes" in told["removed"]
    again = ask(tmp_path, "server", "forget-node", UUID, "--yes", DATABASE_URL=database)
    assert (again.returncode, again.stdout) == (3, "")
    assert f"there is no node {UUID}" in again.stderr
    assert "0 reports with 0 rows" in ask(tmp_path, "server", "check", DATABASE_URL=database).stdout


def test_no_node_is_forgotten_unless_yes_is_typed(filled: Store, database: str, tmp_path: Path) -> None:
    filled.close()
    left = answered(tmp_path, "no", "server", "forget-node", UUID, DATABASE_URL=database)
    assert (left.returncode, left.stdout) == (1, "")
    assert left.stderr.endswith("Type yes to go on: nothing was changed\n")
    gone = answered(tmp_path, "yes", "server", "forget-node", UUID, DATABASE_URL=database)
    assert gone.returncode == 0
    assert gone.stdout.startswith(
        f"node {UUID} of contract 12345, never reported, was removed: 2 GPUs, 2 reports"
    )


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = ask(tmp_path, "server", "check")
    assert (found.returncode, found.stdout) == (78, "")
    assert "there is no server's database" in found.stderr
    assert not (tmp_path / "gpu_monitor_server.db").exists()
