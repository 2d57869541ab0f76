"""`gpu_monitor demo` as its user sees it: both programs real, ready in seconds, gone without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.program import PROGRAM, environment, query
from tests.e2e.waiting import until
from tests.server.rig import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals to a group are POSIX")
URL = re.compile(r"the page\s+(http://\S+?)/$")


@dataclass
class Demo:
    """A running demonstration and what it says."""

    process: subprocess.Popen[str]
    lines: queue.SimpleQueue[str | None]
    said: list[str]

    def wait_for(self, pattern: str | re.Pattern[str], patience: float = PATIENCE) -> re.Match[str]:
        """The line that matches; fails where nothing at all is said for `patience` seconds."""
        while True:
            line = self.lines.get(timeout=patience)
            assert line is not None, self.said
            self.said.append(line)
            if found := re.search(pattern, line):
                return found

    @property
    def programs(self) -> list[psutil.Process]:
        return [one for one in psutil.Process(self.process.pid).children() if one.is_running()]

    def end(self, number: int, *, group: bool = False) -> int:
        """Send a signal; what it exits with, once everything is gone."""
        programs = self.programs
        (os.killpg if group else os.kill)(self.process.pid, number)
        code = self.process.wait(timeout=PATIENCE)
        assert [
            one.pid for one in programs if one.is_running() and one.status() != psutil.STATUS_ZOMBIE
        ] == []
        return code


@contextlib.contextmanager
def demonstration(folder: Path, *words: str, **more: str) -> Iterator[Demo]:
    process = subprocess.Popen(
        [*PROGRAM, "demo", "--port", "0", *words], cwd=folder, env=environment(folder, **more), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip())
        lines.put(None)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield Demo(process, lines, [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE)
        listener.join(PATIENCE)
        process.stdout.close()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_simulated_day_is_there_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with demonstration(tmp_path, "--simulate", "2:l40s", "--directory", str(folder)) as demo:
        url = demo.wait_for(URL)[1]
        assert any("SIMULATED" in line for line in demo.said)
        assert len(demo.programs) == 2
        demo.wait_for("a day of history is there")
        until(lambda: len(demo.programs) == 3, "the training begins")
        strip = get(f"{url}/api/reports?limit=100")["items"]
        assert len(strip) >= 23
        fleet = get(f"{url}/api/fleet")
        assert [gpu["simulated"] for gpu in fleet["items"]] == [True, True]
        assert fleet["excluded_simulated_gpus"] == 2, "simulated GPUs are in no total unasked"
        (named,) = [found[1] for line in demo.said if (found := re.search(r"curl '(\S+)'", line))]
        assert get(named)["totals"]["power_usage"] > 0
        (link,) = [found[0] for line in demo.said if (found := re.search(r"http://\S+/open\?code=\S+", line))]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(link, timeout=PATIENCE):
            pass
        with opener.open(f"{url}/api/session", timeout=PATIENCE) as answer:
            assert json.load(answer)["kind"] == "local"
        if not any("the example training is over" in line for line in demo.said):
            demo.wait_for("the example training is over", 3 * PATIENCE)  # two runs of 33 s
        runs = get(f"{url}/api/experiments")["items"]
        assert [(one["name"], one["status"], one["last_step"]) for one in runs] == [
            ("two_moons", "completed", 299)
        ] * 2
        with urllib.request.urlopen(f"{url}/", timeout=PATIENCE) as answer:
            page = answer.read().decode()
        assert [f'href="api/experiments/{one["id"]}/gpus"' in page for one in runs] == [True, True]
        for one in runs:
            asked = f"{url}/api/experiments/{one['id']}/gpus"
            until(lambda asked=asked: get(asked)["items"], "the agent's next message tells of it")  # type: ignore[misc]
        for one in runs:
            joined = get(f"{url}/api/experiments/{one['id']}/gpus")
            assert joined["simulated"] is True
            (gpu,) = joined["items"]
            (stay,) = gpu["intervals"]
            assert gpu["uid"] in {known["uid"] for known in fleet["items"]}
            # One process wrote both, one after the other: each has the GPU while it was written.
            assert one["started"] <= stay["since"] <= stay["until"] <= one["ended"]
            if stay["since"] == stay["until"]:  # seen once: no stretch of time
                assert (gpu["gpu_hours"], gpu["coverage"]) == (None, None)
                assert "one moment only" in gpu["energy_reason"]
            else:
                assert 0 < gpu["gpu_hours"] <= one["duration_seconds"] / 3600
            back = get(f"{url}/api/gpus/{gpu['uid']}/experiments")["items"]
            assert {found["experiment_id"] for found in back} == {found["id"] for found in runs}
        compared = get(f"{url}/api/compare?ids=two_moons&ids=two_moons~2")
        assert [one["name"] for one in compared["params"] if one["differs"]] == ["learning_rate"]
        assert "code=" not in (folder / "server.log").read_text(), "no log keeps the link"
        token = folder / "state/gpu_monitor/local.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert demo.end(signal.SIGINT, group=True) == 0
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/healthz")
    assert not token.exists() or not token.read_text(), "the token went with its server"
    assert {name for (name,) in query(folder / "gpu_metrics.db", "SELECT DISTINCT source FROM gpus")} == {
        "simulated"
    }
    assert query(folder / "gpu_metrics.db", "SELECT DISTINCT cause FROM gaps") == [("GPU lost",)]
    # It goes on from there when it is started again.
    with demonstration(tmp_path, "--simulate", "2:l40s", "--directory", str(folder)) as demo:
        url = demo.wait_for(URL)[1]
        demo.wait_for("a day of history is there")
        assert len(get(f"{url}/api/nodes")["items"]) == 1
        assert demo.end(signal.SIGTERM) == 0


def test_a_temporary_folder_goes_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    temporary, home = tmp_path / "temporary", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    settings = {
        "DATABASE_URL": "mysql://elsewhere/x",
        "GPU_MONITOR_TOKEN": "of-another-server",
        "LOG_LEVEL": "nonsense",
    }
    with demonstration(home, "--simulate", "1", TMPDIR=str(temporary), **settings) as demo:
        demo.wait_for(URL)
        assert [path.name[:17] for path in temporary.iterdir()] == ["gpu_monitor-demo-"]
        assert demo.end(signal.SIGHUP) == 0
    assert list(temporary.iterdir()) == []
    assert list(home.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "server.db").write_text("a letter to grandmother")
    with demonstration(tmp_path, "--simulate", "1", "--directory", str(other)) as demo:
        demo.wait_for("holds files that are of no demonstration")
        assert demo.process.wait(PATIENCE) == 78
    assert [(path.name, path.read_text()) for path in other.iterdir()] == [
        ("server.db", "a letter to grandmother")
    ]


def test_when_one_program_ends_the_other_does_and_the_reason_is_told(tmp_path: Path) -> None:
    with demonstration(tmp_path, "--simulate", "1", "--directory", "here") as demo:
        demo.wait_for(URL)
        server, agent, *_ = demo.programs
        assert "serve" in server.cmdline()
        server.kill()
        demo.wait_for("the server ended by itself with exit code -9")
        assert demo.process.wait(PATIENCE) == 1
        assert not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with demonstration(tmp_path, "--simulate", "1") as first:
        port = first.wait_for(URL)[1].rpartition(":")[2]
        with demonstration(tmp_path, "--simulate", "1", "--port", port) as second:
            second.wait_for(f"cannot listen on 127.0.0.1 port {port}")
            assert second.process.wait(PATIENCE) == 1
        assert first.end(signal.SIGTERM) == 0
