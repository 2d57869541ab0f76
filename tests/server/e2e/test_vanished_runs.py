"""Real trainings that end in every way, the real agent that watches them, and what the real server says of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import configure, environment, running
from tests.e2e.waiting import until
from tests.server.rig import Server, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched by /proc of Linux")
TRAINER = """
import json, os, sys
from gpu_monitor.training.monitor import TrainingMonitor
monitor = TrainingMonitor("resnet", "images", capture=False)
for step in range(3):
    monitor.log_metrics({"loss": 1 / (step + 1)}, step=step)
print(monitor.experiment_id, flush=True)
how = sys.stdin.readline().strip()
if how == "exit":
    os._exit(3)
monitor.finish()
"""


class Machine:
    """One machine: its registry, its trainings and its agent."""

    def __init__(self, home: Path, server: Server | None) -> None:
        self.home, self.server = home, server
        self.runtime = home / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.agent = home / "agent"
        self.agent.mkdir()
        self._started: list[subprocess.Popen[str]] = []
        token = home / "token"
        scopes = ("report:write", "experiment:write", "read")
        if server is not None:
            words = [word for scope in scopes for word in ("--scope", scope)]
            self.token = server.token("--contract", "300", *words)
            token.write_text(self.token)
            token.chmod(0o600)
            told = {"url": f"{server.url}/api/metrics", "contract_number": "300", "token_file": str(token)}
            configure(self.agent, server=told)
        else:
            configure(self.agent)

    @property
    def registry(self) -> list[str]:
        """Names of the registrations there are."""
        place = self.runtime / "gpu_monitor/experiments"
        return sorted(entry.name for entry in place.glob("*.json"))

    def train(self, *before: str, uploads: bool = True) -> tuple[subprocess.Popen[str], str]:
        """A training that has logged steps 0 to 2 and waits for a word on stdin; and its experiment."""
        more = {"XDG_RUNTIME_DIR": str(self.runtime)}
        if uploads and self.server is not None:
            more |= {
                "GPU_MONITOR_SERVER": self.server.url,
                "GPU_MONITOR_TOKEN_FILE": str(self.home / "token"),
            }
        process = subprocess.Popen(
            [*before, sys.executable, "-c", TRAINER], cwd=self.home, env=environment(self.home, **more),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.communicate()

    def watch(self) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """The agent, until the end of the block."""
        return running(self.agent, XDG_RUNTIME_DIR=str(self.runtime))

    def until_said(self, *words: str) -> None:
        """Until the agent has logged a line with these words."""

        def look() -> bool:
            lines = (self.agent / "console.txt").read_text().splitlines()
            return any(all(word in line for word in words) for line in lines)

        until(look, f"the agent says {words}")

    def experiment(self, uid: str) -> Any:
        """What the server says of it; None where it does not know it."""
        assert self.server is not None
        answer = self.server.ask("GET", f"/api/experiments/{uid}", token=self.token)
        return answer.json if answer.status == 200 else None

    def until(self, uid: str, status: str) -> Any:
        """The experiment once it has this status."""
        until(lambda: (self.experiment(uid) or {}).get("status") == status, f"{uid} is {status}")
        return self.experiment(uid)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Iterator[Machine]:
    made = Machine(tmp_path, server)
    yield made
    made.close()


def test_a_killed_run_has_crashed_with_its_last_step_and_signal(machine: Machine) -> None:
    with machine.watch():
        killed, crashed = machine.train()
        left, exited = machine.train()
        ended, completed = machine.train()
        for run in (crashed, exited, completed):
            machine.until(run, "running")
            machine.until_said(run, "is watched")
        assert len(machine.registry) == 3
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        left.communicate("exit\n")
        ended.communicate("finish\n")
        told = machine.until(crashed, "crashed")
        assert (told["signal"], told["last_step"]) == ("SIGKILL", 2)
        assert told["proof"]["by"] == "agent"
        told = machine.until(exited, "crashed")
        assert (told["exit_code"], told["last_step"]) == (3, 2)
        machine.until(completed, "completed")
        until(lambda: not machine.registry, "the registrations are gone")
        assert machine.experiment(completed)["proof"] is None


def test_a_run_that_died_before_an_agent_looked_ended_when_it_wrote_last(machine: Machine) -> None:
    process, run = machine.train()
    until(lambda: machine.experiment(run) is not None, "its first upload")
    process.kill()
    process.wait()
    (log,) = (machine.home / "experiments" / run).glob("seg-*.log")
    hour = 3600
    os.utime(log, (log.stat().st_mtime - hour, log.stat().st_mtime - hour))  # as if that was an hour ago
    with machine.watch():
        found = machine.until(run, "crashed")
    assert abs(datetime.fromisoformat(found["ended"]).timestamp() - log.stat().st_mtime) < 0.01


def test_with_the_local_token_an_end_is_told_whatever_contract_the_agent_has(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        machine = Machine(tmp_path, server)
        with contextlib.closing(machine):
            state = tmp_path / ".local/state"
            configure(
                machine.agent,
                server={"url": f"{server.url}/api/metrics", "contract_number": "12345"},
            )
            machine.token = local_token(state)
            (machine.home / "token").write_text(machine.token)
            with running(machine.agent, XDG_RUNTIME_DIR=str(machine.runtime), XDG_STATE_HOME=str(state)):
                process, run = machine.train()
                until(lambda: (machine.experiment(run) or {}).get("last_step") == 2, "its upload")
                assert machine.experiment(run)["contract_number"] == "local"
                machine.until_said(run, "is watched")
                process.kill()
                process.wait()
                assert machine.until(run, "crashed")["signal"] == "SIGKILL"


def local_token(state: Path) -> str:
    """The token that a server leaves for its own user."""
    return (state / "gpu_monitor/local.token").read_text().split()[1]


def test_what_a_vanished_run_of_its_own_user_left_is_uploaded_by_the_agent(machine: Machine) -> None:
    """The run knows no server, and was killed before the agent was there."""
    killed, run = machine.train(uploads=False)
    killed.kill()
    killed.wait()
    assert machine.experiment(run) is None
    with machine.watch():
        told = machine.until(run, "crashed")
        assert told["last_step"] == 2
        until(lambda: not machine.registry, "the registration is gone")
    (sent,) = (machine.home / "experiments" / run).glob("seg-*.sent")
    (log,) = (machine.home / "experiments" / run).glob("seg-*.log")
    assert machine.server is not None
    assert json.loads(sent.read_bytes())[machine.server.url]["offset"] == log.stat().st_size


def test_an_end_is_told_again_until_the_server_has_taken_note(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(folder) as server:
        machine = Machine(tmp_path, server)
        with machine.watch(), contextlib.closing(machine):
            killed, run = machine.train()
            machine.until(run, "running")
            machine.until_said(run, "is watched")
            port = server.port
            server.kill()
            killed.kill()
            killed.wait()
            machine.until_said(run, "has vanished")
            assert len(machine.registry) == 1
            with serving(folder, "--port", str(port)) as again:
                machine.server = again
                assert machine.until(run, "crashed")["signal"] == "SIGKILL"
                until(lambda: not machine.registry, "the registration is gone")


def test_without_a_server_only_the_registration_of_a_vanished_run_goes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, None)
    with contextlib.closing(machine), machine.watch():
        killed, run = machine.train()
        _, other = machine.train()
        assert len(machine.registry) == 2
        killed.kill()
        killed.wait()
        until(lambda: len(machine.registry) == 1, "one registration is gone")
    assert {entry.name for entry in (tmp_path / "experiments").iterdir()} == {run, other}


def test_a_run_in_a_pid_namespace_is_watched_by_its_pid_outside(machine: Machine) -> None:
    space = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("A PID NAMESPACE IS NOT TESTED HERE: unshare may not make one")
    with machine.watch():
        outer, run = machine.train(*space)
        machine.until(run, "running")
        machine.until_said(run, "is watched")
        assert [name.partition("-")[0] for name in machine.registry] == ["1"]
        (inner,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGKILL)
        assert machine.until(run, "crashed")["signal"] == "SIGKILL"
        until(lambda: not machine.registry, "the registration is gone")
