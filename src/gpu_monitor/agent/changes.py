"""Turns what changes from reading to reading into events: throttling, memory errors, another driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gpu_monitor.core.catalogue import HARMLESS_REASONS, throttle_names
from gpu_monitor.core.model import DeviceReading, Event, Status
from gpu_monitor.core.times import format_duration

QUIET_SECONDS = 120.0
"""Throttling has ended when no reading saw it for this long: at a power cap it comes and goes with every batch."""

_COUNTS = {
    "ecc_corrected": ("ecc_changed", "info", "corrected ECC errors"),
    "ecc_uncorrected": ("ecc_changed", "error", "uncorrected ECC errors"),
    "remapped_rows": ("remap_changed", "warning", "remapped memory rows"),
    "retired_pages": ("remap_changed", "warning", "retired memory pages"),
}
_ACTION = "recovery_action"
_DRIVER = "driver_version"
_WATCHED = (*_COUNTS, _ACTION)
_NOTHING = (None,) * len(_WATCHED)
"""What a reading of the cheap values alone has of them."""


@dataclass
class _Seen:
    """What is known of one device. `throttled`: since when; `last`: the last reading that saw it."""

    states: dict[str, object] = field(default_factory=dict)
    watched: tuple[object, ...] = _NOTHING
    throttled: float | None = None
    last: float = 0.0
    mask: int = 0


class ChangeWatch:
    """Watches the readings of all devices. `known`: states that earlier runs stored, by uid.

    A counter that falls back (the driver was loaded again) is taken as the new start and is no event.
    """

    def __init__(self, known: Mapping[str, Mapping[str, object]]) -> None:
        self._seen = {uid: _Seen(dict(states)) for uid, states in known.items()}
        self._driver = next((states[_DRIVER] for states in known.values() if _DRIVER in states), None)

    def events(self, devices: Iterable[DeviceReading], at: float) -> list[Event]:
        """Events for what changed up to the readings of the moment `at`."""
        found: list[Event] = []
        for device in devices:
            if device.status is not Status.OK:
                continue
            uid, read = device.identity.uid, device.values.get
            seen = self._seen.get(uid)
            if seen is None:
                seen = self._seen[uid] = _Seen()
            mask = read("throttle_reasons")
            if isinstance(mask, int) and (mask & ~HARMLESS_REASONS or seen.throttled is not None):
                found += _throttling(seen, mask & ~HARMLESS_REASONS, uid, at)
            watched = tuple(map(read, _WATCHED))
            if watched not in (seen.watched, _NOTHING):
                found += _changed(seen, device, at)
                seen.watched = watched
            if self._driver is not None:
                found += self._other_driver(device, at)
        return found

    def _other_driver(self, device: DeviceReading, at: float) -> Iterator[Event]:
        """A driver that was changed while no agent ran; the source itself tells of one that changes under it."""
        before, self._driver = self._driver, None
        value = device.values.get(_DRIVER)
        if value is None:
            self._driver = before
        elif before is not None and value != before:
            text = f"the driver was changed from {before} to {value} while no agent ran"
            yield Event(
                at, "driver_changed", text, "info", None, {"before": str(before), "after": str(value)}
            )


def _throttling(seen: _Seen, mask: int, uid: str, at: float) -> Iterator[Event]:
    if mask:
        if seen.throttled is None:
            seen.throttled, seen.mask = at, 0
            names = ", ".join(throttle_names(mask))
            yield Event(at, "throttle_started", f"throttled: {names}", "warning", uid, {"reasons": names})
        seen.last = at
        seen.mask |= mask
    elif seen.throttled is not None and at - seen.last >= QUIET_SECONDS:
        seconds, names = round(seen.last - seen.throttled, 1), ", ".join(throttle_names(seen.mask))
        text = f"throttling ended after {format_duration(seconds)} ({names})"
        yield Event(seen.last, "throttle_ended", text, "info", uid, {"reasons": names, "seconds": seconds})
        seen.throttled = None


def _changed(seen: _Seen, device: DeviceReading, at: float) -> Iterator[Event]:
    uid, states = device.identity.uid, seen.states
    for name, (kind, severity, words) in _COUNTS.items():
        value, before = device.values.get(name), states.get(name)
        if not isinstance(value, (int, float)):
            continue
        states[name] = value
        if isinstance(before, (int, float)) and value > before:
            text = f"{value - before:g} new {words} ({value:g} in all)"
            yield Event(at, kind, text, severity, uid, {"metric": name, "before": before, "after": value})
    action, before = device.values.get(_ACTION), states.get(_ACTION)
    if isinstance(action, str):
        states[_ACTION] = action
        if action != before and (before is not None or action != "none"):
            text = f"the driver asks for: {action}"
            severity = "info" if action == "none" else "error"
            yield Event(at, _ACTION, text, severity, uid, {"after": action})


def known_states(rows: Iterable[tuple[str, str, object]]) -> dict[str, dict[str, object]]:
    """(uid, state, value), oldest first, as what `ChangeWatch` begins with."""
    known: dict[str, dict[str, object]] = {}
    for uid, name, value in rows:
        known.setdefault(uid, {})[name] = value
    return known
