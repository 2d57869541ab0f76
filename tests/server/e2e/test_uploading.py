"""The real SDK, the real `sync` and the real server: every call that returned is there, exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import PROGRAM
from tests.e2e.waiting import until
from tests.server.rig import PATIENCE, Server, serving, serving_environment

_PAGE = 10_000
TRAINER = """
import json, sys
from gpu_monitor.training.monitor import TrainingMonitor
steps, stop = int(sys.argv[1]), sys.argv[2:]
monitor = TrainingMonitor("resnet", "images", params={"lr": 0.1}, capture=False)
print(monitor.experiment_id, flush=True)
step = 0
while steps < 0 or step < steps:
    monitor.log_metrics({"loss": step / 7, "rate": 0.1}, step=step)
    print(step, flush=True)
    step += 1
monitor.log_artifact(sys.argv[2]) if stop else None
print(json.dumps(monitor.finish()), flush=True)
"""


def token_for(server: Server) -> str:
    """A token that may write experiments and read them."""
    return server.token("--contract", "300", "--scope", "experiment:write", "--scope", "read")


class Runs:
    """Trainings on one machine, and what the server says of them."""

    def __init__(self, home: Path, server: Server, token: str) -> None:
        self.home = home
        self.server = server
        self.token = token

    @property
    def environment(self) -> dict[str, str]:
        """The trainings' environment: the server, and a token in a file."""
        file = self.home / "token"
        file.write_text(self.token)
        file.chmod(0o600)
        return serving_environment(
            self.home, GPU_MONITOR_SERVER=self.server.url, GPU_MONITOR_TOKEN_FILE=str(file)
        )

    def start(self, steps: int, *words: str) -> subprocess.Popen[str]:
        """A training of so many steps; -1: until it is killed."""
        return subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(steps), *words], cwd=self.home, env=self.environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kill_after(self, steps: int) -> tuple[str, int]:
        """SIGKILL a training after so many steps: its experiment, and the last step whose call returned."""
        trainer = self.start(-1)
        assert trainer.stdout is not None
        experiment = trainer.stdout.readline().strip()
        last = -1
        for line in trainer.stdout:
            last = int(line)
            if last >= steps:
                break
        trainer.kill()
        rest = trainer.stdout.read().split("\n")[:-1]
        trainer.stdout.close()
        trainer.wait()
        return experiment, int(rest[-1]) if rest else last

    def sync(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command, run to its end."""
        return subprocess.run(
            [*PROGRAM, "sync", *words], cwd=self.home, env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip

    def get(self, path: str) -> Any:
        """What the server answers."""
        answer = self.server.ask("GET", path, token=self.token)
        assert answer.status == 200, answer.body
        return answer.json

    def loss(self, experiment: str) -> tuple[list[int], list[float]]:
        """Steps and values of the loss, as the server holds them, every one."""
        steps: list[int] = []
        values: list[float] = []
        for first in range(0, 10**6, _PAGE):
            page = f"from={first}&to={first + _PAGE}&max_points=20000"
            (series,) = self.get(f"/api/metrics/{experiment}?names=loss&{page}")["series"]
            if not series["x"]:
                break
            assert not series.get("thinned")
            steps += series["x"]
            values += series["value"]
        return steps, values


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """One for all, and a token for it."""
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started, token_for(started)


@pytest.fixture
def runs(server: tuple[Server, str], tmp_path: Path) -> Runs:
    return Runs(tmp_path, *server)


def test_a_run_is_on_the_server_with_its_files_when_it_ends(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 10_000)
    trainer = runs.start(2000, str(tmp_path / "weights.bin"))
    out, _ = trainer.communicate(timeout=PATIENCE)
    experiment, *_, left = out.splitlines()
    assert json.loads(left) == []
    said = runs.get(f"/api/experiments/{experiment}")
    assert (said["name"], said["project"], said["status"], said["last_step"]) == (
        "resnet", "images", "completed", 1999,
    )  # fmt: skip
    steps, values = runs.loss(experiment)
    assert steps == list(range(2000))
    assert values == [step / 7 for step in range(2000)]
    (artifact,) = runs.get(f"/api/experiments/{experiment}/artifacts")["items"]
    assert artifact["size"] == 2_560_000
    assert "it holds everything" in runs.sync("--again").stderr
    assert runs.loss(experiment)[0] == list(range(2000)), "a repeat changes nothing"


def test_a_killed_run_is_on_the_server_after_a_sync_exactly_once(runs: Runs) -> None:
    experiment, last = runs.kill_after(4000)
    done = runs.sync("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps, values = runs.loss(experiment)
    assert steps[: last + 1] == list(range(last + 1))
    assert len(steps) in (last + 1, last + 2), "the call that was under way may have got through"
    assert values == [step / 7 for step in steps]


def test_the_server_is_killed_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        runs = Runs(tmp_path, first, token_for(first))
        trainer = runs.start(-1)
        assert trainer.stdout is not None
        experiment = trainer.stdout.readline().strip()
        _read_until(trainer, 3000)
        until(lambda: _held(runs, experiment) > 0, "the server has begun to take it")
        first.kill()
    # Its pipe is full by now: the training waits for us, its uploader for the server.
    with serving(tmp_path, "--port", str(first.port)) as again:
        runs.server = again
        last = _read_until(trainer, 20_000)
        until(lambda: _held(runs, experiment) > last - 1000, "the uploader has found the server again")
        trainer.kill()
        rest = trainer.stdout.read().split("\n")[:-1]
        last = int(rest[-1]) if rest else last
        trainer.stdout.close()
        trainer.wait()
        done = runs.sync()
        assert done.returncode == 0, done.stdout + done.stderr
        steps, values = runs.loss(experiment)
        assert steps[: last + 1] == list(range(last + 1))
        assert len(steps) in (last + 1, last + 2)
        assert values == [step / 7 for step in steps]


def _read_until(trainer: subprocess.Popen[str], step: int) -> int:
    """Read what a training says up to a step."""
    assert trainer.stdout is not None
    while (last := int(trainer.stdout.readline())) < step:
        pass
    return last


def _held(runs: Runs, experiment: str) -> int:
    """The last step that the server has of an experiment; -1 where it does not know it."""
    answer = runs.server.ask("GET", f"/api/experiments/{experiment}", token=runs.token)
    return -1 if answer.status != 200 else answer.json["last_step"] or -1


def test_a_run_of_the_servers_own_user_needs_no_token(runs: Runs, tmp_path: Path) -> None:
    environment = serving_environment(runs.server.folder, GPU_MONITOR_SERVER=runs.server.url)
    ran = subprocess.run(
        [sys.executable, "-c", TRAINER, "10"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    experiment, *_, left = ran.stdout.splitlines()
    assert json.loads(left) == [], ran.stderr
    local = (runs.server.folder / ".local/state/gpu_monitor/local.token").read_text().split()[1]
    until(
        lambda: runs.server.ask("GET", f"/api/experiments/{experiment}", token=local).status == 200,
        "whoever runs the server sees it",
    )


def test_a_revoked_token_is_told_of(runs: Runs, tmp_path: Path) -> None:
    runs.token = "gm_not_a_token_of_this_server"
    trainer = runs.start(10)
    out, _ = trainer.communicate(timeout=PATIENCE)
    (words,) = json.loads(out.splitlines()[-1])
    assert "HTTP 401" in words
    assert runs.token not in words
    done = runs.sync()
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


def test_a_training_that_says_too_much_arrives_to_its_end(runs: Runs) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TALKER], cwd=runs.home, env=runs.environment, capture_output=True, text=True,
        timeout=PATIENCE, check=True,
    )  # fmt: skip
    experiment, _, left = done.stdout.strip().partition(" ")
    assert (left, runs.sync().returncode) == ("[]", 0), done.stderr
    found = runs.get(f"/api/experiments/{experiment}")
    assert (found["status"], found["last_step"]) == ("completed", 2)
    (before,) = runs.get(f"/api/metrics/{experiment}?names=before")["series"]
    assert before["value"] == [1.0, 2.0]
    (segment,) = found["segments"]
    # 100 notes, and of 100,001 parameters (one without a name is left out by the SDK) 90,001.
    assert segment["not_shown"] == 100 + 90_001
    assert segment["bytes"] == sum(
        path.stat().st_size for path in runs.home.glob(f"experiments/{experiment}/seg-*.log")
    )
