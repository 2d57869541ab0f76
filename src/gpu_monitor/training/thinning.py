# SPDX-License-Identifier: MIT
"""A series of any length as a few buckets, each with its last point and its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_monitor.training.pieces import FIRST, WIDER, Level, least_of, most_of


@dataclass(frozen=True)
class Thinned:
    """Buckets in order of logging. `value`: the last of a bucket, at `x`; `min`, `max`: its finite extremes, NaN where
    there are none. `thinned` False: every point is there, and all three are the same."""

    x: list[float]
    value: list[float]
    min: list[float]
    max: list[float]
    thinned: bool


def height_for(count: int, most: int) -> int | None:
    """The highest level of a pyramid that has at least two entries for each of `most` buckets; None: take the points."""
    width = count // most // 2
    if width < FIRST:
        return None
    height = 0
    while FIRST * WIDER ** (height + 1) <= width:
        height += 1
    return height


def bucketed(parts: Sequence[tuple[float, Level]], most: int, axis: str) -> Thinned:
    """At most `most` buckets of about the same number of points, out of levels that follow each other.

    Each level comes with the start of its segment (UTC epoch s). `axis`: step or time.
    """
    view = Thinned([], [], [], [], True)
    total = sum(level.count for _, level in parts)
    columns = [(list(level.least), list(level.most)) for _, level in parts]
    place = start = begin = (
        0  # the level at hand, how many points lie before it, and its first entry not used
    )
    for bucket in range(1, most + 1):
        target = bucket * total // most
        lows: list[float] = []
        highs: list[float] = []
        last: tuple[int, int] | None = None
        while place < len(parts):
            level = parts[place][1]
            size = len(level.values)
            end = min(size, -(-(target - start) // level.width))
            if end > begin:
                least, greatest = columns[place]
                lows += least[begin:end]
                highs += greatest[begin:end]
                last = (place, end - 1)
                begin = end
            if end < size or start + level.count > target:
                break
            start += level.count
            place, begin = place + 1, 0
        if last is not None:
            started, level = parts[last[0]]
            entry = last[1]
            view.x.append(
                level.steps[entry] if axis == "step" else started + (level.ats[entry] + level.base) / 1000
            )
            view.value.append(level.values[entry])
            view.min.append(least_of(lows))
            view.max.append(most_of(highs))
    return view
