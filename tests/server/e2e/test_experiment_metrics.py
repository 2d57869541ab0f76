"""What the real server says of the values of known experiments: along steps and time, whole and thinned; and their output."""

from __future__ import annotations

import json

import pytest

from tests.server.asking_runs import Runs
from tests.server.runs import LONG, NEW, OLD, VIT, WAVE


def test_every_value_comes_where_there_are_few(runs: Runs) -> None:
    found = runs.get(f"/api/metrics/{OLD}")
    assert (found["experiment_id"], found["axis"], found["thinned"], found["left_out"]) == (
        OLD,
        "step",
        False,
        0,
    )
    loss, val_loss = found["series"]
    assert loss == {
        "name": "loss", "unit": None, "x": [0, 1, 2, 3], "value": [2.0, 1.0, 0.5, 0.75], "min": [2.0, 1.0, 0.5, 0.75],
        "max": [2.0, 1.0, 0.5, 0.75], "points": 4, "not_finite": 0, "thinned": False,
    }  # fmt: skip
    assert (val_loss["name"], val_loss["value"]) == ("val_loss", [2.5, 1.25, 0.75, 0.875])


def test_metrics_are_named_in_either_way_and_come_in_that_order(runs: Runs) -> None:
    for names in ("val_loss,loss", ["val_loss", "loss"], ["val_loss,loss", "loss"]):
        found = runs.get(f"/api/metrics/{NEW}", names=names)
        assert [one["name"] for one in found["series"]] == ["val_loss", "loss"]
    assert "no metric 'lss'" in runs.refused(f"/api/metrics/{NEW}", 404, names="loss,lss")
    assert "at most 100" in runs.refused(f"/api/metrics/{NEW}", names=",".join(map(str, range(101))))
    assert "more than 200000 together" in runs.refused(
        f"/api/metrics/{NEW}", names=",".join(map(str, range(11))), max_points=20_000
    )


def test_the_axis_is_steps_or_time(runs: Runs) -> None:
    relative = runs.get(f"/api/metrics/{NEW}", names="loss", axis="relative")["series"][0]
    assert relative["x"] == [0, 10, 20]
    absolute = runs.get(f"/api/metrics/{NEW}", names="loss", axis="time")["series"][0]
    assert absolute["x"] == [runs.begin + 600, runs.begin + 610, runs.begin + 620]


def test_a_range_is_of_the_axis_and_its_end_is_not_in_it(runs: Runs) -> None:
    def steps(**query: object) -> list[float]:
        (one,) = runs.get(f"/api/metrics/{OLD}", names="loss", **query)["series"]
        return list(one["x"])

    assert steps(from_=1, to=3) == [1, 2]
    assert steps(from_=4) == []
    assert steps(axis="relative", from_=9.5, to=30) == [10, 20]
    assert steps(axis="time", from_=runs.stamp(20)) == [runs.begin + 20, runs.begin + 30]
    assert "a step is a whole number" in runs.refused(f"/api/metrics/{OLD}", from_="1.5")
    assert "seconds are a number" in runs.refused(f"/api/metrics/{OLD}", axis="relative", from_="x")
    assert "not a time" in runs.refused(f"/api/metrics/{OLD}", axis="time", to="x")
    for far in ("nan", "inf", "9" * 30):
        runs.refused(f"/api/metrics/{OLD}", axis="relative", to=far)
    assert "64 bits" in runs.refused(f"/api/metrics/{OLD}", to=2**63)


def test_what_is_not_finite_comes_back_as_itself(runs: Runs) -> None:
    heat, loss = runs.get(f"/api/metrics/{VIT}")["series"]
    assert (loss["value"], loss["min"], loss["not_finite"]) == ([3.0, 1.5, "NaN"], [3.0, 1.5, "NaN"], 1)
    assert (heat["value"], heat["unit"]) == (["Infinity"], "°C")


def test_segments_of_one_run_come_together_in_order(runs: Runs) -> None:
    child, loss = runs.get(f"/api/metrics/{WAVE}")["series"]
    assert (child["name"], child["x"], child["value"]) == ("child/loss", [100], [0.5])
    # Steps 4 and 5 were logged before the crash, and again by the process that resumed at step 4.
    assert loss["x"] == [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8]
    assert loss["value"] == [10, 9, 8, 7, 6, 3, 5, 2.5, 2, 1.5, 1]
    along = runs.get(f"/api/metrics/{WAVE}", names="loss", axis="relative")["series"][0]
    assert along["x"] == [0, 1, 2, 3, 4, 5, 604, 605, 606, 607, 608]
    assert along["value"] == [10, 9, 8, 7, 6, 5, 3, 2.5, 2, 1.5, 1]


def test_thinning_keeps_every_peak_and_the_true_mean(runs: Runs) -> None:
    found = runs.get(f"/api/metrics/{LONG}", names="wave", max_points=100)
    (wave,) = found["series"]
    assert (found["thinned"], wave["thinned"], wave["points"]) == (True, True, 20_000)
    # 20,000 steps in stretches of 200, each with as many -1 as 1.
    assert wave["x"] == list(range(0, 20_000, 200))
    assert (wave["min"][37], wave["max"][37]) == (-1.0, 1.0)
    assert (wave["min"][38], wave["max"][38]) == (-9.0, 1.0)  # step 7777, else 1
    assert (wave["min"][61], wave["max"][61]) == (-1.0, 8.0)  # step 12,345, else 1
    assert wave["value"][0] == 0.0
    assert wave["value"][38] == pytest.approx(-10 / 200)
    assert wave["value"][61] == pytest.approx(7 / 200)
    along = runs.get(f"/api/metrics/{LONG}", names="wave", max_points=100, axis="relative")["series"][0]
    assert len(along["x"]) == 100
    assert along["x"][:2] == [0, 100]  # half a second a step
    assert (min(along["min"]), max(along["max"])) == (-9.0, 8.0)
    one = runs.get(f"/api/metrics/{LONG}", names="wave", max_points=1, axis="time")["series"][0]
    assert (one["x"], one["min"], one["max"]) == ([runs.begin + 1800], [-9.0], [8.0])
    some = runs.get(f"/api/metrics/{LONG}", names="wave", from_=7770, to=7780, max_points=10)["series"][0]
    assert (some["thinned"], some["value"][7]) == (False, -9.0)


def test_thinning_hides_nothing_that_is_not_finite_nor_huge(runs: Runs) -> None:
    found = {one["name"]: one for one in runs.get(f"/api/metrics/{LONG}", max_points=10)["series"]}
    mixed = found["mixed"]
    # Ten steps each: 15 is NaN, 25 is infinite, 35 and 36 are minus infinity.
    assert mixed["value"] == [4.5, "NaN", "Infinity", "-Infinity", 44.5, 54.5, 64.5, 74.5, 84.5, 94.5]
    assert mixed["min"] == [0, 10, 20, "-Infinity", 40, 50, 60, 70, 80, 90]
    assert mixed["max"] == [9, 19, "Infinity", 39, 49, 59, 69, 79, 89, 99]
    assert mixed["not_finite"] == 4
    # The sum of ten of them is beyond 64 bits; the mean is not.
    assert found["huge"]["value"] == [pytest.approx(1.25e308)] * 10
    assert (found["huge"]["min"], found["huge"]["max"]) == ([1e308] * 10, [1.5e308] * 10)
    assert found["flat"]["value"] == [1.0] * 10
    # Fifty values at one step are one stretch; steps at both ends of 64 bits are taken as they are.
    assert (found["same"]["x"], found["same"]["value"], found["same"]["points"]) == ([7], [2.0], 50)
    assert found["far"]["x"] == [-(2**63), 0, 2**63 - 1]
    far = runs.get(f"/api/metrics/{LONG}", names="far", max_points=2)["series"][0]
    assert far["x"] == [-(2**63), 0]
    assert far["value"][0] == -(2.0**63)


def test_metrics_come_as_a_table_too(runs: Runs) -> None:
    rows = runs.csv(f"/api/metrics/{VIT}", axis="relative")
    assert rows[0] == {"name": "heat", "x": "3.0", "value": "Infinity", "min": "Infinity", "max": "Infinity"}
    assert [(row["x"], row["value"]) for row in rows[1:]] == [("0.0", "3.0"), ("1.0", "1.5"), ("2.0", "NaN")]
    thin = runs.csv(f"/api/metrics/{LONG}", names="mixed", max_points=10)
    assert (thin[3]["value"], thin[3]["max"]) == ("-Infinity", "39.0")


def test_output_is_read_from_its_end_and_followed(runs: Runs) -> None:
    found = runs.get(f"/api/logs/{NEW}")
    assert found["experiment_id"] == NEW
    assert [(one["stream"], one["text"]) for one in found["lines"]] == [
        ("stdout", "epoch 1\n"), ("stderr", "a Warning\n"), ("stdout", "epoch 2\n"), ("log", "100 % done_\n"),
    ]  # fmt: skip
    assert found["lines"][0]["time"] == runs.stamp(601)
    assert found["previous"] is None
    assert runs.get(f"/api/logs/{NEW}", after=found["next"]) == {
        "experiment_id": NEW, "lines": [], "next": found["next"], "previous": None
    }  # fmt: skip
    last = runs.get(f"/api/logs/{NEW}", tail=1)
    assert [one["text"] for one in last["lines"]] == ["100 % done_\n"]
    assert last["next"] == found["next"]
    before = runs.get(f"/api/logs/{NEW}", before=last["previous"], limit=2)
    assert [one["text"] for one in before["lines"]] == ["a Warning\n", "epoch 2\n"]
    first = runs.get(f"/api/logs/{NEW}", before=before["previous"])
    assert ([one["text"] for one in first["lines"]], first["previous"]) == (["epoch 1\n"], None)
    assert [one["text"] for one in runs.get(f"/api/logs/{NEW}", after=first["next"], limit=2)["lines"]] == [
        "a Warning\n", "epoch 2\n",
    ]  # fmt: skip


def test_output_is_picked_by_stream_and_by_what_it_says(runs: Runs) -> None:
    def texts(**query: object) -> list[str]:
        return [one["text"] for one in runs.get(f"/api/logs/{NEW}", **query)["lines"]]

    assert texts(stream="stdout") == ["epoch 1\n", "epoch 2\n"]
    assert texts(search="WARN") == ["a Warning\n"]
    assert texts(search="%") == texts(search="_") == ["100 % done_\n"]
    assert texts(search="epoch", tail=1) == ["epoch 2\n"]
    assert texts(stream="nothing") == []
    # A search that found nothing goes on at the end, not at what it has looked through.
    assert runs.get(f"/api/logs/{NEW}", search="nothing")["next"] == runs.get(f"/api/logs/{NEW}")["next"]
    assert "one of tail, after and before" in runs.refused(f"/api/logs/{NEW}", tail=1, after="WzBd")


def test_an_experiment_without_output_can_be_followed(runs: Runs) -> None:
    found = runs.get(f"/api/logs/{OLD}")
    assert (found["lines"], found["previous"]) == ([], None)
    assert runs.get(f"/api/logs/{OLD}", after=found["next"])["lines"] == []


def test_media_are_told_with_their_contents(runs: Runs) -> None:
    found = runs.get(f"/api/experiments/{NEW}/media", kind=["image", "histogram"])["items"]
    assert found[0] == {
        "time": runs.stamp(606), "step": 1, "kind": "image", "name": "confusion", "type": "image/png", "size": 10,
        "sha256": "ab" * 32, "file": "media/a.png", "url": None, "data": None, "more": {},
    }  # fmt: skip
    assert (found[1]["data"], found[1]["more"]) == ({"edges": [0, 1], "counts": [2**70]}, {"bins": 1})
    assert [
        one["name"] for one in runs.get(f"/api/experiments/{NEW}/media", step=2, kind="histogram")["items"]
    ] == ["weights"]
    assert [one["kind"] for one in runs.get(f"/api/experiments/{NEW}/media", name="confusion")["items"]] == [
        "image"
    ]
    every, cursor = [], {}
    while True:
        page = runs.get(f"/api/experiments/{NEW}/media", limit=4, **cursor)
        every += [(one["kind"], one["name"]) for one in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert len(every) == 9
    assert every[-1] == ("model", "classifier")


def test_artifacts_are_those_logged_last_under_their_names(runs: Runs) -> None:
    found = runs.get(f"/api/experiments/{NEW}/artifacts")["items"]
    assert [(one["name"], one["sha256"][:2], one["size"], one["url"]) for one in found] == [
        ("data/train.csv", "cd", 11, None), ("notes.txt", "ab", 10, None)
    ]  # fmt: skip
    first = runs.get(f"/api/experiments/{NEW}/artifacts", limit=1)
    second = runs.get(f"/api/experiments/{NEW}/artifacts", limit=1, cursor=first["next"])
    assert [one["name"] for one in second["items"]] == ["notes.txt"]
    assert second["next"] is None
    assert "have not come yet" in runs.refused(f"/api/experiments/{NEW}/artifacts/notes.txt", 404)
    assert "no artifact 'gone'" in runs.refused(f"/api/experiments/{NEW}/artifacts/gone", 404)


@pytest.mark.parametrize(
    "name",
    [
        "../x", "..", "%2e%2e/x", "%252e%252e/x", "/etc/passwd", "a//b", "a/./b", "a%5cb", "a%255cb", "a%00b",
        "a%2500b", "c:/x", "%2fetc/passwd", "a%09b", "x/", "x/..",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(runs: Runs, name: str) -> None:
    answer = runs.server.ask("GET", f"/api/experiments/{NEW}/artifacts/{name}")
    assert answer.status == 422, answer.body
    assert json.loads(answer.body)["errors"][0]["field"] == "path.name"


def test_checkpoints_and_models_of_a_run(runs: Runs) -> None:
    found = runs.get(f"/api/models/{NEW}")
    assert found["experiment_id"] == NEW
    assert [(one["kind"], one["name"], one["removed"], one["version"]) for one in found["items"]] == [
        ("checkpoint", "epoch-1", True, None), ("checkpoint", "epoch-2", False, None), ("model", "classifier", False, 1),
    ]  # fmt: skip
    first, _, model = found["items"]
    assert (first["epoch"], first["format"], first["metrics"]) == (
        1,
        "numpy",
        {"val_loss": 0.5, "bad": "NaN"},
    )
    assert (model["stage"], model["checkpoint"], model["metrics"], model["size"]) == (
        "prod",
        "epoch-2",
        {"val_loss": 0.25},
        12,
    )
    assert model["url"] is None
    page = runs.get("/api/models/resnet", limit=2)
    rest = runs.get("/api/models/resnet", limit=2, cursor=page["next"])
    assert ([one["name"] for one in rest["items"]], rest["next"]) == (["classifier"], None)


def test_the_registry_counts_versions_and_knows_where_they_came_from(runs: Runs) -> None:
    assert runs.get("/api/registry/models")["items"] == [
        {
            "name": "classifier", "contract_number": "100", "versions": 2, "version": 2, "time": runs.stamp(1204),
            "experiment_id": VIT, "experiment_name": "vit",
        }
    ]  # fmt: skip
    versions = runs.get("/api/registry/models/classifier")["items"]
    assert [(one["version"], one["experiment_id"], one["sha256"][:2]) for one in versions] == [
        (2, VIT, "ef"),
        (1, NEW, "ab"),
    ]
    assert (versions[1]["project"], versions[1]["metrics"]) == ("vision", {"val_loss": 0.25})
    page = runs.get("/api/registry/models/classifier", limit=1)
    assert runs.get("/api/registry/models/classifier", limit=1, cursor=page["next"])["items"] == versions[1:]
    assert runs.get("/api/registry/models", contract="200")["items"] == []
    assert "no model 'nothing'" in runs.refused("/api/registry/models/nothing", 404)
