"""What the child sent, as the records of the core: bounds checked, every missing metric with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_monitor.core.catalogue import METRICS, SAMPLED, STATES, Kind, Reason, Tier
from gpu_monitor.core.model import DeviceReading, GpuProcess, Identity, Span, Spread, Status

# Counters are handed over raw: the catalogue bounds their growth, so only what is below 0 is impossible.
_LIMITS: dict[str, tuple[float, float]] = {
    metric.name: (metric.low, metric.high if metric.kind in (Kind.GAUGE, Kind.STATE) else float("inf"))
    for metric in METRICS
}
_FAST_NAMES = frozenset(metric.name for metric in SAMPLED if metric.tier is Tier.FAST)
_ALL_NAMES = frozenset(metric.name for metric in SAMPLED + STATES)
_WHY: dict[Status, str] = {
    Status.LOST: Reason.LOST,
    Status.HUNG: Reason.HUNG,
    Status.ASLEEP: Reason.ASLEEP,
}
_ABSENT: dict[Status, Mapping[str, str]] = {
    status: dict.fromkeys(sorted(_ALL_NAMES), reason) for status, reason in _WHY.items()
}
_THROTTLE = "throttle_time"
_MOST_KEPT = 256
"""Sets of missing metrics: a card has a handful, and more come only of a driver that fails at random."""


def identity_of(sent: tuple[Any, ...]) -> Identity:
    """The identity in the child's order of fields."""
    uid, name, address, total, index, serial, minor, parent, instance, kind = sent
    return Identity(uid, "nvml", name, address, total, index, serial, minor, parent, instance, kind)


def absent(identity: Identity, status: Status, cause: str, since: float) -> DeviceReading:
    """The reading of a device that does not answer."""
    return DeviceReading(identity, status, {}, _ABSENT[status], None, cause, since)


class ThrottleTimes:
    """One counter of throttled seconds for each device, out of the driver's counters by reason.

    Reasons that hold at once are added by the driver's counters; a second of time counts once here, so
    the growth is never more than the time that passed. Goes on across drivers and children.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[float, ...], float, float]] = {}

    def add(self, uid: str, parts: tuple[float, ...], moment: float) -> float:
        """Seconds throttled since the first call for this device."""
        before, total, at = self._seen.get(uid, (parts, 0.0, moment))
        if parts == before:
            self._seen[uid] = (parts, total, moment)
            return total
        if len(before) != len(parts):
            before = parts
        # A counter that went back began anew: all of it is growth.
        grown = sum(new - old if new >= old else new for new, old in zip(parts, before, strict=True))
        total += min(grown, max(0.0, moment - at))
        self._seen[uid] = (parts, total, moment)
        return total


class Shaper:
    """Turns one device's answer into a reading."""

    def __init__(self) -> None:
        self._throttle = ThrottleTimes()
        self._reasons: dict[tuple[object, ...], Mapping[str, str]] = {}

    def reading(
        self,
        identity: Identity,
        answer: tuple[dict[str, Any], dict[str, str], Iterable[tuple[Any, ...]] | None],
        span: Span,
        moment: float,
    ) -> DeviceReading:
        """`answer`: values, reasons and processes as the child sent them (they are taken over)."""
        values, reasons, processes = answer
        parts = values.get(_THROTTLE)
        if parts is not None:
            values[_THROTTLE] = self._throttle.add(identity.uid, parts, moment)
        impossible = _check(values)
        for name in impossible:
            del values[name]
            reasons[name] = Reason.INVALID
        found = None if processes is None else tuple(GpuProcess(*process) for process in processes)
        return DeviceReading(
            identity, Status.OK, values, self._completed(values, reasons, span is Span.FAST), found
        )

    def _completed(
        self, values: Mapping[str, Any], reasons: dict[str, str], is_fast: bool
    ) -> Mapping[str, str]:
        """`reasons` with one for every metric that is missing: nearly always those of the reading before."""
        key = (is_fast, *values, *reasons.items())
        known = self._reasons.get(key)
        if known is None:
            if is_fast:
                reasons[_THROTTLE] = Reason.PENDING  # a counter: once an interval is enough
            for name in _FAST_NAMES if is_fast else _ALL_NAMES:
                if name not in values and name not in reasons:
                    reasons[name] = Reason.UNSUPPORTED
            if len(self._reasons) >= _MOST_KEPT:
                self._reasons.clear()
            known = self._reasons[key] = reasons
        return known


def _check(values: dict[str, Any]) -> list[str]:
    """Make spreads of what was drained; the names of values that no device can have."""
    impossible = []
    for name, value in values.items():
        kind = type(value)
        if kind is str:
            continue
        low, high = _LIMITS[name]
        if kind is tuple:
            if low <= value[1] and value[2] <= high:
                values[name] = Spread._make(value)
            else:
                impossible.append(name)
        elif not low <= value <= high:
            impossible.append(name)
    return impossible
