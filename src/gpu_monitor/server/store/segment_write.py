"""Writes what uploaders bring, each byte of a segment exactly once: judged by offset, then added to its experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select, text

from gpu_monitor.server.auth.contracts import ensure_contract
from gpu_monitor.server.store.experiment_rows import (
    ExperimentRow,
    SegmentRow,
    load_experiments,
    load_segments,
    save,
)
from gpu_monitor.server.store.experiment_status import LEASE_SECONDS, Word, standing_of
from gpu_monitor.server.store.experiment_write import Additions, NoRoom
from gpu_monitor.server.store.rows import rows_of
from gpu_monitor.server.store.schema_experiments import projects, segments
from gpu_monitor.server.store.segment_chunks import add_chunk, equals_held
from gpu_monitor.server.store.segment_draft import (
    Decoder,
    Draft,
    clean,
    draft_of,
    header_of,
    written_json,
)
from gpu_monitor.server.store.segment_records import BadLine, Records, read_records
from gpu_monitor.wire.training import Header

SEGMENTS = 10_000
"""Of one experiment: starts of its processes, ranks and forked children."""
_read_decoder = msgspec.json.Decoder(Decoder).decode
_write = msgspec.json.encode


class Author(msgspec.Struct, frozen=True):
    """Who brings it. `contract`: the one they write for; None: the one called `number`, or any that it is in already."""

    name: str
    contract: int | None
    number: str


class Upload(msgspec.Struct, frozen=True):
    """Whole lines of a segment from `offset` on; `packed`: the same bytes as they are stored."""

    author: Author
    experiment: str
    segment: str
    offset: int
    data: bytes
    records: Records
    packed: bytes | None = None


class SignOfLife(msgspec.Struct, frozen=True):
    """The writer of a segment lives."""

    author: Author
    experiment: str
    segment: str


class Ending(msgspec.Struct, frozen=True):
    """Somebody beside the writer saw that it is gone. `time`: UTC epoch s; `cause`: as far as it is known."""

    author: Author
    experiment: str
    segment: str | None
    boot_id: str
    start_ticks: int
    ns_pid: int | None
    pid: int | None
    time: float
    cause: dict[str, Any]
    by: str


Work = Upload | SignOfLife | Ending


class Held(msgspec.Struct, frozen=True):
    """The server holds the segment up to `offset`; `status`: the experiment's now."""

    offset: int
    status: str


class Refused(msgspec.Struct, frozen=True):
    """Nothing of it was written, and why. `offset`: where to go on instead; `place`: of the line that is wrong."""

    status: int
    title: str
    detail: str
    offset: int | None = None
    place: int | None = None


Outcome = Held | Refused
_STRANGE = Refused(404, "Not found", "There is no such experiment here, or it is not yours to write.")
_REMOVED = Refused(410, "Gone", "The experiment was deleted here; its id does not come back.")
_DIFFERENT = "The bytes differ from those that are held at that place."


@dataclass(frozen=True, slots=True)
class WrittenWork:
    """The outcomes of a group, in its order, and the experiments (their ids) that changed."""

    outcomes: list[Outcome]
    changed: frozenset[int]


def write_work(connection: Connection, group: Sequence[Work], now: float) -> WrittenWork:
    """Write a group in the caller's transaction. Experiments are locked in the order of their ids."""
    return _Group(connection, now).write(group)


@dataclass(slots=True)
class _Group:
    """One group while it is written."""

    connection: Connection
    now: float
    experiments: dict[str, ExperimentRow] = field(default_factory=dict)
    segments: dict[tuple[int, str], SegmentRow] = field(default_factory=dict)
    touched: dict[int, ExperimentRow] = field(default_factory=dict)
    heard: dict[int, SegmentRow] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    additions: Additions = field(init=False)

    def __post_init__(self) -> None:
        self.additions = Additions(self.connection)

    def write(self, group: Sequence[Work]) -> WrittenWork:
        """Write all of it."""
        self.experiments = load_experiments(self.connection, {one.experiment for one in group})
        named = {(one.experiment, one.segment) for one in group if one.segment is not None}
        self.segments = load_segments(
            self.connection,
            {(self.experiments[uid].id, name) for uid, name in named if uid in self.experiments},
        )
        order = sorted(range(len(group)), key=lambda place: _order(group[place]))
        outcomes = {place: self._take(group[place]) for place in order}
        self.additions.flush()
        for one in self.touched.values():
            one.revision += one.id in self.changed
        rows = rows_of(self.connection)
        save(rows, SegmentRow, self.heard.values())
        save(rows, ExperimentRow, self.touched.values())
        return WrittenWork([outcomes[place] for place in range(len(group))], frozenset(self.changed))

    def _take(self, one: Work) -> Outcome:
        row = self.experiments.get(one.experiment)
        if row is not None and one.author.contract not in (None, row.contract):
            return _STRANGE
        if row is not None and row.removed is not None:
            return _REMOVED
        try:
            if isinstance(one, Upload):
                return self._take_upload(one, row)
        except BadLine as error:
            detail = f"The line at {one.offset + error.place}: {error.reason}"  # type: ignore[union-attr]
            return Refused(422, "The upload is not valid", detail, place=error.place)
        except NoRoom as error:
            return Refused(422, "Too much for one experiment", str(error))
        if row is None:
            return _STRANGE
        return self._take_life(one, row) if isinstance(one, SignOfLife) else self._take_ending(one, row)

    # --- uploads ------------------------------------------------------------------------------------------

    def _take_upload(self, one: Upload, row: ExperimentRow | None) -> Outcome:
        segment = None if row is None else self.segments.get((row.id, one.segment))
        held = 0 if segment is None else segment.bytes
        if one.offset > held:
            return Refused(409, "Elsewhere", f"{held} bytes of this segment are held.", offset=held)
        if row is None or segment is None:
            return self._begin(one, row)
        data, records, packed = one.data, one.records, one.packed
        if one.offset < held:
            common = data[: held - one.offset]
            if not equals_held(self.connection, segment.id, one.offset, common):
                return Refused(422, "The upload is not valid", _DIFFERENT)
            data, packed = data[len(common) :], None
            try:
                records = read_records(data)
            except BadLine as error:
                raise BadLine(error.place + len(common), error.reason) from None
        if data:
            decoder = _read_decoder(segment.decoder)
            is_torn = segment.damaged > 0
            draft = draft_of(records, decoder, segment.started, is_torn=is_torn, begins=False)
            self.additions.fit(row, draft)
            self._accept(row, segment, draft, data, packed)
        self._hear(row, segment)
        return Held(segment.bytes, row.status)

    def _begin(self, one: Upload, row: ExperimentRow | None) -> Outcome:
        """Take the first upload of a segment."""
        header = header_of(one.records, one.experiment, one.segment)
        draft = draft_of(one.records, Decoder(), header.about.started, is_torn=False, begins=True)
        self.additions.fit(row, draft)
        if row is None:
            row = self._make_experiment(one, header)
            there = load_segments(self.connection, [(row.id, one.segment)])
            if there or row.bytes:  # another process was first
                self.segments.update(there)
                return self._take(one)
        else:
            asked = select(func.count()).where(segments.c.experiment == row.id)
            if self.connection.execute(asked).scalar_one() >= SEGMENTS:
                raise NoRoom(f"an experiment has {SEGMENTS} segments at most")
        segment = self._make_segment(row, one.segment, header)
        self._accept(row, segment, draft, one.data, one.packed)
        self._hear(row, segment)
        return Held(segment.bytes, row.status)

    def _make_experiment(self, one: Upload, header: Header) -> ExperimentRow:
        """The experiment's row, in its project, both made where they are missing."""
        about = header.about
        contract = one.author.contract
        if contract is None:
            contract = ensure_contract(self.connection, one.author.number)
        project = {"contract": contract, "name": clean(about.project)}
        self.connection.execute(_NEW_PROJECT, {**project, "created": self.now})
        asked = select(projects.c.id).where(
            projects.c.contract == contract, projects.c.name == project["name"]
        )
        values = {
            "uid": one.experiment, "contract": contract, "name": clean(about.name), "created": self.now,
            "project": self.connection.execute(asked).scalar_one(), "created_by": one.author.name,
            "started": about.started, "status": "running", "status_changed": self.now,
            "last_heard": self.now, "lease": self.now + LEASE_SECONDS, "simulated": about.simulated,
        }  # fmt: skip
        self.connection.execute(_NEW_EXPERIMENT, values)
        row = load_experiments(self.connection, [one.experiment])[one.experiment]
        self.experiments[one.experiment] = row
        return row

    def _make_segment(self, row: ExperimentRow, name: str, header: Header) -> SegmentRow:
        about, writer = header.about, header.about.writer

        def shown(value: str | None) -> str | None:
            return None if value is None else clean(value)

        values = {
            "experiment": row.id, "name": name, "bytes": 0, "damaged": 0, "unknown": 0,
            "started": about.started, "received": self.now, "last_heard": self.now, "host": clean(writer.host),
            "pid": writer.pid, "user": shown(writer.user), "boot_id": shown(writer.boot_id),
            "start_ticks": writer.start_ticks, "ns_pid": writer.ns_pid, "rank": writer.rank,
            "python": shown(writer.python), "version": shown(writer.version),
            "gpus": None if about.gpus is None else written_json(about.gpus), "simulated": about.simulated,
            "resumed": about.resumed, "parent": shown(about.parent), "status": "running",
            "status_time": about.started, "decoder": "{}",
        }  # fmt: skip
        self.connection.execute(segments.insert().values(values))
        segment = load_segments(self.connection, [(row.id, name)])[row.id, name]
        self.segments[row.id, name] = segment
        if row.bytes == 0 or about.started >= row.started:
            row.host, row.user = segment.host, segment.user
        row.started = min(row.started, about.started)
        row.simulated = row.simulated or about.simulated
        self._settle(row, segment)
        return segment

    def _accept(
        self, row: ExperimentRow, segment: SegmentRow, draft: Draft, data: bytes, packed: bytes | None
    ) -> None:
        """Add a draft, for which there is room, to its experiment."""
        self.additions.add(row, draft)
        add_chunk(self.connection, segment.id, segment.bytes, data, packed)
        segment.bytes += len(data)
        row.bytes += len(data)
        segment.damaged += draft.damaged
        segment.unknown += draft.unknown
        if draft.has_new_numbers:
            segment.decoder = _write(draft.decoder).decode()
        if draft.last_time is not None:
            segment.last_time = max(draft.last_time, segment.last_time or 0.0)
            if row.last_time is None or draft.last_time >= row.last_time:
                row.last_time = draft.last_time
                row.last_step = row.last_step if draft.last_step is None else draft.last_step
        if draft.status is not None:
            segment.status, segment.status_time, more = draft.status
            segment.status_more = written_json(more)
            self._settle(row, segment)
        self.changed.add(row.id)

    def _hear(self, row: ExperimentRow, segment: SegmentRow) -> None:
        """Its writer, or whoever sends for it, was heard."""
        segment.last_heard = row.last_heard = self.now
        row.lease = self.now + LEASE_SECONDS
        self.touched[row.id], self.heard[segment.id] = row, segment

    def _settle(self, row: ExperimentRow, changed: SegmentRow) -> None:
        """Work the experiment's status out anew, one of its segments having changed."""
        held = segments.c
        asked = select(
            held.id, held.name, held.started, held.rank, held.parent, held.status, held.status_time,
            held.status_more, held.proof, held.proof_time,
        ).where(held.experiment == row.id)  # fmt: skip
        words = []
        for found in self.connection.execute(asked):
            one: Any = changed if found.id == changed.id else self.segments.get((row.id, found.name), found)
            words.append(
                Word(
                    one.started, one.rank, one.parent, one.status, one.status_time, _object(one.status_more) or {},
                    _object(one.proof), one.proof_time,
                )
            )  # fmt: skip
        standing = standing_of(words)
        if standing.status != row.status:
            row.status, row.status_changed = standing.status, self.now
        row.ended, row.exit_code = standing.ended, standing.exit_code
        row.signal, row.reason = standing.signal, standing.reason
        row.proof = None if standing.proof is None else written_json(standing.proof)
        self.touched[row.id] = row
        self.changed.add(row.id)

    # --- life and death -----------------------------------------------------------------------------------

    def _take_life(self, one: SignOfLife, row: ExperimentRow) -> Outcome:
        segment = self.segments.get((row.id, one.segment))
        if segment is None:
            return Refused(404, "Not found", "There is no such segment here.")
        self._hear(row, segment)
        return Held(segment.bytes, row.status)

    def _take_ending(self, one: Ending, row: ExperimentRow) -> Outcome:
        asked = select(segments.c.name).where(
            segments.c.experiment == row.id,
            segments.c.boot_id == clean(one.boot_id),
            segments.c.start_ticks == one.start_ticks,
        )
        if one.segment is not None:
            asked = asked.where(segments.c.name == one.segment)
        if one.ns_pid is not None:
            asked = asked.where(segments.c.ns_pid == one.ns_pid)
        if one.pid is not None:
            asked = asked.where(segments.c.pid == one.pid)
        names = self.connection.execute(asked).scalars().all()
        if not names or (one.ns_pid is None and one.pid is None):
            return Refused(
                409, "Another process", "No segment of this experiment was written by that process."
            )
        found = load_segments(self.connection, [(row.id, name) for name in names])
        for key, loaded in found.items():
            segment = self.segments.setdefault(key, loaded)
            held = _object(segment.proof)
            # The first word counts, unless only a later one knows why.
            if held is None or (one.cause and not held.get("cause")):
                proof = {"by": one.by, "who": one.author.name, "time": one.time, "cause": one.cause}
                segment.proof, segment.proof_time = written_json(proof), one.time
                self.heard[segment.id] = segment
                self._settle(row, segment)
        self.touched[row.id] = row
        return Held(max(self.segments[key].bytes for key in found), row.status)


def _order(one: Work) -> tuple[str, str, int]:
    return (one.experiment, one.segment or "", one.offset if isinstance(one, Upload) else 0)


def _object(found: str | None) -> dict[str, Any] | None:
    return None if found is None else msgspec.json.decode(found, type=dict[str, Any])


_NEW_PROJECT = text(
    "INSERT INTO projects (contract, name, created) VALUES (:contract, :name, :created)"
    " ON CONFLICT (contract, name) DO NOTHING"
)
_NEW_EXPERIMENT = text(
    "INSERT INTO experiments (uid, contract, project, name, created, created_by, started, status, status_changed,"
    " last_heard, lease, points, texts, specials, bytes, simulated, revision)"
    " VALUES (:uid, :contract, :project, :name, :created, :created_by, :started, :status, :status_changed,"
    " :last_heard, :lease, 0, 0, 0, 0, :simulated, 0) ON CONFLICT (uid) DO NOTHING"
)
