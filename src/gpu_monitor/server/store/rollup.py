"""What a report adds to the hours of the fleet, in whole numbers, so that it can be taken off again exactly. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter, mul
from typing import TypeVar

from gpu_monitor.server.store.schema import EVERYONE, FLEET_UNITS, aggregates, fleet_hours
from gpu_monitor.server.store.values import identity_of

T = TypeVar("T")

FleetKey = tuple[int, int, bool]
"""Hour, contract, simulated."""
Sums = list[int]

KEY_COLUMNS = ("hour", "contract", "simulated")
SUM_COLUMNS: tuple[str, ...] = tuple(c.name for c in fleet_hours.c if c.name not in KEY_COLUMNS)
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


def without_instances(rows: Sequence[T], uid_and_identity: Callable[[T], tuple[str, str]]) -> list[T]:
    """The rows but for MIG instances whose GPU is among them: what they do is counted with it."""
    named = [uid_and_identity(row) for row in rows]
    # An identity tells what it has: most have no parent, and are not decoded.
    parents = [identity_of(body).parent_uid if '"parent_uid"' in body else None for _, body in named]
    uids = {uid for uid, _ in named} if any(parents) else set()
    return [row for row, parent in zip(rows, parents, strict=True) if parent not in uids]


def fleet_part(
    hour: int, contract: int, period_seconds: int, simulated: bool, rows: Iterable[Part], reports: int = 1
) -> dict[FleetKey, Sums]:
    """What reports add that are alike in all this. `simulated` is theirs; each row says it for itself."""
    parted: dict[bool, list[Sequence[int | None]]] = {simulated: []}
    for is_simulated, values in rows:
        parted.setdefault(is_simulated, []).append(values)
    found = {(hour, contract, kind): _sums(period_seconds, part) for kind, part in parted.items()}
    found[hour, contract, simulated][0] = reports
    return found


def _sums(period_seconds: int, rows: list[Sequence[int | None]]) -> Sums:
    """The sums over rows of NEEDED values, column by column."""
    if not rows:
        return [0] * len(SUM_COLUMNS)
    seconds, idle, held, energy_seconds, energy, *means = zip(*rows, strict=True)
    covered = [second or 0 for second in seconds]
    metered = [value for value in energy if value is not None]
    whole = sum(covered)
    sums = [
        0, len(rows), whole, period_seconds * len(rows), sum(filter(None, idle)), sum(filter(None, held)),
        sum(filter(None, energy_seconds)), sum(metered), len(metered),
    ]  # fmt: skip
    for column, unit in zip(means, _UNITS, strict=True):
        if None in column:
            pairs = [
                (value, second) for value, second in zip(column, covered, strict=True) if value is not None
            ]
            sums += (
                sum([value // unit * second for value, second in pairs]),
                sum([second for _, second in pairs]),
            )
        else:
            counted = column if unit == 1 else [value // unit for value in column]
            sums += (sum(map(mul, counted, covered)), whole)
    return sums


def merge(into: dict[FleetKey, Sums], part: dict[FleetKey, Sums], sign: int = 1) -> None:
    """Add a part to what a group of reports adds, or take it off (`sign` -1)."""
    for key, sums in part.items():
        held = into.get(key)
        if held is None:
            into[key] = [sign * value for value in sums]
        else:
            for at, value in enumerate(sums):
                held[at] += sign * value


def with_everyone(fleet: dict[FleetKey, Sums]) -> dict[FleetKey, Sums]:
    """The same, and what it comes to over all contracts: a year of the whole fleet is then one row an hour."""
    found = dict(fleet)
    for (hour, _contract, simulated), sums in fleet.items():
        merge(found, {(hour, EVERYONE, simulated): sums})
    return found
