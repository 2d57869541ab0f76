"""Readings of a run by the real child process: names, units, whose they are, and what happens when things go wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.sources.host.tree import Tree
from gpu_monitor.storage.tenure import Tenure
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.sampler import Sampler, agent_stores
from tests.standin.control import Standin
from tests.standin.profiles import GEFORCE, H100, H100_MIG
from tests.training.recorded import facts, only, output, series

pytest_plugins = ("tests.standin.fixtures",)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at through /proc")


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(Run("run", "x", "p", tmp_path / "run"))
    yield made
    made.close(1.0)


@pytest.fixture
def card(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """A stand-in driver that children of this process find."""
    for name, value in standin.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return standin


@contextlib.contextmanager
def sampling(recorder: Recorder, **request: Any) -> Iterator[Sampler]:
    sampler = Sampler(recorder, {"gpus": "never", **request}, interval=0.1)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.close(5.0)


def until(recorder: Recorder, what: Any, seconds: float = 30.0) -> Any:
    """What `what` finds in the folder, once it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if recorder.folder.exists() and (found := what(recorder.folder)):
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing within {seconds} s: {recorder.folder}")


def children() -> set[int]:
    """The children of this process."""
    return {
        int(word)
        for task in Path("/proc/self/task").iterdir()
        for word in (task / "children").read_text().split()
    }


def test_the_machine_and_the_process(recorder: Recorder) -> None:
    recorder.log_points({"loss": 1.0}, 41)
    with sampling(recorder, host="/", pid=os.getpid()):
        found = until(
            recorder,
            lambda folder: (
                series(folder)
                if {"process/cpu_cores", "system/cpu_utilization"} <= series(folder).keys()
                else None
            ),
        )
    recorder.log_points({"loss": 0.5})
    assert series(recorder.folder)["loss"][1] == [(41, 1.0), (42, 0.5)]  # readings do not move the step
    units = {name: more for name, (more, _) in found.items() if name != "loss"}
    assert units == {
        "system/cpu_utilization": {"unit": "%", "source": "sdk"},
        "system/memory_used": {"unit": "bytes", "source": "sdk"},
        "system/memory_total": {"unit": "bytes", "source": "sdk"},
        "process/cpu_cores": {"unit": "cores", "source": "sdk"},
        "process/memory_used": {"unit": "bytes", "source": "sdk"},
        "process/processes": {"source": "sdk"},
    }
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert found["system/memory_total"][1][0] == (41, kib * 1024)
    assert found["process/processes"][1][0][1] >= 1
    assert 10e6 < found["process/memory_used"][1][0][1] < kib * 1024


def test_cards_in_the_documented_names_and_units(recorder: Recorder, card: Standin) -> None:
    card.gpus([H100, GEFORCE])
    for name, value in (("gpu_utilization", 37), ("temperature", 61), ("power_mw", 250_000)):
        card.hold(0, name, value)
    with sampling(recorder, gpus="real"):
        found = until(
            recorder,
            lambda folder: (
                series(folder)
                if "gpu/1/energy" in series(folder) or "gpu/0/energy" in series(folder)
                else None
            ),
        )
    uid = card.uuid(0)
    for name, unit in (
        ("gpu_utilization", "%"),
        ("temperature", "°C"),
        ("power_usage", "W"),
        ("memory_used", "bytes"),
        ("energy", "J"),
    ):
        assert found[f"gpu/0/{name}"][0] == {"unit": unit, "source": "sdk", "uid": uid}
    assert found["gpu/0/temperature"][1][0] == (0, 61.0)
    assert found["gpu/0/gpu_utilization"][1][-1][1] == 37.0
    assert "gpu/1/temperature" in found


def test_only_the_cards_that_the_training_sees(
    recorder: Recorder, card: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.gpus([H100, GEFORCE])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card.uuid(1))
    with sampling(recorder, gpus="real"):
        found = until(recorder, series)
    assert {name.split("/")[1] for name in found} == {"1"}


def test_instances_have_names_of_their_own(recorder: Recorder, card: Standin) -> None:
    card.gpus([H100_MIG])
    with sampling(recorder, gpus="real"):
        found = until(recorder, series)
    places = {name.rpartition("/")[0] for name in found}
    assert places == {"gpu/0", "gpu/0/1-0", "gpu/0/2-0"}


def test_no_driver_is_said_once(recorder: Recorder) -> None:
    with sampling(recorder, gpus="real", host="/"):
        until(recorder, lambda folder: len(series(folder).get("system/memory_used", ({}, []))[1]) > 2)
    assert "no NVIDIA driver" in facts(recorder.folder)["gpu"]["reason"]


def test_where_an_agent_records_the_cards_the_run_does_not(
    recorder: Recorder, card: Standin, tmp_path: Path
) -> None:
    store = tmp_path / "db.sqlite"
    card.gpus([H100])
    with contextlib.closing(Tenure(store)) as agent:
        agent.take()
        with sampling(recorder, gpus="real", host="/", stores=[str(store)]):
            until(recorder, lambda folder: "system/memory_used" in series(folder))
    assert facts(recorder.folder) == {"gpu": {"reason": "an agent on this machine records them"}}
    assert not [name for name in series(recorder.folder) if name.startswith("gpu/")]


def test_an_agent_that_comes_later_takes_the_cards_over(
    recorder: Recorder, card: Standin, tmp_path: Path
) -> None:
    store = tmp_path / "db.sqlite"
    card.gpus([H100])
    with contextlib.closing(Tenure(store)) as agent, sampling(recorder, gpus="real", stores=[str(store)]):
        until(recorder, lambda folder: "gpu/0/temperature" in series(folder))
        agent.take()
        until(recorder, facts)
    assert facts(recorder.folder) == {"gpu": {"reason": "an agent on this machine records them"}}


def test_a_lock_that_may_not_be_looked_at_counts_beside_the_agents_folder(
    recorder: Recorder, card: Standin, tmp_path: Path
) -> None:
    card.gpus([H100])
    store = tmp_path / "db.sqlite"
    (tmp_path / "db.sqlite.agent").mkdir()  # cannot be opened, as for another user
    with sampling(recorder, gpus="real", stores=[str(store)], registry=str(tmp_path)):
        until(recorder, facts)
    assert series(recorder.folder) == {}


def test_a_card_that_hangs_does_not_hold_up_the_rest(recorder: Recorder, card: Standin) -> None:
    card.gpus([H100, GEFORCE])
    with sampling(recorder, gpus="real", host="/"):
        until(recorder, lambda folder: "gpu/1/temperature" in series(folder))
        card.hang(0, "nvmlDeviceGetTemperature")
        count = len(series(recorder.folder)["gpu/1/temperature"][1])
        until(recorder, lambda folder: len(series(folder)["gpu/1/temperature"][1]) > count + 1, 60.0)
        card.release(0)
    assert "system/memory_used" in series(recorder.folder)


def test_a_child_that_is_killed_is_started_again_a_few_times(recorder: Recorder) -> None:
    before = children()
    with sampling(recorder, host="/"):
        for kill in range(3):
            count = len(until(recorder, lambda folder: series(folder).get("system/memory_used", ({}, []))[1]))
            until(recorder, lambda folder, count=count: len(series(folder)["system/memory_used"][1]) > count)  # type: ignore[misc]
            (child,) = children() - before
            assert os.getpriority(os.PRIO_PROCESS, child) == 19, "the training goes first"
            os.kill(child, signal.SIGKILL)
            if kill < 2:
                until(recorder, lambda _, child=child: children() - before - {child})  # type: ignore[misc]
        until(recorder, facts)
    assert "ended" in facts(recorder.folder)["gpu"]["reason"]
    assert children() == before


def test_the_child_ends_with_its_parent_also_where_a_fork_holds_its_pipes(tmp_path: Path) -> None:
    code = f"""
        import os, signal, subprocess, sys, time
        from gpu_monitor.training import TrainingMonitor
        m = TrainingMonitor("x", directory={str(tmp_path / "e")!r}, capture=["system", "console"])
        while True:
            found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "sampling"], capture_output=True, text=True)
            if found.stdout.strip():
                break
        helper = os.fork()
        if helper == 0:
            os.close(1)
            time.sleep(600)
        print(found.stdout.strip(), helper, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    child, helper = (int(word) for word in done.stdout.split())
    try:
        deadline = time.monotonic() + 30
        while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    finally:
        os.kill(helper, signal.SIGKILL)
    assert output(only(tmp_path / "e")) in ([], [f"{child} {helper}"])


def test_a_tree_of_processes_by_hand(tmp_path: Path) -> None:
    """Recorded from nothing: numbers as proc(5) places them."""

    def process(pid: int, ticks: int, pages: int, children: str) -> None:
        folder = tmp_path / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        fields = ["S", "1"] + ["0"] * 9 + [str(ticks), "5"] + ["0"] * 6 + ["777", "0", str(pages)]
        (folder / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)} 0 0\n")
        (folder / "task" / str(pid) / "children").write_text(children)

    process(10, 100, 7, "11 12 ")
    process(11, 200, 3, "")
    process(12, 300, 1, "10 13")  # 13 is gone already
    tree = Tree(10, str(tmp_path))
    first = tree.read(50.0)
    assert first is not None
    page, ticks = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    assert (first.cores, first.memory, first.processes) == (None, 11 * page, 3)
    process(11, 200 + 3 * ticks, 3, "")
    second = tree.read(52.0)
    assert second is not None
    assert second.cores == 1.5
    assert Tree(99, str(tmp_path)).read(1.0) is None


def test_the_stores_of_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "config.json").write_text('{"database": {"file": "mine.sqlite"}}')
    assert agent_stores()[0] == str(tmp_path / "mine.sqlite")
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')  # a model's own
    assert all("mine" not in store for store in agent_stores())
