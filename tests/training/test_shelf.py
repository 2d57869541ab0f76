"""Files through the monitor: kept, told when they cannot be, and never a reason for a training to end."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from gpu_monitor.training import TrainingMonitor, list_checkpoints, list_models, load_checkpoint
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.shelf import Shelf
from gpu_monitor.wire.training import Alert, decode, whole_lines


def shelf(directory: Path, strict: bool = False) -> Shelf:
    return Shelf(Recorder(Run("exp-1", "a", "b", directory / "exp-1"), strict=strict))


def alerts(folder: Path) -> list[Alert]:
    lines = [line for path in folder.glob("seg-*.log") for line in whole_lines(path.read_bytes())]
    return [record for record in map(decode, lines) if isinstance(record, Alert)]


def test_a_monitor_keeps_files_and_lists_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with TrainingMonitor("a run", directory=tmp_path / "experiments", server="", capture=False) as monitor:
        monitor.log_metrics({"loss": 0.5}, step=7)
        saved = monitor.save_checkpoint(b"state", 1, {"loss": 0.5}, keep="best:1:loss:min")
        assert saved is not None
        assert saved.step == 7
        assert monitor.checkpoints() == [saved]
        model = monitor.register_model("net", saved, stage="production")
        [artifact] = monitor.log_artifact(tmp_path / "notes.txt", type="notes")
        assert artifact.kind == "notes"
    assert list_checkpoints(monitor.folder) == [saved]
    assert list_models(monitor.directory) == [model]
    assert load_checkpoint(os.fspath(saved)) == b"state"


def test_what_cannot_be_kept_is_told_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = shelf(tmp_path)
    with caplog.at_level(logging.WARNING, "gpu_monitor.training"):
        assert kept.save_checkpoint({1, 2}, 3, None, "all") is None
        assert kept.save_checkpoint(b"x", 4, None, "newest") is None
        assert kept.log_artifact(tmp_path / "gone", None, None) == []
        assert kept.register_model("../m", tmp_path, None, None) is None
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "the checkpoint of epoch 3 is not kept" in said
    assert "keep='newest'" in said
    assert "gone is not there" in said
    assert "cannot name a model" in said
    assert [alert.level for alert in alerts(tmp_path / "exp-1")] == ["error"] * 4


def test_a_strict_monitor_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch 3"):
        shelf(tmp_path, strict=True).save_checkpoint({1, 2}, 3, None, "all")


def test_a_finished_experiment_takes_no_files(tmp_path: Path) -> None:
    monitor = TrainingMonitor("a run", directory=tmp_path, server="", capture=False)
    monitor.finish()
    assert monitor.save_checkpoint(b"late", 0) is None
    assert not (monitor.folder / "checkpoints").exists()
