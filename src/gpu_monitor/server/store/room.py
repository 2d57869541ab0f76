"""How much text one answer may hold: what scripts upload is as long as they like, and memory is not. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
ROOM = 4 << 20
"""Characters; a single record may have a million."""


def fitting(sized: Iterable[tuple[T, int | None]], most: int = ROOM) -> list[T]:
    """The first of things with their lengths that fit into an answer together; at least one where there is any."""
    kept: list[T] = []
    characters = 0
    for thing, length in sized:
        characters += length or 0
        if kept and characters > most:
            break
        kept.append(thing)
    return kept
