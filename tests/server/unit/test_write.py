"""A group of reports as rows, on both databases: every number worked out by hand from what the report says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Table, delete, func, select

from gpu_monitor.core.catalogue import SAMPLED, Kind
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.tokens import Grant, TokenBook, create_token
from gpu_monitor.server.store import roster, schema
from gpu_monitor.server.store.check import check
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.forget import find_node, forget_node
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.retention import prune
from gpu_monitor.server.store.rows import rows_of
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.server.store.span import Span
from gpu_monitor.server.store.usage import By, Usage, idle_gpus, usage
from gpu_monitor.server.store.write import Answer, GroupRecorder, Submission, Written
from gpu_monitor.server.store.write_live import LiveBatch, shape_live
from gpu_monitor.wire.intake import Malformed, read_report
from gpu_monitor.wire.live_intake import read_live
from tests.fakes.clock import FakeClock
from tests.server.posts import CONTRACT, HOUR, NODE, OTHER, encode, iso, make_entry, make_report

NOW = HOUR * 3600 + 7200.0
LOCAL = Principal("local", "the local token", frozenset(("report:write",)))


class Desk:
    """Writes groups as the writer's thread does, and looks at what is held."""

    def __init__(self, store: Store) -> None:
        self.store, self.recorder, self.shaper = store, GroupRecorder(), Shaper()
        self.now = NOW

    def submit(
        self, report: dict[str, Any], principal: Principal = LOCAL, *, is_early: bool = False
    ) -> Submission:
        body = encode(report)
        shaped = self.shaper.shape(read_report(body))
        return Submission(shaped, principal, NOW, body=body if is_early else None)

    def write(self, *group: Submission) -> Written:
        hours = {one.shaped.intake.hour for one in group}
        self.store.make_room(hours, now=NOW)
        with self.store.write() as connection:
            self.store.lock_sequence(connection)
            written = self.recorder.write_group(connection, group, self.now)
        self.recorder.keep()
        return written

    def take(self, *reports: dict[str, Any]) -> list[Answer | Refusal]:
        return self.write(*map(self.submit, reports)).answers

    def rows(self, table: Table, *columns: str) -> list[tuple[Any, ...]]:
        wanted = [table.c[name] for name in columns] or list(table.c)
        with self.store.read() as connection:
            return [tuple(row) for row in connection.execute(select(*wanted).order_by(*wanted))]

    def count(self, table: Table) -> int:
        with self.store.read() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    def everything(self) -> dict[str, Any]:
        """All that reports leave behind but when they came and what the changes' numbers are."""
        hidden = {"id", "received", "seq", "time_", "last_report", "first_seen", "digest"}
        return {
            table.name: self.rows(table, *(c.name for c in table.c if c.name not in hidden))
            for table in (
                schema.nodes, schema.gpus, schema.receipts, schema.aggregates, schema.host_hours, schema.gaps,
                schema.events, schema.processes, schema.latest, schema.fleet_hours, schema.quarantine,
            )
        }  # fmt: skip


@pytest.fixture
def desk(store: Store) -> Iterator[Desk]:
    made = Desk(store)
    yield made
    found = check(store.read, FakeClock(made.now))
    assert (found.count, found.differences) == (0, [])


def outcomes(answers: list[Answer | Refusal]) -> list[str | int]:
    return [one.outcome if isinstance(one, Answer) else one.status for one in answers]


def test_values_are_scaled_whole_numbers_with_their_distances(desk: Desk) -> None:
    desk.take(make_report(gpus=1))
    found = desk.rows(
        schema.aggregates,
        "hour", "gpu", "samples", "coverage", "seconds", "idle_seconds", "temperature", "temperature_lo",
        "temperature_hi", "memory_used", "memory_used_lo", "power_usage", "power_usage_lo", "power_usage_hi",
        "gpu_utilization", "energy", "throttle_reasons", "fan_speed", "memory_clock", "extra",
    )  # fmt: skip
    # 50.5 °C from 41 to 62.5; 300.25 W from 70.5 to 698; sw_power_cap is bit 0x4.
    assert found == [
        (HOUR, 0, 60, 10000, 36000, 6000, 505, 95, 120, 1073741824, 1073741824, 30025, 22975, 39775, 600, 10809000,
         4, None, None, None)
    ]  # fmt: skip


def test_fleet_hours_are_sums_of_what_each_gpu_has(desk: Desk) -> None:
    idle = make_entry(2, gpu_utilization=None, gpu_utilization_min=None, gpu_utilization_max=None, energy=None,
                      seconds=1800.0, power_usage=100)  # fmt: skip
    made_up = make_entry(3, uid="SIM-1", source="simulated")
    desk.take(make_report(gpus=[make_entry(1), idle, made_up]))
    names = ("simulated", "reports", "gpus", "seconds", "period_seconds", "energy", "energy_rows",
             "gpu_utilization_sum", "gpu_utilization_seconds", "power_usage_sum", "memory_used_sum")  # fmt: skip
    sums = [row for row in desk.rows(schema.fleet_hours, "contract", *names) if row[0] != schema.EVERYONE]
    assert [row[1:] for row in sums] == [
        # The real two: 3600 s + 1800 s; 600 * 36000; 30025 * 36000 + 10000 * 18000; 1024 MiB * 54000.
        (False, 0, 2, 54000, 7200, 10809000, 1, 21600000, 36000, 1260900000, 55296000),
        # The report counts once, as one of a node with simulated GPUs.
        (True, 1, 1, 36000, 3600, 10809000, 1, 21600000, 36000, 1080900000, 36864000),
    ]
    everyone = [row for row in desk.rows(schema.fleet_hours, "contract", *names) if row[0] == schema.EVERYONE]
    assert [row[1:] for row in everyone] == [row[1:] for row in sums]  # there is one contract


def test_an_instance_is_counted_with_its_gpu_and_taken_off_with_it(desk: Desk) -> None:
    part = make_entry(2, uid="MIG-1", parent_uid="GPU-1")
    lost = make_entry(3, uid="MIG-2", parent_uid="GPU-9")  # its GPU told nothing: it stands for itself
    names = ("contract", "gpus", "power_usage_sum")
    desk.take(make_report(revision=1, gpus=[make_entry(1), part, lost]))
    assert {row[1:] for row in desk.rows(schema.fleet_hours, *names)} == {(2, 2 * 30025 * 36000)}
    desk.take(make_report(revision=2, gpus=[make_entry(1), part]))
    assert {row[1:] for row in desk.rows(schema.fleet_hours, *names)} == {(1, 30025 * 36000)}


def test_latest_holds_the_newest_period_of_each_gpu_whatever_the_order(desk: Desk) -> None:
    newer = make_report(hour=HOUR + 1, gpus=[make_entry(1, power_usage=200)])
    assert outcomes(desk.take(newer, make_report(gpus=2))) == ["stored", "stored"]
    assert desk.rows(schema.latest, "gpu", "time", "live", "status", "power_usage") == [
        (0, float((HOUR + 2) * 3600), False, "ok", 20000),
        (1, float((HOUR + 1) * 3600), False, "ok", 30025),
    ]
    assert desk.rows(schema.nodes, "last_hour") == [(HOUR + 1,)]


def test_a_gap_that_goes_on_is_the_status(desk: Desk) -> None:
    desk.take(make_report(gpus=2))
    end = (HOUR + 2) * 3600
    gap = {
        "uid": "GPU-2",
        "start": iso(end - 600),
        "end": iso(end),
        "seconds": 600,
        "cause": "gpu lost",
        "detail": None,
    }
    desk.take(make_report(hour=HOUR + 1, gpus=1, gaps=[gap]))
    assert desk.rows(schema.latest, "gpu", "status") == [(0, "ok"), (1, "gpu lost")]
    assert desk.rows(schema.gaps, "hour", "uid", "start", "stop", "cause") == [
        (HOUR + 1, "GPU-2", float(end - 600), float(end), "gpu lost")
    ]


def test_a_repeat_changes_nothing_also_within_one_group(desk: Desk) -> None:
    report = make_report()
    assert outcomes(desk.take(report, report)) == ["stored", "repeated"]
    held, changes = desk.everything(), desk.count(schema.changes)
    assert outcomes(desk.take(report)) == ["repeated"]
    assert (desk.everything(), desk.count(schema.changes)) == (held, changes)


def test_a_better_revision_leaves_what_it_alone_would_have_left(desk: Desk) -> None:
    """Sums, newest rows and all: as if the first had never come."""
    end = (HOUR + 1) * 3600
    gap = {
        "uid": None,
        "start": iso(end - 60),
        "end": iso(end - 1),
        "seconds": 59,
        "cause": "agent down",
        "detail": None,
    }
    event = {
        "time": iso(end - 5),
        "uid": "GPU-1",
        "kind": "xid",
        "severity": "error",
        "message": "Xid 79",
        "detail": {"xid": 79},
    }
    process = {"uid": "GPU-1", "pid": 7, "kind": "compute", "first_seen": iso(end - 100), "last_seen": iso(end),
               "ended": False}  # fmt: skip
    before = make_report(hour=HOUR - 1, gpus=3)
    first = make_report(gpus=3, gaps=[gap], events=[event], processes=[process])
    better = make_report(revision=2, gpus=[make_entry(1, power_usage=1), make_entry(2, energy=None)])
    desk.take(before, better)
    wanted = desk.everything()
    with desk.store.write() as connection:
        for table in (schema.receipts, schema.aggregates, schema.host_hours, schema.latest, schema.fleet_hours,
                      schema.gpus, schema.changes):  # fmt: skip
            connection.execute(table.delete())
    desk.recorder = GroupRecorder()
    assert outcomes(desk.take(before, first)) == ["stored", "stored"]
    assert (desk.count(schema.gaps), desk.count(schema.events), desk.count(schema.processes)) == (1, 1, 1)
    assert outcomes(desk.take(better)) == ["stored"]
    found = desk.everything()
    # That the third GPU was seen an hour longer is known for good.
    gpus, _ = found.pop("gpus"), wanted.pop("gpus")
    assert found == wanted
    assert [row[-1] for row in gpus] == [HOUR, HOUR, HOUR]
    assert desk.rows(schema.revisions, "hour", "revision", "outcome") == [(HOUR, 1, "replaced")]


def test_revisions_in_one_group_keep_their_order(desk: Desk) -> None:
    reports = [make_report(revision=number, gpus=number) for number in (1, 2, 3)]
    assert outcomes(desk.take(*reports)) == ["stored", "stored", "stored"]
    assert desk.rows(schema.receipts, "revision", "rows") == [(3, 3)]
    assert desk.rows(schema.fleet_hours, "reports", "gpus") == [(1, 3)] * 2  # the contract's, everyone's


def test_a_worse_revision_is_superseded_and_known_again(desk: Desk) -> None:
    low, high = make_report(revision=1), make_report(revision=3)
    answers = desk.take(high, low, low)
    assert outcomes(answers) == ["stored", "superseded", "superseded"]
    assert [one.revision for one in answers] == [3, 3, 3]
    other = make_report(revision=1, gpus=1)
    assert outcomes(desk.take(other)) == [409]
    assert desk.rows(schema.revisions, "revision", "outcome") == [(1, "superseded")]


def test_the_same_id_with_another_body_is_a_conflict_that_changes_nothing(desk: Desk) -> None:
    desk.take(make_report())
    held = desk.everything()
    (answer,) = desk.take(make_report(gpus=1))
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.revision) == (409, 1)
    assert desk.everything() == held


@pytest.mark.parametrize(
    ("held", "given"),
    [
        ((HOUR, 2), (HOUR, 1)),
        ((HOUR, 2), (HOUR + 1, 1)),
        ((HOUR + 1, 1), (HOUR, 2)),
        ((HOUR, 1), (HOUR, 2)),
        ((HOUR - 22, 24), (HOUR, 1)),
        ((HOUR, 1), (HOUR - 22, 24)),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_periods_never_overlap(
    desk: Desk, held: tuple[int, int], given: tuple[int, int], together: bool
) -> None:
    # HOUR is 22:00, so two hours and a day fit here.
    first, second = (make_report(hour=hour, hours=hours) for hour, hours in (held, given))
    answers = desk.take(first, second) if together else desk.take(first) + desk.take(second)
    assert outcomes(answers) == ["stored", 422]
    assert isinstance(answers[1], Refusal)
    assert answers[1].field == "period_seconds"
    assert desk.count(schema.receipts) == 1


def test_periods_may_touch(desk: Desk) -> None:
    answers = desk.take(make_report(hours=2), make_report(hour=HOUR - 1), make_report(hour=HOUR + 2))
    assert outcomes(answers) == ["stored"] * 3


def test_one_wrong_gpu_is_set_aside_and_the_others_stand(desk: Desk) -> None:
    wrong = make_entry(2, power_usage=-1)
    report = make_report(gpus=[make_entry(1), wrong, make_entry(1)])
    (answer,) = desk.take(report)
    assert isinstance(answer, Answer)
    assert [(one.uid, one.field) for one in answer.quarantined] == [
        ("GPU-2", "power_usage"),
        ("GPU-1", "uid"),
    ]
    assert desk.rows(schema.receipts, "rows", "quarantined") == [(1, 2)]
    raw = desk.rows(schema.quarantine, "uid", "raw")
    assert b'"power_usage":-1' in bytes(raw[1][1])
    (again,) = desk.take(report)
    assert isinstance(again, Answer)
    assert again.quarantined == answer.quarantined
    desk.take(make_report(revision=2))
    assert desk.count(schema.quarantine) == 0


def test_what_is_unknown_is_kept(desk: Desk) -> None:
    entry = make_entry(1, hotspot=[1, {"a": None}], throttle_reasons=["gpu_idle", "new_reason"])
    desk.take(make_report(gpus=[entry], site="Graz"))
    assert desk.rows(schema.receipts, "extra") == [('{"site":"Graz"}',)]
    assert desk.rows(schema.aggregates, "throttle_reasons", "extra") == [
        (1, '{"hotspot":[1,{"a":null}],"throttle_reasons":["new_reason"]}')
    ]


def test_names_come_without_controls_and_with_an_end(desk: Desk) -> None:
    report = make_report(gpus=[make_entry(1, name="A\u0000B\u001b[2J")])
    report["node"]["hostname"] = "h" * 1000
    desk.take(report)
    assert desk.rows(schema.gpus, "name") == [("A B [2J",)]
    assert [len(row[0]) for row in desk.rows(schema.nodes, "hostname")] == [256]


def test_facts_are_stored_once(desk: Desk) -> None:
    desk.take(make_report(gpus=2), make_report(hour=HOUR + 1, gpus=2), make_report(OTHER, gpus=2))
    # Two identities, one state that all share.
    assert desk.count(schema.facts) == 3


def test_a_group_that_was_rolled_back_leaves_no_number_behind(desk: Desk) -> None:
    desk.store.make_room([HOUR], now=NOW)
    with pytest.raises(RuntimeError), desk.store.write() as connection:
        desk.recorder.write_group(connection, [desk.submit(make_report())], NOW)
        raise RuntimeError
    desk.recorder.undo()
    assert outcomes(desk.take(make_report())) == ["stored"]


def test_changes_count_on_in_the_order_of_commits(desk: Desk) -> None:
    first = desk.write(desk.submit(make_report()), desk.submit(make_report(OTHER))).committed
    second = desk.write(desk.submit(make_report(hour=HOUR + 1, gpus=1))).committed
    assert first is not None
    assert second is not None
    start = int(NOW * 1000)
    assert (first.seq_from, first.seq_to) == (start + 1, start + 2)
    assert (second.seq_from, second.seq_to) == (start + 3, start + 3)
    assert [(one.kind, one.hour, one.gpus) for one in second.touched] == [("report", HOUR + 1, (0,))]
    assert [row[0] for row in desk.rows(schema.changes, "seq", "kind")] == [start + 1, start + 2, start + 3]


# --- who may ---------------------------------------------------------------------------------------------


def principal_of(desk: Desk, **grant: Any) -> Principal:
    with desk.store.write() as connection:
        made = create_token(connection, Grant(frozenset(("report:write",)), **grant), NOW)
    return find(desk, made.secret)


def find(desk: Desk, secret: str) -> Principal:
    found = TokenBook(desk.store, FakeClock(NOW)).find(secret)
    assert found is not None
    return found


def only(written: Written) -> Answer | Refusal:
    (answer,) = written.answers
    return answer


def test_a_token_writes_its_own_contract_only(desk: Desk) -> None:
    mine = principal_of(desk, contract=CONTRACT)
    other = make_report(contract="777")
    assert outcomes(desk.write(desk.submit(other, mine)).answers) == [403]
    assert outcomes(desk.write(desk.submit(make_report(), mine)).answers) == ["stored"]
    foreign = principal_of(desk, contract="777")
    moved = make_report(hour=HOUR + 1, contract="777")
    assert outcomes(desk.write(desk.submit(moved, foreign)).answers) == [403]
    assert desk.count(schema.nodes) == 1


def test_a_node_token_writes_its_own_node_only(desk: Desk) -> None:
    mine = principal_of(desk, contract=CONTRACT, node=NODE)
    assert outcomes(desk.write(desk.submit(make_report(), mine)).answers) == ["stored"]
    assert outcomes(desk.write(desk.submit(make_report(OTHER), mine)).answers) == [403]


def test_a_new_node_learns_its_token_and_then_needs_it(desk: Desk) -> None:
    enrol = principal_of(desk, contract=CONTRACT, enrol=True)
    first = only(desk.write(desk.submit(make_report(), enrol)))
    assert isinstance(first, Answer)
    assert first.node_token is not None
    # The answer was lost: asked again, there is another one, and both are good until one is used.
    again = only(desk.write(desk.submit(make_report(), enrol)))
    assert isinstance(again, Answer)
    assert again.outcome == "repeated"
    assert again.node_token not in (None, first.node_token)
    assert again.node_token is not None
    old, new = find(desk, first.node_token), find(desk, again.node_token)
    assert (old.node, new.node) == (NODE, NODE)
    used = only(desk.write(desk.submit(make_report(hour=HOUR + 1), old)))
    assert isinstance(used, Answer)
    assert used.node_token is None
    assert TokenBook(desk.store, FakeClock(NOW)).find(again.node_token) is None
    assert outcomes(desk.write(desk.submit(make_report(hour=HOUR + 2), enrol)).answers) == [403]
    assert outcomes(desk.write(desk.submit(make_report(hour=HOUR + 2), old)).answers) == ["stored"]


def test_an_agent_that_never_learns_is_not_given_tokens_without_end(desk: Desk) -> None:
    enrol = principal_of(desk, contract=CONTRACT, enrol=True)
    for number in range(12):
        assert outcomes(desk.write(desk.submit(make_report(hour=HOUR + number), enrol)).answers) == ["stored"]
    alive = [row for row in desk.rows(schema.tokens, "node", "revoked") if row == (NODE, None)]
    assert len(alive) == 8


# --- older than anything that is kept ------------------------------------------------------------------------


def test_a_period_that_begins_before_what_is_kept_is_refused(desk: Desk) -> None:
    oldest = HOUR + 2 - 366 * 24  # NOW is two hours after HOUR, and a year is kept
    answers = desk.take(
        make_report(hour=oldest - 1), make_report(hour=oldest), make_report(OTHER, oldest - 2, hours=2)
    )
    assert outcomes(answers) == [422, "stored", 422]
    refused = answers[0]
    assert isinstance(refused, Refusal)
    assert refused.field == "aggregation_time"
    assert iso(oldest * 3600) in refused.reason
    assert desk.rows(schema.nodes, "uuid") == [(NODE,)]
    assert desk.rows(schema.receipts, "hour") == [(oldest,)]


def test_a_report_that_was_pruned_is_not_counted_a_second_time(desk: Desk) -> None:
    oldest = HOUR + 2 - 366 * 24
    report = make_report(hour=oldest)
    assert outcomes(desk.take(report)) == ["stored"]
    before = desk.rows(schema.fleet_hours)
    desk.now = NOW + 3600
    prune(desk.store, desk.now, threading.Event())
    assert desk.count(schema.receipts) == 0
    assert outcomes(desk.take(report)) == [422]
    assert desk.rows(schema.fleet_hours) == before


# --- from the future ---------------------------------------------------------------------------------------


def test_an_early_report_waits_whole_and_is_known_again(desk: Desk) -> None:
    early = make_report(hour=HOUR + 50)
    answer = only(desk.write(desk.submit(early, is_early=True)))
    assert isinstance(answer, Answer)
    assert (answer.outcome, answer.quarantined[0].field) == ("stored", "aggregation_time")
    assert outcomes(desk.write(desk.submit(early, is_early=True)).answers) == ["repeated"]
    other = make_report(hour=HOUR + 50, gpus=1)
    assert outcomes(desk.write(desk.submit(other, is_early=True)).answers) == [409]
    assert desk.count(schema.receipts) == 0
    # It is due ten minutes before its period ends.
    due = float((HOUR + 51) * 3600 - 600)
    assert desk.rows(schema.quarantine, "kind", "hour", "due") == [("early", HOUR + 50, due)]
    assert [bytes(row[0]) for row in desk.rows(schema.quarantine, "raw")] == [encode(early)]


# --- more GPUs than a node can have --------------------------------------------------------------------------


def test_gpus_that_a_node_has_no_room_for_are_set_aside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "NODE_GPUS", 3)
    answers = desk.take(make_report(gpus=2), make_report(hour=HOUR + 1, gpus=5), make_report(OTHER, gpus=3))
    assert outcomes(answers) == ["stored"] * 3
    second = answers[1]
    assert isinstance(second, Answer)
    assert [(one.uid, one.field) for one in second.quarantined] == [("GPU-4", "uid"), ("GPU-5", "uid")]
    assert desk.rows(schema.receipts, "hour", "rows", "quarantined") == [
        (HOUR, 2, 0), (HOUR, 3, 0), (HOUR + 1, 3, 2),
    ]  # fmt: skip
    assert len(desk.rows(schema.gpus, "uid")) == 6
    # Those it has go on; a report of nothing but others is refused, also by another process that read the node.
    desk.recorder = GroupRecorder()
    unknown = [make_entry(number) for number in (7, 8)]
    again = desk.take(make_report(hour=HOUR + 2, gpus=3), make_report(hour=HOUR + 3, gpus=unknown))
    assert outcomes(again) == ["stored", 422]
    assert len(desk.rows(schema.gpus, "uid")) == 6


def live_of(*uids: str) -> LiveBatch:
    message = {
        "schema": 1, "sent": iso(NOW), "node": {"id": NODE}, "contract_number": CONTRACT,
        "collection_interval_seconds": 60, "gpus": [{"uid": uid, "source": "nvml", "status": "ok"} for uid in uids],
        "samples": [], "readings": [],
    }  # fmt: skip
    return shape_live(Shaper(), read_live(encode(message)), LOCAL, NOW)


def test_live_messages_do_not_add_gpus_without_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "NODE_GPUS", 3)
    with desk.store.write() as connection:
        desk.store.lock_sequence(connection)
        written = desk.recorder.write_group(
            connection, [], NOW, [live_of("A", "B"), live_of("C", "D"), live_of("A", "C"), live_of("D")]
        )
    desk.recorder.keep()
    assert [one.status if one else None for one in written.live] == [None, 422, None, 422]
    assert [row[0] for row in desk.rows(schema.gpus, "uid")] == ["A", "B", "C"]


def test_a_number_that_its_column_does_not_hold_is_refused(desk: Desk) -> None:
    """SQLite's columns hold any; the binary COPY would keep the lower 16 bits."""
    columns = ("agent", "hour", "contract", "period_seconds", "revision")
    row = (1, HOUR, 1, 3600, 2**31)
    if desk.store.dialect == "sqlite":
        pytest.skip("SQLite's integers have 64 bits")
    with pytest.raises(StorageError, match=r"receipts\.revision"), desk.store.write() as connection:
        rows_of(connection).insert(schema.receipts, columns, [row])


def test_what_is_bounded_when_it_is_read_fits_its_column() -> None:
    """COPY trusts that: the bounds of an entry's fields, scaled, beside the width of the column."""
    widths = {"SMALLINT": 2**15, "INTEGER": 2**31, "BIGINT": 2**63}
    for metric in SAMPLED:
        if metric.kind is Kind.FLAGS:
            continue
        low, high = metric.low, min(metric.high, 2.0**53)
        reach = max(abs(low), abs(high), high - low) * schema.scale_of(metric)
        assert reach < widths[str(schema.aggregates.c[metric.name].type)], metric.name
        if schema.has_extremes(metric):
            assert high - low < widths[str(schema.aggregates.c[f"{metric.name}_hi"].type)] / schema.scale_of(
                metric
            )
            assert high - low < widths[str(schema.aggregates.c[f"{metric.name}_lo"].type)] / schema.scale_of(
                metric
            )


def test_texts_arrive_as_they_are(desk: Desk) -> None:
    texts = ['a"b', "c\\d", "{e,f}", "NULL", "", "' ; --", "ü 漢 🙂", "\\N", '\\"']
    for number, text in enumerate(texts):
        report = make_report(f"00000000-0000-4000-8000-{number:012d}", gpus=1)
        report["node"]["hostname"] = text
        assert outcomes(desk.take(report)) == ["stored"]
    assert [name for _, name in desk.rows(schema.nodes, "id", "hostname")] == texts


def test_two_processes_write_the_same_nodes(desk: Desk) -> None:
    """Each knows the GPUs that the other one added, and what a transaction added that was rolled back it does not."""
    if desk.store.dialect == "sqlite":
        pytest.skip("one process writes a SQLite file")
    other = Desk(desk.store)

    def named(*uids: str) -> list[dict[str, Any]]:
        return [make_entry(number, uid=uid) for number, uid in enumerate(uids, 1)]

    for number, (one, uids) in enumerate(
        [(desk, "AB"), (desk, "AB"), (other, "BC"), (desk, "CDA"), (desk, "DE"), (other, "EFA"), (other, "A")]
    ):
        report = make_report(hour=HOUR - 20 + number, gpus=named(*uids))
        assert outcomes(one.take(report)) == ["stored"]
    lost = make_report(hour=HOUR - 5, gpus=named("G", "H"))
    for one in (desk, other):
        with pytest.raises(KeyError), desk.store.write() as connection:
            one.recorder.write_group(connection, [one.submit(lost)], NOW)
            raise KeyError
        one.recorder.undo()
    assert outcomes(other.take(make_report(hour=HOUR - 4, gpus=named("H", "A")))) == ["stored"]
    assert outcomes(desk.take(make_report(hour=HOUR - 3, gpus=named("G", "H", "I")))) == ["stored"]
    assert desk.rows(schema.gpus, "ordinal", "uid", "last_hour") == [
        (0, "A", HOUR - 4), (1, "B", HOUR - 18), (2, "C", HOUR - 17), (3, "D", HOUR - 16), (4, "E", HOUR - 15),
        (5, "F", HOUR - 15), (6, "H", HOUR - 3), (7, "G", HOUR - 3), (8, "I", HOUR - 3),
    ]  # fmt: skip


def test_a_node_that_was_forgotten_begins_anew_in_every_process(desk: Desk) -> None:
    if desk.store.dialect == "sqlite":
        pytest.skip("it is forgotten beside a running server only on PostgreSQL")
    other = Desk(desk.store)
    for uid in "AB":
        desk.take(make_report(hour=HOUR - 9 + ord(uid) - 65, gpus=[make_entry(1, uid=uid)]))
    with desk.store.read() as connection:
        known = find_node(connection, NODE)
    forget_node(desk.store, known, NOW, "ann", lambda *_: None)
    for number, (one, uid) in enumerate([(other, "B"), (desk, "C"), (other, "A")]):
        report = make_report(hour=HOUR - 5 + number, gpus=[make_entry(1, uid=uid)])
        assert outcomes(one.take(report)) == ["stored"]
    assert desk.rows(schema.gpus, "ordinal", "uid") == [(0, "B"), (1, "C"), (2, "A")]
    assert len(desk.rows(schema.nodes)) == 1


def test_changes_that_are_no_more_are_not_relied_on(desk: Desk) -> None:
    """After a quiet hour the changes are gone, and with them what others wrote."""
    other = Desk(desk.store) if desk.store.dialect == "postgresql" else desk
    desk.take(make_report(gpus=[make_entry(1, uid="A")]))
    other.take(make_report(hour=HOUR - 1, gpus=[make_entry(1, uid="B")]))
    with desk.store.write() as connection:
        connection.execute(delete(schema.changes))
    desk.take(make_report(hour=HOUR - 2, gpus=[make_entry(1, uid="C"), make_entry(2, uid="B")]))
    assert desk.rows(schema.gpus, "ordinal", "uid") == [(0, "A"), (1, "B"), (2, "C")]


# --- what cannot be true -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("seconds", {"seconds": 3640.0}),
        ("coverage", {"coverage": 0.9}),
        ("coverage", {"seconds": 1800.0, "coverage": 1.0}),
        ("idle_seconds", {"seconds": 500.0}),
        ("held_idle_seconds", {"held_idle_seconds": 600.2}),
        ("energy_seconds", {"energy_seconds": 3600.2}),
        ("temperature_min", {"temperature_min": 50.7}),
        ("power_usage_max", {"power_usage_max": 300.23}),
        ("memory_used_min", {"memory_used_min": 1073741826}),
    ],
)
def test_figures_that_contradict_each_other_are_set_aside(
    desk: Desk, field: str, changed: dict[str, Any]
) -> None:
    (answer,) = desk.take(make_report(gpus=[make_entry(1), make_entry(2, **changed)]))
    assert isinstance(answer, Answer)
    assert [(one.uid, one.field) for one in answer.quarantined] == [("GPU-2", field)]


@pytest.mark.parametrize(
    "changed",
    [
        {"seconds": 3610.0},  # clocks: coverage stays 1
        {"seconds": 61.3, "idle_seconds": 61.3, "held_idle_seconds": 61.4, "coverage": 0.017},
        {"temperature_min": 50.6, "temperature_max": 50.4},
        {"coverage": None, "seconds": None},
    ],
)
def test_rounding_contradicts_nothing(desk: Desk, changed: dict[str, Any]) -> None:
    (answer,) = desk.take(make_report(gpus=[make_entry(1, **changed)]))
    assert isinstance(answer, Answer)
    assert not answer.quarantined


START, STOP = HOUR * 3600, HOUR * 3600 + 3600


def gap_of(start: float, end: float) -> dict[str, Any]:
    return {"uid": None, "start": iso(start), "end": iso(end), "seconds": end - start, "cause": "agent down"}


def event_of(time: float) -> dict[str, Any]:
    return {"time": iso(time), "kind": "xid", "severity": "error", "message": "Xid 79"}


def process_of(first: float, last: float) -> dict[str, Any]:
    return {"uid": "GPU-1", "pid": 7, "kind": "compute", "first_seen": iso(first), "last_seen": iso(last),
            "ended": True}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("gaps[0].start", {"gaps": [gap_of(START - 2, STOP)]}),
        ("gaps[1].end", {"gaps": [gap_of(START, STOP), gap_of(START, STOP + 2)]}),
        ("events[0].time", {"events": [event_of(STOP + 2)]}),
        ("events[0].time", {"events": [event_of(START - 2)]}),
        ("processes[0].last_seen", {"processes": [process_of(START, STOP + 2)]}),
        ("processes[0].last_seen", {"processes": [process_of(START - 9, START - 2)]}),
        ("processes[0].first_seen", {"processes": [process_of(START + 9, START + 2)]}),
    ],
)
def test_times_outside_the_period_are_refused(desk: Desk, field: str, given: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as told:
        desk.submit(make_report(**given))
    assert told.value.field == field


def test_rows_of_a_report_go_with_it(desk: Desk) -> None:
    """A day's report whose rows lie at its very ends: nothing of it goes before its hour is past its age."""
    day = HOUR - 22
    start, stop = day * 3600, day * 3600 + 86_400
    report = make_report(hour=day, hours=24, gaps=[gap_of(start, start + 60), gap_of(stop - 60, stop)],
                         events=[event_of(start), event_of(stop - 1)],
                         processes=[process_of(start - 400 * 86_400, start + 1), process_of(start, stop)])  # fmt: skip
    assert outcomes(desk.take(report)) == ["stored"]
    tables = (schema.receipts, schema.gaps, schema.events, schema.processes)
    desk.now = start + 366 * 86_400
    prune(desk.store, desk.now, threading.Event())
    assert [desk.count(table) for table in tables] == [1, 2, 2, 2]
    desk.now += 1
    prune(desk.store, desk.now, threading.Event())
    assert [desk.count(table) for table in tables] == [0, 0, 0, 0]


# --- two machines under one id -------------------------------------------------------------------------------


def test_a_revision_without_a_common_gpu_is_another_machines(desk: Desk) -> None:
    desk.take(make_report(gpus=[make_entry(1), make_entry(2)]))
    held = desk.everything()
    (answer,) = desk.take(make_report(revision=2, gpus=[make_entry(3), make_entry(4)]))
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.field, answer.revision) == (409, "node.id", 1)
    assert "systemd-machine-id-setup" in answer.reason
    assert desk.everything() == held
    # One in common is the same machine; so is one whose GPUs all fell silent, or came back.
    again = [make_report(revision=2, gpus=[make_entry(2), make_entry(3)]), make_report(revision=3, gpus=[]),
             make_report(revision=4, gpus=[make_entry(1)])]  # fmt: skip
    assert outcomes(desk.take(*again)) == ["stored"] * 3


# --- one GPU, told by two nodes ------------------------------------------------------------------------------


def used(desk: Desk, by: By) -> Usage:
    with desk.store.read() as connection:
        return usage(
            connection, LOCAL, GpuFilter(), Span(float(START), float(START + 2 * 3600)), by, simulated=False
        )


def test_a_gpu_told_by_two_nodes_for_one_hour_is_not_one_with_two_hours(desk: Desk) -> None:
    desk.take(make_report(gpus=1), make_report(hour=HOUR + 1, gpus=1), make_report(OTHER, gpus=1))
    found = used(desk, By.GPU)
    lines = {line.card.node: line for line in found.lines if line.card is not None}
    assert {node: (line.tally.recorded, line.possible) for node, line in lines.items()} == {
        NODE: (7200.0, 7200.0),
        OTHER: (3600.0, 7200.0),
    }
    assert [(one.tally.recorded, one.possible) for one in found.totals] == [(10_800.0, 14_400.0)]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("GPU-1 is reported by 2 nodes for the same hours")
    with desk.store.read() as connection:
        idle, _ = idle_gpus(
            connection, LOCAL, GpuFilter(), Span(float(START), float(START + 7200)), False, False, 9
        )
    assert [line.tally.idle for line in idle] == [1200.0, 600.0]


def test_a_gpu_that_moved_to_another_node_is_one(desk: Desk) -> None:
    desk.take(make_report(gpus=1), make_report(OTHER, HOUR + 1, gpus=1))
    found = used(desk, By.GPU)
    assert [(line.tally.recorded, line.possible) for line in found.lines] == [(7200.0, 7200.0)]
    assert found.notes == []


def test_tokens_that_no_agent_ever_used_go_after_a_month(desk: Desk) -> None:
    enrol = principal_of(desk, contract=CONTRACT, enrol=True)
    desk.write(desk.submit(make_report(), enrol))
    second = only(desk.write(desk.submit(make_report(), enrol)))
    assert isinstance(second, Answer)
    assert second.node_token is not None
    desk.write(desk.submit(make_report(hour=HOUR + 1), find(desk, second.node_token)))
    assert len(desk.rows(schema.tokens, "id")) == 3  # the enrolling one, a surplus one, the used one
    prune(desk.store, NOW + 29 * 86_400, threading.Event())
    assert len(desk.rows(schema.tokens, "id")) == 3
    prune(desk.store, NOW + 31 * 86_400, threading.Event())
    assert [row[0] for row in desk.rows(schema.tokens, "enrol", "revoked")] == [False, True]
