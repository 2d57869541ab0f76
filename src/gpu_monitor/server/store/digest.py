"""The digest of one receipt's rows: made when they are written, made again from what is read back.

It stands for what was stored, not for where: neither the dialect nor a number that a database gave (of a
node, a GPU, a fact, a row) goes into it, so a copy in another database has the same digests. A column that
a later version adds leaves old digests as they are, since values nobody knows at a row's end are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from gpu_monitor.server.store.schema import aggregates, events, gaps, host_hours, processes
from gpu_monitor.wire.intake import sha256

Row = Sequence[Any]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Never reordered; a new column's name is added at the end.
AGGREGATE_ORDER = _names(
    """
    samples expected_samples coverage seconds idle_seconds held_idle_seconds energy_seconds
    temperature temperature_lo temperature_hi memory_used memory_used_lo memory_used_hi
    gpu_utilization gpu_utilization_lo gpu_utilization_hi memory_utilization memory_utilization_lo
    memory_utilization_hi power_usage power_usage_lo power_usage_hi fan_speed fan_speed_lo
    fan_speed_hi graphics_clock graphics_clock_lo graphics_clock_hi memory_clock memory_clock_lo
    memory_clock_hi memory_free memory_free_lo memory_free_hi memory_temperature
    memory_temperature_lo memory_temperature_hi power_instant power_instant_lo power_instant_hi
    energy sm_clock sm_clock_lo sm_clock_hi video_clock video_clock_lo video_clock_hi
    encoder_utilization encoder_utilization_lo encoder_utilization_hi decoder_utilization
    decoder_utilization_lo decoder_utilization_hi pcie_rx pcie_rx_lo pcie_rx_hi pcie_tx pcie_tx_lo
    pcie_tx_hi nvlink_rx nvlink_rx_lo nvlink_rx_hi nvlink_tx nvlink_tx_lo nvlink_tx_hi sm_active
    sm_active_lo sm_active_hi tensor_active tensor_active_lo tensor_active_hi dram_active
    dram_active_lo dram_active_hi throttle_reasons throttle_time
    """
)
HOST_ORDER = _names(
    """
    samples expected_samples coverage seconds cpu_utilization cpu_utilization_lo cpu_utilization_hi
    load_1m load_1m_lo load_1m_hi memory_used memory_used_lo memory_used_hi memory_total
    memory_total_lo memory_total_hi swap_used swap_used_lo swap_used_hi disk_used disk_used_lo
    disk_used_hi disk_total disk_total_lo disk_total_hi disk_read disk_read_lo disk_read_hi
    disk_write disk_write_lo disk_write_hi network_rx network_rx_lo network_rx_hi network_tx
    network_tx_lo network_tx_hi
    """
)
GAP_ORDER = ("uid", "start", "stop", "cause", "detail")
EVENT_ORDER = ("time", "uid", "kind", "severity", "message", "detail")
PROCESS_ORDER = _names(
    "uid pid kind first_seen last_seen ended start_ticks boot_id ns_pid user command container job experiment_id"
    " memory memory_max"
)


class GpuPart(NamedTuple):
    """One GPU row: `identity` and `states` are digests of facts, `values` stand as in `AGGREGATE_COLUMNS`."""

    uid: str
    source: str
    identity: bytes
    states: bytes
    extra: str | None
    values: Row


AGGREGATE_COLUMNS = tuple(
    column.name
    for column in aggregates.c
    if column.name not in ("hour", "agent", "gpu", "identity", "facts", "extra")
)
HOST_COLUMNS, GAP_COLUMNS, EVENT_COLUMNS, PROCESS_COLUMNS = (
    tuple(column.name for column in table.c if column.name not in ("id", "hour", "agent"))
    for table in (host_hours, gaps, events, processes)
)
"""The order in which values are handed in: that of the table."""


def row_digest(
    node: str,
    hour: int,
    gpus: Iterable[GpuPart],
    host: Row | None = None,
    gaps: Iterable[Row] = (),
    events: Iterable[Row] = (),
    processes: Iterable[Row] = (),
) -> bytes:
    """SHA-256 over the rows of the report of node (its UUID) and hour; the order of the rows does not matter."""
    parts = (
        node,
        hour,
        sorted(_gpu(*gpu) for gpu in gpus),
        None if host is None else _bare(_host_order(host)),
        sorted(_encode(_bare(_exact(_gap_order(row), _GAP_TIMES))) for row in gaps),
        sorted(_encode(_bare(_exact(_event_order(row), _EVENT_TIMES))) for row in events),
        sorted(_encode(_bare(_exact(_process_order(row), _PROCESS_TIMES, _ENDED))) for row in processes),
    )
    return sha256(_encode(parts))


def fact_digest(body: str) -> bytes:
    """The key of a fact: the first half of SHA-256 over its text."""
    return hashlib.sha256(body.encode()).digest()[:16]


_encode = msgspec.msgpack.Encoder().encode


def _in_order(columns: Sequence[str], order: Sequence[str]) -> Callable[[Row], Row]:
    if tuple(columns) == tuple(order):
        return tuple  # as long as no column was added: a row that is a tuple is handed back itself
    return itemgetter(*(columns.index(name) for name in order))


_aggregate_order = _in_order(AGGREGATE_COLUMNS, AGGREGATE_ORDER)
_host_order = _in_order(HOST_COLUMNS, HOST_ORDER)
_gap_order = _in_order(GAP_COLUMNS, GAP_ORDER)
_event_order = _in_order(EVENT_COLUMNS, EVENT_ORDER)
_process_order = _in_order(PROCESS_COLUMNS, PROCESS_ORDER)
_GAP_TIMES, _EVENT_TIMES, _PROCESS_TIMES = (1, 2), (0,), (3, 4)
_ENDED = (5,)


def _gpu(uid: str, source: str, identity: bytes, states: bytes, extra: str | None, values: Row) -> bytes:
    return _encode((uid, source, bytes(identity), bytes(states), extra, _bare(_aggregate_order(values))))


def _bare(values: Row) -> Row:
    """Without the unknowns at its end."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return values[:end]


def _exact(values: Row, times: Iterable[int], truths: Iterable[int] = ()) -> Row:
    """Whole seconds are told as what a database gives back for them, and so is a truth value."""
    out = list(values)
    for at in times:
        out[at] = float(out[at])
    for at in truths:
        out[at] = bool(out[at])
    return out
