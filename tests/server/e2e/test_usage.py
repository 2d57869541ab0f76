"""Usage of the known fleet, worked out by hand from its rows."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_monitor.core.times import format_time
from tests.server.asking import Asked
from tests.server.known import BUSY, LAZY, LONG, PART, PLAIN, PRETENDED, A, B, C, rows

DAY = 86400


def lines(asked: Asked, key: str, **query: Any) -> dict[str, Any]:
    found = asked.get("/api/usage", since=0, to=4, **query)
    assert found["next"] is None
    return {line[key]: line for line in found["items"]}


def test_each_gpu_with_the_coverage_of_each_figure(asked: Asked) -> None:
    found = lines(asked, "uid")
    assert list(found) == [BUSY, LAZY, PLAIN, PART, LONG]
    busy, lazy, plain, part, long = found.values()
    # (80 + 81 + 82 + 83) / 4; 4 * 1.08 MJ / 3.6 MJ per kWh
    assert _of(busy) == (4, 1, 81.5, 0, 0, 1.2, None)
    # 3.5 of 4 hours; held 3 h and 900 s; 3 * 216 kJ + 108 kJ = 756 kJ
    assert _of(lazy) == (3.5, 0.875, 0, 3.5, 3.25, 0.21, None)
    # 600 s an hour idle; no counter: 100 W * 2 h
    assert _of(plain) == (2, 0.5, 40, 0.3333, 0, None, 0.2)
    assert _of(part) == (2, 0.5, None, None, None, None, 0.1)
    assert (part["idle_coverage"], part["utilization_coverage"], part["energy_coverage"]) == (0, 0, 0.5)
    # Two hours in one row; 1.08 MJ
    assert _of(long) == (2, 0.5, 20, 0, 0, 0.3, None)
    assert (lazy["node"], lazy["hostname"], lazy["contract_number"], lazy["index"]) == (A, "node-a", "100", 1)


def _of(line: dict[str, Any]) -> tuple[Any, ...]:
    names = ("gpu_hours", "coverage", "gpu_utilization", "idle_hours", "held_idle_hours", "energy_kwh")
    return (*(line[name] for name in names), line["energy_estimated_kwh"])


def test_the_total_counts_each_gpu_once_and_no_simulated_one(asked: Asked) -> None:
    found = asked.get("/api/usage", since=0, to=4, price=0.5)
    total = found["totals"][0]
    assert [one["origin"] for one in found["totals"]] == ["real"]
    # busy 4, lazy 3.5, plain 2, long 2 of 4 GPUs * 4 h; the instance is part of GPU-plain
    assert (total["gpu_hours"], total["coverage"]) == (11.5, 0.7188)
    # (81.5 * 4 + 0 + 40 * 2 + 20 * 2) / 11.5
    assert total["gpu_utilization"] == 38.8
    assert (total["idle_hours"], total["held_idle_hours"]) == (3.8333, 3.25)
    assert (total["energy_kwh"], total["energy_estimated_kwh"]) == (1.71, 0.2)
    assert total["money"] == 0.955  # (1.71 + 0.2) * 0.5
    assert (found["excluded_simulated_gpus"], found["includes_simulated"], found["notes"]) == (1, False, [])


def test_simulated_gpus_have_a_total_of_their_own(asked: Asked) -> None:
    found = asked.get("/api/usage", since=0, to=4, include="simulated")
    assert [(one["origin"], one["simulated"], one["gpu_hours"]) for one in found["totals"]] == [
        ("real", False, 11.5),
        ("simulated", True, 4),
    ]
    assert [(line["uid"], line["simulated"]) for line in found["items"]][-1] == (PRETENDED, True)
    assert found["excluded_simulated_gpus"] == 0


def test_a_period_that_reaches_over_the_end_is_left_out_and_said(asked: Asked) -> None:
    found = asked.get("/api/usage", since=0, to=3)
    assert LONG not in {line["uid"] for line in found["items"] if line["gpu_hours"]}
    assert found["totals"][0]["gpu_hours"] == 7.5  # busy 3, lazy 2.5, plain 2
    assert len(found["notes"]) == 1


def test_by_node_contract_and_model(asked: Asked) -> None:
    nodes = lines(asked, "node", by="node")
    assert {node: line["gpu_hours"] for node, line in nodes.items()} == {A: 7.5, B: 2, C: 2}
    assert (nodes[A]["coverage"], nodes[B]["coverage"]) == (0.9375, 0.5)  # 7.5 of 8; 2 of 4
    contracts = lines(asked, "contract_number", by="contract")
    assert {number: line["gpu_hours"] for number, line in contracts.items()} == {"100": 7.5, "200": 4}
    assert contracts["200"]["energy_estimated_kwh"] == 0.2
    models = lines(asked, "model", by="model")
    assert {model: line["gpu_hours"] for model, line in models.items()} == {
        "NVIDIA H100": 7.5,
        "NVIDIA T4": 4,
    }


def test_by_user_shares_the_time_of_those_who_were_there(asked: Asked) -> None:
    found = lines(asked, "user", by="user")
    # On GPU-busy: ann 0:00 to 1:30, bob 1:00 to 3:00; the half hour with both is shared.
    assert {user: line["gpu_hours"] for user, line in found.items()} == {
        "bob": 1.75,
        "ann": 1.25,
        "(nobody)": 8.5,
    }
    # ann: hour 0 and a quarter of hour 1, each 0.3 kWh
    assert found["ann"]["energy_kwh"] == pytest.approx(0.375)
    assert found["bob"]["coverage"] == 0.7188


def test_by_day(asked: Asked) -> None:
    expected: dict[str, float] = {}
    for row in rows():
        if row.uid not in (PART, PRETENDED):
            day = format_time(asked.known.at(row.hour) // DAY * DAY)[:10]
            expected[day] = expected.get(day, 0) + row.seconds / 3600
    found = lines(asked, "day", by="day")
    assert {day: line["gpu_hours"] for day, line in found.items() if line["gpu_hours"]} == expected


def test_csv_of_usage(asked: Asked) -> None:
    found = asked.csv("/api/usage", since=0, to=4)
    assert (found[0]["uid"], found[0]["gpu_hours"], found[0]["energy_estimated_kwh"]) == (BUSY, "4.0", "")


@pytest.mark.parametrize(("order", "expected"), [("idle", [LAZY, PLAIN]), ("held", [LAZY, BUSY])])
def test_the_most_idle(asked: Asked, order: str, expected: list[str]) -> None:
    found = asked.get("/api/usage/idle", since=0, to=4, order=order, limit=2)
    assert [line["uid"] for line in found["items"]] == expected
    lazy = found["items"][0]
    assert (lazy["idle_hours"], lazy["held_idle_hours"], lazy["coverage"], lazy["idle_coverage"]) == (
        3.5,
        3.25,
        0.875,
        0.875,
    )
    assert found["excluded_simulated_gpus"] == 1
    assert (lazy["idle_energy_estimated_kwh"], lazy["idle_money_estimated"]) == (0.21, None)  # 60 W in 3.5 h
    priced = asked.get("/api/usage/idle", since=0, to=4, order=order, limit=2, price=0.5)["items"][0]
    assert priced["idle_money_estimated"] == 0.105


def test_by_user_says_how_the_hours_are_shared(asked: Asked) -> None:
    notes = asked.get("/api/usage", since=0, to=4, by="user")["notes"]
    assert any("whole hours" in note and "may differ" in note for note in notes)
    assert asked.get("/api/usage", since=0, to=4, by="gpu")["notes"] == []
