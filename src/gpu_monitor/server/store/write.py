"""Writes groups of reports, each exactly once: what they are is judged here, for both kinds of database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store import early
from gpu_monitor.server.store.enrol import NodeTokens
from gpu_monitor.server.store.intern import FactBook
from gpu_monitor.server.store.judge import Conclusion, Judged, Receipt, Refusal, judge, reach, rounds, too_old
from gpu_monitor.server.store.put import Accepted, Batch, put_batch
from gpu_monitor.server.store.replace import (
    digest_of_superseded,
    refuse_stranger,
    remember_superseded,
    restore_latest,
    take_off,
)
from gpu_monitor.server.store.roster import (
    NODE_GPUS,
    Contracts,
    Node,
    find_room,
    insert_nodes,
    load_gpus,
    load_nodes,
    node_of,
    refusal,
    store_nodes,
)
from gpu_monitor.server.store.rows import Rows, rows_of
from gpu_monitor.server.store.schema import changes, quarantine
from gpu_monitor.server.store.shape import Shaped, without
from gpu_monitor.server.store.write_live import LiveBatch, put_live
from gpu_monitor.server.store.write_postgres import PostgresRows

_NODES_KEPT = 4096
"""Nodes kept in memory with their GPUs, some 3 KB each with eight."""
_NO_ROOM = f"this node had {NODE_GPUS} GPUs already, and no more of a node are kept"
_TOO_MANY = Refusal(422, "Too many GPUs", "gpus", _NO_ROOM)
_CHANGE = ("seq", "time", "kind", "agent", "hour")
_NEWEST = f"SELECT max(seq) FROM {changes.name}"


class Submission(msgspec.Struct, frozen=True):
    """A report that was read and shaped, and who brought it. `skew`: the sender's clock minus ours, s.

    `body` only of a report from the future, which is put aside whole; `early` where it was released again:
    the row it was kept in.
    """

    shaped: Shaped
    principal: Principal
    received: float
    skew: float | None = None
    body: bytes | None = None
    early: int | None = None


class SetAside(msgspec.Struct, frozen=True):
    """A part of a report (or, with `uid` null, all of it) that is in quarantine."""

    uid: str | None
    field: str | None
    reason: str


class Answer(msgspec.Struct, frozen=True):
    """What became of a report that is safe. `revision`: the highest held."""

    report_id: str
    sha256: str
    outcome: str
    revision: int
    quarantined: Sequence[SetAside] = ()
    node_token: str | None = None


@dataclass(frozen=True, slots=True)
class Touched:
    """What a commit changed: `kind` as in the table of changes; the GPUs by their ordinals."""

    kind: str
    agent: int | None
    hour: int | None
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """One commit: the numbers it took in `changes` (both ends included), and what it changed."""

    seq_from: int
    seq_to: int
    touched: tuple[Touched, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A group's answers, in its order, and what it changed (None: nothing that others follow).

    `live`: for each message of live samples why it was refused, None where it was taken.
    """

    answers: list[Answer | Refusal]
    live: list[Refusal | None]
    committed: Committed | None


def append_changes(connection: Connection, touched: Sequence[Touched], now: float) -> Committed | None:
    """Append to the changes, under the writers' lock (`Store.lock_sequence`); None where there is nothing.

    The numbers only grow: after a quiet hour, when the table was pruned, they go on from the time in ms, which
    is above them all as long as there are fewer than 1,000 changes a second on average.
    """
    if not touched:
        return None
    newest = connection.exec_driver_sql(_NEWEST).scalar()
    return _append(rows_of(connection), touched, now, newest)


def _append(rows: Rows, touched: Sequence[Touched], now: float, newest: int | None) -> Committed:
    """Append to the changes after `newest`, the last there is."""
    if newest is None:
        newest = int(now * 1000)
    told = [(newest + number, now, one.kind, one.agent, one.hour) for number, one in enumerate(touched, 1)]
    rows.insert(changes, _CHANGE, told)
    return Committed(newest + 1, newest + len(touched), tuple(touched))


class GroupRecorder:
    """Writes groups; remembers numbers between them. One thread at a time.

    After the caller's transaction either `keep` or `undo` must follow.
    """

    def __init__(self) -> None:
        self._facts = FactBook()
        self._contracts = Contracts()
        self._tokens = NodeTokens()
        self._nodes: dict[str, Node] = {}
        self._written: dict[str, Node] = {}
        self._newest: int | None = None
        self._reached: int | None = None

    def write_group(
        self,
        connection: Connection,
        group: Sequence[Submission],
        now: float,
        live: Sequence[LiveBatch] = (),
    ) -> Written:
        """Write what is new of the group, in the caller's transaction, which holds the writers' lock from then on."""
        work = _Group(connection, group, now, self._facts, self._contracts, self._tokens, self._nodes)
        if isinstance(work.rows, PostgresRows):
            self._look_ahead(work, work.rows, live)
        with work.rows.together():
            for places in rounds([one.shaped.intake for one in group]):
                work.write_round(places)
            written = work.finish(work.write_live(live) if live else [])
        self._written = work.nodes
        self._reached = work.newest if written.committed is None else written.committed.seq_to
        return written

    def _look_ahead(self, work: _Group, rows: PostgresRows, live: Sequence[LiveBatch]) -> None:
        """Read what other processes may have written. GPUs that none of them wrote are as this one left them."""
        wanted = [(one.shaped.intake.node.id, *reach(one.shaped.intake, 0)) for one in work.group]
        wanted += [(batch.node.id, 0, -1) for batch in live]  # no receipt has to do with them
        ahead = rows.begin(wanted, self._newest)
        if ahead.agents is None:
            self._nodes.clear()
        elif ahead.agents:
            for node in [node for node in self._nodes.values() if node.agent in ahead.agents]:
                del self._nodes[node.uuid]
        for node in map(node_of, ahead.nodes):
            held = self._nodes.get(node.uuid)
            if held is not None and held.agent == node.agent:  # else it was forgotten, and came again
                node.gpus, node.has_gpus = held.gpus, held.has_gpus
            work.nodes[node.uuid] = node
        work.known = {}
        work.newest, work.receipts = ahead.newest, ahead.receipts

    def keep(self) -> None:
        """The transaction was committed."""
        self._facts.keep()
        self._contracts.keep()
        self._tokens.keep()
        if len(self._nodes) + len(self._written) > _NODES_KEPT:
            self._nodes = {}
        self._nodes.update(self._written)
        self._written = {}
        self._newest = self._reached

    def undo(self) -> None:
        """The transaction was rolled back."""
        self._facts.undo()
        self._contracts.undo()
        self._tokens.undo()
        self._nodes, self._written = {}, {}
        self._newest = None


@dataclass(slots=True)
class _Group:
    """One group while it is written."""

    connection: Connection
    group: Sequence[Submission]
    now: float
    facts: FactBook
    contracts: Contracts
    tokens: NodeTokens
    known: Mapping[str, Node]
    answers: dict[int, Answer | Refusal] = field(default_factory=dict)
    touched: list[Touched] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    changed: dict[str, Node] = field(default_factory=dict)
    newest: int | None = None
    """The last of the changes; on SQLite it is looked for when it is needed."""
    receipts: list[Any] | None = None
    """Those that have to do with the group, where they were read ahead; good for the first round."""
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.rows = rows_of(self.connection)

    def write_round(self, places: Sequence[int]) -> None:
        """Write reports of which no two are about the same hour of a node."""
        self.rows.send()
        given: dict[int, str] = {}
        ready = self._admit(places, given)
        batch = Batch()
        found = self._judge(ready)
        self._load_gpus(place for place, judged in found if isinstance(judged, Judged) and judged.is_held)
        for place, judged in found:
            one = self.group[place]
            token = given.get(place)
            if isinstance(judged, Refusal):
                self.answers[place] = judged
                continue
            node = self.nodes[one.shaped.intake.node.id]
            self._conclude(place, one, node, judged, batch, token)
        put_batch(self.rows, batch, self.facts)
        for accepted in batch.reports:
            dropped = accepted.dropped.difference(accepted.ordinals)
            if dropped and accepted.replaced is not None:
                self.rows.send()
                restore_latest(self.connection, accepted.replaced, dropped)
            hour = accepted.shaped.intake.hour
            self.touched.append(Touched("report", accepted.node.agent, hour, accepted.ordinals))

    def write_live(self, batches: Sequence[LiveBatch]) -> list[Refusal | None]:
        """Write live samples; why those that may not be written are refused."""
        self.rows.send()
        self._load({batch.node.id for batch in batches})
        answers: list[Refusal | None] = []
        taken: list[LiveBatch] = []
        fresh: dict[str, Node] = {}
        for batch in batches:
            uuid = batch.node.id
            known = self.nodes.get(uuid) or fresh.get(uuid)
            contract = self.contracts.find(self.connection, batch.contract_number)
            refused = refusal(batch.principal, known, uuid, contract) or self.tokens.refusal(
                self.connection, batch.principal, uuid, self.now
            )
            answers.append(refused)
            if refused is not None:
                continue
            taken.append(batch)
            number = self.contracts.ensure(self.connection, batch.contract_number)
            if known is None:
                known = fresh[uuid] = Node(
                    uuid, 0, number, simulated=batch.simulated, first_seen=batch.received
                )
                known.describe(batch.node)
            known.contract, known.last_live = number, batch.received
            known.skew_seconds, known.skew_measured = batch.skew, batch.received
            known.interval_seconds = batch.interval_seconds
            self.changed[uuid] = known
        insert_nodes(self.rows, list(fresh.values()))
        self.nodes.update(fresh)
        load_gpus(
            self.rows, {b.node.id: n for b in taken if not (n := self.nodes[b.node.id]).has_gpus}.values()
        )
        full = {id(batch) for batch in taken if self._is_full(batch)}
        answers = [
            _TOO_MANY if refused is None and id(batch) in full else refused
            for batch, refused in zip(batches, answers, strict=True)
        ]
        taken = [batch for batch in taken if id(batch) not in full]
        touched = put_live(self.rows, [(self.nodes[batch.node.id], batch) for batch in taken], self.facts)
        for batch, ordinals in zip(taken, touched, strict=True):
            hour = int(batch.received) // 3600
            self.touched.append(Touched("samples", self.nodes[batch.node.id].agent, hour, ordinals))
            if batch.events:
                self.touched.append(Touched("events", self.nodes[batch.node.id].agent, hour))
        return answers

    def _is_full(self, batch: LiveBatch) -> bool:
        """Whether the node has no room for a GPU of the message."""
        node, wanted = self.nodes[batch.node.id], {(gpu.uid, gpu.source) for gpu in batch.gpus}
        is_full = bool(find_room(node, wanted))
        if is_full:
            node.coming -= wanted
        return is_full

    def finish(self, live: list[Refusal | None]) -> Written:
        """Write what is left once every report has its answer."""
        for one in self.group:
            if one.early is not None:
                self._settle_early(one)
        store_nodes(self.rows, list(self.changed.values()))
        if self.newest is None and self.touched:
            self.newest = self.connection.exec_driver_sql(_NEWEST).scalar()
        committed = _append(self.rows, self.touched, self.now, self.newest) if self.touched else None
        return Written([self.answers[place] for place in range(len(self.group))], live, committed)

    # --- who may ------------------------------------------------------------------------------------------

    def _admit(self, places: Sequence[int], given: dict[int, str]) -> list[int]:
        """The places of reports that may be written; the others are answered. New nodes get their numbers."""
        self._load({self.group[place].shaped.intake.node.id for place in places})
        fresh: dict[str, Node] = {}
        allowed = []
        for place in places:
            one = self.group[place]
            intake = one.shaped.intake
            node = self.nodes.get(intake.node.id) or fresh.get(intake.node.id)
            contract = self.contracts.find(self.connection, intake.contract_number)
            refused = refusal(one.principal, node, intake.node.id, contract) or too_old(intake, self.now)
            token = None if refused else self._token(one, intake.node.id, intake.contract_number)
            if isinstance(token, Refusal):
                refused = token
            elif token is not None:
                given[place] = token
            if refused is not None:
                self.answers[place] = refused
                continue
            allowed.append(place)
            if node is None:
                number = self.contracts.ensure(self.connection, intake.contract_number)
                fresh[intake.node.id] = Node(
                    intake.node.id, 0, number, simulated=one.shaped.simulated, first_seen=one.received
                )
                fresh[intake.node.id].describe(intake.node)
        insert_nodes(self.rows, list(fresh.values()))
        self.nodes.update(fresh)
        return [place for place in allowed if not self._hold_early(place, given.get(place))]

    def _load(self, uuids: set[str]) -> None:
        unknown = uuids - self.nodes.keys()
        self.nodes.update((uuid, self.known[uuid]) for uuid in unknown & self.known.keys())
        unknown -= self.known.keys()
        if unknown:
            self.nodes.update(load_nodes(self.rows, unknown))

    def _token(self, one: Submission, uuid: str, number: str) -> str | Refusal | None:
        if one.early is not None:
            return None
        return self.tokens.settle(self.connection, one.principal, uuid, number, self.now)

    def _hold_early(self, place: int, token: str | None) -> bool:
        """Whether the report is from the future; it is answered then."""
        one = self.group[place]
        if one.body is None:
            return False
        intake = one.shaped.intake
        node = self.nodes[intake.node.id]
        held = early.hold(self.connection, node.agent, intake, one.body, one.received)
        if isinstance(held, Refusal):
            self.answers[place] = held
            return True
        aside = [SetAside(None, "aggregation_time", early.EARLY_REASON)]
        outcome = "stored" if held is Conclusion.NEW else "repeated"
        self.answers[place] = _answer(one.shaped, outcome, intake.revision, aside, token)
        self._note(one, node, is_held=False)
        return True

    def _load_gpus(self, places: Iterable[int]) -> None:
        nodes = {one.agent: one for place in places if not (one := self._node_of(place)).has_gpus}
        load_gpus(self.rows, nodes.values())

    def _node_of(self, place: int) -> Node:
        return self.nodes[self.group[place].shaped.intake.node.id]

    # --- what it is ---------------------------------------------------------------------------------------

    def _judge(self, places: Sequence[int]) -> list[tuple[int, Judged | Refusal]]:
        """The conclusion on each report."""
        ranges = []
        for place in places:
            intake = self.group[place].shaped.intake
            node = self.nodes[intake.node.id]
            ranges.append((node.agent, *reach(intake, node.longest_seconds or 0)))
        held: dict[int, list[Receipt]] = {}
        read, self.receipts = self.receipts, None
        if read is None:
            read = self.rows.receipts_in(ranges) if ranges else []
        for row in read:
            agent, hour, contract, seconds, revision, digest, quarantined, simulated = row
            receipt = Receipt(
                agent, hour, contract, seconds, revision, bytes(digest), quarantined, bool(simulated)
            )
            held.setdefault(agent, []).append(receipt)
        found = []
        for place in places:
            intake = self.group[place].shaped.intake
            mine = held.get(self.nodes[intake.node.id].agent, ())
            judged = judge(intake, mine)
            if isinstance(judged, Judged) and judged.conclusion is Conclusion.SUPERSEDED:
                assert judged.receipt is not None
                older = digest_of_superseded(self.connection, judged.receipt, intake.revision)
                judged = judge(intake, mine, older)
                if older is None:
                    remember_superseded(
                        self.connection, judged_receipt(judged), intake.revision, intake.body_digest, self.now
                    )
            found.append((place, judged))
        return found

    def _conclude(
        self, place: int, one: Submission, node: Node, judged: Judged, batch: Batch, token: str | None
    ) -> None:
        """Answer, and put what is to be written into the batch."""
        shaped, receipt = one.shaped, judged.receipt
        revision = shaped.intake.revision
        is_held = judged.is_held
        if is_held:
            if receipt is not None:
                strange = refuse_stranger(self.connection, receipt, [gpu.uid for gpu in shaped.gpus])
                if strange is not None:
                    self.answers[place] = strange
                    return
            lacking = find_room(node, [(gpu.uid, gpu.source) for gpu in shaped.gpus])
            if lacking:
                shaped = without(shaped, lacking, _NO_ROOM)
            if lacking and not shaped.gpus:
                self.answers[place] = _TOO_MANY
                return
        self._note(one, node, is_held=is_held)
        if not is_held:
            assert receipt is not None
            aside = self._set_aside(receipt) if judged.conclusion is Conclusion.REPEATED else []
            outcome = judged.conclusion.value
            self.answers[place] = _answer(shaped, outcome, receipt.revision, aside, token)
            return
        accepted = Accepted(shaped, node, node.contract, one.received)
        if receipt is not None:
            accepted.replaced = receipt
            accepted.dropped = take_off(self.connection, receipt, self.now, batch.fleet)
        batch.reports.append(accepted)
        aside = [SetAside(wrong.uid, wrong.field, wrong.reason) for wrong in shaped.wrong]
        self.answers[place] = _answer(shaped, "stored", revision, aside, token)

    def _note(self, one: Submission, node: Node, *, is_held: bool) -> None:
        contract = self.contracts.ensure(self.connection, one.shaped.intake.contract_number)
        if one.early is None:
            node.last_report, node.contract = one.received, contract
            if one.skew is not None:
                node.skew_seconds, node.skew_measured = one.skew, one.received
        if is_held:
            node.note(one.shaped)
        self.changed[node.uuid] = node

    def _set_aside(self, receipt: Receipt) -> list[SetAside]:
        if not receipt.quarantined:
            return []
        found = self.connection.execute(
            select(quarantine.c.uid, quarantine.c.field, quarantine.c.reason)
            .where(
                quarantine.c.agent == receipt.agent,
                quarantine.c.hour == receipt.hour,
                quarantine.c.revision == receipt.revision,
                quarantine.c.kind == "entry",
            )
            .order_by(quarantine.c.id)
        )
        return [SetAside(*row) for row in found]

    def _settle_early(self, one: Submission) -> None:
        assert one.early is not None
        self.rows.send()
        answer = self.answers[next(place for place, other in enumerate(self.group) if other is one)]
        if isinstance(answer, Refusal):
            early.keep_for_good(self.connection, one.early, answer.reason)
        else:
            early.release(self.connection, one.early)


def judged_receipt(judged: Judged | Refusal) -> Receipt:
    """The receipt a conclusion is drawn from."""
    assert isinstance(judged, Judged)
    assert judged.receipt is not None
    return judged.receipt


def _answer(
    shaped: Shaped, outcome: str, revision: int, aside: Sequence[SetAside], token: str | None
) -> Answer:
    intake = shaped.intake
    return Answer(intake.report_id, intake.body_digest.hex(), outcome, revision, aside, token)
