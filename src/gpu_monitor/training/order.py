# SPDX-License-Identifier: MIT
"""Which segment of an experiment came after which: by their clocks, and where these contradict what is known, by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_monitor.wire.training import About


@dataclass(frozen=True)
class Turn:
    """Where a segment stands. `begin`: when it began as the others' clocks have it, UTC epoch seconds; it is later
    than its own clock said where that would put it before what it came after. `number`: how many it is known to follow."""

    begin: float
    number: int


def turns_of(abouts: Mapping[str, tuple[float, About | None]]) -> dict[str, Turn]:
    """The turn of each segment, of when its clock says that it began and its header (None: lost), by name.

    A header may name one that came before (`after`, else `parent`): what is not here, or goes round in a circle, is not
    heeded.
    """
    found: dict[str, Turn] = {}
    for name in abouts:
        chain: dict[str, None] = {}
        at: str | None = name
        while at is not None and at in abouts and at not in found and at not in chain:
            chain[at] = None
            at = _before(abouts[at][1])
        for one in reversed(chain):
            found[one] = _turn(abouts[one], found)
    return found


def _turn(held: tuple[float, About | None], found: Mapping[str, Turn]) -> Turn:
    started, about = held
    before = found.get(_before(about) or "")
    if about is None or before is None:
        return Turn(started, 0)
    reached = before.begin + (max(0, about.after_at or 0) / 1000 if about.after is not None else 0)
    return Turn(max(started, reached), before.number + 1)


def _before(about: About | None) -> str | None:
    return None if about is None else about.after if about.after is not None else about.parent
