# SPDX-License-Identifier: MIT
"""The records that pass between sources, collector, store and ledger. All frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple


class Span(IntEnum):
    """How much one round of readings takes."""

    FAST = 0
    """The cheap values only."""
    FULL = 1
    """Everything that is read once per interval."""
    WIDE = 2
    """FULL plus process lists and a fresh look at which devices exist."""


class Status(Enum):
    """Whether a device answered."""

    OK = "ok"
    LOST = "lost"
    HUNG = "hung"
    ASLEEP = "asleep"


class Spread(NamedTuple):
    """Mean, min and max of the driver's own samples since the last round; `count` of them.

    A tuple, because a frozen dataclass takes five times as long to make: a round of eight GPUs makes 24.
    """

    mean: float
    low: float
    high: float
    count: int = 1  # type: ignore[assignment]  # the method of tuples of that name is not wanted here


Value = float | int | str | Spread
"""What a reading holds for one metric: a number, a text (states), or a spread."""


@dataclass(frozen=True)
class Identity:
    """Which device: its `uid` never changes; the rest may, and each change is kept.

    `memory_total` in bytes, None where it cannot be known. `parent_uid` and `mig_instance` only for
    MIG instances. `memory_kind` is `unified` where CPU and GPU share one memory.
    """

    uid: str
    source: str
    name: str | None = None
    pci_bus_id: str | None = None
    memory_total: int | None = None
    index: int | None = None
    serial: str | None = None
    minor_number: int | None = None
    parent_uid: str | None = None
    mig_instance: str | None = None
    memory_kind: str | None = None


@dataclass(frozen=True)
class GpuProcess:
    """One process on one GPU. `memory` in bytes or None; `kind` is compute or graphics.

    The triple (boot_id, start_ticks, ns_pid) joins it to an experiment (design section 8).
    `start_ticks` in clock ticks since boot, from /proc/<pid>/stat.
    """

    pid: int
    kind: str = "compute"
    memory: int | None = None
    start_ticks: int | None = None
    boot_id: str | None = None
    ns_pid: int | None = None
    user: str | None = None
    command: str | None = None
    container: str | None = None
    job: str | None = None
    experiment_id: str | None = None


@dataclass(frozen=True)
class DeviceReading:
    """What one device answered in one round.

    `values`: metric name to value, gauges in catalogue units, TOTAL and RATE metrics as the raw
    counter in the metric's base unit (J, bytes, s), FLAGS as a mask, STATE as number or text.
    A metric that is missing has its reason in `reasons`. `processes` is None where they were not
    asked for. `cause` says in words why the status is not OK, for example `hung in nvmlX`.
    """

    identity: Identity
    status: Status = Status.OK
    values: Mapping[str, Value] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    processes: tuple[GpuProcess, ...] | None = None
    cause: str | None = None
    since: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened at a time. `detail` is JSON-able; `uid` None means the whole node."""

    time: float
    kind: str
    message: str
    severity: str = "info"
    uid: str | None = None
    detail: Mapping[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """All devices of a source in one round.

    `paused` names the cause where the source as a whole gives nothing (`driver hung`, `no driver`),
    None when it works. Devices that have vanished are simply not in `devices`.
    """

    devices: tuple[DeviceReading, ...]
    events: tuple[Event, ...] = ()
    paused: str | None = None


@dataclass(frozen=True)
class HostReading:
    """The machine around the GPUs: HOST_METRICS name to value; RATE metrics as raw counters (bytes).

    What the system does not give is absent.
    """

    values: Mapping[str, float] = field(default_factory=dict)
