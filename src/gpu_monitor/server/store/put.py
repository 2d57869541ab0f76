"""Puts a group of judged reports into the tables, each kind of row in one statement or a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from gpu_monitor.server.store.intern import FactBook
from gpu_monitor.server.store.judge import Receipt
from gpu_monitor.server.store.rollup import (
    KEY_COLUMNS,
    SUM_COLUMNS,
    VALUE_COLUMNS,
    FleetKey,
    Sums,
    fleet_part,
    merge,
    pick_needed,
    with_everyone,
    without_instances,
)
from gpu_monitor.server.store.roster import Node, load_gpus, place_gpu, store_gpus
from gpu_monitor.server.store.rows import Rows
from gpu_monitor.server.store.schema import (
    LIVE_METRICS,
    aggregates,
    events,
    fleet_hours,
    gaps,
    host_hours,
    latest,
    processes,
    quarantine,
    receipts,
)
from gpu_monitor.server.store.shape import GpuRow, Shaped
from gpu_monitor.wire.entry import MADE_UP

Row = tuple[Any, ...]
_RECEIPT = (
    "agent", "hour", "contract", "period_seconds", "interval_seconds", "revision", "body_digest", "row_digest",
    "body_bytes", "rows", "quarantined", "coverage", "simulated", "received", "extra",
)  # fmt: skip
_AGGREGATE = tuple(column.name for column in aggregates.c)
_HOST = tuple(column.name for column in host_hours.c)
_GAP, _EVENT, _PROCESS = (
    tuple(column.name for column in table.c if column.name != "id") for table in (gaps, events, processes)
)
_ENTRY = ("kind", "agent", "hour", "revision", "uid", "field", "reason", "raw", "received")
LATEST_COLUMNS = tuple(column.name for column in latest.c)
_LIVE_AT = tuple(VALUE_COLUMNS.index(metric.name) for metric in LIVE_METRICS)
_COVERAGE_AT = VALUE_COLUMNS.index("coverage")
_live_of = itemgetter(*_LIVE_AT, _COVERAGE_AT)
_NEWER = (
    "SET " + ", ".join(f"{name} = excluded.{name}" for name in LATEST_COLUMNS[2:])
    + " WHERE excluded.time > latest.time OR (excluded.time = latest.time AND NOT latest.live)"
)  # fmt: skip
_ADD = "SET " + ", ".join(f"{name} = fleet_hours.{name} + excluded.{name}" for name in SUM_COLUMNS)


@dataclass(slots=True)
class Accepted:
    """A report whose rows are to be written. `ordinals` of its GPUs, in their order, once they are placed.

    `replaced`: the receipt whose rows it takes the place of; `dropped`: the ordinals those had.
    """

    shaped: Shaped
    node: Node
    contract: int
    received: float
    ordinals: tuple[int, ...] = ()
    dropped: frozenset[int] = frozenset()
    replaced: Receipt | None = None


@dataclass(slots=True)
class Batch:
    """The accepted reports of one round; no two are about the same hour of a node. `fleet`: what is taken off."""

    reports: list[Accepted] = field(default_factory=list)
    fleet: dict[FleetKey, Sums] = field(default_factory=dict)


def put_batch(rows: Rows, batch: Batch, book: FactBook) -> None:
    """Write every row of the batch, and what follows from it: the newest of each GPU, the fleet's hours."""
    if not batch.reports:
        return
    reports = batch.reports
    book.intern(
        rows,
        (fact for one in reports for gpu in one.shaped.gpus for fact in (gpu.identity, gpu.states)),
    )
    nodes = {one.node.agent: one.node for one in reports}
    load_gpus(rows, [node for node in nodes.values() if not node.has_gpus])
    newest: dict[tuple[int, int], Row] = {}
    measured: list[Row] = []
    for one in reports:
        _place(one, book, measured, newest)
    _count(reports, batch.fleet)
    with rows.together():
        store_gpus(rows, list(nodes.values()))
        rows.insert(receipts, _RECEIPT, [_receipt(one) for one in reports])
        rows.insert(aggregates, _AGGREGATE, measured)
        keyed = [((one.shaped.intake.hour, one.node.agent), one.shaped) for one in reports]
        rows.insert(
            host_hours, _HOST, [(*key, *shaped.host) for key, shaped in keyed if shaped.host is not None]
        )
        rows.insert(gaps, _GAP, [(*key, *row) for key, shaped in keyed for row in shaped.gaps])
        rows.insert(events, _EVENT, [(*key, *row) for key, shaped in keyed for row in shaped.events])
        rows.insert(processes, _PROCESS, [(*key, *row) for key, shaped in keyed for row in shaped.processes])
        rows.insert(quarantine, _ENTRY, [row for one in reports for row in _wrong_rows(one)])
        rows.upsert(latest, LATEST_COLUMNS, ("agent", "gpu"), _NEWER, list(newest.values()))
        rows.upsert(
            fleet_hours,
            (*KEY_COLUMNS, *SUM_COLUMNS),
            KEY_COLUMNS,
            _ADD,
            [(*key, *sums) for key, sums in with_everyone(batch.fleet).items()],
        )
    _mark_silent(rows, reports)


def _place(one: Accepted, book: FactBook, measured: list[Row], newest: dict[tuple[int, int], Row]) -> None:
    """Give the GPUs their ordinals; append their rows, and those that are the newest of their GPU."""
    intake, node = one.shaped.intake, one.node
    hour, agent, end = intake.hour, node.agent, float(intake.end)
    ongoing = _ongoing(one.shaped) if one.shaped.gaps else None
    live = _live_of
    ordinals = []
    number, known = book.number, node.gpus
    status = "ok"
    for row in one.shaped.gpus:
        identity, states, values = number(row.identity.digest), number(row.states.digest), row.values
        gpu = known.get((row.uid, row.source))
        if gpu is not None and gpu.identity == identity and gpu.first_hour <= hour > gpu.last_hour:
            gpu.last_hour, gpu.is_seen = hour, True  # as nearly always
        else:
            gpu = place_gpu(node, row, hour, identity)
        ordinal = gpu.ordinal
        ordinals.append(ordinal)
        measured.append((hour, agent, ordinal, identity, states, *values, row.extra))
        key = (agent, ordinal)
        held = newest.get(key)
        if held is None or held[2] <= end:
            if ongoing:
                status = ongoing.get(row.uid) or ongoing.get(None) or "ok"
            newest[key] = (agent, ordinal, end, False, status, *live(values), states)
    one.ordinals = tuple(ordinals)


def _ongoing(shaped: Shaped) -> dict[str | None, str]:
    """Causes of the gaps that are not over at the period's end, by GPU (None: the whole node)."""
    end = shaped.intake.end
    return {uid: cause for uid, _start, stop, cause, _detail in shaped.gaps if stop >= end}


def _count(reports: Sequence[Accepted], fleet: dict[FleetKey, Sums]) -> None:
    """Add what the reports add to the fleet's hours; those of one hour at once, whose columns are then longer."""
    alike: dict[tuple[int, int, int, bool], list[Shaped]] = {}
    for one in reports:
        intake = one.shaped.intake
        key = (intake.hour, one.contract, intake.period_seconds, one.shaped.simulated)
        alike.setdefault(key, []).append(one.shaped)
    for key, those in alike.items():
        parts = [
            (row.source in MADE_UP, pick_needed(row.values)) for shaped in those for row in _counted(shaped)
        ]
        merge(fleet, fleet_part(*key, parts, len(those)))


def _counted(shaped: Shaped) -> Sequence[GpuRow]:
    if any(row.identity.has_parent for row in shaped.gpus):
        return without_instances(shaped.gpus, lambda row: (row.uid, row.identity.body))
    return shaped.gpus


def _receipt(one: Accepted) -> Row:
    shaped, intake = one.shaped, one.shaped.intake
    covers = [cover for row in shaped.gpus if (cover := row.values[_COVERAGE_AT]) is not None]
    return (
        one.node.agent, intake.hour, one.contract, intake.period_seconds, intake.interval_seconds, intake.revision,
        intake.body_digest, shaped.row_digest, intake.body_bytes, len(shaped.gpus), len(shaped.wrong),
        round(sum(covers) / len(covers)) if covers else None, shaped.simulated, one.received, intake.extra,
    )  # fmt: skip


def _wrong_rows(one: Accepted) -> Iterable[Row]:
    intake = one.shaped.intake
    for wrong in one.shaped.wrong:
        key = ("entry", one.node.agent, intake.hour, intake.revision)
        yield (*key, wrong.uid, wrong.field, wrong.reason, wrong.raw, one.received)


def _mark_silent(rows: Rows, reports: Sequence[Accepted]) -> None:
    """GPUs that gave no row because of a gap that goes on: their newest row says so from now on."""
    for one in reports:
        ongoing = _ongoing(one.shaped) if one.shaped.gaps else {}
        if not ongoing:
            continue
        shown = set(one.ordinals)
        for gpu in one.node.gpus.values():
            cause = ongoing.get(gpu.uid) or ongoing.get(None)
            if cause is not None and gpu.ordinal not in shown:
                rows.set_status(one.node.agent, gpu.ordinal, cause, float(one.shaped.intake.end))
