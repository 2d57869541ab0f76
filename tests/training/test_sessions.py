"""The style that goes by sessions, and the names that may be imported from the top."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpu_monitor
import gpu_monitor.training
import training_monitor
from gpu_monitor.core.errors import NothingFound
from tests.training.runs import last_status, logs, points, run


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("GPU_MONITOR_DIR", "GPU_MONITOR_SERVER", "GPU_MONITOR_STRICT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    for session in training_monitor.get_active_sessions():
        training_monitor.end_session(session)


def begin(session: str, **more: object) -> None:
    training_monitor.start_session(session, "resnet50", {"lr": 0.1}, server="", capture=False, **more)


def test_a_session_is_an_experiment_with_all_it_was_told(tmp_path: Path) -> None:
    begin("first", tags={"stage": "one"})
    begin("second")
    assert training_monitor.get_active_sessions() == ["first", "second"]
    for epoch in range(2):
        for step in range(3):
            training_monitor.log_metric("first", epoch, 3 * epoch + step, "loss", 1.0 / (1 + step))
    training_monitor.log_batch_metrics("second", 4, 7, {"loss": 0.5, "accuracy": math.nan})
    training_monitor.log_batch_metrics("second", None, None, {"loss": 0.25})
    assert training_monitor.get_latest_metrics("first") == {"epoch": 1.0, "loss": 1.0 / 3}
    training_monitor.end_session("first")
    training_monitor.end_session("second", "failed")
    assert training_monitor.get_active_sessions() == []
    summary = training_monitor.get_session_summary("first")
    assert summary["metrics"]["loss"] == {"last": 1.0 / 3, "step": 5, "min": 1.0 / 3, "max": 1.0, "count": 6}
    assert (summary["session_id"], summary["model_name"], summary["status"]) == (
        "first",
        "resnet50",
        "completed",
    )
    assert summary["hyperparameters"] == {"lr": 0.1}
    assert summary["last_step"] == 5
    assert summary["ended"] >= summary["started"]
    other = training_monitor.get_session_summary("second")
    assert other["status"] == "failed"
    assert math.isnan(other["metrics"]["accuracy"]["last"])
    assert (other["metrics"]["loss"]["last"], other["last_step"]) == (0.25, 8)
    first, second = logs(tmp_path / "experiments")
    assert points(second)[0] == (7, {"loss": 0.5, "accuracy": "NaN", "epoch": 4})
    assert last_status(first)[0] == "completed"


def test_what_is_not_active_is_told_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training_monitor.log_metric("nobody", 0, 0, "loss", 1.0)
    training_monitor.end_session("nobody")
    said = [record.getMessage() for record in caplog.records]
    assert [text[:43] for text in said] == ["gpu_monitor: session 'nobody' is not active"] * 2
    assert not (tmp_path / "experiments").exists()
    for ask in (training_monitor.get_session_summary, training_monitor.get_latest_metrics):
        with pytest.raises(NothingFound):
            ask("nobody")


def test_a_session_that_begins_twice_goes_on_and_after_its_end_is_a_new_one(tmp_path: Path) -> None:
    begin("twice")
    begin("twice")
    training_monitor.log_metric("twice", 0, 0, "loss", 1.0)
    assert len(logs(tmp_path)) == 1
    training_monitor.end_session("twice")
    begin("twice")
    assert len(logs(tmp_path)) == 2
    assert training_monitor.get_latest_metrics("twice") == {}


def test_sessions_of_other_processes_are_found_on_disk(tmp_path: Path) -> None:
    done = run(
        """
        import training_monitor
        training_monitor.start_session("elsewhere", "bert", {"lr": 1}, {quiet})
        training_monitor.log_metric("elsewhere", 1, 5, "loss", 0.5)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert training_monitor.get_active_sessions() == []
    assert training_monitor.get_latest_metrics("elsewhere") == {"loss": 0.5, "epoch": 1.0}
    summary = training_monitor.get_session_summary("elsewhere")
    assert (summary["model_name"], summary["status"]) == ("bert", "completed")


@pytest.mark.parametrize(
    "package", [gpu_monitor, gpu_monitor.training, training_monitor], ids=lambda one: one.__name__
)
def test_every_lazy_name_can_be_had_and_others_cannot(package: object) -> None:
    names = package.NAMES  # type: ignore[attr-defined]
    for name, module in names.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_the_monitor_is_one_and_the_same_by_all_its_names() -> None:
    from gpu_monitor.training.monitor import TrainingMonitor

    assert gpu_monitor.TrainingMonitor is TrainingMonitor is training_monitor.TrainingMonitor


def test_importing_the_top_modules_loads_nothing() -> None:
    asked = (
        "import sys, gpu_monitor, training_monitor\n"
        "print(*[one for one in sys.modules if 'monitor' in one or 'msgspec' in one])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gpu_monitor", "training_monitor"]
