"""The example is run as its reader runs it, and everything that it promises is there afterwards."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_monitor.training.checkpoints import list_checkpoints, load_checkpoint
from gpu_monitor.training.models import list_models, verify_model
from gpu_monitor.training.reading import open_experiment
from tests.e2e.program import environment
from tests.house.tree import ROOT

EXAMPLE = ROOT / "examples/example_monitored_training.py"
EPOCHS = 4
# 1,797 digits, a quarter of them for the test (450): 1,347 in batches of 32 are 43 steps an epoch.
STEPS = EPOCHS * 43


@pytest.mark.parametrize("backend", ["numpy", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_example_records_what_it_promises(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: the example is not run")
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: the example is not run with it")
    words = [
        "--epochs",
        str(EPOCHS),
        "--learning-rate",
        "0.1",
        "--name",
        "a test",
        "--seed",
        "3",
        "--backend",
        backend,
    ]
    paths = environment(tmp_path, GPU_MONITOR_SERVER="", PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *words], cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=150,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = open_experiment(tmp_path / "experiments", "a test")
    assert (found.status, found.project, found.tags["backend"]) == ("completed", "digits", backend)
    assert found.params["learning_rate"] == 0.1
    assert found.params["seed"] == 3
    batches = found.history("batch/loss")
    assert batches.step == list(range(STEPS))
    assert found.history("val_loss").step == [43, 86, 129, 172]
    assert found.history("val_accuracy").value[-1] > 0.9, "it has learned to read digits"
    assert sum(batches.value[-43:]) < sum(batches.value[:43]) / 2
    kinds = [said.record.kind for said in found.media]
    assert {"image", "histogram", "graph", "checkpoint", "model"} <= set(kinds)
    assert kinds.count("histogram") == 2 * EPOCHS
    assert "digits of the test set were misread" in found.notes[-1].record.text
    folder = tmp_path / "experiments" / found.id
    kept = list_checkpoints(folder)
    best = sorted(found.history("val_loss").value)[:3]
    assert sorted(checkpoint.metrics["val_loss"] for checkpoint in kept) == best
    if backend == "numpy" or importlib.util.find_spec("safetensors"):
        assert all(load_checkpoint(checkpoint) for checkpoint in kept)
    [model] = list_models(tmp_path / "experiments")
    assert model.metrics["val_loss"] == best[0]
    assert verify_model(model).is_file()
    source = found.tags["gpu_readings"]
    assert ("SIMULATED GPU READINGS" in done.stderr) == (source == "simulated")
    if source == "simulated":
        assert any(name.startswith("simulated_gpu0/") for name in found.metric_names())
        assert not any(name.startswith("gpu0/") for name in found.metric_names())


@pytest.mark.parametrize("missing", ["numpy", "sklearn"])
def test_the_example_says_what_it_needs(tmp_path: Path, missing: str) -> None:
    """An environment without a module: in front of it stands one that is not found."""
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})\n")
    paths = environment(tmp_path, PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT / "src"))))

    def example(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(EXAMPLE), *words], cwd=tmp_path, env=paths, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    shown = example("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(word in shown.stdout for word in ("--epochs", "--learning-rate", "--name", "--seed"))
    refused = example()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"there is no module {missing}" in refused.stderr
    assert "pip install scikit-learn" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "experiments").exists()
