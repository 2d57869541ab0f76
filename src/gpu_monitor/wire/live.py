"""Live minutes: what an agent tells of the present, best effort, beside its reports (docs/report.md).

`samples` are stored intervals; `readings` were taken in between because somebody looks, and are shown and
forgotten. Both are idempotent by node, GPU, source and time.
"""

from __future__ import annotations

from typing import cast

import msgspec

from gpu_monitor.core.catalogue import DEFAULT_FIELDS, SAMPLED, Kind, Metric
from gpu_monitor.wire.telemetry import EventPart, NodePart

SCHEMA = 1
MESSAGE_SAMPLES = 4096
"""Samples and readings in one message, together. One GPU per node at most 4,096, so one interval always fits."""
MESSAGE_BYTES = 2 << 20
MESSAGE_PROCESSES, MESSAGE_EVENTS = 4096, 256

LIVE_METRICS: tuple[Metric, ...] = tuple(m for m in SAMPLED if m.name in DEFAULT_FIELDS) + tuple(
    m for m in SAMPLED if m.name in ("memory_temperature", "throttle_reasons")
)
"""What a live minute carries of each GPU."""


class GpuPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which GPU a sample is of, so that a node shows before its first report.

    `memory_total` in bytes. `status`: ok, or the cause of the gap that goes on (`gpu lost`, `driver hung`).
    """

    uid: str
    source: str
    status: str = "ok"
    pci_bus_id: str | None = None
    name: str | None = None
    memory_total: int | None = None
    index: int | None = None
    serial: str | None = None
    minor_number: int | None = None
    parent_uid: str | None = None
    mig_instance: str | None = None
    memory_kind: str | None = None


class SampleBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU over one stretch: `time` its start (ISO 8601, UTC), `seconds` what it really covers."""

    uid: str
    source: str
    time: str
    seconds: float


def _type_of(metric: Metric) -> object:
    return list[str] | None if metric.kind is Kind.FLAGS else int | float | None


Sample = cast(
    "type[SampleBase]",
    msgspec.defstruct(
        "Sample",
        [(metric.name, _type_of(metric), None) for metric in LIVE_METRICS],
        bases=(SampleBase,),
        module=__name__,
        namespace={"__doc__": "A `SampleBase` with the mean of each live metric; None where it is unknown."},
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    ),
)


class LiveProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process on a GPU now: the triple that names it on its machine, and the experiment it says it belongs to.

    `first_seen`, `last_seen`: ISO 8601, UTC.
    """

    uid: str
    source: str
    pid: int
    first_seen: str
    last_seen: str
    start_ticks: int | None = None
    boot_id: str | None = None
    ns_pid: int | None = None
    experiment_id: str | None = None


class SamplesIn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of one node: `sent` is the node's own clock (ISO 8601, UTC) when it was made."""

    schema: int
    contract_number: str
    node: NodePart
    sent: str
    collection_interval_seconds: int
    gpus: list[GpuPart]
    samples: list[Sample] = []  # type: ignore[valid-type]
    readings: list[Sample] = []  # type: ignore[valid-type]
    processes: list[LiveProcess] = []
    events: list[EventPart] = []


def encode_samples(message: SamplesIn) -> bytes:
    """The message's JSON bytes."""
    return msgspec.json.encode(message)
