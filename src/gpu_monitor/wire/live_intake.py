"""A message of live samples as a server takes it: typed and bounded; what is unknown is left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, cast

import msgspec

from gpu_monitor.wire.entry import UID_LENGTH, measured
from gpu_monitor.wire.intake import DEPTH, Malformed, check_depth, check_names, told
from gpu_monitor.wire.live import LIVE_METRICS, MESSAGE_EVENTS, MESSAGE_PROCESSES, MESSAGE_SAMPLES, SCHEMA

_Stamp = Annotated[datetime, msgspec.Meta(tz=True)]
_Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=UID_LENGTH)]
_Source = Literal["nvml", "amd", "apple", "simulated", "replay", "import"]
_Short = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class LiveNodeIn(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, as it is now."""

    id: str
    hostname: str | None = None
    simulated: bool = False
    os: str | None = None
    agent_version: str | None = None
    driver_version: str | None = None


class LiveGpuIn(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that the node has now."""

    uid: _Uid
    source: _Source
    status: str = "ok"
    pci_bus_id: str | None = None
    name: str | None = None
    memory_total: _Whole | None = None
    index: _Whole | None = None
    serial: str | None = None
    minor_number: _Whole | None = None
    parent_uid: str | None = None
    mig_instance: str | None = None
    memory_kind: str | None = None


class SampleInBase(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU over one stretch."""

    uid: _Uid
    source: _Source
    time: _Stamp
    seconds: Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]


SampleIn = cast(
    "type[SampleInBase]",
    msgspec.defstruct(
        "SampleIn",
        [(metric.name, measured(metric, exact=False), None) for metric in LIVE_METRICS],
        bases=(SampleInBase,),
        module=__name__,
        namespace={"__doc__": "A `SampleInBase` with the mean of each live metric."},
        frozen=True,
        kw_only=True,
    ),
)
SAMPLE_FIELDS: tuple[str, ...] = SampleIn.__struct_fields__

_Samples = Annotated[list[SampleIn], msgspec.Meta(max_length=MESSAGE_SAMPLES)]  # type: ignore[valid-type]


class LiveProcessIn(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a GPU."""

    uid: _Uid
    source: _Source
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    first_seen: _Stamp
    last_seen: _Stamp
    start_ticks: _Whole | None = None
    boot_id: _Short | None = None
    ns_pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    experiment_id: _Short | None = None


class LiveEventIn(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened lately; the report of its period tells it again."""

    time: _Stamp
    uid: _Uid | None = None
    kind: _Word
    severity: _Word
    message: Annotated[str, msgspec.Meta(max_length=4096)]
    detail: dict[str, str | int | float | bool | None] | None = None


class LiveIn(msgspec.Struct, frozen=True, kw_only=True):
    """A message of one node."""

    schema: int
    contract_number: Annotated[str, msgspec.Meta(max_length=128)]
    node: LiveNodeIn
    sent: _Stamp
    collection_interval_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    gpus: Annotated[list[LiveGpuIn], msgspec.Meta(max_length=MESSAGE_SAMPLES)] = []
    samples: _Samples = []
    readings: _Samples = []
    processes: Annotated[list[LiveProcessIn], msgspec.Meta(max_length=MESSAGE_PROCESSES)] = []
    events: Annotated[list[LiveEventIn], msgspec.Meta(max_length=MESSAGE_EVENTS)] = []

    def all_samples(self) -> Sequence[Any]:
        """Samples and readings."""
        return [*self.samples, *self.readings]


_live = msgspec.json.Decoder(LiveIn)


def read_live(body: bytes) -> LiveIn:
    """The message in `body`; Malformed where it is none."""
    check_depth(body, DEPTH)
    try:
        found = _live.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise told(error) from None
    if found.schema != SCHEMA:
        raise Malformed("schema", f"schema {found.schema} is not one this server reads ({SCHEMA})")
    if len(found.samples) + len(found.readings) > MESSAGE_SAMPLES:
        raise Malformed("samples", f"more than {MESSAGE_SAMPLES} samples and readings in one message")
    check_names(found.node.id, found.contract_number)
    return found
