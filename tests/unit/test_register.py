"""A run's registration is what an agent believes, and nobody else's folder is touched."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_monitor.config.load import environment
from gpu_monitor.config.training import EXPERIMENT_ID, REGISTRY, TrainingSettings, registries
from gpu_monitor.sources.host.experiments import Asker, Registry
from gpu_monitor.training.identity import find_process
from gpu_monitor.training.parts import Options
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.register import MOST_BYTES, Registration, folders, register, start

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="registrations are named by /proc"
)
NOW = 1_700_000_000.0


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = tmp_path / "runtime"
    own.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    monkeypatch.delenv(EXPERIMENT_ID, raising=False)
    return own


def make(tmp_path: Path, name: str = "e1") -> Recorder:
    return Recorder(Run(name, "resnet", "images", tmp_path / "runs" / name))


def options(tmp_path: Path) -> Options:
    return Options(TrainingSettings(tmp_path / "runs", "https://fleet.example.com"))


def asker() -> Asker:
    process = find_process()
    assert process.start_ticks is not None
    return Asker(os.getuid(), (os.getpid(),), process.start_ticks, process.boot_id)


@pytest.mark.skipif(
    Path("/run/gpu_monitor/experiments").exists(), reason="a service of this machine has a folder"
)
def test_the_agent_finds_the_experiment_of_the_process_until_it_ends(runtime: Path, tmp_path: Path) -> None:
    recorder = make(tmp_path)
    part = start(recorder, options(tmp_path))
    assert part.path is not None
    assert part.path.parent == runtime / REGISTRY
    process = find_process()
    assert part.path.name == f"{os.getpid()}-{process.start_ticks}.json"
    assert stat.S_IMODE(part.path.stat().st_mode) == 0o644
    said = json.loads(part.path.read_text())
    assert (said["experiment_id"], said["segment"], said["project"]) == ("e1", recorder.segment, "images")
    assert (said["folder"], said["server"]) == (str(tmp_path / "runs/e1"), "https://fleet.example.com")
    registry = Registry((str(runtime / REGISTRY),))
    assert registry.find(asker()) == "e1"
    assert part.close(1.0) is None
    assert list((runtime / REGISTRY).iterdir()) == []
    assert Registry((str(runtime / REGISTRY),)).find(asker()) is None


def test_children_know_the_experiment_by_their_environment(runtime: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", f"import os; print(os.environ.get({EXPERIMENT_ID!r}))"]
    outer = start(make(tmp_path), options(tmp_path))
    inner = start(make(tmp_path, "e2"), options(tmp_path))
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "e2"
    inner.close(1.0)
    assert environment(EXPERIMENT_ID) == "e1"
    outer.close(1.0)
    assert environment(EXPERIMENT_ID) is None


def test_a_run_that_ends_leaves_the_next_ones_registration(runtime: Path, tmp_path: Path) -> None:
    process, places = find_process(), [runtime]
    about = {"experiment_id": "e1", "pid": os.getpid()}
    first = Registration("e1", register(about, process, iter(places)))
    second = Registration("e2", register({**about, "experiment_id": "e2"}, process, iter(places)))
    assert first.path == second.path
    first.close(1.0)
    assert second.path is not None
    assert second.path.exists()
    second.close(1.0)
    assert not second.path.exists()


def test_a_long_path_is_left_out_and_the_process_is_not(tmp_path: Path) -> None:
    about = {"experiment_id": "e1", "pid": 7, "name": "n" * 200, "folder": "/x" * 3000}
    path = register(about, find_process(), iter([tmp_path]))
    assert path is not None
    assert path.stat().st_size <= MOST_BYTES
    assert json.loads(path.read_text()) == {"experiment_id": "e1", "pid": 7}


def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    places = iter([tmp_path / "link", tmp_path / "nowhere"])
    assert register({"experiment_id": "e1", "pid": 7}, find_process(), places) is None
    assert list((tmp_path / "real").iterdir()) == []


def test_only_a_folder_for_everybody_is_shared(runtime: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert shared not in list(folders(NOW, shared)), "without the sticky bit anybody could take a file away"
    shared.chmod(0o1777)
    assert next(folders(NOW, shared)) == shared
    link = tmp_path / "link"
    link.symlink_to(shared)
    assert link not in list(folders(NOW, link))


def test_only_old_files_of_vanished_runs_are_tidied_away(runtime: Path, tmp_path: Path) -> None:
    place = runtime / REGISTRY
    place.mkdir(parents=True)
    mine = f"{os.getpid()}-{find_process().start_ticks}.json"
    for name, age in (("1-1.json", 8), ("2-1.json", 6), (mine, 8), ("notes.txt", 8)):
        (place / name).write_text("{}")
        os.utime(place / name, (NOW - age * 86400, NOW - age * 86400))
    assert next(folders(NOW, tmp_path / "none")) == place
    assert sorted(path.name for path in place.iterdir()) == sorted(["2-1.json", mine, "notes.txt"])


def test_a_runtime_directory_of_somebody_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "home/state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    for named in ("relative", str(tmp_path / "nowhere"), "/proc/1"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", named)
        assert list(folders(NOW, tmp_path / "none"))[-1] == state / REGISTRY, "where a container has none"
        assert not (tmp_path / "nowhere").exists()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert str(state / REGISTRY) in registries(), "where an agent of the same user looks"


def test_a_user_without_a_home_registers_nowhere_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number that nobody has."""

    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert list(folders(NOW, tmp_path / "none")) == []
    assert [Path(place).is_absolute() for place in registries()] == [True] * len(registries())
