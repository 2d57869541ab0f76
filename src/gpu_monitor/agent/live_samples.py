"""Live samples from what the beat collected: the same names, units and decimals as everywhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_monitor.agent.collect import Collection
from gpu_monitor.core.catalogue import Kind, Metric, round_value, throttle_names
from gpu_monitor.core.model import Event, GpuProcess, Identity, Round, Spread, Status
from gpu_monitor.core.times import format_time
from gpu_monitor.wire.live import LIVE_METRICS, MESSAGE_PROCESSES, GpuPart, LiveProcess, Sample, SampleBase
from gpu_monitor.wire.telemetry import EventPart

_MADE_UP = ("simulated", "replay")


def samples_of_interval(collection: Collection) -> list[SampleBase]:
    """One sample per GPU with data, which begins with the interval."""
    start = format_time(collection.start)
    return [
        _sample(row.identity, start, row.seconds, row.values) for row in collection.gpus if row.seconds > 0
    ]


def samples_of_reading(found: Round, at: float, seconds: float) -> list[SampleBase]:
    """One sample per GPU that answered: what was read at `at` stands for the `seconds` before it."""
    start = format_time(round(at - seconds, 3))
    return [
        _sample(
            device.identity, start, seconds, {name: _plain(value) for name, value in device.values.items()}
        )
        for device in found.devices
        if device.status is Status.OK
    ]


def _plain(value: Any) -> Any:
    return value.mean if isinstance(value, Spread) else value


def _sample(identity: Identity, start: str, seconds: float, values: Mapping[str, Any]) -> SampleBase:
    shown: dict[str, Any] = {}
    for metric in LIVE_METRICS:
        value = values.get(metric.name)
        if isinstance(value, (int, float)) and _is_possible(metric, value):
            shown[metric.name] = (
                throttle_names(int(value)) if metric.kind is Kind.FLAGS else round_value(metric, value)
            )
    return Sample(uid=identity.uid, source=identity.source, time=start, seconds=round(seconds, 1), **shown)


def _is_possible(metric: Metric, value: float) -> bool:
    return metric.kind is Kind.FLAGS or metric.low <= value <= metric.high


def is_made_up(gpus: Sequence[GpuPart]) -> bool:
    """Whether any of the GPUs is simulated or replayed, which a node must say of itself."""
    return any(gpu.source in _MADE_UP for gpu in gpus)


class Present:
    """The processes on the GPUs as they were read last, each with when it was seen first. One thread."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Identity, float, tuple[GpuProcess, ...]]] = {}
        self._first: dict[tuple[str, int, int | None], float] = {}

    def take(self, found: Round, at: float) -> None:
        """Take a round in which process lists may have been read at `at` (UTC epoch s)."""
        for device in found.devices:
            if device.processes is None:
                continue
            uid = device.identity.uid
            keys = {(uid, one.pid, one.start_ticks) for one in device.processes}
            for key in [key for key in self._first if key[0] == uid and key not in keys]:
                del self._first[key]
            for key in keys:
                self._first.setdefault(key, at)
            self._held[uid] = (device.identity, at, device.processes)

    def parts(self) -> list[LiveProcess]:
        """All of them, those that have no pid left out."""
        return [
            LiveProcess(
                uid=identity.uid, source=identity.source, pid=one.pid,
                first_seen=format_time(self._first[identity.uid, one.pid, one.start_ticks]), last_seen=format_time(at),
                start_ticks=one.start_ticks, boot_id=one.boot_id, ns_pid=one.ns_pid, experiment_id=one.experiment_id,
            )
            for identity, at, processes in self._held.values()
            for one in processes
            if one.pid > 0
        ][:MESSAGE_PROCESSES]  # fmt: skip


def event_part(event: Event) -> EventPart:
    """An event as reports tell it."""
    return EventPart(
        time=format_time(event.time), uid=event.uid, kind=event.kind, severity=event.severity,
        message=event.message, detail=dict(event.detail) if event.detail else None,
    )  # fmt: skip


class Statuses:
    """The GPUs that a node has, and whether they answer; one that has vanished is still told of, as lost."""

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}
        self._told: list[tuple[Identity, str]] = []
        self._parts: list[GpuPart] = []

    def parts(self, newest: Round) -> list[GpuPart]:
        """Every GPU of this run as of the newest round; made anew only where something changed."""
        causes: dict[str, str] = {}
        for device in newest.devices:
            uid = device.identity.uid
            self._known[uid] = device.identity
            is_ok = device.status is Status.OK
            causes[uid] = "ok" if is_ok else device.cause or device.status.value
        gone = newest.paused or "GPU disappeared"
        told = [(identity, causes.get(uid, gone)) for uid, identity in self._known.items()]
        if told != self._told:
            self._told, self._parts = told, [_part(identity, status) for identity, status in told]
        return self._parts


def _part(identity: Identity, status: str) -> GpuPart:
    return GpuPart(
        uid=identity.uid,
        source=identity.source,
        status=status,
        pci_bus_id=identity.pci_bus_id,
        name=identity.name,
        memory_total=identity.memory_total,
        index=identity.index,
        serial=identity.serial,
        minor_number=identity.minor_number,
        parent_uid=identity.parent_uid,
        mig_instance=identity.mig_instance,
        memory_kind=identity.memory_kind,
    )
