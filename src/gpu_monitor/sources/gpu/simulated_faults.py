"""Faults that a simulated GPU is told to have: `gpu=1 at=+10m for=5m kind=lost`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from itertools import pairwise

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.model import Event
from gpu_monitor.core.times import parse_duration, parse_moment
from gpu_monitor.core.xid import xid_event
from gpu_monitor.sources.gpu.simulated_physics import Counters

_EXAMPLE = "Write for example 'gpu=1 at=+10m for=5m kind=lost' or 'gpu=0 at=+1h kind=xid xid=31'."


class FaultKind(Enum):
    """What goes wrong."""

    LOST = "lost"
    """The GPU falls off the bus (Xid 79) and comes back reset."""
    HUNG = "hung"
    """The driver does not answer for this GPU."""
    XID = "xid"
    """One Xid event."""
    THROTTLE = "throttle"
    """Hardware slowdown: half the power and half the clock."""
    COUNTER_RESET = "counter_reset"
    """All counters begin at zero."""
    ASLEEP = "asleep"
    """The GPU is suspended; its counters stand still."""
    DRIVER = "driver"
    """The driver hangs for all GPUs."""


_MOMENTARY = (FaultKind.XID, FaultKind.COUNTER_RESET)
_NOT_ANSWERING = (FaultKind.LOST, FaultKind.HUNG, FaultKind.ASLEEP)
_CAUSES = {
    FaultKind.LOST: "GPU lost",
    FaultKind.HUNG: "hung in a simulated call",
    FaultKind.ASLEEP: "asleep",
}


@dataclass(frozen=True)
class Fault:
    """One fault of GPU `gpu` (None: of all) from `at` until `until`, UTC epoch; `until` may be infinite."""

    kind: FaultKind
    at: float
    until: float = math.inf
    gpu: int | None = None
    xid: int | None = None

    @classmethod
    def parse(cls, text: str, start: float) -> Fault:
        """The fault that `text` describes: `kind`, `at`, and where they apply `gpu`, `for`, `xid`.

        `at` is relative to `start` (`+10m`) or a time as elsewhere on the command line. Without `for`
        a fault lasts for ever. UsageError says which part is wrong.
        """
        parts = _split(text)
        kind = _kind(parts, text)
        if "at" not in parts:
            raise UsageError(f"the fault {text!r} does not say when: at= is missing", _EXAMPLE)
        at = parse_moment(parts["at"], start).epoch
        until = math.inf
        if "for" in parts:
            if kind in _MOMENTARY:
                raise UsageError(
                    f"the fault {text!r}: kind={kind.value} happens at once and takes no for=", _EXAMPLE
                )
            until = at + parse_duration(parts["for"])
            if until <= at:
                raise UsageError(f"the fault {text!r} lasts no time: for={parts['for']}", _EXAMPLE)
        return cls(kind, at, until, _gpu(parts, kind, text), _xid(parts, kind, text))

    def is_on(self, now: float) -> bool:
        """Whether it lasts at `now`."""
        return self.at <= now < self.until

    @property
    def cause(self) -> str:
        """Why the GPU gives nothing, in the words of a gap."""
        return _CAUSES[self.kind]

    def event(self, uid: str, pci_bus_id: str | None) -> Event | None:
        """The Xid that the driver would log when it begins; None where it logs none."""
        number = self.xid if self.kind is FaultKind.XID else 79 if self.kind is FaultKind.LOST else None
        if number is None:
            return None
        return xid_event(self.at, number, uid=uid, pci_bus_id=pci_bus_id, via="simulated")


def _split(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        name = name.lower()
        if not equals or not value:
            raise UsageError(f"the fault {text!r}: {word!r} is not NAME=VALUE", _EXAMPLE)
        if name not in ("gpu", "at", "for", "kind", "xid"):
            raise UsageError(f"the fault {text!r}: unknown name {name!r}", "Names: gpu, at, for, kind, xid.")
        if name in parts:
            raise UsageError(f"the fault {text!r} names {name} twice", _EXAMPLE)
        parts[name] = value
    return parts


def _kind(parts: dict[str, str], text: str) -> FaultKind:
    kinds = [kind.value for kind in FaultKind]
    wanted = parts.get("kind")
    if wanted is None:
        raise UsageError(
            f"the fault {text!r} does not say what: kind= is missing", f"Kinds: {', '.join(kinds)}."
        )
    if wanted not in kinds:
        near = get_close_matches(wanted, kinds, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"the fault {text!r}: unknown kind {wanted!r}", f"{meant}Kinds: {', '.join(kinds)}.")
    return FaultKind(wanted)


def _gpu(parts: dict[str, str], kind: FaultKind, text: str) -> int | None:
    wanted = parts.get("gpu")
    if kind is FaultKind.DRIVER:
        if wanted not in (None, "all"):
            raise UsageError(f"the fault {text!r}: kind=driver is about all GPUs", "Leave gpu= out.")
        return None
    if wanted is None:
        raise UsageError(
            f"the fault {text!r} does not say which GPU: gpu= is missing", "Write gpu=0 or gpu=all."
        )
    if wanted == "all":
        return None
    if not wanted.isdigit():
        raise UsageError(f"the fault {text!r}: gpu={wanted} is no number", "Write gpu=0 or gpu=all.")
    return int(wanted)


def _xid(parts: dict[str, str], kind: FaultKind, text: str) -> int | None:
    wanted = parts.get("xid")
    if kind is not FaultKind.XID:
        if wanted is not None:
            raise UsageError(f"the fault {text!r}: xid= belongs to kind=xid", _EXAMPLE)
        return None
    if wanted is None or not wanted.isdigit():
        raise UsageError(f"the fault {text!r} needs the number of the Xid: xid=31", _EXAMPLE)
    return int(wanted)


def check_faults(faults: Sequence[Fault], count: int) -> None:
    """UsageError where a fault is about a GPU that is not simulated."""
    for fault in faults:
        if fault.gpu is not None and fault.gpu >= count:
            raise UsageError(
                f"a fault is about GPU {fault.gpu}, but {count} are simulated",
                f"GPUs count from 0 to {count - 1}.",
            )


# How a kind changes the growth of counters: factor of energy, and of everything else.
_ENERGY_FACTOR = {FaultKind.THROTTLE: 0.5, FaultKind.ASLEEP: 0.0, FaultKind.LOST: 0.0}


@dataclass(frozen=True)
class _Stretch:
    """A time in which counters grow otherwise: energy by `energy`, and throttled all of it or as usual."""

    start: float
    end: float
    energy: float
    is_throttled: bool


class GpuFaults:
    """The faults of one GPU, and what they do to its counters."""

    def __init__(self, faults: Sequence[Fault], gpu: int) -> None:
        mine = [fault for fault in faults if fault.gpu in (None, gpu) and fault.kind is not FaultKind.DRIVER]
        self.all = tuple(sorted(mine, key=lambda fault: fault.at))
        self._stretches = _stretches(self.all)
        resets = [fault.at for fault in self.all if fault.kind is FaultKind.COUNTER_RESET]
        resets += [fault.until for fault in self.all if fault.kind is FaultKind.LOST]
        self._resets = sorted(resets)
        self._kept: dict[float, Counters] = {}

    def silence(self, now: float) -> Fault | None:
        """The fault that keeps the GPU from answering at `now`; lost goes before hung before asleep."""
        found = [fault for fault in self.all if fault.kind in _NOT_ANSWERING and fault.is_on(now)]
        return min(found, key=lambda fault: _NOT_ANSWERING.index(fault.kind), default=None)

    def is_throttled(self, now: float) -> bool:
        """Whether a scripted slowdown lasts at `now`."""
        return any(fault.kind is FaultKind.THROTTLE and fault.is_on(now) for fault in self.all)

    def counters(self, now: float, natural: Callable[[float], Counters]) -> Counters:
        """The counters at `now`, from what they would be without faults (a pure function of time)."""
        reached = self._since_origin(now, natural(now), natural)
        past = [moment for moment in self._resets if moment <= now]
        if not past:
            return reached
        begun = self._since_origin(past[-1], self._at(past[-1], natural), natural)
        return reached.plus(begun, -1.0)

    def _at(self, moment: float, natural: Callable[[float], Counters]) -> Counters:
        """The natural counters at the beginning or end of a fault, looked up once."""
        known = self._kept.get(moment)
        if known is None:
            known = self._kept[moment] = natural(moment)
        return known

    def _since_origin(self, now: float, total: Counters, natural: Callable[[float], Counters]) -> Counters:
        """`total`, the natural counters at `now`, with every stretch before it as the faults make it."""
        at_now = total
        for stretch in self._stretches:
            if stretch.start >= now:
                break
            end = min(now, stretch.end)
            at_end = at_now if end == now else self._at(end, natural)
            grown = at_end.plus(self._at(stretch.start, natural), -1.0)
            keeps = 1.0 if stretch.energy > 0 else 0.0
            throttled = end - stretch.start if stretch.is_throttled else grown.throttled * keeps
            wanted = Counters(
                grown.energy * stretch.energy, throttled, grown.pcie_rx * keeps, grown.pcie_tx * keeps,
                grown.nvlink * keeps,
            )  # fmt: skip
            total = total.plus(grown, -1.0).plus(wanted)
        return total


def _stretches(faults: Sequence[Fault]) -> tuple[_Stretch, ...]:
    """Faults that change counters, cut at each other's ends so that no two stretches overlap."""
    changing = [fault for fault in faults if fault.kind in _ENERGY_FACTOR]
    cuts = sorted({moment for fault in changing for moment in (fault.at, fault.until)})
    found = []
    for start, end in pairwise(cuts):
        active = [fault for fault in changing if fault.at <= start and fault.until >= end]
        if active:
            factor = min(_ENERGY_FACTOR[fault.kind] for fault in active)
            found.append(_Stretch(start, end, factor, factor == _ENERGY_FACTOR[FaultKind.THROTTLE]))
    return tuple(found)


def events_between(
    faults: Sequence[Fault], after: float, until: float, gpus: Sequence[tuple[str, str | None]]
) -> tuple[Event, ...]:
    """The Xids that the faults raise in (after, until], oldest first; `gpus` are uid and PCI address by number."""
    events: list[Event] = []
    for fault in faults:
        if not after < fault.at <= until:
            continue
        numbers = range(len(gpus)) if fault.gpu is None else (fault.gpu,)
        found = (replace(fault, gpu=number).event(*gpus[number]) for number in numbers)
        events += [event for event in found if event is not None]
    return tuple(sorted(events, key=lambda event: event.time))
