"""Registered trainings as the agent sees them: real processes, hostile files, ends of every kind, answers of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.agent.run_uploads import open_upload
from gpu_monitor.agent.run_watch import RunWatch
from gpu_monitor.core.model import DeviceReading, Event, GpuProcess, Identity, Round
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.sources.host.kernel_log import parse_killed
from gpu_monitor.sources.host.lives import Lives
from gpu_monitor.sources.host.registrations import (
    RegistrationFolders,
    is_still_there,
    read_registration,
    remove_registration,
)
from gpu_monitor.training.identity import find_process, start_ticks
from tests.e2e.waiting import until
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched by /proc of Linux")
ABOUT = find_process()


class Sleeper:
    """A real process that sleeps until it is killed, and its registration."""

    def __init__(self, place: Path, **changed: Any) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        pid = self.process.pid
        about = {
            "experiment_id": "run-a", "pid": pid, "start_ticks": start_ticks(pid), "boot_id": ABOUT.boot_id, "ns_pid": pid,
            "pid_ns": ABOUT.pid_ns, "segment": "seg-00000001", **changed,
        }  # fmt: skip
        self.path = place / f"{pid}-{about['start_ticks']}.json"
        self.path.write_text(json.dumps(about))

    def kill(self) -> None:
        """SIGKILL; its parent takes note."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[Any]:
    made: list[Sleeper] = []

    def make(**changed: Any) -> Sleeper:
        made.append(Sleeper(tmp_path, **changed))
        return made[-1]

    yield make
    for one in made:
        one.kill()


class Told:
    """A server that answers as a test wants, and what it was told."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.told: list[tuple[str, dict[str, Any], str]] = []

    def is_wanted(self) -> bool | None:
        """It takes them."""
        return True

    def send(self, experiment_id: str, body: bytes, node: str) -> Outcome:
        """The next answer; 200 after the last one."""
        self.told.append((experiment_id, json.loads(body), node))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            return Outcome(Verdict.UNREACHABLE, error="away")
        verdict = Verdict.ACKNOWLEDGED if status == 200 else Verdict.REFUSED
        return Outcome(verdict, status, error=None if status == 200 else str(status))

    def cut(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is open."""


def watch_of(folder: Path, told: Told | None, lives: Lives | None = None) -> RunWatch:
    """A watch that a test drives by hand."""
    return RunWatch((str(folder),), lambda: told, lambda: None, lambda: "node-1", lives=lives)


def turn(watch: RunWatch) -> None:
    """One look and what follows from it, as its thread does it."""
    watch._look()
    watch._deliver()


def test_a_killed_process_is_told_with_its_signal_and_its_file_goes(tmp_path: Path, sleepers: Any) -> None:
    one, told = sleepers(), Told()
    watch = watch_of(tmp_path, told)
    turn(watch)
    assert told.told == []
    one.kill()
    turn(watch)
    ((run, body, node),) = told.told
    assert (run, node, body["segment"], body["ns_pid"]) == (
        "run-a",
        "node-1",
        "seg-00000001",
        one.process.pid,
    )
    assert (body["start_ticks"], body["boot_id"], body["by"]) == (
        int(one.path.stem.split("-")[1]), ABOUT.boot_id, "agent",
    )  # fmt: skip
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert body["cause"] == ({"signal": "SIGKILL"} if release >= (6, 15) else {})
    assert not one.path.exists()


def test_a_run_that_took_its_file_away_is_not_told(tmp_path: Path, sleepers: Any) -> None:
    one, told = sleepers(), Told()
    watch = watch_of(tmp_path, told)
    turn(watch)
    one.path.unlink()
    one.kill()
    turn(watch)
    assert told.told == []


def test_without_pidfds_and_as_a_zombie_it_is_gone_all_the_same(tmp_path: Path, sleepers: Any) -> None:
    one, told = sleepers(), Told()
    watch = watch_of(tmp_path, told, Lives(most_pidfds=0))
    turn(watch)
    one.process.kill()
    until(lambda: b") Z " in Path(f"/proc/{one.process.pid}/stat").read_bytes(), "it is a zombie")
    turn(watch)
    assert [body["cause"] for _, body, _ in told.told] == [{}]


def test_a_pid_that_is_another_process_by_now_is_a_vanished_run(tmp_path: Path, sleepers: Any) -> None:
    one, told = sleepers(start_ticks=1), Told()
    turn(watch_of(tmp_path, told))
    assert [run for run, _, _ in told.told] == ["run-a"]
    assert one.process.poll() is None


def test_nobody_else_speaks_for_a_living_process(tmp_path: Path, sleepers: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may give a file away")
    one, told = sleepers(), Told()
    os.chown(one.path, 12345, 12345)
    watch = watch_of(tmp_path, told)
    turn(watch)
    turn(watch)
    assert told.told == []
    assert one.path.exists()


@pytest.mark.parametrize("changed", [{"boot_id": "another"}, {"boot_id": None}])
def test_of_another_boot_nothing_is_known(tmp_path: Path, sleepers: Any, changed: dict[str, Any]) -> None:
    one, told = sleepers(**changed), Told()
    one.kill()
    turn(watch_of(tmp_path, told))
    assert told.told == []


def test_links_pipes_and_strange_files_are_passed_over(tmp_path: Path, sleepers: Any) -> None:
    real = sleepers()
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "1-1.json").symlink_to(real.path)
    os.mkfifo(folder / "2-2.json")
    (folder / "3-3.json").write_text("[" * 3000)
    (folder / "4-4.json").write_text(json.dumps({"experiment_id": "../x", "pid": 1, "start_ticks": 1}))
    (folder / "5-5.json").write_text(json.dumps({"experiment_id": "x", "pid": True, "start_ticks": 1}))
    (folder / "6-6.json").write_bytes(b" " * 5000)
    assert RegistrationFolders((str(folder),)).look(0.0) == []


def test_a_replaced_file_is_not_taken_away(tmp_path: Path, sleepers: Any) -> None:
    one = sleepers()
    read = read_registration(one.path)
    assert read is not None
    assert is_still_there(read)
    other = tmp_path / "new"
    other.write_text(one.path.read_text())
    other.replace(one.path)
    assert remove_registration(read)
    assert one.path.exists()


def test_it_is_told_again_until_it_is_taken(tmp_path: Path, sleepers: Any) -> None:
    one, told = sleepers(), Told(0, 404, 200)
    clock = FakeClock(1_000_000.0)
    watch = RunWatch((str(tmp_path),), lambda: told, lambda: None, lambda: "node-1", clock)
    turn(watch)
    one.kill()
    turn(watch)
    turn(watch)
    assert len(told.told) == 1  # it waits
    for count in (2, 3):
        clock.advance(700)
        turn(watch)
        assert len(told.told) == count
        assert one.path.exists() == (count == 2)


@pytest.mark.parametrize("status", [410, 422])
def test_what_is_never_taken_is_not_kept(tmp_path: Path, sleepers: Any, status: int) -> None:
    one, told = sleepers(), Told(status)
    watch = watch_of(tmp_path, told)
    turn(watch)
    one.kill()
    turn(watch)
    assert len(told.told) == 1
    assert not one.path.exists()


def test_an_xid_of_its_gpu_is_a_cause_and_another_s_is_not(tmp_path: Path, sleepers: Any) -> None:
    one, other, told = sleepers(), sleepers(experiment_id="run-b"), Told()
    watch = watch_of(tmp_path, told)
    turn(watch)
    now = watch._clock.now()
    mine = DeviceReading(Identity("GPU-1", "nvml"), processes=(GpuProcess(one.process.pid),))
    xids = (
        Event(now - 5, "xid", "Xid 79", "error", "GPU-1", {"xid": 79}),
        Event(now - 500, "xid", "Xid 31", "error", "GPU-1", {"xid": 31}),
    )
    watch.seen(Round((mine,), xids), now)
    one.kill()
    other.kill()
    turn(watch)
    causes = {run: body["cause"].get("xid") for run, body, _ in told.told}
    assert causes == {"run-a": 79, "run-b": None}


def test_records_of_the_kernel_that_name_a_killed_process() -> None:
    text = b"6,1,2,-;Memory cgroup out of memory: Killed process 4711 (python) total-vm:1kB\n SUBSYSTEM=x"
    assert parse_killed(text) == 4711
    assert parse_killed(b"3,1,2,-;Out of memory: Killed process 12 (a) b) total-vm") == 12
    # Written by a program (facility 1), or something else altogether.
    assert parse_killed(b"11,1,2,-;Out of memory: Killed process 12 (a)") is None
    assert parse_killed(b"3,1,2,-;oom_reaper: reaped process 12 (a)") is None
    assert parse_killed(b"nothing") is None


def test_only_folders_of_our_own_user_without_links_are_uploaded(tmp_path: Path, sleepers: Any) -> None:
    run = tmp_path / "runs" / "run-a"
    run.mkdir(parents=True)
    (run / "seg-00000001.log").write_bytes(b"x\n")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "run-a").symlink_to(run)

    def opened(**changed: Any) -> bool:
        asked: list[bool] = []
        read = read_registration(sleepers(**changed).path)
        assert read is not None
        open_upload(read, lambda: asked.append(True))  # type: ignore[func-returns-value]
        return bool(asked)

    assert opened(folder=str(run))
    assert not opened(folder=str(tmp_path / "link" / "run-a"))
    assert not opened(folder="runs/run-a")
    assert not opened(folder=f"{tmp_path}/runs/../runs/run-a")
    assert not opened(folder=str(tmp_path / "runs"))
    assert not opened()
    (run / "seg-00000001.log").unlink()
    (run / "seg-00000001.log").symlink_to("/etc/passwd")
    assert not opened(folder=str(run))
