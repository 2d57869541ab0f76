# SPDX-License-Identifier: MIT
"""Where in a JSON text each key stands, so that an error can name the line. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


@dataclass
class Positions:
    """Line of each key by its path (`collection.interval_seconds`), and keys given twice."""

    lines: dict[str, int] = field(default_factory=dict)
    twice: list[tuple[str, int]] = field(default_factory=list)


def find_positions(text: str) -> Positions:
    """Positions of the keys of a well-formed JSON text (array elements are passed over)."""
    found = Positions()
    stack: list[str | None] = []
    key: str | None = None
    previous = ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            stack.append(key if token == "{" else None)
            key = None
        elif token in "}]" and stack:
            stack.pop()
        elif token == ":" and previous.startswith('"'):
            key = previous[1:-1]
            path = ".".join([part for part in stack if part] + [key])
            line = text.count("\n", 0, match.start()) + 1
            if path in found.lines:
                found.twice.append((path, line))
            found.lines[path] = line
        previous = token
    return found
