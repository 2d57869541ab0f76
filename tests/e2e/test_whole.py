"""The main job: collect, store, roll up, ship to a server with faults, killed on the way; ledger and server agree."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from datetime import datetime
from pathlib import Path

from tests.e2e.program import ask, configure, kill, query, running
from tests.e2e.waiting import until
from tests.fakes.server import ServerProcess, Step

START = "-9h"
HOURS = 7


def test_a_day_with_kills_and_a_bad_server(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    store = folder / "gpu_metrics.db"
    with ServerProcess(tmp_path) as server:
        server.behave(
            Step("status", status=503, headers={"Retry-After": "2"}), "reset", "wrong_digest", "good",
            Step("status", status=500, stored=True), "garbage", encodings=("gzip",),
        )  # fmt: skip
        config = configure(
            folder,
            server={"url": server.url, "contract_number": "12345", "spread_seconds": 5, "timeout_seconds": 5},
        )
        flags = ("-c", str(config), "--simulate", "2:h100", "--speed", "1500", "--start", START)
        for seconds in (2.0, 3.0, 4.0, 3.0):
            with running(folder, *flags) as process:
                try:
                    process.wait(timeout=seconds)
                    raise AssertionError((folder / "console.txt").read_text())
                except subprocess.TimeoutExpired:
                    kill(process)
        with running(folder, *flags) as process:
            until(lambda: all_sent(store, HOURS), "every hour acknowledged")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        check_ledger_and_server(folder, store, server)


def all_sent(store: Path, hours: int) -> bool:
    found = query(store, "SELECT count(*), sum(state IN ('sent', 'replaced')) FROM reports")[0]
    return bool(found[0] >= hours and found[0] == found[1])


def check_ledger_and_server(folder: Path, store: Path, server: ServerProcess) -> None:
    held, newest = server.held(), server.newest()
    for report_id, sha256, state in query(store, "SELECT report_id, sha256, state FROM reports"):
        if state == "sent":
            assert hashlib.sha256(held[report_id]).hexdigest() == sha256
    periods = [row[0] for row in query(store, "SELECT DISTINCT period FROM reports ORDER BY 1")]
    assert len(newest) == len(periods), "an hour is missing at the server, or is there twice"
    for body in newest.values():
        check_report(json.loads(body), store)
    lines = ask(folder, "-ls").stdout.splitlines()[2:]
    assert len(lines) == len(periods)
    assert all(line.endswith("| 1") for line in lines)
    assert all(fault == () for fault in (request.faults for request in server.received()))


def check_report(report: dict[str, object], store: Path) -> None:
    """Every number of the report is the store's, and the rows it stands for add up to it."""
    start = int(datetime.fromisoformat(str(report["aggregation_time"])).timestamp())
    rows = {
        row[0]: row[1:]
        for row in query(
            store,
            "SELECT g.uid, a.samples, a.seconds, a.energy, a.power_usage_max FROM aggregates a"
            " JOIN gpus g ON g.id = a.gpu WHERE a.period = ?",
            (start,),
        )
    }
    gpus = report["gpus"]
    assert isinstance(gpus, list)
    assert {gpu["uid"] for gpu in gpus} == set(rows)
    for gpu in gpus:
        samples, seconds, energy, power = rows[gpu["uid"]]
        assert (gpu["samples"], gpu["energy"], gpu["power_usage_max"]) == (samples, energy, power)
        assert gpu["source"] == "simulated"
        raw = query(
            store,
            "SELECT count(*), sum(r.seconds) / 10.0, sum(r.energy) / 10.0 FROM samples_raw r"
            " JOIN gpus g ON g.id = r.id & 65535 WHERE g.uid = ? AND r.id >> 20 BETWEEN ? AND ?",
            (gpu["uid"], start, start + 3599),
        )[0]
        assert raw[0] == samples
        assert abs(raw[1] - seconds) < 1e-6
        assert abs(raw[2] - gpu["energy"]) < 0.06
    node = report["node"]
    assert isinstance(node, dict)
    assert node["simulated"] is True
