"""Two agents on pretended GPUs whose process lists hold the real pids of two real runs, one in a pid namespace; and what
the real server says of the runs' GPUs, and of the GPUs' runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.core.catalogue import Kind, Metric
from gpu_monitor.server.store.series import HOST_PREFIX, KNOWN
from tests.e2e.program import configure, running
from tests.e2e.waiting import until
from tests.server.e2e.test_vanished_runs import Machine
from tests.server.rig import Server, serving
from tests.standin.control import Proc, Standin

pytest_plugins = ("tests.standin.fixtures",)
SPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def is_curve(name: str, metric: Metric) -> bool:
    """Whether it is a metric of GPUs with a curve."""
    return not name.startswith(HOST_PREFIX) and metric.kind is not Kind.STATE


def can_unshare() -> bool:
    """Whether this user may make a pid namespace."""
    return not subprocess.run([*SPACE, "true"], capture_output=True, check=False).returncode


def get(server: Server, token: str, path: str) -> Any:
    """What the server answers."""
    answer = server.ask("GET", path, token=token)
    assert answer.status == 200, (path, answer.body)
    return answer.json


@contextlib.contextmanager
def agent_on(machine: Machine, standin: Standin, number: int) -> Any:
    """A second agent of the machine, with a store of its own, on these GPUs."""
    folder = machine.home / f"agent-{number}"
    folder.mkdir()
    assert machine.server is not None
    told = {
        "url": f"{machine.server.url}/api/metrics",
        "contract_number": "300",
        "token_file": str(machine.home / "token"),
    }
    configure(
        folder,
        server=told,
        collection={"interval_seconds": 2, "reading_seconds": 1},
        node={"name": f"node-{number}"},
    )
    with running(folder, XDG_RUNTIME_DIR=str(machine.runtime), **standin.env()) as process:
        yield process


def test_runs_and_gpus_are_joined_by_the_processes_that_agents_see(
    tmp_path: Path, standin_library: Path
) -> None:
    first, second = (Standin(tmp_path / f"standin-{number}", standin_library, number) for number in (1, 2))
    for standin in (first, second):
        standin.load(0, 0.8)
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(folder) as server:
        machine = Machine(tmp_path, server)
        with contextlib.closing(machine):
            plain, one = machine.train()
            is_inside = can_unshare()
            outer, two = machine.train(*(SPACE if is_inside else ()))
            pid = outer.pid
            if is_inside:
                (inner,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                pid = int(inner)
            # Runs of other people are on the cards, too: pid 1 is on both.
            first.processes(0, [Proc(plain.pid, 1 << 30), Proc(1, None)])
            second.processes(0, [Proc(pid, 2 << 30), Proc(1, None)])
            with agent_on(machine, first, 1), agent_on(machine, second, 2):
                token = machine.token
                said: dict[str, Any] = {}

                def known(run: str) -> Callable[[], bool]:
                    def look() -> bool:
                        path = f"/api/experiments/{run}/gpus?metric=power_usage&axis=time"
                        if server.ask("GET", path, token=token).status == 404:
                            return False  # its first upload is under way
                        said[run] = get(server, token, path)
                        return bool(said[run]["items"] and said[run]["items"][0]["curves"][0]["x"])

                    return look

                for run in (one, two):
                    until(known(run), f"the GPU of {run} and its power are known")
                    assert len(said[run]["items"]) == 1
                assert said[one]["items"][0]["uid"] == first.uuid(0)
                assert said[two]["items"][0]["uid"] == second.uuid(0)
                assert said[one]["items"][0]["hostname"] == "node-1"
                assert said[one]["items"][0]["intervals"][0]["how"] == "process"
                assert said[one]["items"][0]["node"] != said[two]["items"][0]["node"]
                (curve,) = said[one]["items"][0]["curves"]
                assert (curve["metric"], curve["unit"], curve["source"]) == ("power_usage", "W", "minutes")
                for uid, run in ((first.uuid(0), one), (second.uuid(0), two)):
                    (item,) = get(server, token, f"/api/gpus/{uid}/experiments")["items"]
                    assert (item["experiment_id"], item["name"], item["status"]) == (run, "resnet", "running")
                names = [name for name, metric in KNOWN.items() if is_curve(name, metric)]
                for start in range(0, len(names), 8):
                    asked = "&".join(f"metric={name}" for name in names[start : start + 8])
                    (item,) = get(server, token, f"/api/experiments/{one}/gpus?{asked}")["items"]
                    assert [curve["metric"] for curve in item["curves"]] == names[start : start + 8]
                whole = get(server, token, f"/api/experiments/{one}/gpus")
                (stay,) = whole["items"][0]["intervals"]
                since, to = (datetime.fromisoformat(stay[name]).timestamp() for name in ("since", "until"))
                hours = whole["total"]["gpu_hours"]
                if to == since:  # seen at one moment so far
                    assert (hours, "one moment only" in whole["total"]["energy_reason"]) == (None, True)
                else:
                    assert hours == pytest.approx((to - since) / 3600, abs=1e-5)
                for wrong in ("metric=nonsense", "metric=host.cpu_utilization", "axis=steps", "max_points=1"):
                    answer = server.ask("GET", f"/api/experiments/{one}/gpus?{wrong}", token=token)
                    assert answer.status == 422, (wrong, answer.body)
                assert server.ask("GET", "/api/experiments/none/gpus", token=token).status == 404
                assert server.ask("GET", "/api/gpus/none/experiments", token=token).status == 404
                plain.send_signal(signal.SIGKILL)
                plain.wait()
                machine.until(one, "crashed")
        if not is_inside:
            pytest.skip("A PID NAMESPACE IS NOT TESTED HERE: unshare may not make one")


def test_an_xid_alerts_within_seconds_though_its_report_comes_with_the_hour(
    tmp_path: Path, standin_library: Path
) -> None:
    standin = Standin(tmp_path / "standin", standin_library)
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(folder) as server:
        machine = Machine(tmp_path, server)
        with agent_on(machine, standin, 1):
            until(lambda: get(server, machine.token, "/api/gpus")["items"], "the GPU is known")
            standin.xid(0, 79)

            def firing() -> list[Any]:
                found = get(server, machine.token, "/api/alerts?state=active")["items"]
                return [one for one in found if one["rule"] == "xid-hardware"]

            until(firing, "the alert fires")
            (alert,) = firing()
            assert (alert["gpu"], alert["value"], alert["past"]) == (standin.uuid(0), 79.0, False)
            assert not get(server, machine.token, "/api/nodes")["items"][0]["last_report"]
