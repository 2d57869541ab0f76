"""The real SDK, the real `sync` and the real server: every call that returned is there, exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.waiting import until
from tests.server.rig import PATIENCE, serving, serving_environment
from tests.server.uploading import TRAINER, Runs, token_for


def test_a_run_is_on_the_server_with_its_files_when_it_ends(uploads: Runs, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 10_000)
    trainer = uploads.start(2000, str(tmp_path / "weights.bin"))
    out, _ = trainer.communicate(timeout=PATIENCE)
    experiment, *_, left = out.splitlines()
    assert json.loads(left) == []
    said = uploads.get(f"/api/experiments/{experiment}")
    assert (said["name"], said["project"], said["status"], said["last_step"]) == (
        "resnet", "images", "completed", 1999,
    )  # fmt: skip
    steps, values = uploads.loss(experiment)
    assert steps == list(range(2000))
    assert values == [step / 7 for step in range(2000)]
    (artifact,) = uploads.get(f"/api/experiments/{experiment}/artifacts")["items"]
    assert artifact["size"] == 2_560_000
    assert "it holds everything" in uploads.sync("--again").stderr
    assert uploads.loss(experiment)[0] == list(range(2000)), "a repeat changes nothing"


def test_a_killed_run_is_on_the_server_after_a_sync_exactly_once(uploads: Runs) -> None:
    experiment, last = uploads.kill_after(4000)
    done = uploads.sync("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps, values = uploads.loss(experiment)
    assert steps[: last + 1] == list(range(last + 1))
    assert len(steps) in (last + 1, last + 2), "the call that was under way may have got through"
    assert values == [step / 7 for step in steps]


def test_the_server_is_killed_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        uploads = Runs(tmp_path, first, token_for(first))
        trainer = uploads.start(-1)
        assert trainer.stdout is not None
        experiment = trainer.stdout.readline().strip()
        _read_until(trainer, 3000)
        until(lambda: _held(uploads, experiment) > 0, "the server has begun to take it")
        first.kill()
    # Its pipe is full by now: the training waits for us, its uploader for the server.
    with serving(tmp_path, "--port", str(first.port)) as again:
        uploads.server = again
        last = _read_until(trainer, 20_000)
        until(lambda: _held(uploads, experiment) > last - 1000, "the uploader has found the server again")
        trainer.kill()
        rest = trainer.stdout.read().split("\n")[:-1]
        last = int(rest[-1]) if rest else last
        trainer.stdout.close()
        trainer.wait()
        done = uploads.sync()
        assert done.returncode == 0, done.stdout + done.stderr
        steps, values = uploads.loss(experiment)
        assert steps[: last + 1] == list(range(last + 1))
        assert len(steps) in (last + 1, last + 2)
        assert values == [step / 7 for step in steps]


def _read_until(trainer: subprocess.Popen[str], step: int) -> int:
    """Read what a training says up to a step."""
    assert trainer.stdout is not None
    while (last := int(trainer.stdout.readline())) < step:
        pass
    return last


def _held(uploads: Runs, experiment: str) -> int:
    """The last step that the server has of an experiment; -1 where it does not know it."""
    answer = uploads.server.ask("GET", f"/api/experiments/{experiment}", token=uploads.token)
    return -1 if answer.status != 200 else answer.json["last_step"] or -1


def test_a_run_of_the_servers_own_user_needs_no_token(uploads: Runs, tmp_path: Path) -> None:
    environment = serving_environment(uploads.server.folder, GPU_MONITOR_SERVER=uploads.server.url)
    ran = subprocess.run(
        [sys.executable, "-c", TRAINER, "10"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    experiment, *_, left = ran.stdout.splitlines()
    assert json.loads(left) == [], ran.stderr
    local = (uploads.server.folder / ".local/state/gpu_monitor/local.token").read_text().split()[1]
    until(
        lambda: uploads.server.ask("GET", f"/api/experiments/{experiment}", token=local).status == 200,
        "whoever runs the server sees it",
    )


def test_a_revoked_token_is_told_of(uploads: Runs, tmp_path: Path) -> None:
    uploads.token = "gm_not_a_token_of_this_server"
    trainer = uploads.start(10)
    out, _ = trainer.communicate(timeout=PATIENCE)
    (words,) = json.loads(out.splitlines()[-1])
    assert "HTTP 401" in words
    assert uploads.token not in words
    done = uploads.sync()
    assert (done.returncode, "HTTP 401" in done.stdout) == (1, True)


TALKER = """
from gpu_monitor import TrainingMonitor
with TrainingMonitor("talker", capture=False) as monitor:
    monitor.log_metrics({"before": 1.0})
    for number in range(10_100):
        monitor.add_note(f"note {number}")
    monitor.log_params({"": 1, "x" * 600: 2, **{f"p{i}": i for i in range(100_000)}})
    monitor.add_tag("k" * 300, "v" * 6_000)
    monitor.alert("t" * 600)
    monitor.log_metrics({f"m{i}": 1.0 for i in range(12_000)})
    monitor.log_metrics({"before": 2.0})
    print(monitor.experiment_id, monitor.finish())
"""


def test_a_training_that_says_too_much_arrives_to_its_end(uploads: Runs) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TALKER], cwd=uploads.home, env=uploads.environment, capture_output=True, text=True,
        timeout=PATIENCE, check=True,
    )  # fmt: skip
    experiment, _, left = done.stdout.strip().partition(" ")
    assert (left, uploads.sync().returncode) == ("[]", 0), done.stderr
    found = uploads.get(f"/api/experiments/{experiment}")
    assert (found["status"], found["last_step"]) == ("completed", 2)
    (before,) = uploads.get(f"/api/metrics/{experiment}?names=before")["series"]
    assert before["value"] == [1.0, 2.0]
    (segment,) = found["segments"]
    # 100 notes, and of 100,001 parameters (one without a name is left out by the SDK) 90,001.
    assert segment["not_shown"] == 100 + 90_001
    assert segment["bytes"] == sum(
        path.stat().st_size for path in uploads.home.glob(f"experiments/{experiment}/seg-*.log")
    )
