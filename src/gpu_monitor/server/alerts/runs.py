"""Finds the stretches of readings over which a condition held. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpu_monitor.server.alerts.window import NO_DATA, Episode, Judgement, Reading

HOLE_SECONDS = 180.0
"""Readings further apart than this leave a hole: three of the default interval (or one of a longer one)."""
Measure = Callable[[Reading], "float | None"]
"""The value a rule looks at in a reading; None where it is unknown."""
Say = Callable[[float, float, Reading], str]
"""The words for a stretch: the newest value, how long it lasts (s), the newest reading."""


class _Run:
    """A stretch that is being put together."""

    def __init__(self, first: Reading) -> None:
        self.since = first.start
        self.last = first
        self.value = 0.0

    def take(self, reading: Reading, value: float) -> None:
        if reading.end >= self.last.end:
            self.last, self.value = reading, value

    @property
    def reach(self) -> float:
        length = self.last.end - self.last.start if self.last.is_live else 0.0
        return self.last.end + max(HOLE_SECONDS, length)

    def close(self, until: float | None, for_seconds: float, say: Say) -> Episode:
        seen = self.last.end
        lasted = seen - self.since
        return Episode(
            self.since, seen, until, lasted >= for_seconds, self.value, say(self.value, lasted, self.last)
        )


def find_runs(
    readings: Iterable[Reading],
    measure: Measure,
    holds: Callable[[float], bool],
    for_seconds: float,
    say: Say,
) -> Judgement:
    """The stretches of readings, ascending by start, whose measured value `holds`; a hole ends a stretch.

    What is unknown (no reading, or none of this value) neither holds nor clears: only a long hole parts a
    stretch, since nobody knows what happened in it.
    """
    found: list[Episode] = []
    run: _Run | None = None
    known: float | None = None
    for reading in readings:
        value = measure(reading)
        if value is None:
            continue
        known = max(known or 0.0, reading.end)
        if run is not None and reading.start > run.reach:
            found.append(run.close(run.last.end, for_seconds, say))
            run = None
        if holds(value):
            if run is None:
                run = _Run(reading)
            run.take(reading, value)
        elif run is not None:
            found.append(run.close(max(reading.start, run.since), for_seconds, say))
            run = None
    if known is None:
        return NO_DATA
    if run is not None:
        found.append(run.close(None, for_seconds, say))
    return Judgement(tuple(found), known)
