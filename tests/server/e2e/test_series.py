"""Series of the known fleet: values, extremes, thinning, holes, sources."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import insert

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import samples
from tests.server.asking import Asked
from tests.server.known import BUSY, LAZY, LONG, PLAIN, PRETENDED, A, B, Row, make_known, rows
from tests.server.rig import serving

UTILISATION = {row.hour: row for row in rows() if row.uid == BUSY}


def test_a_gpus_hours_are_its_aggregates(asked: Asked) -> None:
    found = asked.get("/api/series", metric=["gpu_utilization", "energy"], gpu=BUSY, since=0, to=6)
    used, energy = found["items"]
    assert (found["source"], found["step_seconds"], found["thinned"], found["extremes"]) == (
        "hours",
        3600,
        False,
        "readings",
    )
    assert used["time"] == [asked.stamp(hour) for hour in range(4)]
    assert used["value"] == [80, 81, 82, 83]
    assert used["min"] == [70, 71, 72, 73]  # kept 10 below
    assert used["max"] == [85, 86, 87, 88]  # and 5 above
    assert used["gpus"] == [1, 1, 1, 1]
    assert (used["unit"], energy["unit"]) == ("%", "J")
    assert energy["value"] == [1_080_000] * 4


def test_thinning_keeps_the_least_and_the_greatest_and_says_so(asked: Asked) -> None:
    found = asked.get("/api/series", metric="gpu_utilization", gpu=BUSY, since=-4, to=8, max_points=4)
    # 12 h in at most 3 whole steps: 4 h, which begin at multiples of 4 h since 1970.
    assert (found["step_seconds"], found["thinned"]) == (4 * 3600, True)
    first = asked.known.first
    steps = sorted({(first + hour) // 4 for hour in UTILISATION})
    expected = {
        step: [row for hour, row in UTILISATION.items() if (first + hour) // 4 == step] for step in steps
    }
    only = found["items"][0]
    assert only["time"] == [asked.stamp(step * 4 - first) for step in steps]
    assert only["value"] == [_rounded(mine) for mine in expected.values()]
    assert only["min"] == [min(row.used or 0 for row in mine) - 10 for mine in expected.values()]
    assert only["max"] == [max(row.used or 0 for row in mine) + 5 for mine in expected.values()]


def _rounded(mine: list[Row]) -> float:
    return round(sum(row.used or 0 for row in mine) / len(mine), 1)


def test_a_hole_is_a_point_without_a_value(asked: Asked) -> None:
    end = int(asked.known.now)
    found = asked.get(
        "/api/series", metric="power_usage", gpu=BUSY, **{"from": str(end - 600), "to": str(end)}
    )
    only = found["items"][0]
    assert (found["source"], found["step_seconds"]) == ("minutes", 1)
    # 100, 110, 120, 130, (the fifth minute is missing), 150 ... 190
    assert only["value"] == [100, 110, 120, 130, None, 150, 160, 170, 180, 190]
    assert only["gpus"][4:6] == [0, 1]
    assert only["coverage"] == [None] * 10


def test_hours_are_given_where_minutes_do_not_hold_the_metric(asked: Asked) -> None:
    end = int(asked.known.now)
    found = asked.get("/api/series", metric="energy", gpu=BUSY, **{"from": str(end - 600), "to": str(end)})
    assert (found["source"], found["items"][0]["value"]) == ("hours", [])


def test_a_nodes_gpus_add_up(asked: Asked) -> None:
    found = asked.get("/api/series", metric="power_usage", node="node-a", agg="sum", since=0, to=4)
    # 300 + 60 W; of the second GPU's third hour half was recorded.
    assert found["items"][0]["value"] == [360, 360, 330, 360]
    # The third hour of the second GPU is half there: 1.5 of 2.
    assert found["items"][0]["coverage"] == [1, 1, 0.75, 1]
    mean = asked.get("/api/series", metric="gpu_utilization", node=A, since=0, to=4)["items"][0]
    # Weighted by time: (82 * 1 + 0 * 0.5) / 1.5 in the third hour.
    assert mean["value"] == [40, 40.5, 54.7, 41.5]
    assert [mean["min"][0], mean["max"][0]] == [0, 85]
    top = asked.get("/api/series", metric="gpu_utilization", node=A, since=0, to=4, agg="max")["items"][0]
    assert top["value"] == [85, 86, 87, 88]


def test_an_instance_is_not_added_to_its_gpu(asked: Asked) -> None:
    found = asked.get("/api/series", metric="power_usage", node=B, agg="sum", since=0, to=2)["items"][0]
    assert (found["value"], found["gpus"]) == ([100, 100], [1, 1])


@pytest.mark.parametrize(
    ("query", "uids"),
    [
        ({}, (BUSY, LAZY, PLAIN, LONG)),
        ({"include": "simulated"}, (BUSY, LAZY, PLAIN, LONG, PRETENDED)),
        ({"contract": "100"}, (BUSY, LAZY)),
        ({"contract": "200"}, (PLAIN, LONG)),
        ({"model": "NVIDIA H100"}, (BUSY, LAZY)),
        ({"model": "NVIDIA T4"}, (PLAIN, LONG)),
    ],
)
def test_groups_add_up_without_the_simulated(
    asked: Asked, query: dict[str, str], uids: tuple[str, ...]
) -> None:
    found = asked.get("/api/series", metric="power_usage", agg="sum", since=0, to=4, **query)
    # node-c reports two hours at once, so those it is among have steps of two hours.
    step = 7200 if LONG in uids else 3600
    assert found["step_seconds"] == step
    joules: dict[int, float] = {}
    for row in rows():
        if row.uid in uids:
            number = int(asked.known.at(row.hour)) // step
            joules[number] = joules.get(number, 0) + row.power * row.seconds
    assert found["items"][0]["value"] == pytest.approx([joules[number] / step for number in sorted(joules)])
    excluded = 0 if query.get("include") or (PLAIN in uids and len(uids) == 2) or "model" in query else 1
    assert found["excluded_simulated_gpus"] == excluded
    assert found["simulated"] == ("include" in query)


def test_the_fleets_mean_is_weighted_by_time(asked: Asked) -> None:
    found = asked.get("/api/series", metric="gpu_utilization", contract="100", since=0, to=4)
    assert found["items"][0]["value"] == [40, 40.5, 54.7, 41.5]
    assert (found["extremes"], found["items"][0]["gpus"]) == ("steps", [2, 2, 2, 2])
    energy = asked.get("/api/series", metric="energy", contract="100", agg="sum", since=0, to=4)
    assert energy["items"][0]["value"] == [1_296_000, 1_296_000, 1_188_000, 1_296_000]
    idle = asked.get("/api/series", metric="idle_seconds", contract="100", agg="sum", since=0, to=4)
    assert idle["items"][0]["value"] == [3600, 3600, 1800, 3600]


def test_a_simulated_gpu_is_labelled(asked: Asked) -> None:
    found = asked.get("/api/series", metric="gpu_utilization", gpu=PRETENDED, since=0, to=4)
    assert (found["simulated"], found["items"][0]["value"]) == (True, [50, 50, 50, 50])


def test_flags_are_names(asked: Asked) -> None:
    found = asked.get("/api/series", metric="throttle_reasons", gpu=BUSY, since=0, to=3)["items"][0]
    assert found["value"] == [["gpu_idle"], ["sw_power_cap"], ["gpu_idle"]]
    assert found["min"] == [None, None, None]


def test_the_machines_series(asked: Asked) -> None:
    found = asked.get("/api/series", metric="host.cpu_utilization", node=A, since=0, to=4)["items"][0]
    assert (found["time"], found["value"], found["min"], found["max"]) == (
        [asked.stamp(3)],
        [12.5],
        [10],
        [100],
    )
    rate = asked.get("/api/series", metric="host.network_rx", node=A, since=0, to=4)["items"][0]
    assert rate["value"] == [12_000]


def test_csv_has_a_row_a_step(asked: Asked) -> None:
    found = asked.csv("/api/series", metric=["gpu_utilization", "energy"], gpu=LAZY, since=0, to=4)
    assert [(row["metric"], row["value"]) for row in found] == [
        *[("gpu_utilization", "0")] * 4,
        ("energy", "216000"), ("energy", "216000"), ("energy", "108000"), ("energy", "216000"),
    ]  # fmt: skip
    assert [row["coverage"] for row in found[:4]] == ["1.0", "1.0", "0.5", "1.0"]


@pytest.mark.parametrize("of", [{"gpu": BUSY}, {"node": A}, {"model": "NVIDIA H100"}, {}])
def test_minutes_are_chosen_only_where_they_hide_no_hour(
    store: Store, database: str, tmp_path: Path, of: dict[str, str]
) -> None:
    known = make_known(store, float(int(time.time())))
    agent, ordinal = known.places[BUSY]
    begun = int(known.at(3))
    store.make_room(set(), [begun], now=known.now)
    with store.write() as connection:
        one = {"agent": agent, "gpu": ordinal, "seconds": 600, "power_usage": 10_000}
        connection.execute(insert(samples), [{**one, "time": begun + 60 * minute} for minute in range(60)])
    with serving(tmp_path, database=database) as server:

        def ask(since: float, until: float) -> tuple[str, int, object]:
            asked = {
                "metric": "power_usage",
                "from": str(int(known.at(since))),
                "to": str(int(known.at(until))),
            }
            found = server.ask("GET", f"/api/series?{urlencode({**asked, **of})}").json
            return found["source"], len(found["items"][0]["time"]), found["available"]["minutes_from"]

        # A day of which minutes hold the last hour alone, that hour, and two hours of which the first has none.
        assert ask(-10, 4)[0] == "hours"
        source, count, minutes_from = ask(3, 4)
        assert (source, count) == ("minutes", 60)
        assert minutes_from == time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(begun))
        assert ask(2, 4)[0] == "hours"
        # Of hours before the first report nothing is hidden.
        assert ask(3, 6)[0] == "minutes"


def test_no_step_begins_before_what_was_asked_for(asked: Asked) -> None:
    end = int(asked.known.now)
    found = asked.get(
        "/api/series",
        metric="power_usage",
        gpu=BUSY,
        max_points=3,
        **{"from": str(end - 600), "to": str(end)},
    )
    assert found["thinned"]
    assert found["since"] <= found["items"][0]["time"][0]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"metric": "power_usage"}, ("mean over the step, mean per GPU", "steps")),
        ({"metric": "power_usage", "agg": "sum"}, ("mean over the step, sum of all GPUs", "steps")),
        ({"metric": "energy", "agg": "sum"}, ("total of the step, sum of all GPUs", "steps")),
        ({"metric": "energy", "gpu": BUSY}, ("total of the step", "readings")),
        ({"metric": "temperature", "agg": "max"}, ("greatest reading of any GPU", "readings")),
    ],
)
def test_a_series_says_what_its_values_are(
    asked: Asked, query: dict[str, str], words: tuple[str, str]
) -> None:
    found = asked.get("/api/series", since=0, to=4, **query)["items"][0]
    assert (found["value_is"], found["extremes_of"]) == words
