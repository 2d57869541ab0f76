"""The wheel as it is installed: both top modules, their markers, and the licences of what it ships."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import setuptools, sys; sys.exit(int(setuptools.__version__.split('.')[0]) < 77)"


def test_the_wheel_ships_both_top_modules_and_they_work_from_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSES"):
        held = ROOT / name
        if held.is_dir():
            shutil.copytree(held, source / name)
        else:
            shutil.copy(held, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)]
    if subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode == 0:
        command.insert(4, "--no-build-isolation")
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    if built.returncode and "setuptools" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("LOUD: setuptools 77 is neither here nor to be had: the wheel is not tested")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"training_monitor/__init__.py", "training_monitor/py.typed", "gpu_monitor/py.typed"} <= names
    packed = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert packed <= names
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import training_monitor\n"
        "assert training_monitor.__file__.startswith(sys.argv[1]), training_monitor.__file__\n"
        "with training_monitor.TrainingMonitor('wheel', server='', capture=False) as monitor:\n"
        "    monitor.log_metrics({'loss': 1.0})\n"
        "assert sys.modules['gpu_monitor'].__file__.startswith(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wheel)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "experiments").glob("*/seg-*.log"))) == 1
