"""A node's own `report` and the server's usage of the same hours are the same figures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from gpu_monitor.core.times import format_time
from tests.e2e.program import ask, query, running
from tests.e2e.waiting import until
from tests.server.e2e.test_live_agent import agent_of
from tests.server.rig import Server, serving

HOURS = 4
# The server keeps means to the decimals of the catalogue: half a hundredth of a watt over an hour is 5e-6 kWh.
NEAR = {"gpu_utilization": 0.11, "energy_kwh": 1e-4, "energy_estimated_kwh": 1e-4}


def sent(store: Path) -> list[int]:
    """Starts of acknowledged periods, ascending."""
    if not store.exists() or not query(store, "SELECT 1 FROM sqlite_master WHERE name = 'reports'"):
        return []
    return [int(row[0]) for row in query(store, "SELECT period FROM reports WHERE state = 'sent' ORDER BY 1")]


def test_the_figures_of_the_node_are_those_of_the_server(tmp_path: Path) -> None:
    folder, store = tmp_path / "agent", tmp_path / "agent/gpu_metrics.db"
    with serving(tmp_path) as server:
        agent_of(server, folder)
        faults = ("--fault", "gpu=1 at=+90m for=20m kind=lost")
        with running(folder, "--simulate", "3:h100", "--speed", "2000", "--start", f"-{HOURS + 2}h", *faults):
            until(lambda: len(sent(store)) > HOURS, "the hours are acknowledged")
        periods = sent(store)[:HOURS]
        # The first hour has begun in its middle, a card was lost in the second or third: coverage differs.
        ends = {"since": format_time(periods[0]), "until": format_time(periods[-1] + 3600)}
        for by, key in (("gpu", "uid"), ("day", "day"), ("node", "origin")):
            mine, theirs = of_node(folder, by, ends), of_server(server, by, ends)
            assert mine["lines"], mine
            assert {line[key] for line in mine["lines"]} == {line[key] for line in theirs["items"]}
            pairs = [(line, one(theirs["items"], key, line[key])) for line in mine["lines"]]
            pairs += [(total, one(theirs["totals"], "origin", total["origin"])) for total in mine["totals"]]
            for own, held in pairs:
                assert_same(own, held)
        assert {line["coverage"] for line in of_server(server, "gpu", ends)["items"]} != {1}
        without = server.ask(
            "GET", "/api/usage?" + urlencode({"from": ends["since"], "to": ends["until"]})
        ).json
        assert (without["items"], without["totals"], without["excluded_simulated_gpus"]) == ([], [], 3)


def test_an_hour_that_was_recorded_in_part_belongs_to_those_who_were_there(tmp_path: Path) -> None:
    """The agent goes by minutes, the server by what of the hour was recorded."""
    folder, store = tmp_path / "agent", tmp_path / "agent/gpu_metrics.db"
    begin = int(time.time()) // 3600 * 3600 - 4 * 3600 + 2400  # at 40 minutes past
    with serving(tmp_path) as server:
        agent_of(server, folder)
        words = ("--simulate", "2:h100", "--seed", "3", "--speed", "2000", "--start", format_time(begin))
        with running(folder, *words):
            until(lambda: len(sent(store)) > 1, "two hours are acknowledged")
        ends = {"since": format_time(begin - 2400), "until": format_time(begin + 1200)}
        mine, theirs = of_node(folder, "user", ends), of_server(server, "user", ends)
        assert sum(line["gpu_hours"] for line in mine["lines"]) == pytest.approx(2 / 3, abs=0.02)
        for line in mine["lines"]:
            held = one(theirs["items"], "user", line["user"])
            assert held["gpu_hours"] == pytest.approx(line["gpu_hours"], abs=0.02), line["user"]


def of_node(folder: Path, by: str, ends: dict[str, str]) -> Any:
    answer = ask(
        folder, "report", "--since", ends["since"], "--until", ends["until"], "--by", by, "-f", "json"
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def of_server(server: Server, by: str, ends: dict[str, str]) -> Any:
    asked = {"from": ends["since"], "to": ends["until"], "by": by, "include": "simulated"}
    answer = server.ask("GET", f"/api/usage?{urlencode(asked)}")
    assert answer.status == 200, answer.body
    return answer.json


def one(lines: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    return next(line for line in lines if line[key] == value)


def assert_same(own: dict[str, Any], held: dict[str, Any]) -> None:
    figures = [name for name in own if isinstance(own[name], (int, float)) and name != "index"]
    assert {"gpu_hours", "idle_hours", "energy_kwh", "energy_coverage"} <= set(figures)
    for name in figures:
        assert held[name] == pytest.approx(own[name], abs=NEAR.get(name, 2e-4)), name
    assert [name for name in own if own[name] is None and held.get(name) is not None] == []
