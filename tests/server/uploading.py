"""Trainings that upload to one server, for the tests of that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import PROGRAM, kill_after
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
        return experiment, kill_after(trainer, steps)

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
def uploads_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """One for all of a module, and a token for it."""
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started, token_for(started)


@pytest.fixture
def uploads(uploads_server: tuple[Server, str], tmp_path: Path) -> Runs:
    """A machine of its own that uploads there."""
    return Runs(tmp_path, *uploads_server)
