"""Which GPUs an experiment's processes were on, and when: read from what agents saw, by what names a process for good.

A segment says who wrote it (boot, start in ticks of it, pid in its innermost namespace); reports, and until they are
there live messages, say the same of the processes on each GPU, and which experiment they registered or inherited. Both
are joined when it is asked, so it does not matter which came first. Only nodes of the experiment's own contract count;
those of the contract `local` were written by whoever administers all of them, and any node counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, or_, select

from gpu_monitor.server.store.schema import contracts, gpus, live_processes, nodes, processes
from gpu_monitor.server.store.schema_experiments import experiments, segments
from gpu_monitor.server.store.span import Span

How = Literal["process", "declared"]
APART_SECONDS = 180.0
"""Two sightings of one run on a GPU that are no farther apart are one stay: agents look once or twice a minute."""
LOCAL = "local"
"""The contract of experiments that come with a token of every contract, where no other one is named."""
_AT_ONCE = 400
_LONGEST_HOURS = 24
MOST_PLACES = 512
"""GPUs of one experiment in one answer."""
Place = tuple[int, int]
"""A GPU: agent, ordinal."""


@dataclass(frozen=True)
class Stay:
    """A stretch of time on a GPU, UTC epoch s. `how`: a process was seen, or the run only said which GPUs it sees."""

    since: float
    until: float
    how: How


@dataclass(frozen=True)
class Board:
    """A GPU as it is named in answers."""

    place: Place
    uid: str
    name: str | None
    simulated: bool
    node: str
    hostname: str | None
    spacing: float
    """Seconds between two sightings, at most, that are one stay."""


@dataclass
class _Sighting:
    experiment: int
    place: Place
    since: float
    until: float
    writer: tuple[str, int, int] | None


@dataclass(frozen=True)
class _Writer:
    """Who wrote a segment, and from when to when as far as is known."""

    experiment: int
    boot_id: str | None
    start_ticks: int | None
    pids: frozenset[int]
    since: float
    until: float
    gpus: tuple[str, ...] = ()
    host: str = ""


@dataclass
class Stays:
    """What was found: by experiment and GPU, in order of time; and the GPUs."""

    of: dict[int, dict[Place, list[Stay]]] = field(default_factory=dict)
    boards: dict[Place, Board] = field(default_factory=dict)


def gpus_of_experiment(connection: Connection, experiment: Any, now: float) -> Stays:
    """The stays of one experiment (its row). Where an agent saw none of a writer's processes on any GPU, the GPUs that
    the writer itself said it sees are taken, marked `declared`."""
    row = segments.c
    asked = select(segments).where(row.experiment == experiment.id).order_by(row.started)
    writers = [_writer(one, now) for one in connection.execute(asked)]
    ticks = sorted({one.start_ticks for one in writers if one.start_ticks is not None})
    boots = {one.boot_id for one in writers if one.boot_id is not None}
    seen: list[Any] = []
    contract = None if experiment.contract == _of_all(connection) else experiment.contract
    others: list[_Writer] = []
    for start in range(0, max(1, len(ticks)), _AT_ONCE):
        some = ticks[start : start + _AT_ONCE]
        seen += _sightings(connection, some, [experiment.uid], contract)
        others += _writers_from(connection, boots, some, {experiment.contract}, now)
    matched = _matched(seen, others, {experiment.uid: experiment.id})
    found = [one for one in matched if one.experiment == experiment.id]
    stays = Stays()
    stays.boards = _boards(connection, {one.place for one in found})
    _take(stays, found)
    _declare(connection, stays, found, writers, experiment.contract)
    return stays


def experiments_on_gpu(
    connection: Connection, places: Sequence[Place], uid: str, span: Span
) -> tuple[Stays, set[int]]:
    """The stays of every experiment on one GPU within a span, and those experiments (their ids)."""
    stays = Stays(boards=_boards(connection, set(places)))
    seen: list[Any] = []
    for agent, ordinal in places:
        row, live = processes.c, live_processes.c
        inside = and_(
            row.agent == agent, row.uid == uid, row.last_seen >= span.since, row.first_seen < span.until,
            row.hour >= span.first_hour - _LONGEST_HOURS, row.hour < span.end_hour,
        )  # fmt: skip
        seen += _reported(connection, inside, None)
        now = and_(
            live.agent == agent, live.gpu == ordinal, live.until >= span.since, live.since < span.until
        )
        seen += _live(connection, now, None)
    ticks = sorted({one.start_ticks for one in seen if one.start_ticks is not None and one.start_ticks >= 0})
    boots = {one.boot_id for one in seen if one.boot_id is not None}
    uids = sorted({one.experiment_id for one in seen if one.experiment_id})
    of_all = _of_all(connection)
    allowed = {one.contract for one in seen} | ({of_all} if of_all is not None else set())
    known: dict[str, int] = {}
    writers: list[_Writer] = []
    for start in range(0, len(uids), _AT_ONCE):
        named = experiments.c.uid.in_(uids[start : start + _AT_ONCE])
        asked = select(experiments.c.uid, experiments.c.id, experiments.c.contract).where(named)
        known |= {one.uid: one.id for one in connection.execute(asked) if one.contract in allowed}
    for start in range(0, len(ticks), _AT_ONCE):
        writers += _writers_from(connection, boots, ticks[start : start + _AT_ONCE], allowed, span.until)
    found = _matched(seen, writers, known)
    _take(stays, found)
    return stays, set(stays.of)


# --- what agents saw -----------------------------------------------------------------------------------------


def _writers_from(
    connection: Connection, boots: set[str], ticks: Sequence[int], contracts: Iterable[int], now: float
) -> list[_Writer]:
    """Whoever started at one of these ticks of these boots and wrote a segment of an experiment of these contracts."""
    row = segments.c
    query = select(segments).join(experiments, experiments.c.id == row.experiment).order_by(row.started)
    query = query.where(row.boot_id.in_(sorted(boots)), row.start_ticks.in_(ticks))
    query = query.where(experiments.c.contract.in_(sorted(contracts)))
    return [_writer(one, now) for one in connection.execute(query)]


def _of_all(connection: Connection) -> int | None:
    """The contract whose experiments may be anywhere; None where there is none yet."""
    found: int | None = connection.execute(select(contracts.c.id).where(contracts.c.number == LOCAL)).scalar()
    return found


def _sightings(
    connection: Connection, ticks: Sequence[int], uids: Sequence[str], contract: int | None
) -> list[Any]:
    row, live = processes.c, live_processes.c
    found = _reported(connection, or_(row.start_ticks.in_(ticks), row.experiment_id.in_(uids)), contract)
    return found + _live(connection, or_(live.start_ticks.in_(ticks), live.experiment_id.in_(uids)), contract)


def _reported(connection: Connection, where: ColumnElement[bool], contract: int | None) -> list[Any]:
    row = processes.c
    asked = (
        select(
            row.agent, gpus.c.ordinal, row.boot_id, row.start_ticks, row.pid, row.ns_pid, row.experiment_id,
            row.first_seen.label("since"), row.last_seen.label("until"), nodes.c.contract,
        )
        .join(gpus, and_(gpus.c.agent == row.agent, gpus.c.uid == row.uid))
        .join(nodes, nodes.c.id == row.agent)
        .where(where, *([] if contract is None else [nodes.c.contract == contract]))
    )  # fmt: skip
    return list(connection.execute(asked))


def _live(connection: Connection, where: ColumnElement[bool], contract: int | None) -> list[Any]:
    row = live_processes.c
    asked = (
        select(
            row.agent, row.gpu.label("ordinal"), row.boot_id, row.start_ticks, row.pid, row.ns_pid,
            row.experiment_id, row.since, row.until, nodes.c.contract,
        )
        .join(nodes, nodes.c.id == row.agent)
        .where(where, *([] if contract is None else [nodes.c.contract == contract]))
    )  # fmt: skip
    return list(connection.execute(asked))


def _writer(row: Any, now: float) -> _Writer:
    ends = [row.proof_time, row.status_time if row.status != "running" else None]
    end = next((time for time in ends if time is not None), None)
    until = max(row.last_heard, row.last_time or row.started) if end is None else end
    told = [] if row.gpus is None else msgspec.json.decode(row.gpus)
    pids = {row.ns_pid if row.ns_pid is not None else row.pid}
    uids = tuple(uid for uid in told if isinstance(uid, str)) if isinstance(told, list) else ()
    return _Writer(
        row.experiment, row.boot_id, row.start_ticks, frozenset(pids), row.started,
        max(row.started, min(until, now)), uids[:MOST_PLACES], row.host,
    )  # fmt: skip


def _matched(seen: Iterable[Any], writers: Iterable[_Writer], known: Mapping[str, int]) -> list[_Sighting]:
    """The sightings that belong to an experiment: by the writer of a segment first, else by what the process said.

    A process may have written segments of several experiments, one after the other: each has it while it was written.
    """
    by_triple: dict[tuple[str, int, int], list[_Writer]] = {}
    for writer in writers:
        if writer.boot_id is not None and writer.start_ticks is not None:
            for pid in writer.pids:
                by_triple.setdefault((writer.boot_id, writer.start_ticks, pid), []).append(writer)
    found = []
    for one in seen:
        place = (one.agent, one.ordinal)
        inner = one.pid if one.ns_pid is None else one.ns_pid
        triple = (one.boot_id or "", one.start_ticks if one.start_ticks is not None else -1, inner)
        mine = by_triple.get(triple, [])
        for writer in mine:
            alone = len({other.experiment for other in mine}) == 1
            since = one.since if alone else max(one.since, writer.since)
            until = one.until if alone else min(one.until, writer.until)
            if since <= until:
                found.append(_Sighting(writer.experiment, place, since, until, triple))
        if not mine and one.experiment_id in known:
            found.append(_Sighting(known[one.experiment_id], place, one.since, one.until, None))
    return found


def _take(stays: Stays, found: Sequence[_Sighting]) -> None:
    """Sightings that touch, or nearly, are one stay."""
    for one in sorted(found, key=lambda one: (one.since, one.until)):
        board = stays.boards.get(one.place)
        if board is None:
            continue
        held = stays.of.setdefault(one.experiment, {}).setdefault(one.place, [])
        if held and one.since - held[-1].until <= board.spacing:
            held[-1] = Stay(held[-1].since, max(held[-1].until, one.until), "process")
        else:
            held.append(Stay(one.since, one.until, "process"))


def _declare(
    connection: Connection,
    stays: Stays,
    found: Sequence[_Sighting],
    writers: Sequence[_Writer],
    contract: int,
) -> None:
    """GPUs that writers say they see, of those whose processes no agent saw on any GPU."""
    seen = {one.writer for one in found if one.writer is not None}
    is_named = any(one.writer is None for one in found)
    left = [
        one
        for one in writers
        if one.gpus
        and not is_named
        and not any((one.boot_id, one.start_ticks, pid) in seen for pid in one.pids)
    ]
    uids = sorted({uid for one in left for uid in one.gpus})[:MOST_PLACES]
    if not uids:
        return
    asked = (
        select(gpus.c.agent, gpus.c.ordinal, gpus.c.uid, nodes.c.hostname)
        .join(nodes, nodes.c.id == gpus.c.agent)
        .where(gpus.c.uid.in_(uids), nodes.c.contract == contract)
        .order_by(gpus.c.last_hour)
    )
    places: dict[str, list[Any]] = {}
    for row in connection.execute(asked):
        places.setdefault(row.uid, []).append(row)
    boards = _boards(connection, {(row.agent, row.ordinal) for rows in places.values() for row in rows})
    for writer in left:
        for uid in writer.gpus:
            rows = places.get(uid)
            if not rows:
                continue
            # A GPU that moved from node to node: the one of the writer's host, else where it was last.
            row = next((one for one in rows if one.hostname == writer.host), rows[-1])
            place = (row.agent, row.ordinal)
            stays.boards[place] = boards[place]
            held = stays.of.setdefault(writer.experiment, {}).setdefault(place, [])
            held.append(Stay(writer.since, writer.until, "declared"))
            held[:] = _joined(held)


def _joined(held: Sequence[Stay]) -> list[Stay]:
    """Stays without overlaps, in order; ranks of one run may share a GPU."""
    found: list[Stay] = []
    for one in sorted(held, key=lambda one: one.since):
        if found and one.since <= found[-1].until and one.how == found[-1].how:
            found[-1] = Stay(found[-1].since, max(found[-1].until, one.until), one.how)
        else:
            found.append(one)
    return found


def _boards(connection: Connection, places: set[Place]) -> dict[Place, Board]:
    if not places:
        return {}
    wanted = or_(
        *(
            and_(gpus.c.agent == agent, gpus.c.ordinal == ordinal)
            for agent, ordinal in sorted(places)[:MOST_PLACES]
        )
    )
    asked = (
        select(
            gpus.c.agent, gpus.c.ordinal, gpus.c.uid, gpus.c.name, gpus.c.simulated,
            nodes.c.uuid, nodes.c.hostname, nodes.c.interval_seconds,
        )
        .join(nodes, nodes.c.id == gpus.c.agent)
        .where(wanted)
    )  # fmt: skip
    return {
        (row.agent, row.ordinal): Board(
            (row.agent, row.ordinal), row.uid, row.name, bool(row.simulated), row.uuid, row.hostname,
            max(APART_SECONDS, 2.5 * (row.interval_seconds or 60)),
        )
        for row in connection.execute(asked)
    }  # fmt: skip
