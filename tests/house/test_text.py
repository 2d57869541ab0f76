"""What must not stand in any file, and what every test must have."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.house.tree import ROOT, files, text_of

# Put together here, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
NOT_BUILT = re.compile(
    r"\b(" + "|".join([r"raise NotImplemented" + "Error", "coming" + " soon"]) + r")\b", re.IGNORECASE
)
MACHINE = re.compile(
    "|".join(
        [
            "/" + r"(work|farm)/(main|shared|steering|in|\.library)\b",
            "/" + r"root/\.(pyenv|cache|config)",
            r"--(extra-)?index" + "-url",
            r"\b(files\.python" + r"hosted\.org|py" + r"pi\.org|registry\.npm" + r"js\.org)",
            r"\b(deb\.deb" + r"ian\.org|proxy\.gol" + r"ang\.org)",
            "/simp" + "le/",
        ]
    )
)


def lines_with(pattern: re.Pattern[str], suffixes: tuple[str, ...] | None = None) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in files()
        if path.name != "LICENSE" and (suffixes is None or path.suffix in suffixes)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def test_nothing_is_marked_unfinished() -> None:
    assert lines_with(UNFINISHED, (".py", ".sh", ".c", ".h", ".def", ".js", ".ts", ".css", ".html", "")) == []
    assert lines_with(NOT_BUILT, (".py", ".c", ".h", ".js", ".ts", "")) == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    assert lines_with(MACHINE) == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (UNFINISHED, "# TO" + "DO later"),
        (NOT_BUILT, "raise NotImplemented" + "Error"),
        (MACHINE, "cd /wo" + "rk/main"),
        (MACHINE, "https://py" + "pi.org/project"),
    ],
)
def test_the_patterns_find_what_they_look_for(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


@cache
def every_test() -> list[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every test function with its place and source."""
    found = []
    for path in files():
        if path.suffix != ".py" or "tests" not in path.relative_to(ROOT).parts:
            continue
        source = text_of(path)
        lines = source.split("\n")  # ast.get_source_segment would split it anew for each test
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                found.append((f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", text, node))
    return found


def test_every_test_can_fail() -> None:
    # A property (hypothesis) that only must not raise is a test too.
    says = re.compile(r"\bassert\b|\braises\(|\b(assert|check|expect|verify)_?\w*\(")
    wrong = [
        place
        for place, text, node in every_test()
        if not says.search(text)
        and not any(ast.unparse(mark).startswith("given(") for mark in node.decorator_list)
    ]
    assert "\n".join(wrong) == ""


def test_every_skip_has_a_condition() -> None:
    wrong = [
        place
        for place, _, node in every_test()
        for mark in node.decorator_list
        if re.search(r"mark\.skip\b(?!if)", ast.unparse(mark))
    ]
    assert "\n".join(wrong) == ""
