"""Clocks that are wrong, or are set while a training runs: the order of its starts, its last step, and how long it took."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from gpu_monitor.training.order import Turn, turns_of
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.wire.training import About, Writer
from tests.e2e.program import ask
from tests.training.runs import logs, of_kind, running
from tests.training.runs import run as train

DAY = 86_400.0
SHIFTED = """
    true_time, shift = time.time, [float(sys.argv[1])]
    time.time = lambda: true_time() + shift[0]
    """


def show(folder: Path, name: str) -> dict[str, Any]:
    done = ask(folder, "experiments", "show", name, "--directory", str(folder / "experiments"), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def started(folder: Path, shift: float, status: str) -> None:
    """One start of the experiment `run-a`, whose clock is off by `shift`: 100 points, and an end."""
    code = f"""{SHIFTED}
    monitor = TrainingMonitor("clock", {{quiet}}, resume="run-a")
    for number in range(100):
        monitor.log_metrics({{"loss": number}})
    monitor.add_tag("start", sys.argv[2])
    monitor.finish(sys.argv[2])
    """
    done = train(code, folder, str(shift), status)
    assert done.returncode == 0, done.stderr


def test_a_start_whose_clock_was_ahead_does_not_speak_for_later_ones(tmp_path: Path) -> None:
    started(tmp_path, DAY, "failed")
    started(tmp_path, 0.0, "completed")
    stored = open_experiment(tmp_path / "experiments", "run-a")
    assert (stored.status, stored.last_step, stored.tags) == ("completed", 199, {"start": "completed"})
    started(tmp_path, -DAY, "stopped")
    stored = open_experiment(tmp_path / "experiments", "run-a")
    assert (stored.status, stored.last_step, stored.tags) == ("stopped", 299, {"start": "stopped"})
    # Steps go on where the last start left off, and come back in the order in which they were logged.
    assert stored.history("loss").step == list(range(300))
    assert stored.thinned("loss", 1).x == [299.0]
    found = show(tmp_path, "run-a")
    assert found["duration_seconds"] is None
    assert found["duration_reason"] == "a clock was set while it ran, or between its starts"
    (listed,) = json.loads(
        ask(tmp_path, "experiments", "list", "--directory", str(tmp_path / "experiments"), "--json").stdout
    )["items"]
    assert (listed["status"], listed["last_step"], listed["duration_seconds"]) == ("stopped", 299, None)


def test_starts_whose_clocks_agree_are_woven_by_time_and_their_span_is_known(tmp_path: Path) -> None:
    started(tmp_path, -600.0, "failed")
    started(tmp_path, 0.0, "completed")
    found = show(tmp_path, "run-a")
    assert 600 <= found["duration_seconds"] < 700
    assert found["duration_reason"] is None
    first, second = logs(tmp_path)
    assert "after" not in of_kind(first, "h")[0][2]
    about = of_kind(second, "h")[0][2]
    last = of_kind(first, "z")[-1]
    assert (about["after"], about["after_at"]) == (first.stem, last[1])


def set_back(folder: Path, end: str) -> None:
    """A run whose clock is set back by an hour in its middle."""
    code = f"""{SHIFTED}
    monitor = TrainingMonitor("back", {{quiet}})
    for number in range(20):
        monitor.log_metrics({{"loss": number}})
        shift[0] = -3600.0 if number >= 10 else 0.0
    {end}
    """
    train(code, folder, "0")


def test_a_clock_that_is_set_back_makes_no_time_negative_or_up(tmp_path: Path) -> None:
    set_back(tmp_path, "monitor.finish()")
    (log,) = logs(tmp_path)
    ending = of_kind(log, "z")[-1]
    assert ending[1] < -3_500_000  # what the wall clock said, ms
    assert 0 < ending[3]["ran_seconds"] < 60
    found = show(tmp_path, "back")
    assert found["duration_seconds"] == ending[3]["ran_seconds"]
    assert "ran_seconds" not in found
    where = ["--directory", str(tmp_path / "experiments"), "--json"]
    assert json.loads(ask(tmp_path, "experiments", "list", *where).stdout)["items"][0]["duration_seconds"] > 0
    assert json.loads(ask(tmp_path, "compare", "back", *where).stdout)["experiments"][0]["seconds"] > 0
    stored = open_experiment(tmp_path / "experiments", "back")
    assert (stored.last_step, stored.history("loss").step) == (19, list(range(20)))


def test_how_long_it_took_is_unknown_where_nobody_counted(tmp_path: Path) -> None:
    set_back(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    stored = open_experiment(tmp_path / "experiments", "back")
    # The last write is by a clock that is right here: the log itself says that it went back.
    os.utime(logs(tmp_path)[0], (stored.started - 3_599, stored.started - 3_599))
    found = show(tmp_path, "back")
    assert (found["status"], found["duration_seconds"]) == ("crashed", None)
    assert found["duration_reason"].startswith("a clock was set")
    page = ask(tmp_path, "experiments", "show", "back", "--directory", str(tmp_path / "experiments")).stdout
    assert "unknown: a clock was set while it ran" in page


def test_a_torn_last_line_counts_once_nobody_writes_it_any_more(tmp_path: Path) -> None:
    code = """
    monitor = TrainingMonitor("torn", {quiet})
    monitor.log_metrics({"loss": 1.0})
    print("ready", flush=True)
    signal.pause()
    """
    with running(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (log,) = logs(tmp_path)
        with log.open("ab") as file:
            file.write(b'["p",1,2,0,[1')
        assert open_experiment(tmp_path / "experiments", "torn").damaged == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = open_experiment(tmp_path / "experiments", "torn")
        assert (stored.status, stored.damaged) == ("crashed", 1)
        assert show(tmp_path, "torn")["damaged"] == 1


def about(name: str, **more: Any) -> About:
    writer = Writer(host="here", pid=1)
    return About(experiment_id="e", segment=name, name="n", project="p", started=0.0, writer=writer, **more)


def test_turns_follow_headers_where_clocks_contradict_them() -> None:
    found = turns_of(
        {
            "third": (50.0, about("third", after="second", after_at=2_000)),
            "first": (1_000.0, about("first")),
            "second": (10.0, about("second", after="first", after_at=5_500)),
            "child": (999.0, about("child", parent="first")),
            "late": (2_000.0, about("late", after="first", after_at=5_500)),
            "lone": (70.0, about("lone", after="elsewhere", after_at=5)),
            "lost": (3.0, None),
        }
    )
    assert found == {
        "first": Turn(1_000.0, 0),
        "second": Turn(1_005.5, 1),
        "third": Turn(1_007.5, 2),
        "child": Turn(1_000.0, 1),
        "late": Turn(2_000.0, 1),
        "lone": Turn(70.0, 0),
        "lost": Turn(3.0, 0),
    }


def test_turns_of_headers_that_go_round_in_a_circle_are_taken_by_their_clocks() -> None:
    circle = {
        name: (float(at), about(name, after=after)) for at, name, after in ((1, "a", "b"), (2, "b", "a"))
    }
    found = turns_of({**circle, "self": (3.0, about("self", after="self"))})
    assert found["self"].begin == 3.0
    assert {found[name].begin for name in "ab"} <= {1.0, 2.0}


def test_a_chain_of_thousands_of_starts_has_an_order() -> None:
    count = 5_000
    held = {
        f"s{number}": (
            float(-number),
            about(f"s{number}", after=f"s{number - 1}" if number else None, after_at=1),
        )
        for number in reversed(range(count))
    }
    found = turns_of(held)
    assert sorted(held, key=lambda name: (found[name].begin, found[name].number)) == [
        f"s{number}" for number in range(count)
    ]


def test_a_crashed_run_ended_with_its_last_points_wherever_its_files_are_taken(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("killed", {quiet})
        for step in range(3):
            monitor.log_metrics({"loss": 1.0}, step)
            time.sleep(0.05)
        os._exit(9)
        """
    train(code, tmp_path)
    (log,) = logs(tmp_path)
    before = show(tmp_path, "killed")
    assert 0.1 <= before["duration_seconds"] < 60
    os.utime(log, (time.time() + 86_400, time.time() + 86_400))
    later = show(tmp_path, "killed")
    assert (later["status"], later["ended"]) == ("crashed", before["ended"])
    assert (later["duration_seconds"], later["duration_reason"]) == (before["duration_seconds"], None)
