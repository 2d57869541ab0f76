"""Reports from the future are held within bounds, never over each other, and taken up a few bytes at a time."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_monitor.server.store import early
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.judge import Conclusion, Refusal
from gpu_monitor.wire.intake import read_report
from tests.server.posts import HOUR, encode, make_report

DAY = HOUR // 24 * 24 + 240
"""The first hour of a UTC day."""


def hold(store: Store, report: dict[str, Any], agent: int = 1) -> Conclusion | Refusal:
    body = encode(report)
    with store.write() as connection:
        return early.hold(connection, agent, read_report(body), body, 0.0)


def test_periods_that_lie_over_each_other_are_refused_as_others_are(store: Store) -> None:
    assert hold(store, make_report(hour=DAY + 2, hours=2)) is Conclusion.NEW
    for hour, hours in ((DAY, 24), (DAY + 2, 1), (DAY + 3, 1), (DAY, 4)):
        refused = hold(store, make_report(hour=hour, hours=hours))
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.field) == (422, "period_seconds")
        assert f"hour {DAY + 2} on (7200 s)" in refused.reason
    for report in (
        make_report(hour=DAY, hours=2),
        make_report(hour=DAY + 4),
        make_report(hour=DAY + 2, hours=2, revision=2),
    ):
        assert hold(store, report) is Conclusion.NEW
        assert hold(store, report) is Conclusion.REPEATED
    assert hold(store, make_report(hour=DAY, hours=24), agent=2) is Conclusion.NEW


def test_what_one_node_has_held_is_bounded_by_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [make_report(hour=DAY + number) for number in range(3)]
    monkeypatch.setattr(early, "_HELD_BYTES", 2 * len(encode(reports[0])))
    assert [hold(store, report) for report in reports[:2]] == [Conclusion.NEW] * 2
    refused = hold(store, reports[2])
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.field) == (422, "aggregation_time")
    assert "put the node's clock right" in refused.reason
    assert hold(store, reports[2], agent=2) is Conclusion.NEW


def test_they_are_taken_up_a_few_bytes_at_a_time(store: Store) -> None:
    reports = [make_report(hour=DAY + number) for number in range(3)]
    for report in reversed(reports):
        hold(store, report)
    size, later = len(encode(reports[0])), float((DAY + 10) * 3600)
    with store.read() as connection:
        for most, count in ((1, 1), (2 * size, 2), (9 * size, 3)):
            found = early.due(connection, later, 64, most)
            assert [bytes(row.raw) for row in found] == [encode(report) for report in reports[:count]]
        assert early.due(connection, 0.0, 64, 9 * size) == []
