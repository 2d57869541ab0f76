# SPDX-License-Identifier: MIT
"""Whole lines out of pieces of output, as a terminal would show them in the end: rewritten lines count once, escapes go."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_LINE = 8_192
"""Characters of one line that are kept."""
_MOST_HELD = 16
"""Progress bars below each other; more, and the uppermost is taken to be done."""
# Movements between lines are followed; other control sequences (ECMA-48: colours, titles) are left out.
_TOKENS = re.compile(
    r"(?P<text>[^\n\r\x1b]+)|(?P<end>\n)|(?P<back>\r)|\x1b\[(?P<count>\d{0,3})(?P<move>[AB])"
    r"|\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])|\x1b"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]{0,20}|\][^\x07\x1b]{0,200})?\Z")


class _Row:
    """A line that may still be rewritten. `is_returned`: what comes next overwrites it."""

    __slots__ = ("began", "cut", "is_returned", "is_rewritten", "text")

    def __init__(self, at: int) -> None:
        self.text = ""
        self.began = at
        self.cut = 0
        self.is_returned = False
        self.is_rewritten = False

    def append(self, text: str, at: int) -> None:
        if self.is_returned:
            self.text, self.cut, self.is_returned, self.is_rewritten = "", 0, False, True
        if not self.text:
            self.began = at
        room = LONGEST_LINE - len(self.text)
        self.text += text[:room]
        self.cut += max(0, len(text) - room)

    def said(self) -> tuple[int, str] | None:
        """When it began and what it says; None for a progress bar that took itself away."""
        if self.is_rewritten and not self.text.strip():
            return None
        text = f"{self.text}… ({self.cut} more characters)" if self.cut else self.text
        return self.began, text.encode("utf-8", "replace").decode()


class Lines:
    """Assembles the lines of one stream.

    A line that was rewritten (a progress bar) is held until a line that was not follows, so that bars below each other,
    which move up and down between their lines, count once each.
    """

    def __init__(self) -> None:
        self._rows = [_Row(0)]
        self._cursor = 0
        self._tail = ""

    @property
    def is_holding(self) -> bool:
        """Whether `flush` would give lines."""
        return self._cursor > 0

    def add(self, text: str, at: int) -> Iterator[tuple[int, str]]:
        """The lines that `text`, written at `at`, completes, each with the time at which it began."""
        if self._tail:
            text, self._tail = self._tail + text, ""
        if "\x1b" in text and (unfinished := _UNFINISHED.search(text)):
            text, self._tail = text[: unfinished.start()], unfinished[0]
        for token in _TOKENS.finditer(text):
            row = self._rows[self._cursor]
            if token["text"] is not None:
                row.append(token["text"], at)
            elif token["back"]:
                row.is_returned = True
            elif token["end"]:
                if not row.text:
                    row.began = at
                yield from self._down(row, at)
            elif token["move"]:
                count = int(token["count"] or 1)
                goal = self._cursor - count if token["move"] == "A" else self._cursor + count
                self._cursor = min(max(goal, 0), len(self._rows) - 1)

    def _down(self, row: _Row, at: int) -> Iterator[tuple[int, str]]:
        row.is_returned = False
        self._cursor += 1
        if self._cursor < len(self._rows):
            return
        self._rows.append(_Row(at))
        if not row.is_rewritten:
            yield from self.flush()
        elif self._cursor > _MOST_HELD:
            yield from self._give(1)

    def flush(self) -> Iterator[tuple[int, str]]:
        """The lines above the one that is being written: nothing rewrites them any more."""
        yield from self._give(self._cursor)

    def end(self) -> Iterator[tuple[int, str]]:
        """Everything, also what has no end of line."""
        if not self._rows[-1].text:
            del self._rows[-1]
        yield from self._give(len(self._rows))
        self._rows = [_Row(0)]

    def _give(self, count: int) -> Iterator[tuple[int, str]]:
        given = self._rows[:count]
        del self._rows[:count]
        self._cursor = max(0, self._cursor - count)
        for row in given:
            if (said := row.said()) is not None:
                yield said
