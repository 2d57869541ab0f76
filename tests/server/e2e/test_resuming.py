"""A killed training that goes on under its id: the real server has both halves, whole, when the second one ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.waiting import until
from tests.server.rig import PATIENCE
from tests.server.uploading import Runs

# It says more than one request carries in an instant, and is gone in the next.
KILLED = """
import os, signal, sys
from gpu_monitor.training.monitor import TrainingMonitor
monitor = TrainingMonitor("resnet", "images", capture=False)
monitor.log_metrics({"loss": 0.0}, step=0)
print(monitor.experiment_id, flush=True)
sys.stdin.readline()
for step in range(1, 30_000):
    monitor.log_metrics({"loss": step / 7, "rate": 0.1}, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
RESUMED = """
import json, sys, time
from gpu_monitor.training.monitor import TrainingMonitor
experiment, seconds = sys.argv[1], float(sys.argv[2])
monitor = TrainingMonitor(resume=experiment, capture=False)
assert monitor.experiment_id == experiment
step, end = 30_000, time.monotonic() + seconds
while step == 30_000 or time.monotonic() < end:
    monitor.log_metrics({"loss": step / 7, "rate": 0.1}, step=step)
    time.sleep(0.01)  # the pace of the training that this stands for
    step += 1
print(json.dumps([step, monitor.finish()]))
"""


def kill_one(uploads: Runs) -> str:
    """Start a training and have it killed with much that was not sent yet; its experiment."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=uploads.home, env=uploads.environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert trainer.stdout is not None
    experiment = trainer.stdout.readline().strip()

    def has_begun() -> bool:
        answer = uploads.server.ask("GET", f"/api/experiments/{experiment}", token=uploads.token)
        return answer.status == 200 and answer.json["last_step"] == 0

    until(has_begun, "the server has the first step")
    trainer.communicate("go\n", timeout=PATIENCE)
    assert trainer.returncode == -9
    return experiment


def resume(uploads: Runs, experiment: str, seconds: float) -> tuple[int, list[str], str]:
    """Go on with it for so long: the step after its last, what it says is only here, and its warnings."""
    words = [sys.executable, "-c", RESUMED, experiment, str(seconds)]
    done = subprocess.run(
        words,
        cwd=uploads.home,
        env=uploads.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps, left = json.loads(done.stdout)
    return steps, left, done.stderr


@pytest.mark.parametrize("seconds", [0.0, 0.5, 2.5])
def test_the_tail_of_the_killed_half_is_there_when_the_second_ends(seconds: float, uploads: Runs) -> None:
    experiment = kill_one(uploads)
    steps, left, err = resume(uploads, experiment, seconds)
    assert (left, err) == ([], "")
    found: Any = uploads.get(f"/api/experiments/{experiment}")
    assert (found["status"], found["last_step"]) == ("completed", steps - 1)
    sizes = {
        path.stem: path.stat().st_size for path in uploads.home.glob(f"experiments/{experiment}/seg-*.log")
    }
    assert {one["segment"]: one["bytes"] for one in found["segments"]} == sizes
    assert len(sizes) == 2
    held, values = uploads.loss(experiment)
    assert held == list(range(steps))
    assert values == [step / 7 for step in range(steps)]
    done = uploads.sync()
    assert (done.returncode, done.stdout) == (0, ""), "there is nothing left for it"


@pytest.mark.skipif(sys.platform != "linux", reason="that a process is gone is told from /proc of Linux")
def test_a_sync_says_that_it_crashed_and_resuming_that_it_goes_on(uploads: Runs) -> None:
    experiment = kill_one(uploads)
    done = uploads.sync()
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(", crashed")
    found = uploads.get(f"/api/experiments/{experiment}")
    (path,) = uploads.home.glob(f"experiments/{experiment}/seg-*.log")
    header, *rest = (json.loads(line) for line in path.read_bytes().split(b"\n")[:-1])
    last = header[2]["started"] + [record for record in rest if record[0] == "p"][-1][1] / 1000
    assert found["status"] == "crashed"
    assert found["proof"]["time"] == pytest.approx(last, abs=0.001), "of its last record, not of the sync"
    assert found["proof"]["by"] == "sync"
    again = uploads.sync("--again")
    assert again.returncode == 0
    assert uploads.get(f"/api/experiments/{experiment}")["proof"] == found["proof"]
    steps, left, _ = resume(uploads, experiment, 0.0)
    assert left == []
    found = uploads.get(f"/api/experiments/{experiment}")
    assert (found["status"], found["last_step"], found["proof"]) == ("completed", steps - 1, None)


def test_what_is_still_only_here_of_the_killed_half_is_said(uploads: Runs, tmp_path: Path) -> None:
    experiment = kill_one(uploads)
    (old,) = uploads.home.glob(f"experiments/{experiment}/seg-*.log")
    # A byte of what was sent is another now: the server refuses to take the rest for the same segment's.
    data = old.read_bytes()
    wrong = data.replace(b'"loss"', b'"lost"', 1)
    assert len(wrong) == len(data) and wrong != data
    old.write_bytes(wrong)
    old.with_suffix(".sent").unlink(missing_ok=True)
    _, left, err = resume(uploads, experiment, 0.0)
    (words,) = left
    assert words.startswith(f"{len(wrong):,} bytes are only in {old.parent}, not on {uploads.server.url}: ")
    assert f"{old.stem} cannot be uploaded" in err
