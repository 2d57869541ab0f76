"""The source tree as the house rules see it: files, modules and imports, read and never run."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = "gpu_monitor"


@dataclass(frozen=True)
class Module:
    """One Python file of the program."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package of the house it belongs to: "core", "agent"; "" for the top of the tree."""
        parts = self.name.split(".")
        is_package = (SOURCE / PACKAGE / parts[1]).is_dir() if len(parts) > 1 else False
        return parts[1] if is_package else ""

    def place(self, node: ast.AST) -> str:
        """Where a node stands, as editors take it."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the dotted module (or module and name) that is imported."""

    module: Module
    node: ast.stmt
    target: str
    is_in_function: bool

    @property
    def top(self) -> str:
        """The distribution's top module."""
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module.place(self.node)} imports {self.target}"


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the program."""
    found = []
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(SOURCE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return tuple(found)


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement of the program, relative ones resolved, one entry per imported name."""
    return tuple(found for module in modules() for found in _imports_of(module))


def _imports_of(module: Module) -> Iterator[Import]:
    inside = {
        id(node)
        for function in ast.walk(module.tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node, alias.name, id(node) in inside)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                yield Import(module, node, f"{base}.{alias.name}", id(node) in inside)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    up = node.level - (1 if module.path.name == "__init__.py" else 0)
    parts = module.name.split(".")
    base = ".".join(parts[: len(parts) - up])
    return f"{base}.{node.module}" if node.module else base


def own_module(target: str) -> str | None:
    """The module of ours that an imported name stands for or in; None for others' modules."""
    names = {module.name for module in modules()}
    while target and target not in names:
        target = target.rpartition(".")[0]
    return target or None


@cache
def files() -> tuple[Path, ...]:
    """Every text file of the project that git tracks or would track; all but hidden ones without git."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return tuple(sorted(path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]))


def text_of(path: Path) -> str:
    """The text of one of `files()`."""
    return path.read_text(encoding="utf-8", errors="replace")
