"""Writes live samples: the minutes that are kept a week, and what each GPU shows now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpu_monitor.core.catalogue import IDENTITY, Kind
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.intern import FactBook
from gpu_monitor.server.store.roster import Node, load_gpus, place_gpu_of, store_gpus
from gpu_monitor.server.store.rows import Rows
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    latest,
    live_events,
    live_processes,
    samples,
    scale_of,
)
from gpu_monitor.server.store.shape import Fact, Shaper, flags_of, text_of
from gpu_monitor.wire.entry import MADE_UP
from gpu_monitor.wire.live_intake import SAMPLE_FIELDS, LiveEventIn, LiveIn, LiveProcessIn

Row = tuple[Any, ...]
PAST_SECONDS = 7 * 86_400
"""Older minutes are not kept (retention), so they are not taken."""
AHEAD_SECONDS = 600
_COLUMNS = tuple(column.name for column in samples.c)
_LATEST = ("agent", "gpu", "time", "live", "status", *(metric.name for metric in LIVE_METRICS))
_NEWER = (
    "SET " + ", ".join(f"{name} = excluded.{name}" for name in _LATEST[2:]) + " WHERE excluded.time >= latest.time"
)  # fmt: skip
_PROCESS = tuple(column.name for column in live_processes.c)
_EVENT = tuple(column.name for column in live_events.c)
_LATER = (
    "SET until = excluded.until, ns_pid = excluded.ns_pid,"
    " experiment_id = coalesce(excluded.experiment_id, live_processes.experiment_id)"
    " WHERE excluded.until >= live_processes.until"
)
EVENT_SECONDS = 3600
"""An event that happened longer ago is the report's to tell."""
_VALUES = [(SAMPLE_FIELDS.index(m.name), scale_of(m), m.kind is Kind.FLAGS) for m in LIVE_METRICS]


class LiveGpu(msgspec.Struct, frozen=True):
    """A GPU that the node has now."""

    uid: str
    source: str
    status: str
    name: str | None
    identity: Fact


class LiveRow(msgspec.Struct, frozen=True):
    """One sample or reading: `time` its start, `values` as in the table from `seconds` on."""

    uid: str
    source: str
    time: int
    end: float
    values: Row


class LiveProcessRow(msgspec.Struct, frozen=True):
    """A process on a GPU, as in the table from `boot_id` on."""

    uid: str
    source: str
    values: Row


class LiveBatch(msgspec.Struct, frozen=True):
    """One message, shaped: `kept` are stored, `shown` only stand in `latest` until something newer comes."""

    node: Any
    contract_number: str
    interval_seconds: int
    simulated: bool
    gpus: Sequence[LiveGpu]
    kept: Sequence[LiveRow]
    shown: Sequence[LiveRow]
    principal: Principal
    received: float
    skew: float
    processes: Sequence[LiveProcessRow] = ()
    events: Sequence[Row] = ()


def shape_live(shaper: Shaper, message: LiveIn, principal: Principal, now: float) -> LiveBatch:
    """The rows of a message; Malformed where a GPU's name is none. What is too old or ahead is left out."""
    gpus = [
        LiveGpu(
            gpu.uid,
            gpu.source,
            text_of(gpu.status, 64) or "ok",
            text_of(gpu.name),
            shaper.identity(tuple(getattr(gpu, metric.name) for metric in IDENTITY))[0],
        )
        for gpu in message.gpus
    ]
    return LiveBatch(
        node=message.node,
        contract_number=message.contract_number,
        interval_seconds=message.collection_interval_seconds,
        simulated=message.node.simulated or any(gpu.source in MADE_UP for gpu in gpus),
        gpus=gpus,
        kept=list(_rows(message.samples, now)),
        shown=list(_rows(message.readings, now)),
        principal=principal,
        received=now,
        skew=message.sent.timestamp() - now,
        processes=[_process(one, now) for one in message.processes],
        events=[_event(one) for one in message.events if _is_recent(one.time.timestamp(), now)],
    )


def _is_recent(time: float, now: float) -> bool:
    return now - EVENT_SECONDS < time <= now + AHEAD_SECONDS


def _process(one: LiveProcessIn, now: float) -> LiveProcessRow:
    """The row; its times never lie ahead of ours."""
    until = min(one.last_seen.timestamp(), now + AHEAD_SECONDS)
    values = (
        text_of(one.boot_id) or "", -1 if one.start_ticks is None else one.start_ticks, one.pid, one.ns_pid,
        text_of(one.experiment_id), min(one.first_seen.timestamp(), until), until,
    )  # fmt: skip
    return LiveProcessRow(one.uid, one.source, values)


def _event(one: LiveEventIn) -> Row:
    detail = None if one.detail is None else msgspec.json.encode(one.detail).decode()
    words = (text_of(one.uid) or "", text_of(one.kind) or "", text_of(one.severity) or "")
    return (one.time.timestamp(), *words, text_of(one.message) or "", detail)


def _rows(given: Iterable[Any], now: float) -> Iterable[LiveRow]:
    for one in given:
        values = msgspec.structs.astuple(one)
        start = one.time.timestamp()
        if not now - PAST_SECONDS < start <= now + AHEAD_SECONDS:
            continue
        whole = [round(one.seconds * 10)]
        whole += [_whole(values[at], scale, is_flags) for at, scale, is_flags in _VALUES]
        yield LiveRow(one.uid, one.source, int(start), start + one.seconds, tuple(whole))


def _whole(value: Any, scale: float, is_flags: bool) -> int | None:
    if value is None:
        return None
    return flags_of(value)[0] if is_flags else round(value * scale)


def put_live(rows: Rows, batches: Sequence[tuple[Node, LiveBatch]], book: FactBook) -> list[tuple[int, ...]]:
    """Write the batches of known nodes; the ordinals each one touched."""
    if not batches:
        return []
    book.intern(rows, (gpu.identity for _, batch in batches for gpu in batch.gpus))
    nodes = {node.agent: node for node, _ in batches}
    load_gpus(rows, [node for node in nodes.values() if not node.has_gpus])
    for node, batch in batches:
        for gpu in batch.gpus:
            hour = int(batch.received) // 3600
            place_gpu_of(node, gpu.uid, gpu.source, gpu.name, hour, book.number(gpu.identity.digest))
    store_gpus(rows, list(nodes.values()))
    kept: list[Row] = []
    newest: dict[tuple[int, int], Row] = {}
    touched = [_collect(node, batch, kept, newest) for node, batch in batches]
    rows.insert_new(samples, _COLUMNS, kept)
    _put_present(rows, batches)
    rows.upsert(latest, _LATEST, ("agent", "gpu"), _NEWER, list(newest.values()))
    for node, batch in batches:
        for gpu in batch.gpus:
            if gpu.status != "ok":
                rows.set_status(
                    node.agent, node.gpus[gpu.uid, gpu.source].ordinal, gpu.status, batch.received
                )
    return touched


def _put_present(rows: Rows, batches: Sequence[tuple[Node, LiveBatch]]) -> None:
    """The processes on the GPUs, each once, and what happened lately; both as the newest message has them."""
    processes: dict[tuple[Any, ...], Row] = {}
    events: dict[tuple[Any, ...], Row] = {}
    for node, batch in batches:
        for one in batch.processes:
            gpu = node.gpus.get((one.uid, one.source))
            if gpu is not None:
                key = (node.agent, gpu.ordinal, *one.values[:3])
                processes[key] = (node.agent, gpu.ordinal, *one.values)
        for event in batch.events:
            told = (node.agent, *event)
            events[told[:4] + told[5:6]] = told
    if processes:
        rows.upsert(live_processes, _PROCESS, _PROCESS[:5], _LATER, list(processes.values()))
    if events:
        rows.insert_new(live_events, _EVENT, list(events.values()))


def _collect(
    node: Node, batch: LiveBatch, kept: list[Row], newest: dict[tuple[int, int], Row]
) -> tuple[int, ...]:
    """Put a batch's rows beside the others'; samples of a GPU that the message does not name are left out."""
    statuses = {(gpu.uid, gpu.source): gpu.status for gpu in batch.gpus}
    touched: dict[int, None] = {}
    for is_kept, row in [*((True, row) for row in batch.kept), *((False, row) for row in batch.shown)]:
        gpu = node.gpus.get((row.uid, row.source))
        status = statuses.get((row.uid, row.source))
        if gpu is None or status is None:
            continue
        touched[gpu.ordinal] = None
        if is_kept:
            kept.append((row.time, node.agent, gpu.ordinal, *row.values))
        held = newest.get((node.agent, gpu.ordinal))
        if held is None or held[2] <= row.end:
            newest[node.agent, gpu.ordinal] = (
                node.agent, gpu.ordinal, row.end, True, status, *row.values[1:],
            )  # fmt: skip
    return tuple(touched)
