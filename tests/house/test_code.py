"""Rules for every function: time, broad excepts, docstrings, names, nothing left empty."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.house.tree import SOURCE, Module, modules

# Where anything may go wrong in code that is not ours, and is logged and counted.
BROAD = (
    "gpu_monitor.sources.runner",
    "gpu_monitor.agent.schedule",
    "gpu_monitor.training.border",
    "gpu_monitor.training.uploader",
    "gpu_monitor.server.app",
)
VAGUE = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "stuff"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_only_the_clock_knows_the_time() -> None:
    wrong = []
    for module in modules():
        if module.name == "gpu_monitor.core.clock":
            continue
        for node in ast.walk(module.tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "time" in imported or (isinstance(node, ast.ImportFrom) and node.module == "time"):
                wrong.append(f"{module.place(node)} imports time")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in {"now", "utcnow", "today"} and owner.split(".")[-1] in {
                    "datetime",
                    "date",
                }:
                    wrong.append(f"{module.place(node)} calls {ast.unparse(node.func)}")
    assert "\n".join(wrong) == ""


def test_only_the_configuration_reads_the_environment() -> None:
    """Handing all of it on to a child (`{**os.environ}`) is no reading."""
    wrong = [
        f"{module.place(node)} reads {ast.unparse(node)}"
        for module in modules()
        if module.name != "gpu_monitor.config.load"
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"os.environ", "environ"})
        or (isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"os.environ", "environ"})
        or (isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.getenv", "getenv"})
    ]
    assert "\n".join(wrong) == ""


def is_broad(node: ast.expr | None) -> bool:
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(name is None or ast.unparse(name) in {"Exception", "BaseException"} for name in names)


def test_only_the_outermost_places_catch_everything() -> None:
    wrong = []
    for module in modules():
        if any(module.name == home or module.name.startswith(home + ".") for home in BROAD):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
                # One that puts something in order and raises the same error again hides nothing.
                last = node.body[-1]
                if not (isinstance(last, ast.Raise) and last.exc is None):
                    wrong.append(f"{module.place(node)} catches everything")
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
                wrong += [
                    f"{module.place(node)} suppresses everything" for kind in node.args if is_broad(kind)
                ]
    assert "\n".join(wrong) == ""


def public(module: Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Public classes and functions of a module and public methods of its public classes."""
    for node in module.tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name[0] != "_":
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name[0] != "_":
                        yield f"{node.name}.{method.name}", method


def is_overload_or_setter(node: ast.ClassDef | Function) -> bool:
    return any(ast.unparse(mark).split(".")[-1] in {"overload", "setter"} for mark in node.decorator_list)


def test_every_public_name_says_what_it_promises() -> None:
    wrong = []
    for module in modules():
        if module.tree.body and ast.get_docstring(module.tree) is None:
            wrong.append(f"{module.place(module.tree)} {module.name}")
        wrong += [
            f"{module.place(node)} {name}"
            for name, node in public(module)
            if ast.get_docstring(node) is None and not is_overload_or_setter(node)
        ]
    assert "\n".join(wrong) == ""


def test_modules_are_named_by_their_noun() -> None:
    wrong = [module.name for module in modules() if VAGUE & set(module.name.split(".")[-1].split("_"))]
    wrong += [str(path) for path in SOURCE.rglob("*") if path.is_dir() and VAGUE & set(path.name.split("_"))]
    assert "\n".join(wrong) == ""


def is_empty(function: Function) -> bool:
    """Whether a function was left without a body: `pass` or `...`, or not even a docstring that says why."""
    after = function.body[1:] if ast.get_docstring(function) is not None else function.body
    said = len(after) < len(function.body)
    return (not said or bool(after)) and all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in after
    )


def test_no_function_is_left_empty() -> None:
    """Only the methods of a Protocol, and overloads, have no body."""
    wrong = []
    for module in modules():
        protocols = {
            id(method)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
            for method in node.body
        }
        wrong += [
            f"{module.place(node)} {node.name}"
            for node in ast.walk(module.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and is_empty(node)
            and id(node) not in protocols
            and not is_overload_or_setter(node)
        ]
    assert "\n".join(wrong) == ""
