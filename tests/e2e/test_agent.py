"""The agent as a process: signals, locks, refusals, a configuration that changes under it."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

from tests.e2e.program import ask, configure, query, running
from tests.e2e.waiting import until
from tests.fakes.server import ServerProcess


def rows(store: Path, sql: str) -> list[tuple[object, ...]]:
    """Rows, or none while the store is being made."""
    try:
        return query(store, sql) if store.exists() else []
    except sqlite3.OperationalError:
        return []


def test_sigterm_stops_in_time_with_everything_stored(tmp_path: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    config = configure(tmp_path, collection={"interval_seconds": 1, "reading_seconds": 1})
    with running(tmp_path, "-c", str(config), "--simulate", "2") as process:
        until(lambda: len(rows(store, "SELECT DISTINCT id >> 20 FROM samples_raw")) >= 3, "three intervals")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - began < 5
    assert not (tmp_path / "gpu_metrics.db-wal").exists()
    assert query(store, "SELECT ended_how FROM runs") == [("stopped",)]
    assert [row[0] for row in query(store, "SELECT kind FROM events ORDER BY id")] == [
        "agent_started",
        "agent_stopped",
    ]


def test_a_second_agent_names_the_first_and_leaves_at_once(tmp_path: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    configure(tmp_path)
    with running(tmp_path, "--simulate", "1") as process:
        until(lambda: rows(store, "SELECT 1 FROM samples_raw"), "a first row")
        second = ask(tmp_path, "--simulate", "1")
        assert second.returncode == 1
        assert f"pid {process.pid}" in second.stderr
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    third = ask(
        tmp_path,
        "--simulate",
        "1",
        "--until",
        "+1s",
        "-c",
        str(configure(tmp_path, collection={"interval_seconds": 1})),
    )
    assert third.returncode == 0, third.stderr
    kinds = [row[0] for row in query(store, "SELECT kind FROM events ORDER BY id")]
    assert kinds.count("agent_killed") == 1


def test_simulated_and_real_rows_never_share_a_store(tmp_path: Path) -> None:
    config = configure(tmp_path, collection={"interval_seconds": 1})
    assert ask(tmp_path, "-c", str(config), "--simulate", "1", "--until", "+1s").returncode == 0
    store = tmp_path / "gpu_metrics.db"
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE gpus SET source = 'nvml', uid = 'GPU-x'")
    connection.close()
    done = ask(tmp_path, "-c", str(config), "--simulate", "1", "--until", "+1s")
    assert done.returncode == 78
    assert "database.file" in done.stderr


def test_sighup_takes_over_a_good_configuration_and_refuses_a_bad_one(tmp_path: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    config = configure(tmp_path, collection={"interval_seconds": 1})
    console = tmp_path / "console.txt"
    with running(tmp_path, "-c", str(config), "--simulate", "1") as process:
        until(lambda: len(rows(store, "SELECT 1 FROM samples_raw")) >= 2, "two intervals")
        config.write_text('{"collection": {"interval_seconds": "often"}}')
        process.send_signal(signal.SIGHUP)
        until(lambda: "stays in force" in console.read_text(), "the refusal")
        assert "interval_seconds" in console.read_text()
        config.write_text('{"collection": {"interval_seconds": 2}}')
        process.send_signal(signal.SIGHUP)
        until(lambda: rows(store, "SELECT 1 FROM runs WHERE interval_seconds = 2"), "the new pace")
        until(lambda: ": collection.interval_seconds changed" in console.read_text(), "what changed")
        process.send_signal(signal.SIGHUP)
        until(lambda: ": nothing changed" in console.read_text(), "a reload without a change")
        before = len(rows(store, "SELECT 1 FROM samples_raw"))
        until(lambda: len(rows(store, "SELECT 1 FROM samples_raw")) >= before + 2, "rows at the new pace")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    latest = [row[0] for row in query(store, "SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")][-2:]
    assert all(start % 2 == 0 for start in latest)


def test_many_sighups_do_not_stop_it(tmp_path: Path) -> None:
    """Each interrupts the main thread wherever it is, which may be inside a lock that a reload takes."""
    store = tmp_path / "gpu_metrics.db"
    server = {"url": "http://127.0.0.1:9/api/metrics", "contract_number": "1"}  # nobody listens there
    config = configure(tmp_path, collection={"interval_seconds": 1}, server=server)
    chance = random.Random(5)

    def stored() -> int:
        return len(rows(store, "SELECT DISTINCT id >> 20 FROM samples_raw"))

    with running(tmp_path, "-c", str(config), "--simulate", "2") as process:
        until(lambda: stored() >= 2, "two intervals")
        for _ in range(400):
            process.send_signal(signal.SIGHUP)
            time.sleep(chance.uniform(0, 0.01))  # any instant of its work is to be hit
        before = stored()
        until(lambda: stored() >= before + 2, "intervals after the last one")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_a_run_ends_at_its_time_not_at_the_end_of_an_interval(tmp_path: Path) -> None:
    config = configure(tmp_path, collection={"interval_seconds": 3600})
    fault = ("--fault", "at=+1s for=1h kind=driver")
    before = time.time()
    done = ask(tmp_path, "-c", str(config), "--simulate", "1", "--until", "+3s", *fault)
    assert done.returncode == 0, done.stderr
    ((ended,),) = query(tmp_path / "gpu_metrics.db", "SELECT ended FROM runs")
    assert ended - before >= 3  # an end at the hour would take longer than `ask` waits


def test_faults_of_simulated_gpus_are_on_record(tmp_path: Path) -> None:
    config = configure(tmp_path)
    done = ask(
        tmp_path, "-c", str(config), "--simulate", "2:h100", "--speed", "3000",
        "--start", "2024-03-20T00:00:00Z", "--until", "2024-03-20T01:30:00Z",
        "--fault", "gpu=1 at=2024-03-20T00:10:00Z for=10m kind=lost",
        "--fault", "gpu=0 at=2024-03-20T00:40:00Z kind=xid xid=79",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = tmp_path / "gpu_metrics.db"
    uid = query(store, 'SELECT uid FROM gpus WHERE "index" = 1')[0][0]
    ((gap_uid, start, end, cause),) = query(store, 'SELECT uid, start, "end", cause FROM gaps')
    assert gap_uid == uid
    assert 1710893400 - 15 <= start <= 1710893400
    assert 1710893400 + 600 <= end <= 1710893400 + 615
    assert "lost" in cause.lower()
    missing = query(
        store,
        "SELECT count(*) FROM samples_raw r JOIN gpus g ON g.id = r.id & 65535 WHERE g.uid = ?"
        " AND r.id >> 20 BETWEEN 1710893400 AND 1710893400 + 540",
        (uid,),
    )
    assert missing == [(0,)]
    found = query(store, "SELECT detail FROM events WHERE kind = 'xid' AND uid <> ?", (uid,))
    (detail,) = [json.loads(row[0]) for row in found]
    assert detail["xid"] == 79
    assert detail["advice"]
    coverage = dict(
        query(
            store,
            "SELECT g.uid, a.coverage FROM aggregates a JOIN gpus g ON g.id = a.gpu WHERE a.period = 1710892800",
        )
    )
    assert coverage[uid] < 0.85
    assert [value for other, value in coverage.items() if other != uid] == [1.0]


def test_without_a_gpu_it_warns_and_records_the_host(tmp_path: Path) -> None:
    store = tmp_path / "gpu_metrics.db"
    config = configure(tmp_path, collection={"interval_seconds": 1})
    console = tmp_path / "console.txt"
    with running(tmp_path, "-c", str(config), LD_LIBRARY_PATH=str(tmp_path)) as process:
        until(
            lambda: len(rows(store, "SELECT 1 FROM hosts_raw WHERE memory_used IS NOT NULL")) >= 3,
            "host rows",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    if os.path.exists("/dev/nvidiactl"):
        return
    assert "WARNING" in console.read_text()
    (last,) = json.loads(ask(tmp_path, "-sc", "--host", "-c", str(config)).stdout)
    assert last["host"]["memory_total"] > last["host"]["memory_used"] > 0
    table = ask(tmp_path, "-sc", "-1h..now", "--host", "-f", "csv", "-c", str(config)).stdout.splitlines()
    assert table[0].startswith("timestamp,cpu_utilization")
    assert len(table) >= 4
    assert query(store, "SELECT count(*) FROM samples_raw") == [(0,)]
    assert query(store, "SELECT count(*) FROM gpus") == [(0,)]


def test_a_server_named_while_the_agent_runs_gets_reports_and_one_taken_away_no_more(tmp_path: Path) -> None:
    store, console = tmp_path / "gpu_metrics.db", tmp_path / "console.txt"
    config = configure(tmp_path)

    def periods() -> int:
        return len(rows(store, "SELECT DISTINCT period FROM reports"))

    with ServerProcess(tmp_path) as server, running(
        tmp_path, "-c", str(config), "--simulate", "1", "--speed", "3000", "--start", "-24h"
    ) as process:  # fmt: skip
        until(lambda: periods() >= 2, "two hours")
        assert rows(store, "SELECT 1 FROM attempts") == []
        configure(tmp_path, server={"url": server.url, "contract_number": "1"})
        process.send_signal(signal.SIGHUP)
        until(lambda: len(server.held()) >= 2, "reports")
        configure(tmp_path)
        process.send_signal(signal.SIGHUP)
        until(lambda: "server.url was removed" in console.read_text(), "the end of sending")
        until(lambda: not rows(store, "SELECT 1 FROM attempts WHERE verdict IS NULL"), "the last answer")
        tried, known = rows(store, "SELECT count(*) FROM attempts"), periods()
        until(lambda: periods() >= known + 2, "two more hours")
        assert rows(store, "SELECT count(*) FROM attempts") == tried
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
