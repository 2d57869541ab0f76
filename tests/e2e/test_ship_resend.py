"""`gpu_monitor resend` from outside: what goes again, what is asked first, and that a running shipper sees it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.core.times import format_time
from gpu_monitor.sinks.http import HttpSink, Target
from gpu_monitor.storage.database import Writer
from tests.fakes.clock import FakeClock
from tests.fakes.hours import FIRST, HOUR, add_hour, make_store
from tests.fakes.server import ServerProcess, Step


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as running:
        yield running


AS_NOBODY = """
import encodings.utf_8_sig, os, sys
from gpu_monitor.cli import main
try:
    main.main(["resend", "--help"])
except SystemExit:
    pass
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main.main(sys.argv[1:]))
"""
"""The program as a user for whom read-only means it; its modules are loaded before."""


class Site:
    """A folder with configuration and store, a shipper on a fake clock, and the program."""

    def __init__(self, folder: Path, url: str, hours: int) -> None:
        self.folder = folder
        (folder / "config.json").write_text(json.dumps({"server": {"url": url, "contract_number": "1"}}))
        self.writer: Writer = make_store(folder)
        for number in range(hours):
            add_hour(self.writer, number)
        self.clock = FakeClock(float(FIRST + hours * HOUR + 600))
        sink = HttpSink(Target(url, "1", timeout_seconds=5), lambda: None, threading.Event())
        ledger = Ledger(self.writer, "1", 300)
        self.shipper = Shipper(self.writer, ledger, lambda: sink, self.clock, threading.Event())

    def resend(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpu_monitor", "resend", *words],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file of the folder: when it was last written, and what is in it."""
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in self.folder.iterdir()}

    def states(self) -> list[tuple[int, int, str]]:
        rows = self.writer.rows("SELECT period, revision, state FROM reports ORDER BY period, revision")
        return [((period - FIRST) // HOUR, revision, state) for period, revision, state in rows]

    def run(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.clock.advance(max(self.shipper.run_once(), 0.01))


def test_rejected_and_parked_go_again_with_the_same_bytes(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(Step("status", status=400), then=Step("status", status=500))
    site = Site(tmp_path, server.url, 2)
    site.run(2 * HOUR)
    assert site.states() == [(0, 1, "rejected"), (1, 1, "parked")]
    server.behave()
    before = len(server.received())
    ran = site.resend()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "2 reports will be sent" in ran.stdout
    site.run(61)
    assert site.states() == [(0, 1, "sent"), (1, 1, "sent")]
    bodies: dict[str, set[bytes]] = {}
    for one in server.received():
        bodies.setdefault(one.ids[0], set()).add(one.body)
    assert len(server.received()) == before + 2
    assert [len(found) for found in bodies.values()] == [1, 1]


def test_a_running_shipper_sees_it_within_a_minute_though_the_server_refused(
    tmp_path: Path, server: ServerProcess
) -> None:
    server.behave(Step("status", status=400), Step("status", status=401))
    site = Site(tmp_path, server.url, 2)
    site.run(30)
    assert site.states() == [(0, 1, "rejected"), (1, 1, "pending")]
    assert site.resend("--rejected").returncode == 0
    site.run(61)
    assert (0, 1, "sent") in site.states(), "the ten minutes after a refusal are over when somebody resends"


def test_a_resent_report_has_ten_fresh_attempts(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(then=Step("status", status=500))
    site = Site(tmp_path, server.url, 1)
    site.run(HOUR)
    assert site.states() == [(0, 1, "parked")]
    assert site.resend("--parked").returncode == 0
    assert site.writer.rows("SELECT state, spent, parked_by FROM reports") == [("pending", 0, None)]
    site.run(HOUR)
    assert site.states() == [(0, 1, "parked")]
    parked_by = site.writer.value("SELECT a.number FROM attempts a JOIN reports r ON a.id = r.parked_by")
    before = site.writer.value("SELECT count(*) FROM attempts")
    assert 20 <= parked_by <= before


def test_acknowledged_ones_only_after_a_yes_and_as_a_new_revision(
    tmp_path: Path, server: ServerProcess
) -> None:
    site = Site(tmp_path, server.url, 3)
    site.run(10)
    moment = format_time(FIRST + HOUR + 1234)
    refused = site.resend(moment)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert site.states() == [(0, 1, "sent"), (1, 1, "sent"), (2, 1, "sent")]
    assert site.resend(moment, "--yes").returncode == 0
    site.run(61)
    assert site.states() == [(0, 1, "sent"), (1, 1, "sent"), (1, 2, "sent"), (2, 1, "sent")]
    first, second = (
        json.loads(one.body)
        for one in server.received()
        if json.loads(one.body)["aggregation_time"] == format_time(FIRST + HOUR)
    )
    assert {**first, "report_id": 0, "revision": 0} == {**second, "report_id": 0, "revision": 0}


def test_a_range_ends_before_its_end(tmp_path: Path, server: ServerProcess) -> None:
    site = Site(tmp_path, server.url, 4)
    site.run(10)
    span = f"{format_time(FIRST + HOUR)}..{format_time(FIRST + 3 * HOUR)}"
    listed = site.resend(span, "--dry-run")
    assert listed.returncode == 0
    assert listed.stdout.splitlines() == [
        f"{format_time(FIRST + HOUR)}  acknowledged already",
        f"{format_time(FIRST + 2 * HOUR)}  acknowledged already",
        "2 reports would be sent; nothing was changed",
    ]
    assert all(state == "sent" and revision == 1 for _, revision, state in site.states())


def test_nothing_to_send_is_exit_3(tmp_path: Path, server: ServerProcess) -> None:
    site = Site(tmp_path, server.url, 1)
    site.run(10)
    for words in ((), ("--rejected",), ("2001-01-01",)):
        ran = site.resend(*words)
        assert (ran.returncode, ran.stdout) == (3, "")


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--node", "nobody"), "nobody"),
        (("not-a-time",), "not-a-time"),
        (("--all", "--parked"), "--all"),
    ],
)
def test_wrong_usage_is_exit_2(
    tmp_path: Path, server: ServerProcess, words: tuple[str, ...], word: str
) -> None:
    ran = Site(tmp_path, server.url, 1).resend(*words)
    assert ran.returncode == 2
    assert word in ran.stderr


def test_no_store_is_an_error_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    ran = subprocess.run(
        [sys.executable, "-m", "gpu_monitor", "-c", "config.json", "resend"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "no store" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_imported_history_goes_under_a_node_of_its_own(tmp_path: Path, server: ServerProcess) -> None:
    site = Site(tmp_path, server.url, 1)
    with site.writer.transaction() as connection:
        connection.execute("INSERT INTO nodes (id, name, kind) VALUES (2, 'trainer', 'import')")
        connection.execute(
            "INSERT INTO gpus (id, node, uid, source, first_seen) VALUES (9, 2, 'IMPORT-trainer-0', 'import', 0)"
        )
        connection.execute("INSERT INTO imports (node, time, step) VALUES (2, ?, 10)", (FIRST,))
        connection.executemany(
            "INSERT INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage, seconds, temperature)"
            " VALUES (?, 9, 3600, 300, 360, 0.8333, 3000, 61.5)",
            [(FIRST - 900 * HOUR,), (FIRST - 899 * HOUR,)],
        )
    site.run(10)
    assert len(server.held()) == 1
    assert site.resend("--node", "trainer").returncode == 0
    site.run(61)
    reports = [json.loads(body) for body in server.held().values()]
    imported = [one for one in reports if one["gpus"][0]["source"] == "import"]
    assert [one["aggregation_time"] for one in imported] == [
        format_time(FIRST - 900 * HOUR),
        format_time(FIRST - 899 * HOUR),
    ]
    assert len({one["node"]["id"] for one in reports}) == 2
    assert imported[0]["node"]["hostname"] == "trainer"
    assert imported[0]["collection_interval_seconds"] == 10
    assert imported[0]["host"] is None
    assert site.resend("--node", "trainer", "--dry-run").returncode == 3, "sent once is sent"


@pytest.mark.parametrize(("words", "code"), [(("--all", "--dry-run"), 0), ((), 3), (("2001-01-01",), 3)])
@pytest.mark.parametrize("is_running", [False, True], ids=["without an agent", "beside an agent"])
def test_looking_changes_no_byte(tmp_path: Path, words: tuple[str, ...], code: int, is_running: bool) -> None:
    """`--dry-run`, and where there is nothing to send: neither the store nor the files beside it."""
    with ServerProcess(tmp_path) as server:
        folder = tmp_path / "site"
        folder.mkdir()
        site = Site(folder, server.url, 2)
        site.run(10)
    if not is_running:
        site.writer.close()
    before = site.files()
    ran = site.resend(*words)
    assert ran.returncode == code
    assert ("2 reports would be sent" in ran.stdout) == (code == 0)
    after = site.files()
    # SQLite's readers mark in the shared index where they read; it holds nothing that lasts.
    for found in (before, after):
        index = [name for name in found if name.endswith("-shm")]
        assert bool(index) == is_running
        found.update(dict.fromkeys(index, (0, b"")))
    assert after == before


@pytest.mark.skipif(sys.platform == "win32", reason="folders there are not made read-only by their mode")
def test_a_dry_run_needs_no_right_to_write() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: another user may not enter that
        folder = Path(name)
        site = Site(folder, "http://127.0.0.1:9", 2)
        site.shipper.run_once()
        site.writer.close()
        before = site.files()
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        try:
            for words, code in ((["--all", "--dry-run"], 0), (["--node", "nobody", "--dry-run"], 2), ([], 3)):
                ran = subprocess.run(
                    [sys.executable, "-c", AS_NOBODY, "resend", *words],
                    cwd=folder, env={**os.environ, "HOME": name, "XDG_CONFIG_HOME": name},
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert ran.returncode == code, ran.stderr
        finally:
            folder.chmod(stat.S_IRWXU)
        assert site.files() == before
