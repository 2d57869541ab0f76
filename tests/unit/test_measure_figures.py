"""The tables of scripts/bench: what is met, and how a page is rewritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.measure import bench, peers
from tests.measure.figures import Figure, as_json, as_markdown, as_text, replace_part, write_page
from tests.measure.machine import Machine

MACHINE = Machine(
    "2026-01-02 03:04 UTC", "Some CPU", 4, 16.0, "Linux 6", "3.11.7", "3.40.1", "0.1 0.1 0.1", 1.04
)
KEPT = Figure("kept", 20, 12.345, "ms", 1, ("median of 9",))
MISSED = Figure("missed", 0.02, 0.0213, "% of one core", 4)
UNKNOWN = Figure("unknown", 3, None, "s", 2, ("there is no compiler",))
FREE = Figure("free", None, 7.0, "MB")


@pytest.mark.parametrize(
    ("figure", "cells", "met"),
    [
        (KEPT, ("kept", "≤ 20 ms", "12.3 ms", "yes"), True),
        (MISSED, ("missed", "≤ 0.02 % of one core", "0.0213 % of one core", "NO"), False),
        (UNKNOWN, ("unknown", "≤ 3 s", "not measured", ""), None),
        (FREE, ("free", "", "7.0 MB", ""), None),
        (Figure("at the bar", 3, 3.0, "s", 0), ("at the bar", "≤ 3 s", "3 s", "yes"), True),
        (
            Figure("rate", 1000, 999.4, "a second", 0, at_least=True),
            ("rate", "≥ 1,000 a second", "999 a second", "NO"),
            False,
        ),
        (
            Figure("share", 0.7, 1.25, "of it", 2, at_least=True),
            ("share", "≥ 0.7 of it", "1.25 of it", "yes"),
            True,
        ),
        (Figure("many", None, 12345.0, "B", 0), ("many", "", "12,345 B", ""), None),
    ],
    ids=lambda value: value.what if isinstance(value, Figure) else "",
)
def test_a_figure_says_whether_its_bar_is_met(
    figure: Figure, cells: tuple[str, ...], met: bool | None
) -> None:
    assert figure.cells() == cells
    assert figure.is_met is met


def test_the_terminal_gets_columns_and_notes() -> None:
    assert as_text([KEPT, MISSED]) == (
        "what    bar                   measured              met\n"
        "kept    ≤ 20 ms               12.3 ms               yes\n"
        "    median of 9\n"
        "missed  ≤ 0.02 % of one core  0.0213 % of one core  NO"
    )


def test_a_page_gets_a_table_and_notes() -> None:
    assert as_markdown([KEPT, MISSED]) == (
        "| what | bar | measured | met |\n|---|---|---|---|\n| kept | ≤ 20 ms | 12.3 ms | yes |\n"
        "| missed | ≤ 0.02 % of one core | 0.0213 % of one core | NO |\n\n- **kept**: median of 9"
    )


def test_json_holds_what_the_table_says() -> None:
    told = json.loads(json.dumps(as_json(MACHINE, [KEPT, UNKNOWN])))
    assert told["machine"]["cpu"] == "Some CPU"
    assert [(row["what"], row["value"], row["met"]) for row in told["figures"]] == [
        ("kept", 12.345, True),
        ("unknown", None, None),
    ]


PAGE = """# Page

<!-- machine: written by scripts/bench -->
old machine
<!-- machine: end -->
prose that stays
<!-- figures: written by scripts/bench -->
<!-- figures: end -->
<!-- peers: written by scripts/bench -->

old peers

<!-- peers: end -->
the end
"""


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write_page(page, MACHINE, [KEPT], None)
    once = page.read_text()
    assert "old machine" not in once
    assert "- processor: Some CPU, 4 cores, 16 GB\n" in once
    assert "| kept | ≤ 20 ms | 12.3 ms | yes |" in once
    assert "prose that stays" in once
    assert "old peers" in once, "peers that were not measured keep their figures"
    assert once.endswith("<!-- peers: end -->\nthe end\n")
    write_page(page, MACHINE, [KEPT], None)
    assert page.read_text() == once


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks"):
        replace_part("# Page", "figures", "content")


def test_the_page_of_this_project_has_its_marks() -> None:
    text = bench.PAGE.read_text(encoding="utf-8")
    for name in ("machine", "figures", "peers"):
        assert f"\n\nnew {name}\n\n" in replace_part(text, name, f"new {name}")


def test_peers_are_shown_beside_each_other() -> None:
    ran = peers.Peer("loop", 0.05, 17.83, 60.0)
    failed = peers.Peer("other", None, None, 60.0, "not run: no network")
    assert ran.cells() == ("loop", "0.100 s", "17.8 MB", "")
    assert peers.as_markdown([ran, failed]).splitlines()[2:] == [
        "| loop | 0.100 s | 17.8 MB |  |",
        "| other |  |  | not run: no network |",
    ]


@pytest.mark.parametrize(
    "argv", [["--only", "nothing"], ["--write", "--quick"], ["--write", "--only", "cpu"]]
)
def test_arguments_that_make_no_sense_are_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.read_arguments(argv)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err


def test_parts_that_are_asked_for() -> None:
    assert bench.read_arguments(["--only", "start,memory"]).parts == ["start", "memory"]
    assert bench.read_arguments([]).parts == ["cpu", "storage", "start"]
