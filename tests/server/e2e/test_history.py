"""Reports, their strip, gaps, events and processes of the known fleet."""

from __future__ import annotations

import pytest

from tests.server.asking import Asked
from tests.server.known import BUSY, GIB, LAZY, A, B, C, S


def test_receipts_newest_first_with_their_digests(asked: Asked) -> None:
    found = asked.get("/api/reports", since=0, to=4)["items"]
    assert len(found) == 4 + 2 + 1 + 4
    mine = [one for one in found if one["node"] == A]
    assert [one["aggregation_time"] for one in mine] == [asked.stamp(hour) for hour in (3, 2, 1, 0)]
    assert mine[0]["sha256"] == "03" * 32
    assert [one["revision"] for one in mine] == [1, 2, 1, 1]
    assert [one["coverage"] for one in mine] == [1, 0.75, 1, 1]
    assert [one["late_seconds"] for one in mine] == [1200, 60, 60, 60]
    assert {one["node"] for one in found if one["simulated"]} == {S}


def test_receipts_are_picked_and_paged(asked: Asked) -> None:
    aside = asked.get("/api/reports", since=0, to=4, quarantined="true")["items"]
    assert [(one["node"], one["aggregation_time"]) for one in aside] == [(A, asked.stamp(1))]
    pages, cursor = [], None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = asked.get("/api/reports", since=0, to=4, limit=3, **more)
        pages.append([(one["node"], one["aggregation_time"]) for one in page["items"]])
        cursor = page["next"]
        if cursor is None:
            break
    whole = asked.get("/api/reports", since=0, to=4)["items"]
    assert [len(page) for page in pages] == [3, 3, 3, 2]
    assert [one for page in pages for one in page] == [
        (one["node"], one["aggregation_time"]) for one in whole
    ]


def test_what_was_set_aside_says_why(asked: Asked) -> None:
    found = asked.get("/api/reports/quarantine")["items"]
    assert len(found) == 1
    assert (found[0]["uid"], found[0]["field"], found[0]["reason"], found[0]["bytes"]) == (
        LAZY,
        "temperature",
        "over 200",
        2,
    )


def test_the_strip_has_a_letter_an_hour(asked: Asked) -> None:
    found = asked.get("/api/reports/strip", since=-1, to=5)
    strips = {one["node"]: one for one in found["items"]}
    # Before the first hour nothing was due; then whole, whole, half, late; then nothing came.
    assert strips[A]["hours"] == ".ppalm"
    assert strips[B]["hours"] == ".ppmmm"
    # Its one report is of two hours; the hours before it were due as well.
    assert strips[C]["hours"] == ".mmppm"
    assert (strips[A]["present"], strips[A]["partial"], strips[A]["late"], strips[A]["missing"]) == (
        2,
        1,
        1,
        1,
    )
    assert set("".join(one["hours"] for one in found["items"])) <= set(found["legend"])
    assert (found["since"], found["until"]) == (asked.stamp(-1), asked.stamp(5))


def test_the_strip_does_not_miss_what_is_not_due(asked: Asked) -> None:
    found = asked.get("/api/reports/strip", node="node-a", **{"from": "-2h"})["items"][0]
    # The hour that is not over is not due, nor is one that ended within the last 15 minutes.
    assert found["hours"][-1] == "."
    assert len(found["hours"]) == 2


def test_gaps_that_touch_the_span(asked: Asked) -> None:
    both = asked.get("/api/gaps", since=0, to=4)["items"]
    assert [(one["cause"], one["uid"], one["start"], one["end"], one["seconds"]) for one in both] == [
        ("agent killed", None, asked.stamp(3), asked.stamp(3.25), 900),
        ("gpu lost", LAZY, asked.stamp(2.5), asked.stamp(3), 1800),
    ]
    assert [one["cause"] for one in asked.get("/api/gaps", since=2.75, to=3)["items"]] == ["gpu lost"]
    assert [one["cause"] for one in asked.get("/api/gaps", since=0, to=4, gpu=LAZY)["items"]] == ["gpu lost"]
    assert asked.get("/api/gaps", since=0, to=4, cause="asleep")["items"] == []
    first = asked.get("/api/gaps", since=0, to=4, limit=1)
    second = asked.get("/api/gaps", since=0, to=4, limit=1, cursor=first["next"])
    assert [one["cause"] for one in (*first["items"], *second["items"])] == ["agent killed", "gpu lost"]
    assert second["next"] is None


def test_events_newest_first(asked: Asked) -> None:
    found = asked.get("/api/events", since=0, to=4)["items"]
    assert [(one["time"], one["severity"]) for one in found] == [
        (asked.stamp(1.5), "error"),
        (asked.stamp(1.5), "info"),
        (asked.stamp(0.5), "error"),
    ]
    assert found[0]["detail"] == {"xid": 79}
    assert len(asked.get("/api/events", since=0, to=4, kind="xid", severity="error")["items"]) == 2
    assert len(asked.get("/api/events", since=0, to=4, gpu=BUSY)["items"]) == 2
    first = asked.get("/api/events", since=0, to=4, limit=1)
    rest = asked.get("/api/events", since=0, to=4, limit=9, cursor=first["next"])["items"]
    assert [one["kind"] for one in (*first["items"], *rest)] == [one["kind"] for one in found]


def test_a_formula_in_a_message_is_no_formula_in_csv(asked: Asked) -> None:
    found = asked.csv("/api/events", since=0, to=4)
    assert found[0]["message"] == """'=HYPERLINK("x")"""
    assert found[0]["detail"] == '{"xid": 79}'


def test_a_process_is_one_over_its_reports(asked: Asked) -> None:
    found = asked.get("/api/processes", since=0, to=4)["items"]
    assert [(one["user"], one["first_seen"], one["last_seen"], one["ended"]) for one in found] == [
        ("bob", asked.stamp(1 + 1 / 60), asked.stamp(3), False),
        ("ann", asked.stamp(1 / 60), asked.stamp(1.5), True),
    ]
    assert found[1]["memory_max"] == 7 * GIB
    assert [one["pid"] for one in asked.get("/api/processes", since=0, to=1, user="ann")["items"]] == [7]
    first = asked.get("/api/processes", since=0, to=4, limit=1)
    second = asked.get("/api/processes", since=0, to=4, limit=1, cursor=first["next"])
    assert [one["user"] for one in (*first["items"], *second["items"])] == ["bob", "ann"]


@pytest.mark.parametrize("path", ["gaps", "events", "processes"])
def test_nothing_is_an_empty_list_and_a_header(asked: Asked, path: str) -> None:
    assert asked.get(f"/api/{path}", since=50, to=51) == {"items": [], "next": None}
    assert asked.csv(f"/api/{path}", since=50, to=51) == []
