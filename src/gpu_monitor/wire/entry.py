"""One GPU's (or the host's) entry of a report as a server reads it: every field typed and bounded.

Each entry exists twice: exact, which refuses what it does not know and so needs no second look, and
lenient, which takes whole numbers written as decimals and lets unknown fields pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import msgspec

from gpu_monitor.core.catalogue import HOST_METRICS, IDENTITY, METRICS, SAMPLED, STATES, Kind, Metric

UID_LENGTH = 96
"""A MIG instance's UUID with its path has 55; imported ones carry a bus address."""
SOURCES = ("nvml", "amd", "apple", "simulated", "replay", "import")
MADE_UP = frozenset({"simulated", "replay"})
"""Sources whose rows are no reading of that machine at that time."""
COVER = ("samples", "expected_samples", "coverage", "seconds")
IDLE = ("idle_seconds", "held_idle_seconds", "energy_seconds")

_LONGEST_SECONDS = 86_400.0 * 1.01
"""A day, and what rounding may add."""
_STORED_WHOLE = 2**53
"""Beyond that a JSON number is no longer exact everywhere."""


class EntryBase(msgspec.Struct, frozen=True, kw_only=True):
    """What every GPU entry must have; the metrics are fields named as the catalogue names them."""

    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=UID_LENGTH)]
    source: Literal["nvml", "amd", "apple", "simulated", "replay", "import"]
    reasons: msgspec.Raw = msgspec.Raw(b"{}")


def spread_names(metric: Metric) -> list[str]:
    """The metric's fields in an entry: its own, and those of its extremes where an hour keeps them."""
    if metric.kind in (Kind.GAUGE, Kind.RATE):
        return [metric.name, f"{metric.name}_min", f"{metric.name}_max"]
    return [metric.name]


def _bounded(kind: type, low: float, high: float) -> Any:
    return Annotated[kind, msgspec.Meta(ge=kind(low), le=kind(high))] | None


def measured(metric: Metric, *, exact: bool) -> Any:
    """The type of a measured value within the catalogue's bounds; `exact`: whole metrics are whole numbers."""
    if metric.kind is Kind.FLAGS:
        return list[str] | None
    high = min(metric.high, float(_STORED_WHOLE))
    whole = exact and metric.decimals == 0
    return _bounded(int if whole else float, metric.low, high)


def _described(metric: Metric, *, exact: bool) -> Any:
    if metric.text:
        return str | None
    high = min(metric.high, float(_STORED_WHOLE))
    if metric.kind is Kind.IDENTITY:
        return _bounded(int if exact else float, 0, high)
    bounds = msgspec.Meta(ge=0, le=int(high))
    return Annotated[int, bounds] | Annotated[float, msgspec.Meta(ge=0.0, le=high)] | None


def _basis(name: str, *, exact: bool) -> Any:
    if name.endswith("samples"):
        return _bounded(int if exact else float, 0, 1_000_000)
    return _bounded(float, 0.0, 1.0 if name == "coverage" else _LONGEST_SECONDS)


def _gpu_fields(*, exact: bool) -> list[Any]:
    """In the order an agent writes them: the decoder looks for the next field first."""
    fields: list[Any] = []
    for metric in METRICS:
        if metric.name == "uid":
            continue
        if metric in SAMPLED:
            fields += [(name, measured(metric, exact=exact), None) for name in spread_names(metric)]
        else:
            fields.append((metric.name, _described(metric, exact=exact), None))
    return fields + [(name, _basis(name, exact=exact), None) for name in (*COVER, *IDLE)]


def _host_fields() -> list[Any]:
    fields: list[Any] = [
        (name, measured(metric, exact=False), None)
        for metric in HOST_METRICS
        for name in spread_names(metric)
    ]
    return fields + [(name, _basis(name, exact=False), None) for name in COVER]


def _struct(name: str, fields: list[Any], bases: tuple[type, ...], says: str, *, exact: bool) -> Any:
    return msgspec.defstruct(
        name,
        fields,
        bases=bases or None,
        module=__name__,
        namespace={"__doc__": says},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=exact,
    )


Entry = cast(
    "type[EntryBase]",
    _struct(
        "Entry", _gpu_fields(exact=True), (EntryBase,), "A GPU entry without unknown fields.", exact=True
    ),
)
LenientEntry = cast(
    "type[EntryBase]",
    _struct(
        "LenientEntry",
        _gpu_fields(exact=False),
        (EntryBase,),
        "A GPU entry that may hold more.",
        exact=False,
    ),
)
HostEntry = cast(
    "type[msgspec.Struct]",
    _struct("HostEntry", _host_fields(), (), "The machine's entry without unknown fields.", exact=True),
)
LenientHostEntry = cast(
    "type[msgspec.Struct]",
    _struct("LenientHostEntry", _host_fields(), (), "The machine's entry that may hold more.", exact=False),
)

ENTRY_FIELDS: tuple[str, ...] = Entry.__struct_fields__
"""The order of values in `msgspec.structs.astuple` of an entry, exact or lenient."""
WHOLE_FIELDS = frozenset(
    [name for m in SAMPLED if m.kind is not Kind.FLAGS and m.decimals == 0 for name in spread_names(m)]
    + [m.name for m in IDENTITY if not m.text]
    + [name for name in COVER if name.endswith("samples")]
)
"""Fields that an exact entry holds as whole numbers; a lenient one may hold them with decimals."""
HOST_FIELDS: tuple[str, ...] = HostEntry.__struct_fields__
IDENTITY_NAMES: tuple[str, ...] = tuple(metric.name for metric in IDENTITY)
STATE_NAMES: tuple[str, ...] = tuple(metric.name for metric in STATES)
