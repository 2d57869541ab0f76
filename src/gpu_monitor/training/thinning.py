# SPDX-License-Identifier: MIT
"""A series of any length as a few buckets, each with its last point and its extremes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_monitor.training.pieces import FIRST, WIDER, Level, extremes


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
    """The highest level of a pyramid that has enough entries for `most` buckets; None: take the points."""
    width = count // most
    if width < FIRST:
        return None
    height = 0
    while FIRST * WIDER ** (height + 1) <= width:
        height += 1
    return height


def bucketed(levels: Iterable[tuple[float, Level]], most: int, axis: str) -> Thinned:
    """At most `most` buckets of about the same number of points out of entries in order of logging.

    Each level comes with the start of its segment (UTC epoch s). `axis`: step or time.
    """
    x: list[float] = []
    value: list[float] = []
    least: list[float] = []
    greatest: list[float] = []
    parts = list(levels)
    total = sum(sum(level.counts) for _, level in parts)
    bucket = done = begin = 0
    lows: list[float] = []
    highs: list[float] = []
    for started, level in parts:
        begin = 0
        for place, count in enumerate(level.counts):
            done += count
            now = done * most // total
            if now == bucket and done < total:
                continue
            bucket = now
            end = place + 1
            lows.extend(level.least[begin:end])
            highs.extend(level.most[begin:end])
            least.append(extremes(lows)[0])
            greatest.append(extremes(highs)[1])
            value.append(level.values[place])
            x.append(level.steps[place] if axis == "step" else started + level.ats[place] / 1000)
            lows, highs, begin = [], [], end
        lows.extend(level.least[begin:])
        highs.extend(level.most[begin:])
    return Thinned(x, value, least, greatest, True)
