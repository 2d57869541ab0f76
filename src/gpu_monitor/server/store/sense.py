"""What of a report contradicts itself: figures of one GPU that cannot all be true, and times outside the period."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from gpu_monitor.core.catalogue import SAMPLED, Kind
from gpu_monitor.server.store.schema import COVER, IDLE, has_extremes
from gpu_monitor.wire.intake import Intake, Malformed, epoch

EDGE_SECONDS = 1.0
"""That a time may lie outside its period: agents round theirs."""
_LONGER = 1.01
"""Of a period: clocks that measure one interval and clocks that count the hour differ by so much at most."""
_DIGIT = 1
"""Agents round every figure for itself, so two may be one last digit apart the wrong way round."""
_COVER_DIGITS = 2
"""Of 0.0001: coverage and the seconds it is made of are both rounded."""


def _distances() -> list[tuple[int, str]]:
    """Where among a row's values the distances between a mean and its extremes stand, and their fields."""
    at, found = len(COVER) + len(IDLE), []
    for metric in SAMPLED:
        if metric.kind is not Kind.FLAGS and has_extremes(metric):
            found += [(at + 1, f"{metric.name}_min"), (at + 2, f"{metric.name}_max")]
            at += 2
        at += 1
    return found


_DISTANCES = _distances()
_BASIS = [name for name, _ in (*COVER, *IDLE)]
_basis_of = itemgetter(
    *(_BASIS.index(n) for n in ("coverage", "seconds", "idle_seconds", "held_idle_seconds", "energy_seconds"))
)


def check_figures(values: Sequence[int | None], period: int, least: int) -> None:
    """Malformed where figures of a GPU over a period (s) cannot all be true; `values` as the table has them.

    `least`: the least of the distances between means and extremes.
    """
    coverage, seconds, idle, held, energy = _basis_of(values)
    if seconds is not None:
        if seconds > period * 10 * _LONGER:
            raise Malformed("seconds", f"{seconds / 10} s were measured in a period of {period} s")
        if coverage is not None and abs(coverage - min(10_000.0, seconds * 1000 / period)) > _COVER_DIGITS:
            raise Malformed("coverage", f"{coverage / 10_000} is not {seconds / 10} s of {period} s")
        if idle is not None and idle > seconds + _DIGIT:
            raise Malformed("idle_seconds", f"{idle / 10} s of {seconds / 10} s that were measured")
        if energy is not None and energy > seconds + _DIGIT:
            raise Malformed("energy_seconds", f"{energy / 10} s of {seconds / 10} s that were measured")
    if held is not None and idle is not None and held > idle + _DIGIT:
        raise Malformed("held_idle_seconds", f"{held / 10} s of {idle / 10} s that were idle")
    if least < -_DIGIT:
        field = next(name for at, name in _DISTANCES if (values[at] or 0) < -_DIGIT)
        raise Malformed(field, "the mean does not lie between minimum and maximum")


def moment_in(stamp: Any, field: str, intake: Intake) -> float:
    """UTC epoch seconds of a time in the report's period; Malformed outside it."""
    seconds = epoch(stamp, field)
    if not intake.start - EDGE_SECONDS <= seconds <= intake.end + EDGE_SECONDS:
        raise Malformed(field, f"the time {stamp.isoformat()} is not in the report's period")
    return seconds


def moment_before(stamp: Any, field: str, last: float) -> float:
    """UTC epoch seconds of a time that is not after `last`; it may lie before the report's period."""
    seconds = epoch(stamp, field)
    if seconds > last + EDGE_SECONDS:
        raise Malformed(field, "after the end")
    return seconds
