"""What a report adds to the hours of the fleet, in whole numbers, so that it can be taken off again exactly. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter

from gpu_monitor.server.store.schema import FLEET_UNITS, aggregates, fleet_hours

FleetKey = tuple[int, int, bool]
"""Hour, contract, simulated."""
Sums = list[int]

KEY_COLUMNS = ("hour", "contract", "simulated")
SUM_COLUMNS: tuple[str, ...] = tuple(c.name for c in fleet_hours.c if c.name not in KEY_COLUMNS)
_FIXED = 9
"""reports, gpus, seconds, period_seconds, idle, held idle, energy seconds, energy, energy_rows: in this order."""
_MEANS: tuple[str, ...] = tuple(name.removesuffix("_sum") for name in SUM_COLUMNS if name.endswith("_sum"))
VALUE_COLUMNS: tuple[str, ...] = tuple(c.name for c in aggregates.c)[5:-1]
"""The columns of an aggregate between its keys and `extra`: what a shaped row holds."""
NEEDED: tuple[str, ...] = (
    "seconds",
    "idle_seconds",
    "held_idle_seconds",
    "energy_seconds",
    "energy",
    *_MEANS,
)
"""What of an aggregate the fleet's hours are made from."""
pick_needed = itemgetter(*(VALUE_COLUMNS.index(name) for name in NEEDED))
_UNITS = tuple(FLEET_UNITS.get(name, 1) for name in _MEANS)

Part = tuple[bool, Sequence[int | None]]
"""One GPU's row: whether it is simulated, and its NEEDED values."""


def fleet_part(
    hour: int, contract: int, period_seconds: int, simulated: bool, rows: Iterable[Part]
) -> dict[FleetKey, Sums]:
    """What one report adds. `simulated` is the report's; each row says it for itself."""
    found: dict[FleetKey, Sums] = {(hour, contract, simulated): _nothing()}
    found[hour, contract, simulated][0] = 1
    for is_simulated, values in rows:
        key = (hour, contract, is_simulated)
        sums = found.get(key)
        if sums is None:
            sums = found[key] = _nothing()
        _add_row(sums, period_seconds, values)
    return found


def _nothing() -> Sums:
    return [0] * len(SUM_COLUMNS)


def _add_row(sums: Sums, period_seconds: int, values: Sequence[int | None]) -> None:
    seconds, idle, held, energy_seconds, energy, *means = values
    sums[1] += 1
    sums[3] += period_seconds
    covered = seconds or 0
    sums[2] += covered
    sums[4] += idle or 0
    sums[5] += held or 0
    sums[6] += energy_seconds or 0
    if energy is not None:
        sums[7] += energy
        sums[8] += 1
    at = _FIXED
    for value, unit in zip(means, _UNITS, strict=True):
        if value is not None:
            sums[at] += value // unit * covered
            sums[at + 1] += covered
        at += 2


def merge(into: dict[FleetKey, Sums], part: dict[FleetKey, Sums], sign: int = 1) -> None:
    """Add a part to what a group of reports adds, or take it off (`sign` -1)."""
    for key, sums in part.items():
        held = into.get(key)
        if held is None:
            into[key] = [sign * value for value in sums]
        else:
            for at, value in enumerate(sums):
                held[at] += sign * value
