"""The ledger: when a revision is made, what becomes of older ones, and what -ls and -ss print."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from gpu_monitor.agent.ledger import Ledger, list_sends, refresh, search_send
from gpu_monitor.cli.sends import print_detail, print_list
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.storage.database import Reader, Writer
from tests.fakes.hours import FIRST, HOUR, add_event, add_hour, make_store

ACKNOWLEDGED = Outcome(Verdict.ACKNOWLEDGED, 200, uid="server-uid", proof="digest")
BROKEN = Outcome(Verdict.RETRY, 503, error="HTTP 503 | as\nyou wish")
NOW = FIRST + 2 * HOUR


def states(writer: Writer) -> list[tuple[int, str]]:
    return [
        tuple(row) for row in writer.rows("SELECT revision, state FROM reports ORDER BY period, revision")
    ]  # type: ignore[misc]


def attempt(writer: Writer, outcome: Outcome, now: float = NOW, wait: float | None = 60.0) -> str:
    """One attempt at the oldest report that is due."""
    ledger = Ledger(writer, "1", 300)
    (begun,) = ledger.begin(ledger.due(now, 1), now, 1 << 20)
    return ledger.finish([begun], [outcome], now + 1, lambda spent, told: wait)[0]


def again(writer: Writer, period: Period, now: float = NOW) -> None:
    with writer.transaction() as connection:
        refresh(connection, 1, period, now)


def test_a_period_with_nothing_to_tell_owes_nothing(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    again(writer, Period(FIRST, HOUR))
    assert states(writer) == []


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO gaps (node, start, cause) VALUES (1, {first} - 90, 'driver hung')",
        "INSERT INTO gaps (node, start, \"end\", cause) VALUES (1, {first} + 60, {first} + 120, 'agent killed')",
        "INSERT INTO events (time, node, kind, severity, message) VALUES ({first} + 1, 1, 'x', 'info', 'x')",
        "INSERT INTO host_aggregates (period, period_seconds, samples, expected_samples, coverage, seconds)"
        " VALUES ({first}, 3600, 1, 60, 0.1, 60)",
    ],
)
def test_an_hour_without_a_sample_is_owed_where_there_is_something_to_tell(tmp_path: Path, sql: str) -> None:
    writer = make_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute(sql.format(first=FIRST))
    again(writer, Period(FIRST, HOUR))
    assert states(writer) == [(1, "pending")]
    assert attempt(writer, ACKNOWLEDGED) == "sent"


@pytest.mark.parametrize("sql", [
    "INSERT INTO gaps (node, start, \"end\", cause) VALUES (1, {first} - 90, {first}, 'agent killed')",
    "INSERT INTO gaps (node, start, cause) VALUES (1, {first} + 3600, 'driver hung')",
    "INSERT INTO events (time, node, kind, severity, message) VALUES ({first} + 3600, 1, 'x', 'info', 'x')",
    "INSERT INTO events (time, node, kind, severity, message) VALUES ({first}, 9, 'x', 'info', 'of another node')",
])  # fmt: skip
def test_what_only_touches_the_hour_is_not_of_it(tmp_path: Path, sql: str) -> None:
    writer = make_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute(sql.format(first=FIRST))
    again(writer, Period(FIRST, HOUR))
    assert states(writer) == []


def test_a_report_that_was_never_tried_takes_late_facts_in(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    period = add_hour(writer)
    add_event(writer, period)
    assert states(writer) == [(1, "pending")]
    assert writer.rows("SELECT body, report_id FROM reports") == [(None, None)]
    ledger = Ledger(writer, "1", 300)
    (begun,) = ledger.begin(ledger.due(NOW, 1), NOW, 1 << 20)
    assert [event["message"] for event in json.loads(begun.parcel.body)["events"]] == ["late"]


def test_running_refresh_again_changes_nothing(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    period = add_hour(writer)
    for outcome, moment in ((BROKEN, NOW), (ACKNOWLEDGED, NOW + 600)):
        attempt(writer, outcome, moment)
        before = writer.rows("SELECT * FROM reports")
        again(writer, period, NOW + 5000)
        assert writer.rows("SELECT * FROM reports") == before


@pytest.mark.parametrize(
    ("outcome", "old_state"),
    [
        (BROKEN, "replaced"),
        (ACKNOWLEDGED, "sent"),
        (Outcome(Verdict.REJECTED, 400, error="no"), "replaced"),
    ],
)
def test_a_late_fact_after_the_first_attempt_makes_a_revision(
    tmp_path: Path, outcome: Outcome, old_state: str
) -> None:
    writer = make_store(tmp_path)
    period = add_hour(writer)
    attempt(writer, outcome)
    sha = writer.value("SELECT sha256 FROM reports")
    add_event(writer, period)
    assert states(writer) == [(1, old_state), (2, "pending")]
    assert writer.rows("SELECT body, sha256 FROM reports WHERE revision = 1") == [(None, sha)]
    assert attempt(writer, ACKNOWLEDGED, NOW + 700) == "sent"
    add_event(writer, period, "later still")
    assert states(writer) == [(1, old_state), (2, "sent"), (3, "pending")]


def test_an_answer_that_comes_after_a_newer_revision_was_made(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    period = add_hour(writer)
    ledger = Ledger(writer, "1", 300)
    (one,) = ledger.begin(ledger.due(NOW, 1), NOW, 1 << 20)
    add_event(writer, period)
    assert states(writer) == [(1, "replaced"), (2, "pending")]
    assert ledger.finish([one], [BROKEN], NOW + 1, lambda spent, told: 60.0) == ["replaced"]
    (two,) = ledger.begin(ledger.due(NOW, 1), NOW, 1 << 20)
    add_event(writer, period, "more")
    assert ledger.finish([two], [ACKNOWLEDGED], NOW + 1, lambda spent, told: 60.0) == ["sent"]
    assert states(writer) == [(1, "replaced"), (2, "sent"), (3, "pending")]


def test_a_report_replaced_between_choice_and_attempt_is_not_sent(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    period = add_hour(writer)
    attempt(writer, BROKEN)
    ledger = Ledger(writer, "1", 300)
    chosen = ledger.due(NOW + 600, 1)
    add_event(writer, period)
    assert ledger.begin(chosen, NOW + 600, 1 << 20) == []


def test_frozen_bytes_stay_the_same_whatever_the_settings_are(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    add_hour(writer)
    bodies = []
    for number, contract in enumerate(("1", "2", "3")):
        ledger = Ledger(writer, contract, 300)
        (one,) = ledger.begin(ledger.due(NOW + 900 * number, 1), NOW, 1 << 20)
        ledger.finish([one], [BROKEN], NOW + 900 * number, lambda spent, told: 60.0)
        bodies.append(one.parcel.body)
    assert len(set(bodies)) == 1
    assert json.loads(bodies[0])["contract_number"] == "1"


def test_a_batch_stops_before_too_many_bytes_and_holds_at_least_one(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    for number in range(5):
        add_hour(writer, number)
    ledger = Ledger(writer, "1", 300)
    now = FIRST + 6 * HOUR
    sizes = [len(one.parcel.body) for one in ledger.begin(ledger.due(now, 9), now, 1 << 20)]
    assert len(sizes) == 5
    two = ledger.begin(ledger.due(now, 9), now, sizes[0] + sizes[1])
    assert len(two) == 2
    assert len(ledger.begin(ledger.due(now, 9), now, 10)) == 1


def test_reports_of_an_imported_node_are_only_made_when_asked(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes (id, name, kind) VALUES (2, 'trainer', 'import')")
        connection.execute(
            "INSERT INTO gpus (id, node, uid, source, first_seen) VALUES (9, 2, 'IMPORT-trainer-0', 'import', 0)"
        )
        connection.execute(
            "INSERT INTO aggregates (period, gpu, period_seconds, samples, expected_samples, coverage, seconds)"
            " VALUES (?, 9, 3600, 1, 60, 0.1, 60)",
            (FIRST,),
        )
        refresh(connection, 2, Period(FIRST, HOUR), NOW)
    assert states(writer) == []


def printed(writer: Writer, naive: bool = False, as_json: bool = False) -> str:
    stream = io.StringIO()
    reader = Reader(writer.path)
    print_list(list_sends(reader), stream, naive=naive, as_json=as_json)
    reader.close()
    return stream.getvalue()


def detail(writer: Writer, moment: float) -> str | None:
    reader = Reader(writer.path)
    found = search_send(reader, moment)
    reader.close()
    if found is None:
        return None
    stream = io.StringIO()
    print_detail(found, stream)
    return stream.getvalue()


HEADER = (
    "Send Attempts:\nAggregation Time | Attempts | First Attempt | Last Attempt | Last Error | UID | Sent\n"
)


def test_list_sends_as_documented(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    assert printed(writer) == HEADER
    period = add_hour(writer, 0)
    add_hour(writer, 1)
    assert printed(writer) == HEADER + (
        "2023-11-15T00:00:00+00:00 | 0 | None | None | None | None | 0\n"
        "2023-11-14T23:00:00+00:00 | 0 | None | None | None | None | 0\n"
    )
    attempt(writer, BROKEN, NOW)
    attempt(writer, ACKNOWLEDGED, NOW + 600.75, wait=0)
    # The first hour waits 60 s after its failure, so by then both are due; it is the older one.
    assert printed(writer) == HEADER + (
        "2023-11-15T00:00:00+00:00 | 0 | None | None | None | None | 0\n"
        "2023-11-14T23:00:00+00:00 | 2 | 2023-11-15T01:00:00+00:00 | 2023-11-15T01:10:00+00:00"
        " | HTTP 503 / as you wish | server-uid | 1\n"
    )
    add_event(writer, period)
    line = printed(writer).splitlines()[-1]
    assert line.endswith("| server-uid | 0"), "a newer revision waits"
    attempt(writer, ACKNOWLEDGED, NOW + 700)
    assert printed(writer).splitlines()[-1] == (
        "2023-11-14T23:00:00+00:00 | 3 | 2023-11-15T01:00:00+00:00 | 2023-11-15T01:11:40+00:00"
        " | HTTP 503 / as you wish | server-uid | 1"
    )


def test_search_send_as_documented(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    add_hour(writer, 0)
    attempt(writer, BROKEN, NOW)
    expected = (
        "Send Attempt Details:\n"
        "Aggregation Time: 2023-11-14T23:00:00+00:00\n"
        "Attempts: 1\n"
        "First Attempt: 2023-11-15T01:00:00+00:00\n"
        "Last Attempt: 2023-11-15T01:00:00+00:00\n"
        "Last Error: HTTP 503 / as you wish\n"
        "UID: None\n"
        "Sent: 0\n"
    )
    assert detail(writer, FIRST) == expected
    assert detail(writer, FIRST + 3599.9) == expected
    assert detail(writer, FIRST + 3600) is None
    assert detail(writer, FIRST - 0.1) is None


def test_the_last_attempt_is_never_before_the_first(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    add_hour(writer)
    attempt(writer, BROKEN, wait=-120.0)
    attempt(writer, ACKNOWLEDGED, now=NOW - 60)  # the clock was put back in between
    assert writer.rows("SELECT attempts, first_attempt, last_attempt FROM reports") == [(2, NOW, NOW)]


def test_list_sends_as_json(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    assert json.loads(printed(writer, as_json=True)) == []
    add_hour(writer)
    attempt(writer, ACKNOWLEDGED)
    assert json.loads(printed(writer, as_json=True)) == [
        {
            "aggregation_time": "2023-11-14T23:00:00+00:00", "period_seconds": 3600, "attempts": 1,
            "first_attempt": "2023-11-15T01:00:00+00:00", "last_attempt": "2023-11-15T01:00:00+00:00",
            "last_error": None, "uid": "server-uid", "sent": 1, "state": "sent", "revision": 1, "proof": "digest",
        }
    ]  # fmt: skip


def test_a_longer_period_is_found_by_any_moment_in_it(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    day = FIRST // 86400 * 86400
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO reports (node, period, period_seconds, revision, state, changed) VALUES (1, ?, 86400, 1, 'pending', 0)",
            (day,),
        )
    assert (detail(writer, day + 86399) or "").startswith(
        "Send Attempt Details:\nAggregation Time: 2023-11-14T00:00:00"
    )


def test_other_nodes_do_not_show(tmp_path: Path) -> None:
    writer = make_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO reports (node, period, period_seconds, revision, state, changed) VALUES (2, ?, 3600, 1, 'pending', 0)",
            (FIRST,),
        )
    assert printed(writer) == HEADER
    assert detail(writer, FIRST) is None
