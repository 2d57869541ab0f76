"""What the real server does not hold is never called held: files that it did not get, logs that others cut or delete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.waiting import until
from tests.server.rig import PATIENCE
from tests.server.uploading import Runs

TRAINING = """
import json, os, shutil, sys, time
from pathlib import Path
from gpu_monitor.training.monitor import TrainingMonitor

def ask(what):
    print(json.dumps(what), flush=True)
    return sys.stdin.readline()

monitor = TrainingMonitor("owed", "images", capture=False)
step = 0
def log(count):
    global step
    for _ in range(count):
        monitor.log_metrics({"loss": step / 7, "rate": 0.1}, step=step)
        step += 1
"""
"""A training that does as it is told: each `ask` says something and waits for a line."""


class Told:
    """One of these trainings."""

    def __init__(self, uploads: Runs, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRAINING + code], cwd=uploads.home, env=uploads.environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hear(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def go_on(self) -> None:
        """Let it."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> tuple[Any, str]:
        """What it says at last, and its stderr."""
        out, err = self._process.communicate("\n", timeout=PATIENCE)
        assert self._process.returncode == 0, err
        return json.loads(out.splitlines()[-1]), err


def holds(uploads: Runs, sha256: str) -> bool:
    """Whether the server holds a file."""
    return uploads.server.ask("HEAD", f"/api/blobs/{sha256}", token=uploads.token).status == 200


@pytest.mark.parametrize("harm", ["gone", "changed", "shorter", "pipe"])
def test_a_file_that_the_server_never_got_is_told_each_time_and_goes_when_it_is_back(
    harm: str, uploads: Runs, tmp_path: Path
) -> None:
    content = os.urandom(5000)
    (tmp_path / "weights").write_bytes(content)
    code = """
monitor.finish()
monitor = TrainingMonitor("art", "images", server="", capture=False)
artifact, = monitor.log_artifact("weights")
log(10)
monitor.finish()
print(json.dumps(str(artifact.path)))
"""
    file = Path(Told(uploads, code).end()[0])
    sha256 = hashlib.sha256(content).hexdigest()
    aside = tmp_path / "aside"
    shutil.copy(file, aside)
    file.chmod(0o644)
    if harm == "changed":
        file.write_bytes(b"ZZZZ" + content[4:])
    elif harm == "shorter":
        os.truncate(file, 100)
    else:
        file.unlink()
        if harm == "pipe":
            os.mkfifo(file)
    for words in ([], [], ["--again"], ["--json"]):
        done = uploads.sync(*words)
        assert (done.returncode, "it holds everything" in done.stderr) == (1, False), done.stderr
        assert "Nothing is lost" not in done.stderr
        assert file.name in done.stdout
    assert not holds(uploads, sha256)
    for memory in tmp_path.glob("experiments/*/*.sent"):
        memory.unlink()
    assert uploads.sync().returncode == 1
    file.unlink(missing_ok=True)
    aside.rename(file)
    done = uploads.sync()
    assert (done.returncode, holds(uploads, sha256)) == (0, True), done.stdout + done.stderr
    assert "it holds everything" in done.stderr


def test_a_file_that_the_server_lost_is_brought_again(uploads: Runs, tmp_path: Path) -> None:
    content = os.urandom(5000)
    (tmp_path / "weights").write_bytes(content)
    assert (
        Told(uploads, "monitor.log_artifact('weights')\nprint(json.dumps(monitor.finish()))\n").end()[0] == []
    )
    sha256 = hashlib.sha256(content).hexdigest()
    (there,) = uploads.server.folder.glob(f"**/{sha256}")
    for harm in ("gone", "shorter"):
        there.unlink() if harm == "gone" else os.truncate(there, 100)
        assert not holds(uploads, sha256), "it is not called whole"
        assert uploads.sync("--again").returncode == 0
        assert (holds(uploads, sha256), there.read_bytes()) == (True, content)


@pytest.mark.parametrize(("share", "after"), [(0.5, 3000), (0.5, 300), (0.0, 300), (0.0, 6000)])
def test_a_log_that_is_cut_while_the_training_runs_goes_on_in_another_and_arrives_whole(
    share: float, after: int, uploads: Runs, tmp_path: Path
) -> None:
    code = f"""
log(2000)
path = monitor.recorder.writer.path
ask([monitor.experiment_id, str(path)])
os.truncate(path, int(os.path.getsize(path) * {share}))
for _ in range(3):
    log({after} // 3)
    time.sleep(0.4)
monitor.log_metrics({{"late": 1.0}}, step=step)
print(json.dumps(monitor.finish()))
"""
    training = Told(uploads, code)
    experiment, path = training.hear()
    _until_held(uploads, experiment, 1999)
    training.go_on()
    left, err = training.end()
    assert "was cut short while the training ran" in err
    (words,) = left
    assert f"{path} was cut short by another program" in words
    steps, values = uploads.loss(experiment)
    assert steps == list(range(2000 + after // 3 * 3)), "the server has all of it, once"
    assert values == [step / 7 for step in steps]
    said = uploads.get(f"/api/experiments/{experiment}")
    assert (said["status"], len(said["segments"])) == ("completed", 2)
    assert sum(one["damaged"] for one in said["segments"]) == 0
    for words in ([], ["--again"], []):
        done = uploads.sync(*words)
        assert (done.returncode, "it holds everything" in done.stderr) == (0, True), done.stdout + done.stderr
        # Of an empty file nothing is sent, so nothing is answered.
        assert ("cut short here: the server holds" in done.stdout) == (share > 0)
    # What is still on this machine is read once, too.
    assert uploads.loss(experiment)[0] == steps
    points = [
        json.loads(line)[2] for log in (tmp_path / "experiments" / experiment).glob("*.log")
        for line in log.read_bytes().splitlines() if line.startswith(b'["p"') and line.endswith(b"]")
    ]  # fmt: skip
    assert len(points) == len(set(points))
    assert set(range(2000, len(steps))) <= set(points)


def test_cuts_of_what_was_not_sent_yet_double_nothing(uploads: Runs, tmp_path: Path) -> None:
    code = """
import random
ask(monitor.experiment_id)
chance, last = random.Random(7), []
for _ in range(4):
    log(chance.randrange(700, 4000))
    path = monitor.recorder.writer.path
    size = os.path.getsize(path)
    os.truncate(path, max(0, size - chance.randrange(1, 30_000)))
    last.append(step)
    for _ in range(4):
        log(500)
        time.sleep(0.1)
    while monitor.recorder.writer.path == path:
        time.sleep(0.01)
monitor.finish()
print(json.dumps(last))
"""
    training = Told(uploads, code)
    experiment = training.hear()
    cuts, _ = training.end()
    steps, values = uploads.loss(experiment)
    assert len(steps) == len(set(steps)), "nothing is there twice"
    assert values == [step / 7 for step in steps]
    for first in cuts:  # the next cut takes of what came after these only
        assert set(range(first, first + 2000)) <= set(steps)
    said = uploads.get(f"/api/experiments/{experiment}")
    assert [one["damaged"] for one in said["segments"]] == [0] * 5
    assert "it holds everything" in uploads.sync("--again").stderr


def test_a_log_that_was_cut_and_grew_while_nobody_looked_is_never_called_held(
    uploads: Runs, tmp_path: Path
) -> None:
    training = Told(uploads, "log(2000)\nprint(json.dumps(monitor.finish()))\n")
    assert training.end()[0] == []
    (log,) = tmp_path.glob("experiments/*/*.log")
    whole = log.read_bytes()
    line = whole.index(b"\n", len(whole) // 2) + 1
    other = whole[:line] + whole[line + whole[line:].index(b"\n") + 1 :] + whole[line:]
    log.write_bytes(other)
    for words in ([], [], ["--again"]):
        done = uploads.sync(*words)
        assert (done.returncode, "still local" in done.stdout) == (1, True), done.stdout + done.stderr
        assert "Nothing is lost" not in done.stderr
    log.write_bytes(whole)
    assert uploads.sync().returncode == 0


@pytest.mark.parametrize("when", ["mid", "end", "file"])
def test_what_is_deleted_under_the_training_is_put_back_and_arrives_whole(
    when: str, uploads: Runs, tmp_path: Path
) -> None:
    code = f"""
when = {when!r}
log(500)
path = monitor.recorder.writer.path
ask(monitor.experiment_id)
if when == "mid":
    shutil.rmtree("experiments")
if when == "file":
    path.unlink()
for _ in range(8):
    log(250)
    time.sleep(0.2)
if when == "end":
    shutil.rmtree("experiments")
print(json.dumps(monitor.finish()))
"""
    training = Told(uploads, code)
    experiment = training.hear()
    _until_held(uploads, experiment, 499)
    training.go_on()
    left, err = training.end()
    assert left == [], err
    assert "cannot be uploaded" not in err
    assert uploads.loss(experiment)[0] == list(range(2500))
    assert uploads.get(f"/api/experiments/{experiment}")["status"] == "completed"
    assert "it holds everything" in uploads.sync().stderr


def test_what_was_deleted_on_the_server_is_not_promised_to_go(uploads: Runs) -> None:
    code = """
log(100)
ask(monitor.experiment_id)
log(100)
print(json.dumps(monitor.finish()))
"""
    training = Told(uploads, code)
    experiment = training.hear()
    _until_held(uploads, experiment, 99)
    token = uploads.server.token("--contract", "300", "--scope", "experiment:write", "--scope", "admin")
    uploads.server.ask("PATCH", f"/api/experiments/{experiment}", {"archived": True}, token=token)
    gone = uploads.server.ask("DELETE", f"/api/experiments/{experiment}", token=token)
    assert gone.status == 204, gone.body
    training.go_on()
    (words,), _ = training.end()
    assert "HTTP 410" in words
    assert "takes nothing more of this experiment" in words
    assert "Nothing is lost" not in words
    assert ".." not in words.replace("...", "")


def test_a_disk_that_takes_no_more_is_not_said_to_have_something_to_upload(uploads: Runs) -> None:
    code = """
import resource
log(100)
size = os.path.getsize(monitor.recorder.writer.path)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
log(500)
assert os.path.getsize(monitor.recorder.writer.path) == size + 1000, "a line was cut in the middle"
print(json.dumps(monitor.finish()))
"""
    (words,), _ = Told(uploads, code).end()
    assert "records could not be written to" in words
    assert "it holds everything" in uploads.sync().stderr


def _until_held(uploads: Runs, experiment: str, step: int) -> None:
    def is_there() -> bool:
        answer = uploads.server.ask("GET", f"/api/experiments/{experiment}", token=uploads.token)
        return answer.status == 200 and answer.json["last_step"] == step

    until(is_there, f"the server holds step {step}")
