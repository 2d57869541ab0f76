"""`gpu_monitor experiments` and `compare` as a person uses them, on this machine and on a real server."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.program import PROGRAM
from tests.server.rig import Server, serving
from tests.training.runs import environment, logs, run

SCRIPT = """
rate = float(sys.argv[1])
with TrainingMonitor("toy", "toys", params={"lr": rate, "depth": 3}, tags={"kind": sys.argv[2]}, {quiet}) as monitor:
    for step in range(10):
        monitor.log_metrics({"loss": rate * (10 - step), "reward": step - rate}, step=step)
    monitor.log_metrics({"loss": float("nan")}, step=10)
    monitor.add_note("the first of them")
"""


def gpu_monitor(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=environment(COLUMNS="80", **more), capture_output=True, text=True,
        timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with two experiments of one name, the older one first."""
    folder = tmp_path_factory.mktemp("two")
    for rate, kind in (("0.5", "slow"), ("0.25", "fast")):
        made = run(SCRIPT, folder, rate, kind)
        assert made.returncode == 0, made.stderr
    return folder, [log.parent.name for log in logs(folder)]


def test_a_list_has_the_newest_first_and_is_picked_from(two: tuple[Path, list[str]]) -> None:
    folder, (older, newer) = two
    listed = json.loads(gpu_monitor(folder, "experiments", "list", "--json").stdout)
    assert [one["id"] for one in listed["items"]] == [newer, older]
    assert [one["params"] for one in listed["items"]] == [{"lr": 0.25, "depth": 3}, {"lr": 0.5, "depth": 3}]
    picked = gpu_monitor(
        folder, "experiments", "list", "--tag", "kind=slow", "--status", "completed", "--json"
    )
    assert [one["id"] for one in json.loads(picked.stdout)["items"]] == [older]
    page = gpu_monitor(folder, "experiments", "list")
    assert page.stdout.splitlines()[1].split()[:3] == ["toy", newer, "completed"]
    short = gpu_monitor(folder, "experiments", "list", "-n", "1")
    assert (short.returncode, len(short.stdout.splitlines())) == (0, 2)
    assert "there are more than 1" in short.stderr
    none = gpu_monitor(folder, "experiments", "list", "--project", "other")
    assert (none.returncode, none.stdout) == (3, "")


def test_a_list_is_picked_and_sorted_by_expressions(two: tuple[Path, list[str]]) -> None:
    folder, (older, newer) = two
    asked = ("experiments", "list", "--where", "min(loss) < 0.3 and lr > 0.1", "--json")
    assert [one["id"] for one in json.loads(gpu_monitor(folder, *asked).stdout)["items"]] == [newer]
    page = gpu_monitor(folder, "experiments", "list", "--sort", "max(reward)").stdout.splitlines()
    assert [line.split()[1] for line in page[1:]] == [newer, older]  # 9 - 0.25 before 9 - 0.5
    assert page[0].split()[-1] == "max(reward)"
    assert [line.split()[-1] for line in page[1:]] == ["8.75", "8.5"]
    wrong = gpu_monitor(folder, "experiments", "list", "--where", "loss <")
    assert wrong.returncode == 2
    assert "--where: column 7: expected a number or a text" in wrong.stderr
    none = gpu_monitor(folder, "experiments", "list", "--where", "rewad > 1")
    assert none.returncode == 3
    assert "did you mean reward?" in none.stderr
    alone = gpu_monitor(folder, "experiments", "list", "--where", "stalled = true")
    assert alone.returncode == 2
    assert "--server URL" in alone.stderr


def test_a_name_means_its_newest_and_the_answer_says_which(two: tuple[Path, list[str]]) -> None:
    folder, (older, newer) = two
    shown = gpu_monitor(folder, "experiments", "show", "toy~2")
    assert f"toy~2 is {older}" in shown.stderr
    assert f"  id          {older}\n" in shown.stdout
    assert "  lr     0.5\n" in shown.stdout
    found = json.loads(gpu_monitor(folder, "experiments", "show", newer, "--json").stdout)
    (loss,) = [one for one in found["metrics"] if one["name"] == "loss"]
    assert loss["points"] == 11
    assert loss["last"] == {"value": "NaN", "step": 10}
    assert loss["min"] == {"value": 0.25, "step": 9}
    assert [note["text"] for note in found["notes"]] == ["the first of them"]
    missing = gpu_monitor(folder, "experiments", "show", "tiy")
    assert missing.returncode == 3
    assert "toy" in missing.stderr


def test_points_come_out_as_they_went_in(two: tuple[Path, list[str]]) -> None:
    folder, (older, _) = two
    told = gpu_monitor(folder, "experiments", "export", older, "--metric", "loss")
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    assert [(row["step"], row["value"]) for row in rows] == [
        *((str(step), str(0.5 * (10 - step))) for step in range(10)), ("10", "NaN"),
    ]  # fmt: skip
    whole = gpu_monitor(folder, "experiments", "export", older, "-f", "json", "-o", "points.json")
    assert whole.returncode == 0, whole.stderr
    assert len(json.loads((folder / "points.json").read_text())) == 21
    again = gpu_monitor(folder, "experiments", "export", older, "-o", "points.json")
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    wrong = gpu_monitor(folder, "experiments", "export", older, "--metric", "lost")
    assert (wrong.returncode, wrong.stdout, "It has: loss, reward" in wrong.stderr) == (2, "", True)


def test_two_runs_stand_side_by_side(two: tuple[Path, list[str]]) -> None:
    folder, (older, newer) = two
    page = gpu_monitor(folder, "compare", older, newer, "--step", "4", "--best", "reward:max")
    assert page.returncode == 0, page.stderr
    lines = {line[:16].strip(): line[16:].split() for line in page.stdout.splitlines()}
    assert lines["lr"] == ["0.5", "0.25"]
    assert "depth" not in lines
    assert lines["loss best"] == ["0.5", "@9", "0.25", "@9", "*"]
    assert lines["loss last"] == ["NaN", "NaN"]
    assert lines["loss at 4"] == ["3", "@4", "1.5", "@4"]
    assert lines["reward best"] == ["8.5", "@9", "8.75", "@9", "*"]
    told = json.loads(gpu_monitor(folder, "compare", older, newer, "--json").stdout)
    assert told["differing"] == ["lr"]
    assert told["metrics"]["loss"]["last"] == [{"value": "NaN", "step": 10}] * 2
    assert told["metrics"]["reward"]["best_is"] == "max"
    drawn = gpu_monitor(folder, "compare", older, "--plot", "curves.png", "--metric", "los")
    assert (drawn.returncode, drawn.stdout, "Did you mean loss?" in drawn.stderr) == (3, "", True)
    assert not (folder / "curves.png").exists()


def test_columns_are_headed_by_what_tells_the_runs_apart(two: tuple[Path, list[str]]) -> None:
    folder, (older, newer) = two

    def heads(*names: str) -> list[str]:
        page = gpu_monitor(folder, "compare", *names)
        assert page.returncode == 0, page.stderr
        return page.stdout.splitlines()[0].split()

    assert heads("toy", "toy~2") == ["toy", "toy~2"]
    assert heads("toy~2", newer, "toy") == ["toy~2", newer]
    assert heads(older, newer) == [older, newer]
    alone = gpu_monitor(folder, "compare", "toy")
    assert (alone.returncode, alone.stdout.split()[0]) == (0, "toy")
    assert f"only {newer} is named" in alone.stderr
    assert "toy~2" in alone.stderr


def test_a_page_keeps_what_is_there_and_what_a_row_is_of(tmp_path: Path) -> None:
    made = run(
        """
        long = "validation/very/long/name/of/a/metric/loss"
        with TrainingMonitor("toy", {quiet}) as monitor:
            for epoch in range(20):
                monitor.log_metrics({long: 1 / (epoch + 1)}, step=epoch)
                monitor.log_text("sample", f"text {epoch}", step=epoch)
                monitor.save_checkpoint(b"state", epoch, keep="last:2")
            monitor.log_text("last word", "it is done", step=20)
        """,
        tmp_path,
    )
    assert made.returncode == 0, made.stderr
    page = gpu_monitor(tmp_path, "compare", "toy", "--step", "4").stdout
    rows = [line[:26].rstrip() for line in page.splitlines() if line.startswith("validation")]
    assert [row.rpartition("…")[2] for row in rows] == [" best", " last", " at 4"]
    shown = gpu_monitor(tmp_path, "experiments", "show", "toy").stdout
    files = [line.split(maxsplit=1) for line in shown.partition("pictures and files\n")[2].splitlines()]
    checkpoint, *texts = files
    assert checkpoint[0] == "checkpoint" and checkpoint[1].endswith("@19, the newest of 2")
    assert texts == [["text", "last word @20"], ["text", "sample @19, the newest of 20"]]


def test_archiving_hides_and_only_what_is_archived_can_be_deleted(tmp_path: Path) -> None:
    assert run(SCRIPT, tmp_path, "0.5", "slow").returncode == 0
    (log,) = logs(tmp_path)
    refused = gpu_monitor(tmp_path, "experiments", "delete", "toy", "--yes")
    assert (refused.returncode, "is not archived" in refused.stderr) == (1, True)
    assert gpu_monitor(tmp_path, "experiments", "archive", "toy").returncode == 0
    assert gpu_monitor(tmp_path, "experiments", "list").returncode == 3
    assert gpu_monitor(tmp_path, "experiments", "list", "--archived").returncode == 0
    unasked = gpu_monitor(tmp_path, "experiments", "delete", "toy")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    assert log.exists()
    gone = gpu_monitor(tmp_path, "experiments", "delete", "toy", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert not log.parent.exists()
    assert gpu_monitor(tmp_path, "experiments", "list", "--all").returncode == 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


def test_a_server_answers_the_same(two: tuple[Path, list[str]], server: Server, tmp_path: Path) -> None:
    folder, (older, newer) = two
    token = server.token("--contract", "7", "--scope", "experiment:write", "--scope", "read")
    there = {"GPU_MONITOR_TOKEN": token, "GPU_MONITOR_SERVER": server.url}
    sent = gpu_monitor(folder, "sync", **there)
    assert sent.returncode == 0, sent.stderr
    where = ("--server", server.url)
    listed = gpu_monitor(
        tmp_path, "experiments", "list", *where, "--where", "params.lr < 0.3", "--json", **there
    )
    assert [one["id"] for one in json.loads(listed.stdout)["items"]] == [newer]
    none = gpu_monitor(tmp_path, "experiments", "list", *where, "--where", "rewad > 1", **there)
    assert (none.returncode, none.stdout) == (3, "")
    assert "no experiment has a parameter, metric or tag called rewad; did you mean reward?" in none.stderr
    here = gpu_monitor(folder, "experiments", "export", older, "-f", "json").stdout
    away = gpu_monitor(tmp_path, "experiments", "export", older, *where, "-f", "json", **there).stdout
    strip = [(one["metric"], one["step"], one["value"]) for one in json.loads(here)]
    assert [(one["metric"], one["step"], one["value"]) for one in json.loads(away)] == strip
    pages = [
        gpu_monitor(place, "compare", older, newer, "--step", "4", **there).stdout.splitlines()
        for place in (folder, tmp_path)
    ]
    own = [[line for line in page if not line.startswith("duration")] for page in pages]
    assert own[0] == own[1]
    shown = gpu_monitor(tmp_path, "experiments", "show", "toy", *where, **there)
    assert f"toy is {newer}" in shown.stderr
    for order, ids in (("asc", [newer, older]), ("desc", [older, newer])):  # of the rates 0.25 and 0.5
        words = ("--sort", "params.lr", "--order", order, "--json")
        listed = gpu_monitor(tmp_path, "experiments", "list", *where, *words, **there)
        assert [one["id"] for one in json.loads(listed.stdout)["items"]] == ids
    assert gpu_monitor(tmp_path, "experiments", "delete", older, *where, "--yes", **there).returncode == 1
    assert gpu_monitor(tmp_path, "experiments", "archive", older, *where, **there).returncode == 0
    gone = gpu_monitor(tmp_path, "experiments", "delete", older, *where, "--yes", **there)
    assert gone.returncode == 0, gone.stderr
    assert gpu_monitor(tmp_path, "experiments", "show", older, *where, **there).returncode == 3
    strange = gpu_monitor(tmp_path, "experiments", "list", *where, "--where", "loss <", **there)
    assert strange.returncode == 1
    assert "where" in strange.stderr
