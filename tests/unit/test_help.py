"""Help fits a terminal of 80 columns, reads the same on each Python, and keeps examples whole."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from gpu_monitor.cli.main import COMMANDS, build_parser
from gpu_monitor.cli.options import Formatter


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.usefixtures("narrow")
def test_no_line_of_any_help_is_longer_than_the_terminal() -> None:
    found = list(parsers(build_parser("*")))
    assert len(found) >= 1 + len(COMMANDS)
    for parser in found:
        for line in parser.format_help().splitlines():
            assert len(line) <= 80, f"{parser.prog}: {line}"


@pytest.mark.usefixtures("narrow")
def test_an_option_has_its_metavar_once() -> None:
    text = build_parser("report").format_help()
    assert "  -c, --config CONFIG " in text
    assert "  -sc, --show-collection [TIME]\n" in text
    assert "  -f, --output-format {json,csv}\n" in text
    assert "  -o, --offline " in text


@pytest.mark.usefixtures("narrow")
def test_commands_of_a_command_stand_in_one_column() -> None:
    service = next(one for one in parsers(build_parser("service")) if one.prog.endswith("service"))
    assert "    uninstall  stop and remove the service; what it recorded stays\n" in service.format_help()


EPILOG = """examples:
  tool go --with 'two words'                      goes where it has never been before, and tells about it
  tool come

Prose is
wrapped anew."""


def test_examples_that_do_not_fit_are_explained_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    parser = argparse.ArgumentParser(prog="tool", formatter_class=Formatter, epilog=EPILOG)
    shown = parser.format_help().partition("examples:")[2]
    assert shown.splitlines()[1:] == [
        "  tool go --with 'two words'",
        "      goes where it has never been before, and tells about",
        "      it",
        "  tool come",
        "",
        "Prose is wrapped anew.",
    ]
    monkeypatch.setenv("COLUMNS", "120")
    assert parser.format_help().partition("examples:")[2].splitlines()[1] == EPILOG.splitlines()[1]


def test_every_example_is_a_command_of_ours() -> None:
    for parser in parsers(build_parser("*")):
        block = (parser.epilog or "").partition("examples:\n")[2].partition("\n\n")[0]
        for line in block.splitlines():
            assert re.search(r"\bgpu_monitor\b", line), f"{parser.prog}: {line}"
