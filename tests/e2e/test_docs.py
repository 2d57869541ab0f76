"""The generated parts of the docs are what the program says."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gpu_monitor.cli.main import COMMANDS
from gpu_monitor.config.model import SECTIONS
from gpu_monitor.core.catalogue import HOST_METRICS, METRICS

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "docs/cli.md",
    "docs/configuration.md",
    "docs/metrics.md",
    "config.example.json",
    ".env.example",
)


def generate(*words: str) -> subprocess.CompletedProcess[str]:
    """The script as a program of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/generate_docs.py"), *words], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, loaded: a program of its own would load the whole program for each of many calls."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts/generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pages of this checkout, to be spoilt."""
    (tmp_path / "docs").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_pages_of_this_checkout_are_up_to_date() -> None:
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_differs_is_named_and_mended(
    copy: Path,
    name: str,
    script: ModuleType,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # the script sets its own
    root = ("--root", str(copy))
    assert script.main(["--check", *root]) == 0
    good = (copy / name).read_text()
    spoilt = (
        good.replace("interval_seconds", "interval_minutes")
        .replace("--config", "--cnofig")
        .replace("°C", "K")
        .replace("SMTP_HOST", "SMTP_HSOT")
    )
    assert spoilt != good
    (copy / name).write_text(spoilt)
    assert script.main(["--check", *root]) == 1
    assert capfd.readouterr() == ("", f"docs: {name} is not what the program says; run scripts/docs\n")
    assert (copy / name).read_text() == spoilt
    assert script.main([*root]) == 0
    assert capfd.readouterr() == (f"docs: wrote {name}\n", "")
    assert script.main(["--check", *root]) == 0


def test_a_page_that_lost_its_marks_is_refused(copy: Path) -> None:
    (copy / "docs/cli.md").write_text("# The command line\n")
    done = generate("--root", str(copy))
    assert done.returncode == 1
    assert "docs/cli.md has no part to fill in" in done.stderr


def test_everything_has_its_place() -> None:
    cli, configuration, metrics = (
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("cli", "configuration", "metrics")
    )
    assert [name for name in COMMANDS if f"## gpu_monitor {name}\n" not in cli] == []
    keys = [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.__struct_fields__]
    assert [key for key in keys if f"| `{key}` |" not in configuration] == []
    assert [
        metric.name for metric in (*METRICS, *HOST_METRICS) if f"| `{metric.name}` |" not in metrics
    ] == []
    assert max(len(line) for line in cli.splitlines()) <= 130


def test_the_example_is_a_configuration_that_is_taken(tmp_path: Path) -> None:
    text = (ROOT / "config.example.json").read_text()
    assert set(json.loads(text)) == set(SECTIONS)
    (tmp_path / "config.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "gpu_monitor", "-c", "config.json", "-ls"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "no period is closed yet: nothing is owed\n")
