"""All experiments of a directory, what a name means, and the cache that must never be believed too long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.listing import CACHE, list_experiments, resolve
from gpu_monitor.training.models import list_models
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.wire.training import Params, Status, Tag
from tests.training.runs import running

BEGAN = 1_700_000_000.0


def made(directory: Path, number: int, name: str = "run", status: str | None = "completed") -> Path:
    """An experiment whose writer is done."""
    folder = directory / f"20240320T143000Z-{number:08x}"
    recorder = Recorder(Run(folder.name, name, "project", folder), now=lambda: BEGAN + number)
    recorder.put(Params(0, {"number": number}))
    recorder.log_points({"loss": 1.0}, number)
    if status is not None:
        recorder.put(Status(1_000, status, {}))
    recorder.close(1)
    settled(folder)
    return folder


def settled(folder: Path) -> None:
    """As if nothing had happened in a folder for a minute."""
    then = folder.stat().st_mtime - 60
    os.utime(folder, (then, then))


def test_a_list_is_the_newest_first_and_says_what_there_is(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        made(tmp_path, number, status="failed" if number == 2 else "completed")
    (tmp_path / "a file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    for _ in range(3):
        found = list_experiments(tmp_path)
        assert [one.params["number"] for one in found] == [3, 2, 1]
        second = found[1]
        assert (second.id, second.name, second.project) == ("20240320T143000Z-00000002", "run", "project")
        assert (second.status, second.started, second.ended) == ("failed", BEGAN + 2, BEGAN + 3)
        assert (second.last_step, second.damaged, second.simulated, second.tags) == (2, 0, False, {})
    assert (tmp_path / CACHE).exists()
    assert list_experiments(tmp_path / "nowhere") == []
    assert list_experiments(tmp_path / "a file") == []


def test_what_is_added_changed_and_deleted_is_seen_at_once(tmp_path: Path) -> None:
    folders = [made(tmp_path, number) for number in range(5)]
    assert len(list_experiments(tmp_path)) == 5
    assert len(list_experiments(tmp_path)) == 5
    made(tmp_path, 9)
    assert [one.params["number"] for one in list_experiments(tmp_path)] == [9, 4, 3, 2, 1, 0]
    shutil.rmtree(folders[4])
    assert [one.params["number"] for one in list_experiments(tmp_path)] == [9, 3, 2, 1, 0]
    # A segment more, as a resumed run or a person's tag from elsewhere makes it.
    resumed = Recorder(Run(folders[0].name, "run", "project", folders[0], True), now=lambda: BEGAN + 100)
    resumed.put(Tag(0, "stage", "second"))
    resumed.put(Status(0, "stopped", {}))
    resumed.close(1)
    last = list_experiments(tmp_path)[-1]
    assert (last.tags, last.status) == ({"stage": "second"}, "stopped")
    # One that comes again under the same id, with something else in it.
    shutil.rmtree(folders[1])
    again = made(tmp_path, 1, name="other")
    assert again == folders[1]
    os.utime(again)
    assert [one.name for one in list_experiments(tmp_path) if one.id == again.name] == ["other"]
    for folder in tmp_path.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    assert list_experiments(tmp_path) == []


def test_two_changes_within_one_tick_of_the_clock_are_both_seen(tmp_path: Path) -> None:
    folder = made(tmp_path, 1)
    os.utime(folder)
    stamp = folder.stat()
    assert list_experiments(tmp_path)[0].tags == {}
    more = Recorder(Run(folder.name, "run", "project", folder, True), now=lambda: BEGAN + 100)
    more.put(Tag(0, "stage", "second"))
    more.close(1)
    os.utime(folder, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert list_experiments(tmp_path)[0].tags == {"stage": "second"}


@pytest.mark.parametrize("damage", [b"", b"noise", b"cut", b"flip"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: bytes) -> None:
    for number in range(3):
        made(tmp_path, number)
    expected = list_experiments(tmp_path)
    held = bytearray((tmp_path / CACHE).read_bytes())
    if damage == b"cut":
        del held[40:]
    elif damage == b"flip":
        held[50] ^= 1
    else:
        held = bytearray(damage)
    (tmp_path / CACHE).write_bytes(held)
    assert list_experiments(tmp_path) == expected
    assert list_experiments(tmp_path) == expected


def test_a_directory_that_cannot_be_written_is_listed_without_a_cache(tmp_path: Path) -> None:
    made(tmp_path, 1)
    (tmp_path / f"{CACHE}.new").mkdir()
    assert [one.params["number"] for one in list_experiments(tmp_path)] == [1]
    assert not (tmp_path / CACHE).exists()


def test_one_that_runs_is_seen_as_it_goes_on_and_when_it_is_gone(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("runs", {quiet})
        for line in sys.stdin:
            monitor.log_metrics({"loss": 1.0})
            print("logged", flush=True)
        """
    directory = tmp_path / "experiments"
    with running(code, tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in range(3):
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            (found,) = list_experiments(directory)
            assert (found.status, found.last_step, found.ended) == ("running", step, None)
        process.kill()
        process.wait(timeout=60)
        assert [one.status for one in list_experiments(directory)] == ["crashed"]


def test_many_who_list_at_once_all_see_everything(tmp_path: Path) -> None:
    for number in range(40):
        made(tmp_path, number)
    code = (
        "import sys; from pathlib import Path; from gpu_monitor.training.listing import list_experiments\n"
        "print(*{len(list_experiments(Path(sys.argv[1]))) for _ in range(20)})"
    )
    listers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for lister in listers:
        with lister:
            out, _ = lister.communicate(timeout=120)
        assert (lister.returncode, out) == (0, "40\n")


def test_a_name_means_its_newest_experiment_and_the_answer_says_which(tmp_path: Path) -> None:
    ids = [made(tmp_path, number).name for number in range(3)]
    other = made(tmp_path, 7, name="other~2").name
    assert resolve(tmp_path, "run").experiment_id == ids[2]
    assert resolve(tmp_path, "run~1").experiment_id == ids[2]
    assert resolve(tmp_path, "run~2").experiment_id == ids[1]
    assert resolve(tmp_path, "run~3").experiment_id == ids[0]
    assert resolve(tmp_path, "run~2").said == f"run~2 is {ids[1]}, number 2 of 3, the newest first"
    assert resolve(tmp_path, "other~2").experiment_id == other
    assert resolve(tmp_path, "other~2").said == f"other~2 is {other}, the only one"
    assert resolve(tmp_path, ids[0]).said is None
    stored = open_experiment(tmp_path, "run~2")
    assert (stored.id, stored.said) == (ids[1], resolve(tmp_path, "run~2").said)


def test_what_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    made(tmp_path, 1, name="resnet50_training")
    made(tmp_path, 2, name="bert")
    with pytest.raises(NothingFound) as found:
        resolve(tmp_path, "resnet50-training")
    assert found.value.hint == "Nearest: resnet50_training."
    with pytest.raises(NothingFound, match="1 experiment is called 'bert'"):
        resolve(tmp_path, "bert~2")
    with pytest.raises(NothingFound) as nothing:
        resolve(tmp_path / "nowhere", "bert")
    assert nothing.value.hint == "There are no experiments at all."
    for odd in ("../x", "", "~2", "a" * 10_000, "..", "/etc"):
        with pytest.raises(NothingFound):
            resolve(tmp_path, odd)


def test_a_directory_may_be_named_by_a_text(tmp_path: Path) -> None:
    folder = made(tmp_path, 1)
    assert [one.id for one in list_experiments(str(tmp_path))] == [folder.name]
    assert resolve(str(tmp_path), "run").experiment_id == folder.name
    assert open_experiment(str(tmp_path), "run").id == folder.name
    assert list_models(str(tmp_path)) == []
