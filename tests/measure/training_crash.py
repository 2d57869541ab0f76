"""How soon the server tells of a training that was killed, where an agent runs on its machine."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.program import configure, environment, running
from tests.measure.figures import Figure
from tests.measure.training_bed import Say
from tests.server.rig import PATIENCE, Server, serving

_TRAINER = """
import sys, time
from gpu_monitor.training import TrainingMonitor
monitor = TrainingMonitor("killed", "bench")
step = 0
print(monitor.experiment_id, flush=True)
while True:
    monitor.log_metrics({"loss": 1 / (step + 1)}, step)
    step += 1
    time.sleep(0.01)
"""
_SCOPES = ("report:write", "experiment:write", "read")
_LOOK_SECONDS = 0.05


def crash_figure(folder: Path, count: int, say: Say) -> Figure:
    """From SIGKILL of a training to `crashed` in the server's answer, its agent watching. Bar: 15 s."""
    folder.mkdir(parents=True)
    agent, runtime = folder / "agent", folder / "runtime"
    agent.mkdir()
    runtime.mkdir(mode=0o700)
    chance = random.Random(4)
    late: list[float] = []
    named = 0
    with serving(folder) as server:
        token = folder / "token"
        token.write_text(server.token("--contract", "300", *(w for s in _SCOPES for w in ("--scope", s))))
        token.chmod(0o600)
        told = {"url": f"{server.url}/api/metrics", "contract_number": "300", "token_file": str(token)}
        configure(agent, server=told)
        more = {
            "XDG_RUNTIME_DIR": str(runtime), "GPU_MONITOR_SERVER": server.url, "GPU_MONITOR_TOKEN_FILE": str(token),
        }  # fmt: skip
        with running(agent, XDG_RUNTIME_DIR=str(runtime)):
            for number in range(count):
                say("killed trainings", number / count)
                seconds, by = _killed(server, token.read_text(), folder, more, chance.uniform(1, 7))
                late.append(seconds)
                named += by == "SIGKILL"
    notes = (
        f"from SIGKILL to the answer of GET /api/experiments/ID that says so: the longest of {count}, "
        f"median {statistics.median(late):.1f} s; each killed 1 to 7 s after its start, which the agent on the same machine "
        f"may not have seen yet; of {named} the signal is known, too",
    )
    return Figure("a killed training told as crashed", 15, max(late), "s", 1, notes)


def _killed(
    server: Server, token: str, folder: Path, more: dict[str, str], after: float
) -> tuple[float, str | None]:
    """Seconds from the kill to the answer, and the signal that it names."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINER], cwd=folder, env=environment(folder, **more), stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        experiment = process.stdout.readline().strip()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=after)
        os.kill(process.pid, 9)
        began = time.monotonic()
        process.wait()
        while time.monotonic() - began < PATIENCE:
            answer = server.ask("GET", f"/api/experiments/{experiment}", token=token)
            if answer.status == 200 and answer.json["status"] == "crashed":
                return time.monotonic() - began, answer.json["signal"]
            time.sleep(_LOOK_SECONDS)
        raise RuntimeError(
            f"{experiment} was not told as crashed within {PATIENCE:.0f} s: {answer.body[:300]!r}"
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()
