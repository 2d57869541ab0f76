"""Imports go down only, in one direction, at the top of the file; third parties stay at home."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.tree import PACKAGE, imports, modules, own_module

# docs/architecture.md draws this; boxes on one line never import each other.
LAYERS = (
    ("core",),
    ("config", "storage", "wire"),
    ("sources", "sinks"),
    ("resources",),
    ("agent", "server", "training", "protocol", "system", "terminal", "viz", "service"),
    ("cli",),
)
RANK = {package: rank for rank, line in enumerate(LAYERS) for package in line}

# Where each third party lives. The empty list means: anywhere but core.
HOMES = {
    "alembic": ["gpu_monitor.server.store"],
    "apprise": ["gpu_monitor.server.notify"],
    "apscheduler": ["gpu_monitor.agent.schedule"],
    "argon2": ["gpu_monitor.server.auth.passwords"],
    "certifi": ["gpu_monitor.sinks"],
    "colorama": ["gpu_monitor.cli"],
    "fastapi": ["gpu_monitor.server"],
    "msgspec": [],
    "numpy": ["gpu_monitor.training.states"],
    "psycopg": ["gpu_monitor.server"],
    "psutil": ["gpu_monitor.sources.host"],
    "keras": ["gpu_monitor.training.frameworks"],
    "lightning": ["gpu_monitor.training.frameworks"],
    "pynvml": ["gpu_monitor.sources.gpu.nvml"],
    "pydantic": ["gpu_monitor.server.routes"],
    "pydantic_core": ["gpu_monitor.server.routes"],
    "safetensors": ["gpu_monitor.training.states"],
    "torch": ["gpu_monitor.training.states", "gpu_monitor.training.frameworks"],
    "transformers": ["gpu_monitor.training.frameworks"],
    "pytorch_lightning": ["gpu_monitor.training.frameworks"],
    "requests": ["gpu_monitor.sinks"],
    "sqlalchemy": ["gpu_monitor.server"],
    "starlette": ["gpu_monitor.server"],
    "tenacity": ["gpu_monitor.sinks", "gpu_monitor.agent.ship"],
    "tomli": ["gpu_monitor.server.alerts.seed"],
    "urllib3": ["gpu_monitor.sinks"],
    "uvicorn": ["gpu_monitor.server"],
    "uvloop": ["gpu_monitor.server.run"],
    "zstandard": ["gpu_monitor.server.ingest"],
}


def is_within(module: str, home: str) -> bool:
    return module == home or module.startswith((home + ".", home + "_"))


def test_every_package_has_a_place_in_the_house() -> None:
    homeless = {module.package for module in modules() if module.package} - set(RANK)
    assert homeless == set()


def test_imports_go_down_only() -> None:
    wrong = []
    for found in imports():
        target = own_module(found.target)
        if target is None or target == PACKAGE or not found.module.package:
            continue
        package = target.split(".")[1]
        if package == found.module.package:
            continue
        if RANK.get(package, len(LAYERS)) >= RANK[found.module.package]:
            wrong.append(str(found))
    assert "\n".join(wrong) == ""


def test_the_top_of_the_tree_only_starts_the_command_line() -> None:
    """Its lazy names (PEP 562) are words in a table; `tests/training` sees that each can be had."""
    wrong = [
        str(found)
        for found in imports()
        if not found.module.package
        and found.top == PACKAGE
        and not (found.module.name == f"{PACKAGE}.__main__" and found.target.startswith(f"{PACKAGE}.cli."))
    ]
    assert "\n".join(wrong) == ""


def test_no_module_imports_itself_round_a_corner() -> None:
    below: dict[str, set[str]] = {module.name: set() for module in modules()}
    for found in imports():
        target = own_module(found.target)
        if (
            target is not None
            and target != found.module.name
            and not found.module.name.startswith(target + ".")
        ):
            below[found.module.name].add(target)
    # Take away what imports nothing that is left, until nothing changes: cycles remain.
    left = dict(below)
    while True:
        done = {name for name, targets in left.items() if not targets & set(left)}
        if not done:
            break
        left = {name: targets for name, targets in left.items() if name not in done}
    assert {name: sorted(targets & set(left)) for name, targets in left.items()} == {}


def test_our_own_modules_are_imported_at_the_top() -> None:
    wrong = [str(found) for found in imports() if found.is_in_function and found.top == PACKAGE]
    assert "\n".join(wrong) == ""


def test_core_stands_on_the_standard_library_alone() -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.module.package == "core" and found.top not in {*sys.stdlib_module_names, PACKAGE}
    ]
    assert "\n".join(wrong) == ""


def test_third_parties_stay_at_home() -> None:
    wrong = []
    for found in imports():
        if found.top in {*sys.stdlib_module_names, "tomllib", PACKAGE}:  # which 3.10 does not have
            continue
        homes = HOMES.get(found.top)
        at_home = homes == [] or (homes and any(is_within(found.module.name, home) for home in homes))
        if not at_home:
            wrong.append(f"{found} (its home: {homes or 'none is named in this test'})")
    assert "\n".join(wrong) == ""


LIGHT = """
import sys
before = set(sys.modules)
from gpu_monitor.training import TrainingMonitor
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""


def test_the_monitor_of_a_training_loads_nothing_but_our_own_and_msgspec() -> None:
    loaded = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    # msgspec itself takes typing_extensions where it is installed.
    assert set(loaded.stdout.split()) - {"typing_extensions"} == {"gpu_monitor", "msgspec"}, loaded.stderr


def test_importing_the_package_of_the_training_loads_none_of_its_modules() -> None:
    asked = (
        "import sys, gpu_monitor.training; print(*[m for m in sys.modules if m.startswith('gpu_monitor.')])"
    )
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert (loaded.stderr, loaded.stdout.split()) == ("", ["gpu_monitor.training"])


# Imports every module of a package and prints which of the named ones that pulled in.
LOADER = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(found.name)
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


@pytest.mark.parametrize("package", ["core", "config", "storage", "wire", "agent", "cli", "service"])
def test_the_agents_own_process_never_loads_the_driver_nor_what_only_sending_needs(package: str) -> None:
    asked = [sys.executable, "-c", LOADER, f"{PACKAGE}.{package}", "pynvml", "requests", "tenacity"]
    loaded = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == []
