"""Experiments of a directory are picked and sorted as a server picks and sorts them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.core.errors import UsageError
from gpu_monitor.training.conditions import Candidate
from gpu_monitor.training.run_terms import Listing, Wanted
from gpu_monitor.training.runs_here import RunsHere
from gpu_monitor.wire.expressions import FIELDS, operands_of, parse_expression, parse_operand, words_of
from tests.server.asked import HINTS, REFUSED, WHERE
from tests.server.runs import LONG, NEW, OLD, VIT, WAVE, Segment, known_segments

BEGIN = float(int(time.time())) - 86_400


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> RunsHere:
    """The known experiments in a directory; `wave` is archived."""
    directory = tmp_path_factory.mktemp("experiments")
    for _, segment in known_segments(BEGIN):
        folder = directory / segment.experiment
        folder.mkdir(exist_ok=True)
        log = folder / f"{segment.segment}.log"
        log.write_bytes(segment.data)
        os.utime(
            log, (segment.started + 5, segment.started + 5)
        )  # of one that is gone, it was last heard of then
    runs = RunsHere(directory)
    runs.archive(WAVE, True)
    return runs


def ask(here: RunsHere, **wanted: Any) -> Listing:
    return here.list(Wanted(**{"archived": None, "order": "asc", **wanted}))


def ids(here: RunsHere, **wanted: Any) -> list[str]:
    return [one["id"] for one in ask(here, **wanted).items]


@pytest.mark.parametrize(("where", "found"), WHERE)
def test_they_are_asked_for_by_what_they_are(here: RunsHere, where: str, found: list[str]) -> None:
    assert ids(here, where=where) == found


def test_by_time_and_by_what_only_a_log_tells(here: RunsHere) -> None:
    assert ids(here, where=f"started < {int(BEGIN) + 600}") == [OLD]
    assert ids(here, where="started > -7d and not started > -1h") == [OLD, NEW, VIT, LONG, WAVE]
    assert ids(here, where="started > '2100-01-01'") == []
    assert ids(here, where="host = node-2 or signal = SIGTERM") == [VIT, LONG]
    assert ids(here, where="reason = 'ValueError: no'") == [WAVE]
    assert ids(here, where="points = 8") == [OLD]  # four of each of two
    with pytest.raises(UsageError, match="time"):
        ask(here, where="started > soon")


@pytest.mark.parametrize(("where", "hint"), HINTS)
def test_a_name_that_no_experiment_has_is_told(here: RunsHere, where: str, hint: str | None) -> None:
    assert ask(here, where=where) == Listing([], False, hint)


@pytest.mark.parametrize(("where", "told"), REFUSED)
def test_what_is_no_expression_is_refused_with_its_column(here: RunsHere, where: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        ask(here, where=where)
    assert refused.value.message == f"--where: {told}"


@pytest.mark.parametrize("words", ["stalled = true", "last_heard > -1h", "contract_number = 100"])
def test_what_only_servers_know_is_told(here: RunsHere, words: str) -> None:
    with pytest.raises(UsageError, match="only a server knows"):
        ask(here, where=words)
    with pytest.raises(UsageError, match="only a server knows"):
        ask(here, sort=words.split()[0])


@pytest.mark.parametrize(
    ("sort", "ascending", "descending"),
    [
        # Numbers, then texts (vit's lr is "auto"), then what has neither; of wave 0.01, of new the parameter.
        ("lr", [NEW, WAVE, OLD, VIT, LONG], [OLD, WAVE, NEW, VIT, LONG]),
        ("min(loss)", [NEW, OLD, WAVE, VIT, LONG], [VIT, WAVE, OLD, NEW, LONG]),
        ("metrics.loss", [NEW, OLD, WAVE, VIT, LONG], [WAVE, OLD, NEW, LONG, VIT]),  # vit's last is NaN
        ("heat", [VIT, OLD, NEW, LONG, WAVE], [VIT, WAVE, LONG, NEW, OLD]),  # infinite
        ("name", [LONG, OLD, NEW, VIT, WAVE], [WAVE, VIT, NEW, OLD, LONG]),
        ("tags.stage", [OLD, NEW, VIT, LONG, WAVE], [NEW, OLD, WAVE, LONG, VIT]),
        ("started", [OLD, NEW, VIT, LONG, WAVE], [WAVE, LONG, VIT, NEW, OLD]),
    ],
)
def test_they_are_sorted(here: RunsHere, sort: str, ascending: list[str], descending: list[str]) -> None:
    assert ids(here, sort=sort) == ascending
    assert ids(here, sort=sort, order=None) == descending
    first = ask(here, sort=sort, limit=2)
    assert ([one["id"] for one in first.items], first.has_more) == (ascending[:2], True)


def test_the_answer_has_what_was_asked_by(here: RunsHere) -> None:
    found = ask(here, where="min(loss) < 9 and not tags.stage = x", sort="lr")
    values = {one["id"]: one["values"] for one in found.items}
    assert values == {
        OLD: {"min(loss)": 0.5, "tags.stage": "dev", "lr": 0.1},
        NEW: {"min(loss)": 0.25, "tags.stage": "prod", "lr": 0.001},
    }
    (vit,) = ask(here, where="loss = nan and heat = inf").items
    assert vit["values"] == {"loss": "NaN", "heat": "Infinity"}
    assert "values" not in ask(here).items[0]


def test_an_experiment_that_is_deleted_meanwhile_is_left_out(here: RunsHere, tmp_path: Path) -> None:
    directory = tmp_path / "experiments"
    for _, segment in known_segments(BEGIN)[:2]:
        folder = directory / segment.experiment
        folder.mkdir(parents=True)
        (folder / f"{segment.segment}.log").write_bytes(segment.data)
    runs = RunsHere(directory)
    assert len(runs.list(Wanted()).items) == 2  # the list is remembered
    (directory / OLD / "seg-00000001.log").rename(directory / OLD / "elsewhere")
    found = runs.list(Wanted(where="loss < 9"))
    assert [one["id"] for one in found.items] == [NEW]


@pytest.mark.parametrize(
    "text",
    [
        "loss", "params.lr", 'metrics."val loss"', "tags.model", "min(loss)", 'max("a \\"b\\" \\\\ c")', '"status"',
        'min("or")', 'max("status")', 'metrics."not"',
        '"and"', "started", '"params.x"', "child/loss",
    ],
)  # fmt: skip
def test_what_is_compared_is_written_as_it_is_read(text: str) -> None:
    operand = parse_operand(text, FIELDS)
    again = parse_operand(words_of(operand), FIELDS)
    assert (again.kind, again.name, again.stat) == (operand.kind, operand.name, operand.stat)
    (alone,) = operands_of(parse_expression(f"not ({words_of(operand)} != null)", FIELDS))
    assert (alone.kind, alone.name) == (operand.kind, operand.name)


def test_a_hostile_log_breaks_no_list(tmp_path: Path) -> None:
    directory = tmp_path / "experiments"
    for number, (started, more) in enumerate(
        [(1e300, {}), (1e16, {}), (-5.0, {}), (BEGIN, {"exit_code": [1]})]
    ):
        segment = Segment(f"bad-{number}", "bad", "vision", started)
        segment.log(1, 1, loss=1.0).end(5, "failed", **more)
        folder = directory / segment.experiment
        folder.mkdir(parents=True)
        (folder / "seg-00000001.log").write_bytes(segment.data)
    (directory / "pipe").mkdir()
    os.mkfifo(directory / "pipe" / "seg-00000001.log")
    runs = RunsHere(directory)
    for asked in ({}, {"sort": "exit_code"}, {"where": "exit_code != 3"}, {"where": "loss = 1"}):
        found = json.loads(json.dumps(runs.list(Wanted(**asked)).items))  # type: ignore[arg-type]
        assert len(found) == (0 if "exit_code" in asked.get("where", "") else 4)


def test_a_metric_that_was_named_and_never_logged_is_not_known(tmp_path: Path) -> None:
    """Its writer was killed between the two lines."""
    segment = Segment(OLD, "cut", "vision", BEGIN)
    segment.log(1, 1, loss=1.0)
    segment.lines.pop()
    folder = tmp_path / "experiments" / OLD
    folder.mkdir(parents=True)
    (folder / "seg-00000001.log").write_bytes(segment.data)
    runs = RunsHere(tmp_path / "experiments")
    for where in ("loss < 9", "not loss < 9", "loss = nan", "min(loss) < 9"):
        assert runs.list(Wanted(where=where)).items == []
    (found,) = runs.list(Wanted(sort="loss")).items
    assert found["values"] == {"loss": None}


def test_what_may_not_be_read_is_told(here: RunsHere, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Candidate) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Candidate, "stored", property(refuse))
    found = ask(here, where="points > 0")
    assert (found.items, found.has_more) == ([], False)
    assert f"{WAVE} cannot be read: Permission denied" in (found.hint or "")
