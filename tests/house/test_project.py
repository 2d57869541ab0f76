"""The project around the code: dependencies, pages, licence, scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import PACKAGE, ROOT, SOURCE, imports, modules, own_module

MIT = "# SPDX-License-Identifier: MIT\n"

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGES = sorted(path.parent for path in (SOURCE / PACKAGE).glob("*/__init__.py"))
SCRIPTS = sorted(
    path
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]
    if path.is_file() and path.read_bytes().startswith(b"#!")
)


def dependencies() -> list[str]:
    """The distributions that the base install and its extras ask for."""
    base = re.search(r"^dependencies = \[(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    extras = re.search(r"^\[project\.optional-dependencies\](.*?)^\[", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert base is not None
    assert extras is not None
    listed = re.findall(r'^\s+"([A-Za-z0-9._-]+)', base[1] + extras[1], re.MULTILINE)
    return sorted({name.lower() for name in listed} - {"gpu-monitor"})


def test_every_dependency_has_its_reason_on_record() -> None:
    names = dependencies()
    assert {"msgspec", "psutil", "pytest"} <= set(names)
    record = ROOT / "docs/decisions.md"
    assert record.is_file(), f"there is no {record} to say why there are {names}"
    decisions = record.read_text(encoding="utf-8").lower()
    missing = [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", decisions)]
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_has_its_page_and_every_file_is_on_it(package: Path) -> None:
    readme = package / "README.md"
    assert readme.is_file(), "every package has a page: what it is for, its files in reading order"
    page = readme.read_text(encoding="utf-8")
    assert page.startswith(f"# {package.name}\n")
    assert len(page.splitlines()) <= 80, "one page"
    held = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    missing = sorted(name for name in held - {"__init__"} if not re.search(rf"\b{re.escape(name)}\b", page))
    assert ", ".join(missing) == "", "files that the page does not name"


def test_the_licence_is_the_one_that_is_declared() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in licence
    assert "Version 3, 29 June 2007" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert 'license = "GPL-3.0-or-later AND MIT"' in PYPROJECT
    assert "MIT License" in (ROOT / "LICENSES/MIT.txt").read_text(encoding="utf-8")


def test_what_a_training_script_imports_carries_the_free_licence() -> None:
    below = {module.name: module for module in modules()}
    wanted = {name for name in below if name.split(".")[1:2] in (["core"], ["training"])}
    reached: set[str] = set()
    while wanted - reached:
        name = (wanted - reached).pop()
        reached.add(name)
        targets = {own_module(found.target) for found in imports() if found.module.name == name}
        wanted |= {target for target in targets if target is not None and target != PACKAGE}
    unmarked = [
        name
        for name in sorted(reached)
        if not below[name].path.read_text(encoding="utf-8").startswith(MIT)
        and below[name].path.stat().st_size
    ]
    assert "\n".join(unmarked) == "", "a script that imports the SDK imports these: they carry MIT"


def test_there_are_scripts_for_the_first_day() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"setup", "run", "test", "check"} <= names


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no executable bit")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    tracked = subprocess.run(
        ["git", "ls-files", "-s", str(script)], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert not tracked or tracked.startswith("100755 "), "git update-index --chmod=+x"


@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if b"bash" in path.read_bytes().splitlines()[0]],
    ids=lambda path: path.name,
)
def test_shell_scripts_are_read_without_complaint(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
