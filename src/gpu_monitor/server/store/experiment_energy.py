"""What a GPU did during a stay: energy, mean utilisation, and how much of the time is known.

Of whole periods the report's hardware counter counts. At the edges, and where no report is there yet, power times
seconds of the live minutes is taken, and said to be estimated; where there are too few of them the period is prorated.
What a GPU used beside the run is in it: a board has one counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Double, case, cast, func, select

from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.server.store.experiment_gpus import Place, Stay
from gpu_monitor.server.store.schema import aggregates, receipts, samples, scale_of

_HOUR = 3600.0
_ENOUGH = 0.9
"""So much of a piece must live minutes tell of, or its period is prorated."""
_LONGEST_HOURS = 24
JOULES = 3.6e6
"""In a kWh."""
_ENERGY, _POWER = scale_of(BY_NAME["energy"]), scale_of(BY_NAME["power_usage"])
_USED = scale_of(BY_NAME["gpu_utilization"])


@dataclass
class Account:
    """Sums over stays. Seconds: of the stays, recorded at all, with known energy, with known utilisation."""

    seconds: float = 0.0
    recorded: float = 0.0
    joules: float = 0.0
    energy_seconds: float = 0.0
    used: float = 0.0
    used_seconds: float = 0.0
    is_estimated: bool = False
    is_prorated: bool = False

    def add(self, other: Account) -> None:
        """Add another's."""
        self.seconds += other.seconds
        self.recorded += other.recorded
        self.joules += other.joules
        self.energy_seconds += other.energy_seconds
        self.used += other.used
        self.used_seconds += other.used_seconds
        self.is_estimated |= other.is_estimated
        self.is_prorated |= other.is_prorated

    @property
    def energy_kwh(self) -> float | None:
        """Energy of the time for which it is known; None where there is none."""
        return self.joules / JOULES if self.energy_seconds > 0 else None

    @property
    def utilization(self) -> float | None:
        """The mean over the time for which it is known, percent."""
        return self.used / self.used_seconds if self.used_seconds > 0 else None

    @property
    def coverage(self) -> float | None:
        """The part of the stays of which anything was recorded; None for stays without length."""
        return min(1.0, self.recorded / self.seconds) if self.seconds > 0 else None

    @property
    def reason(self) -> str | None:
        """Why the energy is unknown, wholly or in part; None where it is known."""
        if self.seconds <= 0:
            return "it was seen there at one moment only: for how long it was there is not known"
        if self.energy_seconds <= 0:
            return "nothing was recorded in that time" if self.recorded <= 0 else "the GPU told no power"
        missing = 1.0 - self.energy_seconds / self.seconds
        return f"unknown for {missing:.0%} of the time" if missing > 0.01 else None


def account(connection: Connection, place: Place, stays: Sequence[Stay]) -> Account:
    """The account of one GPU's stays."""
    found = Account()
    for stay in stays:
        found.add(_account(connection, place, stay))
    return found


@dataclass(frozen=True)
class _Period:
    start: float
    end: float
    seconds: float
    joules: float | None
    energy_seconds: float
    watts: float | None
    used: float | None


def _account(connection: Connection, place: Place, stay: Stay) -> Account:
    found = Account(seconds=stay.until - stay.since)
    at = stay.since
    for period in _periods(connection, place, stay):
        if period.start > at:
            _take_minutes(connection, place, at, min(period.start, stay.until), found)
        begin, end = max(at, period.start), min(stay.until, period.end)
        if end <= begin:
            continue
        is_whole = begin <= period.start and end >= period.end
        if is_whole or not _take_minutes(connection, place, begin, end, found, least=_ENOUGH):
            _take_period(period, (end - begin) / (period.end - period.start), found)
        at = end
    if at < stay.until:
        _take_minutes(connection, place, at, stay.until, found)
    return found


def _take_period(period: _Period, share: float, found: Account) -> None:
    """A share of a period, as if what it tells were the same all over it."""
    found.recorded += period.seconds * share
    rest = period.seconds
    if period.joules is not None:
        known = period.energy_seconds or period.seconds
        found.joules += period.joules * share
        found.energy_seconds += known * share
        rest = max(0.0, period.seconds - known)
    if rest > 0 and period.watts is not None:
        found.joules += period.watts * rest * share
        found.energy_seconds += rest * share
        found.is_estimated = True
    if period.used is not None:
        found.used += period.used * period.seconds * share
        found.used_seconds += period.seconds * share
    found.is_prorated |= share < 1


def _take_minutes(
    connection: Connection, place: Place, begin: float, end: float, found: Account, least: float = 0.0
) -> bool:
    """The live minutes that begin in a piece of time; False, and nothing taken, where they tell of less than `least`."""
    row = samples.c
    seconds = cast(row.seconds, Double)
    asked = select(
        func.sum(seconds),
        func.sum(cast(row.power_usage, Double) * seconds),
        func.sum(case((row.power_usage.is_not(None), seconds))),
        func.sum(cast(row.gpu_utilization, Double) * seconds),
        func.sum(case((row.gpu_utilization.is_not(None), seconds))),
    ).where(row.agent == place[0], row.gpu == place[1], row.time >= int(begin), row.time < end)
    told, power, power_seconds, used, used_seconds = (
        (value or 0.0) / 10 for value in connection.execute(asked).one()
    )
    length = end - begin
    if told < least * length or told <= 0:
        return False
    # The first and the last minute reach over the edges.
    part = min(1.0, length / told)
    found.recorded += told * part
    found.joules += power / _POWER * part
    found.energy_seconds += power_seconds * part
    found.used += used / _USED * part
    found.used_seconds += used_seconds * part
    found.is_estimated |= power_seconds > 0
    return True


def _periods(connection: Connection, place: Place, stay: Stay) -> list[_Period]:
    """The reports' periods that overlap a stay, in order."""
    row = aggregates.c
    first, last = int(stay.since // _HOUR) - _LONGEST_HOURS, int(stay.until // _HOUR)
    asked = (
        select(
            row.hour, row.seconds, row.energy, row.energy_seconds, row.power_usage, row.gpu_utilization,
            receipts.c.period_seconds,
        )
        .outerjoin(receipts, (receipts.c.agent == row.agent) & (receipts.c.hour == row.hour))
        .where(row.agent == place[0], row.gpu == place[1], row.hour.between(first, last))
        .order_by(row.hour)
    )  # fmt: skip
    found = []
    for hour, seconds, energy, energy_seconds, power, used, length in connection.execute(asked):
        start = hour * _HOUR
        end = start + (length or _HOUR)
        if end > stay.since and start < stay.until:
            found.append(
                _Period(
                    start, end, (seconds or 0) / 10, None if energy is None else energy / _ENERGY,
                    (energy_seconds or 0) / 10, None if power is None else power / _POWER,
                    None if used is None else used / _USED,
                )
            )  # fmt: skip
    return found
