"""Stored numbers and texts as answers show them: units, times, names of reasons, interned facts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from gpu_monitor.core.catalogue import Kind, Metric, throttle_names
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.schema import scale_of

HOUR = 3600


def stamp(epoch: float | None) -> str | None:
    """A time in ISO 8601, UTC with offset; None where it is unknown."""
    return None if epoch is None else format_time(epoch)


def raw_json(text: str | None) -> Any:
    """Stored JSON, to be answered as it is, for it may hold numbers of any length; None stays None."""
    return None if text is None else msgspec.Raw(text.encode())


def hour_stamp(hour: int | None) -> str | None:
    """The start of an hour, likewise."""
    return None if hour is None else format_time(hour * HOUR)


def part(whole: int | None, scale: float) -> int | float | None:
    """A stored integer in its unit: whole numbers stay integers, others are the nearest float."""
    if whole is None or scale == 1:
        return whole
    if scale < 1:
        return whole * round(1 / scale)
    found, rest = divmod(whole, int(scale))
    return whole / scale if rest else found


def shower(metric: Metric) -> Callable[[int | None], Any]:
    """What makes the shown value of a metric from its stored integer: a number, a list of names, or None."""
    if metric.kind is Kind.FLAGS:
        return lambda whole: None if whole is None else _names(whole)
    scale = scale_of(metric)
    if scale == 1:
        return lambda whole: whole
    if scale < 1:
        return lambda whole: part(whole, scale)
    unit = int(scale)
    # As `part`, in one call: the fleet now makes ten thousand of them.
    return lambda whole: None if whole is None else whole / unit if whole % unit else whole // unit


@lru_cache(1024)
def _names(mask: int) -> list[str]:
    """The names in a mask; a fleet has few different ones, and nobody changes the list."""
    return throttle_names(mask)


class Identity(msgspec.Struct, frozen=True):
    """What an interned identity says of a GPU; unknown is None."""

    pci_bus_id: str | None = None
    memory_total: int | None = None
    index: int | None = None
    serial: str | None = None
    minor_number: int | None = None
    parent_uid: str | None = None
    mig_instance: str | None = None
    memory_kind: str | None = None


UNKNOWN = Identity()
_identity = msgspec.json.Decoder(Identity, strict=False).decode


def identity_of(body: str | None) -> Identity:
    """The identity in an interned fact."""
    return UNKNOWN if body is None else _identity(body)


class Condition(msgspec.Struct, frozen=True):
    """An interned state: what seldom changes, and why metrics are null."""

    states: dict[str, Any] = {}
    reasons: dict[str, str] = {}


_condition = msgspec.json.Decoder(Condition).decode


def condition_of(body: str | None) -> Condition:
    """The states and reasons in an interned fact."""
    return Condition() if body is None else _condition(body)
