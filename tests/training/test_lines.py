"""Lines out of pieces of output, as they would stand on a terminal in the end."""

from __future__ import annotations

import pytest

from gpu_monitor.training.lines import LONGEST_LINE, Lines


def all_of(*pieces: str) -> list[str]:
    lines = Lines()
    found = [line for at, piece in enumerate(pieces) for _, line in lines.add(piece, at)]
    return found + [line for _, line in lines.end()]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["a\nb\n"], ["a", "b"]),
        (["a", "b\nc", "\n"], ["ab", "c"]),
        (["no end"], ["no end"]),
        (["\n", "\n"], ["", ""]),
        (["windows\r\n", "lines\r", "\n"], ["windows", "lines"]),
        (["\r 10%|#   ", "\r 90%|### ", "\r100%|####\n", "done\n"], ["100%|####", "done"]),
        (["1%\r", "2%\r", "3%\r"], ["3%"]),
        (["1%\r2%\r3%\nnext\n"], ["3%", "next"]),
        (["\rgone", "\r      \r", "after\n"], ["after"]),
        (["\rgone", "\r    \r\n", "after\n"], ["after"]),
        (["\x1b[1;31mred\x1b[0m\n"], ["red"]),
        (["\x1b]0;title\x07text\n", "\x1b]8;;x\x1b\\link\x1b]8;;\x1b\\\n"], ["text", "link"]),
        (["\x1b[3", "1mred\n", "\x1b", "[0mplain\n"], ["red", "plain"]),
        # Two bars below each other, as tqdm writes them: down, the inner one, up again.
        (["\router 0%", "\n", "\rinner 0%", "\x1b[A", "\router 1%", "\n", "\rinner 9%", "\x1b[A\n\n", "end\n"],
         ["outer 1%", "inner 9%", "end"]),
        (["bad \ud800 text\n"], ["bad ? text"]),
    ],
)  # fmt: skip
def test_lines(pieces: list[str], lines: list[str]) -> None:
    assert all_of(*pieces) == lines


def test_how_the_text_was_cut_into_pieces_does_not_matter() -> None:
    text = "one\ntwo\r\nthree\rfour\n\x1b[31mfive\x1b[0m\nsix"
    assert all_of(*text) == all_of(text) == ["one", "two", "four", "five", "six"]


def test_a_line_has_the_time_at_which_it_began() -> None:
    lines = Lines()
    assert list(lines.add("a", 1)) == []
    assert list(lines.add("b\nc", 2)) == [(1, "ab")]
    assert list(lines.add("\n", 3)) == [(2, "c")]
    assert list(lines.add("\n", 4)) == [(4, "")]


def test_a_very_long_line_is_cut_and_says_so() -> None:
    text = "x" * (LONGEST_LINE + 5)
    assert all_of(text + "\n") == ["x" * LONGEST_LINE + "… (5 more characters)"]
    assert all_of(*["x" * 1000] * 20, "\n") == [
        "x" * LONGEST_LINE + f"… ({20_000 - LONGEST_LINE} more characters)"
    ]
    assert all_of("\r" + text, "\rshort\n") == ["short"]


def test_a_bar_that_is_left_alone_can_be_had() -> None:
    lines = Lines()
    assert list(lines.add("\r50%", 1)) == []
    assert list(lines.add("\r100%\n", 2)) == []
    assert lines.is_holding
    assert list(lines.flush()) == [(2, "100%")]
    assert not lines.is_holding
    assert list(lines.add("next\n", 3)) == [(3, "next")]


def test_many_bars_are_not_held_for_ever() -> None:
    lines = Lines()
    found = [line for number in range(100) for _, line in lines.add(f"\rbar {number}\n", number)]
    assert found == [f"bar {number}" for number in range(84)]
