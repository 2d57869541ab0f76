"""What the real server says of the known experiments: picked, sorted, paged, one of them, compared; who sees what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.asked import HINTS, REFUSED, WHERE, WHERE_STALLED
from tests.server.asking_runs import Runs
from tests.server.runs import LONG, NEW, OLD, SPEECH, VISION, VIT, WAVE

EVERY = {"archived": "all", "order": "asc"}


def test_the_list_is_newest_first_and_hides_the_archived(runs: Runs) -> None:
    assert runs.ids() == [LONG, VIT, NEW, OLD]
    assert runs.ids(archived="all") == [WAVE, LONG, VIT, NEW, OLD]
    assert runs.ids(archived="true") == [WAVE]
    assert runs.ids(order="asc") == [OLD, NEW, VIT, LONG]


def test_an_experiment_of_the_list_says_what_it_is(runs: Runs) -> None:
    found = {one["id"]: one for one in runs.get("/api/experiments", archived="all")["items"]}
    old, vit, wave, long = (found[id] for id in (OLD, VIT, WAVE, LONG))
    assert (old["name"], old["project"], old["contract_number"]) == ("resnet", "vision", VISION)
    assert (old["started"], old["ended"], old["duration_seconds"]) == (runs.stamp(0), runs.stamp(40), 40)
    assert (old["status"], old["exit_code"], old["stalled"], old["archived"]) == (
        "completed",
        0,
        False,
        False,
    )
    assert (old["tags"], old["values"], old["last_step"], old["points"]) == (
        {"model": "resnet", "stage": "dev"},
        {},
        3,
        8,
    )
    assert (old["host"], old["user"], old["simulated"], long["simulated"]) == ("node-1", "ada", False, True)
    # It runs, and its last word came an hour ago: a lease is a minute.
    assert (vit["status"], vit["stalled"], vit["ended"]) == ("running", True, None)
    assert vit["duration_seconds"] == 4  # up to its newest record
    assert (wave["status"], wave["reason"], wave["archived"]) == ("failed", "ValueError: no", True)
    # Begun by the first segment, ended by the one that resumed it: 10 minutes and 9 seconds.
    assert (wave["started"], wave["ended"], wave["host"]) == (runs.stamp(2400), runs.stamp(3009), "node-9")
    assert (long["status"], long["signal"]) == ("stopped", "SIGTERM")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"project": "vision"}, [OLD, NEW, VIT, LONG]),
        ({"project": "speech"}, [WAVE]),
        ({"project": "nothing"}, []),
        ({"contract": "200"}, [WAVE]),
        ({"tag": "model"}, [OLD, NEW, VIT]),
        ({"tag": "model=resnet"}, [OLD, NEW]),
        ({"tag": ["model=resnet", "stage=prod"]}, [NEW]),
        ({"tag": "removed"}, []),
        ({"tag": "model="}, []),
        ({"status": "completed"}, [OLD, NEW]),
        ({"status": ["failed", "stopped"]}, [LONG, WAVE]),
        ({"status": "stalled"}, [VIT]),
        ({"status": "running"}, [VIT]),
        ({"status": "archived", "archived": "false"}, [WAVE]),
        ({"text": "RESN"}, [OLD, NEW]),
        ({"text": "too high?"}, [OLD]),
        ({"text": "run-vit"}, [VIT]),
        ({"text": "%"}, []),
        ({"text": "_"}, []),
    ],
)
def test_experiments_are_picked(runs: Runs, query: dict[str, Any], found: list[str]) -> None:
    assert runs.ids(**{**EVERY, **query}) == found


@pytest.mark.parametrize(("where", "found"), [*WHERE, *WHERE_STALLED])
def test_experiments_are_asked_for_by_what_they_are(runs: Runs, where: str, found: list[str]) -> None:
    assert runs.ids(**EVERY, where=where) == found


@pytest.mark.parametrize(("where", "hint"), HINTS)
def test_a_name_that_no_experiment_has_is_told(runs: Runs, where: str, hint: str | None) -> None:
    found = runs.get("/api/experiments", **EVERY, where=where)
    assert (found["items"], found["hint"]) == ([], hint)


def test_who_may_not_see_an_experiment_learns_no_name_of_it(runs: Runs) -> None:
    token = runs.server.token("--scope", "read", "--contract", VISION)
    asked = {"where": "child/loss > 100", **EVERY}
    assert runs.get("/api/experiments", **asked)["hint"] is None
    hint = runs.get("/api/experiments", token=token, **asked)["hint"]
    assert hint.startswith("no experiment has a parameter, metric or tag called child/loss")
    assert "child/loss?" not in hint


def test_times_are_compared_as_they_are_written_elsewhere(runs: Runs) -> None:
    at = runs.stamp(600)
    assert runs.ids(**EVERY, where=f"started <= '{at}'") == [OLD, NEW]
    assert runs.ids(**EVERY, where=f"started < {int(runs.begin) + 600}") == [OLD]
    assert runs.ids(**EVERY, where="started > -7d and ended < -1h") == [OLD, NEW, LONG, WAVE]
    assert runs.ids(**EVERY, where="started > '2100-01-01'") == []


@pytest.mark.parametrize(("where", "told"), REFUSED)
def test_an_expression_that_cannot_be_is_refused_with_its_column(runs: Runs, where: str, told: str) -> None:
    answer = runs.ask("/api/experiments", where=where)
    assert (answer.status, answer.json["detail"]) == (422, f"query.where: {told}")
    assert answer.json["errors"][0]["column"] == told.split()[1].rstrip(":")


def test_a_time_that_is_none_is_refused_too(runs: Runs) -> None:
    assert "not a time" in runs.refused("/api/experiments", where="started > soon")


@pytest.mark.parametrize(
    ("sort", "ascending", "descending"),
    [
        ("name", [LONG, OLD, NEW, VIT, WAVE], [WAVE, VIT, NEW, OLD, LONG]),
        ("val_loss", [NEW, OLD, VIT, LONG, WAVE], [OLD, NEW, WAVE, LONG, VIT]),
        ("min(loss)", [NEW, OLD, WAVE, VIT, LONG], [VIT, WAVE, OLD, NEW, LONG]),
        # Of vit it is NaN, long has none: both come last.
        ("metrics.loss", [NEW, OLD, WAVE, VIT, LONG], [WAVE, OLD, NEW, LONG, VIT]),
        # Numbers before texts, and nothing last.
        ("lr", [NEW, WAVE, OLD, VIT, LONG], [OLD, WAVE, NEW, VIT, LONG]),
        ("heat", [VIT, OLD, NEW, LONG, WAVE], [VIT, WAVE, LONG, NEW, OLD]),
        ("tags.stage", [OLD, NEW, VIT, LONG, WAVE], [NEW, OLD, WAVE, LONG, VIT]),
        ("ended", [OLD, NEW, WAVE, LONG, VIT], [LONG, WAVE, NEW, OLD, VIT]),
        ("archived", [OLD, NEW, VIT, LONG, WAVE], [WAVE, LONG, VIT, NEW, OLD]),
    ],
)
def test_any_of_it_sorts_and_what_has_none_comes_last(
    runs: Runs, sort: str, ascending: list[str], descending: list[str]
) -> None:
    for order, wanted in (("asc", ascending), ("desc", descending)):
        asked = {"sort": sort, "order": order, "archived": "all"}
        assert runs.ids(**asked) == wanted
        found, cursor = [], {}
        while True:
            page = runs.get("/api/experiments", **asked, **cursor, limit=1)
            found += [one["id"] for one in page["items"]]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert found == wanted


def test_columns_are_answered_beside_the_fields(runs: Runs) -> None:
    asked = ["lr", "metrics.lr", "min(loss)", "loss", "tags.model", "params.seed", "layers"]
    found = {one["id"]: one["values"] for one in runs.get("/api/experiments", columns=asked)["items"]}
    assert found[NEW] == {
        "lr": 0.001, "metrics.lr": 0.0005, "min(loss)": 0.25, "loss": 0.25, "tags.model": "resnet",
        "params.seed": 2**70, "layers": [64, 128],
    }  # fmt: skip
    assert found[VIT] == {
        "lr": "auto", "metrics.lr": None, "min(loss)": 1.5, "loss": "NaN", "tags.model": "vit", "params.seed": None,
        "layers": None,
    }  # fmt: skip
    rows = {
        row["id"]: row for row in runs.csv("/api/experiments", columns=["lr", "loss", "params.seed", "heat"])
    }
    assert list(rows[NEW])[:4] == ["id", "name", "project", "contract_number"]
    assert (rows[NEW]["lr"], rows[NEW]["loss"], rows[NEW]["params.seed"]) == ("0.001", "0.25", str(2**70))
    assert (rows[VIT]["loss"], rows[VIT]["heat"], rows[OLD]["heat"]) == ("NaN", "Infinity", "")
    assert "stands in every answer already" in runs.refused("/api/experiments", columns="status")
    assert "column 4" in runs.refused("/api/experiments", columns="lr <")
    assert "column 1" in runs.refused("/api/experiments", sort="1")


def test_a_name_means_its_newest_and_the_answer_says_which(runs: Runs) -> None:
    for meant, id in (("resnet", NEW), ("resnet~1", NEW), ("resnet~2", OLD), (OLD, OLD), ("wave", WAVE)):
        assert runs.get(f"/api/experiments/{meant}")["id"] == id
        assert runs.get(f"/api/metrics/{meant}")["experiment_id"] == id
    assert "Did you mean 'resnet'?" in runs.refused("/api/experiments/resent", 404)
    assert "no experiment 'resnet~3'" in runs.refused("/api/experiments/resnet~3", 404)
    assert "no experiment 'a/b c'" in runs.refused("/api/experiments/a/b c", 404)


def test_one_experiment_tells_everything_that_was_said_of_it(runs: Runs) -> None:
    new = runs.get(f"/api/experiments/{NEW}")
    assert new["params"] == {
        "lr": 0.001, "batch_size": 32, "optimizer": "adam", "amp": True, "layers": [64, 128], "seed": 2**70
    }  # fmt: skip
    assert new["tags"] == {"model": "resnet", "stage": "prod"}
    assert new["facts"] == {"git": {"commit": "c0ffee"}, "command": ["python", "train.py"]}
    assert new["alerts"] == [
        {"time": runs.stamp(605), "level": "warning", "title": "slow", "text": "the disk is slow"}
    ]
    metrics = {one["name"]: one for one in new["metrics"]}
    assert list(metrics) == ["accuracy", "loss", "lr", "val_loss"]
    assert metrics["accuracy"]["last"] == {"value": 0.9375, "step": 2, "time": runs.stamp(620)}
    assert metrics["accuracy"]["min"] == {"value": 0.5, "step": 0, "time": runs.stamp(600)}
    assert (metrics["loss"]["points"], metrics["loss"]["not_finite"]) == (3, 0)
    assert [(one["segment"], one["pid"], one["boot_id"], one["start_ticks"]) for one in new["segments"]] == [
        ("seg-00000001", 4711, "boot", 99)
    ]
    assert (new["cut"], new["thinned"], new["proof"]) == ([], None, None)
    old = runs.get(f"/api/experiments/{OLD}")
    assert old["notes"] == [{"time": runs.stamp(31), "text": "Learning rate too high?", "author": None}]
    vit = {one["name"]: one for one in runs.get(f"/api/experiments/{VIT}")["metrics"]}
    assert (vit["loss"]["last"]["value"], vit["loss"]["min"]["value"]) == ("NaN", 1.5)
    assert (vit["loss"]["not_finite"], vit["loss"]["first_not_finite_step"]) == (1, 2)
    assert (vit["heat"]["last"]["value"], vit["heat"]["min"], vit["heat"]["unit"]) == ("Infinity", None, "°C")
    wave = runs.get(f"/api/experiments/{WAVE}")
    assert [(one["segment"], one["resumed"], one["parent"]) for one in wave["segments"]] == [
        ("seg-00000001", False, None), ("seg-00000002", False, "seg-00000001"), ("seg-00000003", True, None)
    ]  # fmt: skip


def test_projects_count_what_they_hold(runs: Runs) -> None:
    found = runs.get("/api/projects")["items"]
    assert [(one["name"], one["contract_number"], one["experiments"], one["running"], one["archived"]) for one in found] == [
        ("speech", SPEECH, 1, 0, 1), ("vision", VISION, 4, 1, 0)
    ]  # fmt: skip
    assert found[1]["last_started"] == runs.stamp(1800)
    first = runs.get("/api/projects", limit=1)
    assert [one["name"] for one in runs.get("/api/projects", limit=1, cursor=first["next"])["items"]] == [
        "vision"
    ]
    assert [row["name"] for row in runs.csv("/api/projects", contract=VISION)] == ["vision"]


def test_experiments_stand_side_by_side(runs: Runs) -> None:
    found = runs.get("/api/compare", ids="resnet~2,resnet,run-vit", step=1)
    assert [one["id"] for one in found["experiments"]] == [OLD, NEW, VIT]
    params = {one["name"]: (one["differs"], one["values"]) for one in found["params"]}
    assert params == {
        "lr": (True, [0.1, 0.001, "auto"]),
        "batch_size": (True, [32, 32, None]),
        "optimizer": (True, ["sgd", "adam", "adam"]),
        "amp": (True, [False, True, None]),
        "layers": (True, [[64, 128], [64, 128], None]),
        "seed": (True, [None, 2**70, None]),
    }
    tags = {one["name"]: (one["differs"], one["values"]) for one in found["tags"]}
    assert tags == {"model": (True, ["resnet", "resnet", "vit"]), "stage": (True, ["dev", "prod", None])}
    metrics = {one["name"]: one for one in found["metrics"]}
    loss = metrics["loss"]
    assert loss["best_is"] == "min"
    assert [one["value"] for one in loss["best"]] == [0.5, 0.25, 1.5]
    assert [one["step"] for one in loss["best"]] == [2, 2, 1]
    assert [one["value"] for one in loss["last"]] == [0.75, 0.25, "NaN"]
    assert [one["value"] for one in loss["at"]] == [1.0, 0.5, 1.5]
    assert metrics["accuracy"]["best_is"] == "max"
    assert [one and one["value"] for one in metrics["accuracy"]["best"]] == [None, 0.9375, None]
    assert (metrics["lr"]["best_is"], metrics["lr"]["best"]) == (None, [None, None, None])
    assert metrics["lr"]["at"] == [None, None, None]  # its only value is of step 2
    assert found["left_out"] == 0


def test_a_comparison_is_narrowed_and_comes_as_a_table(runs: Runs) -> None:
    found = runs.get("/api/compare", ids=[OLD, NEW], names="loss,nothing", best="loss:max", differing="true")
    assert [one["name"] for one in found["params"]] == ["amp", "lr", "optimizer", "seed"]
    assert [one["name"] for one in found["tags"]] == ["stage"]
    assert [(one["name"], one["best_is"]) for one in found["metrics"]] == [("loss", "max"), ("nothing", None)]
    assert [one["value"] for one in found["metrics"][0]["best"]] == [2.0, 2.0]
    rows = runs.csv("/api/compare", ids=f"{OLD},{NEW}", names="loss")
    assert rows[0] == {"kind": "param", "name": "amp", "differs": "true", OLD: "false", NEW: "true"}
    assert {"kind": "param", "name": "batch_size", "differs": "false", OLD: "32", NEW: "32"} in rows
    assert {"kind": "tag", "name": "stage", "differs": "true", OLD: "dev", NEW: "prod"} in rows
    assert {"kind": "best", "name": "loss", "differs": "true", OLD: "0.5", NEW: "0.25"} in rows
    assert {"kind": "max", "name": "loss", "differs": "false", OLD: "2.0", NEW: "2.0"} in rows
    assert "no experiment 'gone'" in runs.refused("/api/compare", 404, ids="run-old,gone")
    assert "1 to 50" in runs.refused("/api/compare", ids=",")
    assert ":min or :max" in runs.refused("/api/compare", ids=OLD, best="loss")


def test_a_token_sees_its_contract_alone(runs: Runs) -> None:
    token = runs.server.token("--scope", "read", "--contract", SPEECH)
    assert [one["id"] for one in runs.get("/api/experiments", token, archived="all")["items"]] == [WAVE]
    assert [one["name"] for one in runs.get("/api/projects", token)["items"]] == ["speech"]
    for path in ("experiments", "metrics", "logs", "models"):
        assert runs.ask(f"/api/{path}/{OLD}", token).status == 404
    for path in (
        f"/api/experiments/{NEW}/media",
        f"/api/experiments/{NEW}/artifacts",
        "/api/registry/models/classifier",
    ):
        assert runs.ask(path, token).status == 404
    assert runs.get("/api/registry/models", token)["items"] == []
    assert runs.ask("/api/compare", token, ids=f"{WAVE},{OLD}").status == 404
    # The name of what is not theirs to see is not told either.
    assert b"resnet" not in runs.ask("/api/experiments/resent", token).body


def test_a_parameter_that_is_not_there_is_refused(runs: Runs) -> None:
    assert "did you mean where?" in runs.refused("/api/experiments", were="loss < 1")
    for path in ("metrics", "logs", "models", "experiments"):
        assert "no parameter of this question" in runs.refused(f"/api/{path}/{OLD}", colour="red")
    for cursor in ("!", "W10", "WzAsbnVsbCwiXHUwMDAwIiwxXQ"):  # no base64, [], [0, null, U+0000, 1]
        assert "not a cursor" in runs.refused("/api/experiments", cursor=cursor)
