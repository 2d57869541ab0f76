# SPDX-License-Identifier: MIT
"""Sums of recorded time and energy, and the figures a report makes of them: agent and server alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDLE_BELOW = 5.0
"""Per cent of utilisation under which a GPU counts as idle (issue: report)."""
HELD_BYTES = 256 * 1024 * 1024
"""Device memory from which on an idle GPU counts as held: a CUDA context alone takes 300 to 500 MB, a
desktop's idle driver less than 256 MB."""
HOUR = 3600.0
_JOULES_PER_KWH = 3.6e6
SLIVER = 0.05
"""Seconds of a period, below which a difference of two sums of tenths is nothing."""


@dataclass
class Tally:
    """What was recorded, added up. Seconds where no unit is named; each sum has the seconds it is known for."""

    recorded: float = 0.0
    used_seconds: float = 0.0
    """Seconds in which utilisation is known."""
    used: float = 0.0
    """Per cent of utilisation times seconds."""
    idle: float = 0.0
    held_seconds: float = 0.0
    """Seconds in which utilisation and memory are known."""
    held: float = 0.0
    counter_seconds: float = 0.0
    """Seconds over which the hardware counted energy."""
    counter_joules: float = 0.0
    power_seconds: float = 0.0
    """Seconds without a counter in which power is known."""
    power_joules: float = 0.0

    def add(self, row: Sequence[float], share: float = 1.0) -> None:
        """Add sums in the order of the fields or a share of them."""
        self.recorded += row[0] * share
        self.used_seconds += row[1] * share
        self.used += row[2] * share
        self.idle += row[3] * share
        self.held_seconds += row[4] * share
        self.held += row[5] * share
        self.counter_seconds += row[6] * share
        self.counter_joules += row[7] * share
        self.power_seconds += row[8] * share
        self.power_joules += row[9] * share

    def values(self) -> tuple[float, ...]:
        """The sums in the order of the fields."""
        return (
            self.recorded, self.used_seconds, self.used, self.idle, self.held_seconds, self.held,
            self.counter_seconds, self.counter_joules, self.power_seconds, self.power_joules,
        )  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One line of a report. Each figure has beside it the share of the possible time it is known for.

    None: not known for any of it. `energy_kwh` comes from hardware counters; `energy_estimated_kwh` is
    the integral of mean power over the time without one. `money` is of both together.
    """

    gpu_hours: float
    coverage: float
    gpu_utilization: float | None
    utilization_coverage: float
    idle_hours: float | None
    idle_coverage: float
    held_idle_hours: float | None
    held_idle_coverage: float
    energy_kwh: float | None
    energy_estimated_kwh: float | None
    energy_coverage: float
    money: float | None


def figures(tally: Tally, known: Tally, possible: float, price: float | None) -> Figures:
    """The figures of `tally`; coverage is that of `known` in `possible` GPU-seconds.

    `known` is `tally` itself, except where a line is a person's part of GPUs that are known as a whole.
    """
    counted = tally.counter_joules / _JOULES_PER_KWH if tally.counter_seconds > SLIVER else None
    estimated = tally.power_joules / _JOULES_PER_KWH if tally.power_seconds > SLIVER else None
    has_energy = counted is not None or estimated is not None
    kwh = (counted or 0.0) + (estimated or 0.0)
    idle_coverage = _share(known.used_seconds, possible)
    return Figures(
        gpu_hours=round(tally.recorded / HOUR, 4),
        coverage=_share(known.recorded, possible),
        gpu_utilization=round(tally.used / tally.used_seconds, 1) if tally.used_seconds else None,
        utilization_coverage=idle_coverage,
        idle_hours=round(tally.idle / HOUR, 4) if tally.used_seconds else None,
        idle_coverage=idle_coverage,
        held_idle_hours=round(tally.held / HOUR, 4) if tally.held_seconds else None,
        held_idle_coverage=_share(known.held_seconds, possible),
        energy_kwh=None if counted is None else round(counted, 6),
        energy_estimated_kwh=None if estimated is None else round(estimated, 6),
        energy_coverage=_share(known.counter_seconds + known.power_seconds, possible),
        money=round(kwh * price, 4) if has_energy and price is not None else None,
    )


def _share(seconds: float, possible: float) -> float:
    # A clock that was put back records an hour twice; more than all of it is all of it.
    return min(1.0, round(seconds / possible, 4)) if possible > 0 else 0.0
