"""Fills a text template: values between at-signs, and blocks that only some renderings have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping


def fill(template: str, blocks: Collection[str], values: Mapping[str, str]) -> str:
    """The template with the named blocks kept, all others left out, and the values put in.

    A block stands between the lines `@if NAME` and `@end`, and may hold others. KeyError names a value
    that the kept text asks for and nobody gave.
    """
    kept: list[str] = []
    within: list[bool] = []
    for line in template.splitlines():
        if line.startswith("@if "):
            within.append(line.removeprefix("@if ") in blocks)
        elif line == "@end":
            within.pop()
        elif all(within):
            kept.append(re.sub(r"@(\w+)@", lambda match: values[match[1]], line))
    return "\n".join(kept) + "\n"
