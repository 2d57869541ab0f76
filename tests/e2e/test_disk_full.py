"""A disk that is really full: a small tmpfs in a namespace of its own, and a store that may not grow."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.agent.beat import Pace
from gpu_monitor.agent.recovery import Machine
from gpu_monitor.agent.retain import Limits, Retention
from gpu_monitor.agent.rollup import Rollup
from gpu_monitor.agent.service import Agent, Parts
from gpu_monitor.agent.store import Store
from gpu_monitor.agent.waiting import Queue
from gpu_monitor.agent.xids import XidWatch
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.model import DeviceReading, Identity, Round, Span
from gpu_monitor.storage.ballast import Ballast
from gpu_monitor.storage.salvage import open_store
from tests.fakes.clock import FakeClock

ROOT = Path(__file__).parents[2]
NOON = 1_774_008_000.0
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


on_small_disk = pytest.mark.skipif(
    not can_mount(),
    reason="LOUD: no tmpfs can be mounted in a user namespace here, the full disk is not tested",
)


def inside(folder: Path, megabytes: int, code: str, *words: str) -> dict[str, Any]:
    """Run Python `code` with a tmpfs of that size at `folder`; the JSON it prints at the end."""
    script = f'mount -t tmpfs -o size={megabytes}m none "$1" && shift && exec "$@"'
    command = [
        *NAMESPACE,
        "sh",
        "-c",
        script,
        "sh",
        str(folder),
        sys.executable,
        "-c",
        code,
        str(folder),
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


AGENT = """
import json, os, signal, sqlite3, subprocess, sys, time
from pathlib import Path

folder, queue = Path(sys.argv[1]), int(sys.argv[2])
store, log, filler = folder / "s.db", folder.parent / "console.txt", folder / "filler"
(folder / "config.json").write_text(json.dumps({
    "collection": {"interval_seconds": 1, "reading_seconds": 1, "host": True},
    "database": {"file": str(store), "ballast_mb": 1, "queue_intervals": queue},
    "logging": {"file": None},
}))
agent = subprocess.Popen(
    [sys.executable, "-m", "gpu_monitor", "-c", str(folder / "config.json"), "--simulate", "8:h100"],
    stdout=subprocess.DEVNULL, stderr=log.open("w"), cwd=folder,
)

def rows(sql):
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()

def wait(what, check, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert agent.poll() is None, log.read_text()
        try:
            if check():
                return
        except sqlite3.Error:
            pass
        time.sleep(0.05)
    raise AssertionError(what + ": " + log.read_text() + str(os.listdir(folder)))

def newest():
    return rows("SELECT coalesce(max(id) >> 20, 0) FROM samples_raw")[0][0]

def fill():
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 4096, 512, 1):
            try:
                while True:
                    file.write(b"f" * size)
            except OSError:
                pass

wait("first rows", lambda: newest() > 0)
ballast = store.with_name("s.db.ballast")
laid = ballast.stat()
assert laid.st_blocks * 512 >= 1 << 20
fill()
wait("ballast given up", lambda: not ballast.exists())
given_up_at = newest()
stuck = 0
while stuck < 6:  # the room of the ballast is used up, too, again and again until nothing goes
    fill()
    before = newest()
    time.sleep(0.6)
    stuck = stuck + 1 if newest() == before else 0
    assert agent.poll() is None, log.read_text()
stopped = newest()
time.sleep(float(sys.argv[3]))
assert newest() == stopped
filler.unlink()
wait("rows again", lambda: newest() > stopped + 3)
wait("ballast again", ballast.exists)
agent.send_signal(signal.SIGTERM)
code = agent.wait(timeout=20)
starts = [row[0] for row in rows("SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")]
holes = [second for second in range(starts[0], starts[-1]) if second not in set(starts)]
print(json.dumps({
    "code": code,
    "holes": holes,
    "stopped": stopped,
    "least": min(row[0] for row in rows("SELECT count(*) FROM samples_raw GROUP BY id >> 20")),
    "gaps": rows('SELECT start, "end", cause FROM gaps'),
    "losses": rows("SELECT what, cause, rows FROM losses"),
    "check": rows("PRAGMA integrity_check")[0][0],
    "console": log.read_text(),
}))
"""


@on_small_disk
def test_nothing_is_lost_when_the_disk_is_full_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    found = inside(tmp_path / "disk", 7, AGENT, "720", "5")
    console = found["console"]
    assert found["code"] == 0, console
    assert found["check"] == "ok"
    assert found["holes"] == []
    assert found["least"] == 8
    assert [gap for gap in found["gaps"] if gap[2] == "store not writable"] == []
    assert found["losses"] == []
    assert "Traceback" not in console
    assert console.count("wait in memory") >= 1
    assert "the store can be written again" in console
    assert "gave up" in console
    # Said when it begins and when it ends: with the ballast's room and again without, not for each interval.
    assert console.count("wait in memory") <= 3
    assert console.count("the store can be written again") <= 3


@on_small_disk
def test_what_does_not_fit_in_memory_is_a_gap_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    found = inside(tmp_path / "disk", 7, AGENT, "4", "8")
    console = found["console"]
    assert found["code"] == 1, console  # it stopped as it was told to, and rows were lost
    assert "Traceback" not in console
    holes = found["holes"]
    assert len(holes) >= 3
    gaps = [gap for gap in found["gaps"] if gap[2] == "store not writable"]
    for second in holes:
        assert len([gap for gap in gaps if gap[0] <= second and second + 1 <= gap[1]]) == 1, (second, gaps)
    assert sum(gap[1] - gap[0] for gap in gaps) == len(holes)
    lost = [loss for loss in found["losses"] if loss[0] == "samples"]
    assert sum(loss[2] for loss in lost) == 8 * len(holes)
    assert "rows were lost" in console


START = """
import json, os, signal, sqlite3, subprocess, sys
from pathlib import Path

folder = Path(sys.argv[1])
store = folder / "s.db"
words = [sys.executable, "-m", "gpu_monitor", "-c", str(folder / "config.json"), "--simulate", "2", "--seed", "1"]
(folder / "config.json").write_text(json.dumps({
    "database": {"file": str(store), "ballast_mb": 1}, "logging": {"file": None},
}))

def run(until):
    return subprocess.run(
        [*words, "--speed", "3600", "--start", "2026-03-20T12:00:00Z", "--until", until],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )

first = run("2026-03-20T12:30:00Z")
with (folder / "filler").open("ab", buffering=0) as file:
    for size in (1 << 20, 1 << 16, 4096, 512, 1):
        try:
            while True:
                file.write(b"f" * size)
        except OSError:
            pass
second = run("2026-03-20T13:00:00Z")
connection = sqlite3.connect(f"file:{store}?mode=ro&immutable=1", uri=True)
print(json.dumps({
    "codes": [first.returncode, second.returncode],
    "console": first.stderr + second.stderr,
    "last": connection.execute("SELECT max(id) >> 20 FROM samples_raw").fetchone()[0],
    "check": connection.execute("PRAGMA integrity_check").fetchone()[0],
}))
"""


@on_small_disk
def test_an_agent_starts_on_a_full_disk_with_the_room_of_its_ballast(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    found = inside(tmp_path / "disk", 7, START)
    assert found["codes"] == [0, 0], found["console"]
    assert "gave up" in found["console"]
    assert "Traceback" not in found["console"]
    assert found["last"] >= 1_774_011_600 - 60  # 13:00
    assert found["check"] == "ok"


def test_the_ballast_is_real_and_laid_only_where_there_is_room(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    ballast = Ballast(store, 2)
    assert ballast.lay() is True
    path = tmp_path / "s.db.ballast"
    assert path.stat().st_size == 2 << 20
    assert path.stat().st_blocks * 512 >= 2 << 20
    assert ballast.lay() is True
    assert ballast.give_up() is True
    assert not path.exists()
    assert ballast.give_up() is False
    # A sparse one, or a part of one that a kill left, is no ballast.
    path.touch()
    os.truncate(path, 2 << 20)
    assert Ballast(store, 2).lay() is True
    assert path.stat().st_blocks * 512 >= 2 << 20
    assert Ballast(tmp_path / "t.db", 0).lay() is False
    assert not (tmp_path / "t.db.ballast").exists()


BALLAST = """
import json, sys
from pathlib import Path
from gpu_monitor.storage.ballast import Ballast
folder = Path(sys.argv[1])
ballast = Ballast(folder / "s.db", 1)
laid = []
for megabytes in (5, 4, 3.5, 2.9, 2, 1, 0):  # in use by others, of 6
    (folder / "filler").write_bytes(bytes(int(megabytes * 1048576)))
    laid.append(ballast.lay())
    if laid[-1]:
        break
print(json.dumps(laid))
"""


@on_small_disk
def test_the_ballast_waits_for_four_times_its_size(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    assert inside(tmp_path / "disk", 6, BALLAST) == [False, False, False, False, True]


class Small:
    """An agent on a fake clock over a store that may be told not to grow."""

    def __init__(self, path: Path, on_read: Callable[[Small, int], None], queue: int = 720) -> None:
        self.clock = FakeClock(NOON)
        self.stop = threading.Event()
        self.writer = open_store(path, self.clock)
        with self.writer.transaction() as connection:
            connection.execute("INSERT INTO nodes VALUES (1, 'here', 'local', NULL)")
        self.store = Store(self.writer, PeriodPlan())
        self.gave_up = 0
        self._on_read, self._reads = on_read, 0
        parts = Parts(
            store=self.store, read=self.read, host=None, processes=None,
            rollup=Rollup(self.writer, lambda *words: None, self.store.rolled_up),
            retention=Retention(self.writer, Limits(30, 365, None, False)), ship=None, clock=self.clock,
            machine=Machine("boot", NOON - 3600), queue=Queue(queue), ballast=self.ballast, xids=XidWatch(None),
        )  # fmt: skip
        self.agent = Agent(parts, Pace(60, 60.0), "test", self.stop)

    def read(self, at: float, span: Span) -> Round:
        self._reads += 1
        self._on_read(self, self._reads)
        devices = [
            DeviceReading(
                Identity(f"GPU-{n}", "nvml"),
                values={"temperature": 40, "power_usage": 100 + self._reads % 50},
            )
            for n in range(40)
        ]
        return Round(tuple(devices))

    def ballast(self, down: bool) -> bool:
        self.gave_up += not down
        return False

    def limit(self, pages: int | None) -> None:
        with self.writer.transaction() as connection:
            now = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {1 << 30 if pages is None else now + pages}")


def test_a_store_that_may_not_grow_for_hours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Full from minute 30 to minute 400 of ten hours: every row is there, the log says so once."""

    def on_read(small: Small, number: int) -> None:
        if number == 30:
            small.limit(0)
        elif number == 400:
            small.limit(None)

    caplog.set_level(logging.WARNING)
    small = Small(tmp_path / "s.db", on_read)
    small.agent.run(until=NOON + 10 * 3600)
    starts = [row[0] for row in small.writer.rows("SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")]
    assert starts == list(range(int(NOON), int(NOON) + 10 * 3600, 60))
    assert small.writer.value("SELECT count(*) FROM samples_raw") == 600 * 40
    assert small.writer.value("SELECT count(*) FROM gaps") == 0
    said = [record.getMessage() for record in caplog.records if record.name == "agent"]
    assert len([line for line in said if "wait in memory" in line]) == 1
    assert len([line for line in said if "can be written again" in line]) == 1
    assert small.gave_up >= 1
    small.writer.close()


def test_damage_while_running_is_mended_and_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A page the agent writes is overwritten on the disk: it salvages and misses no minute of its own."""
    path = tmp_path / "s.db"

    def on_read(small: Small, number: int) -> None:
        if number == 300:
            small.writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
            root = small.writer.value("SELECT rootpage FROM sqlite_master WHERE name = 'samples_raw'")
            with small.writer.transaction() as connection:
                connection.execute("PRAGMA shrink_memory")
            with open(path, "r+b", buffering=0) as file:
                file.seek((root - 1) * 4096)
                file.write(b"\xa5" * 4096)
            with small.writer.transaction() as connection:
                # Its own page cache would hide it for long: as after a restart of the machine.
                connection.execute("PRAGMA cache_size = 0")
                connection.execute("PRAGMA shrink_memory")

    caplog.set_level(logging.WARNING)
    small = Small(path, on_read)
    small.agent.run(until=NOON + 10 * 3600)
    starts = [row[0] for row in small.writer.rows("SELECT DISTINCT id >> 20 FROM samples_raw ORDER BY 1")]
    assert starts == list(range(int(NOON), int(NOON) + 10 * 3600, 60))
    assert small.writer.value("SELECT count(*) FROM samples_raw") == 600 * 40
    assert small.writer.value("SELECT count(*) FROM events WHERE kind = 'store_salvaged'") == 1
    assert small.writer.value("SELECT count(*) FROM gpus") == 40
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1
    small.writer.close()
