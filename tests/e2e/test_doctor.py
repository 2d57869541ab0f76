"""`gpu_monitor doctor` on real stores, agents, servers and drivers (the stand-in library), and as another user."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import ask, configure, environment, kill, running
from tests.e2e.terminal import on_terminal
from tests.e2e.waiting import until
from tests.fakes.server import ServerProcess, Step
from tests.made_stores import CARD, HOUR, MadeStore
from tests.standin.control import Standin
from tests.standin.profiles import H100

pytest_plugins = ("tests.standin.fixtures",)

NOBODY = 65534


def checks(folder: Path, *words: str, **more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = ask(folder, "doctor", "--json", *words, **more)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["problems"] == sum(check["level"] == "problem" for check in found["checks"])
    assert done.returncode == (1 if found["problems"] else 0)
    return done.returncode, {check["name"]: check for check in found["checks"]}


def test_before_anything_was_recorded(tmp_path: Path) -> None:
    code, found = checks(tmp_path)
    assert code == 1
    assert found["store"]["level"] == "problem"
    assert "nothing is recorded at" in found["store"]["text"]
    assert found["python"]["text"].startswith(sys.version.split()[0])
    assert "msgspec" in found["packages"]["text"]
    assert {"sqlite", "configuration", "nvml", "kernel log", "clock", "service"} <= set(found)


def test_an_agent_that_runs_and_one_that_was_killed(tmp_path: Path) -> None:
    configure(tmp_path, collection={"interval_seconds": 1})
    with running(tmp_path, "--simulate", "2") as process:
        store = tmp_path / "gpu_metrics.db"
        until(lambda: store.exists() and ask(tmp_path, "-sc", "").returncode == 0, "a first row")
        code, found = checks(tmp_path)
        assert found["agent"]["text"].startswith(f"runs, pid {process.pid} since ")
        assert found["last collection"]["level"] == "ok"
        assert found["source"]["level"] == "warning"
        assert found["integrity"]["text"] == "SQLite's quick check finds the file whole"
        assert code == 0, [check for check in found.values() if check["level"] == "problem"]
        kill(process)
    code, found = checks(tmp_path)
    assert code == 1
    assert found["agent"]["text"] == "none runs on this store; the last one was killed"


def test_people_get_a_line_a_check_and_what_to_do(tmp_path: Path) -> None:
    MadeStore(tmp_path / "gpu_metrics.db").minutes(HOUR, 2, {CARD: {"temperature": 1.0}}).close()
    done = ask(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    *lines, last = done.stdout.splitlines()
    assert all(re.match(r"(ok|warning|problem) +\S|\s{26}\S", line) for line in lines)
    place = next(n for n, line in enumerate(lines) if line.startswith("problem  agent "))
    assert lines[place + 1].strip().startswith("Start it: gpu_monitor")
    assert re.fullmatch(r"problems: \d+, warnings: \d+, checks: \d+", last)
    assert "\x1b" not in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_the_texts_are_wrapped_beside_their_names(tmp_path: Path) -> None:
    MadeStore(tmp_path / "gpu_metrics.db").minutes(HOUR, 2, {CARD: {"temperature": 1.0}}).close()
    whole = {name: one["text"] for name, one in checks(tmp_path)[1].items()}
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in on_terminal(tmp_path, 80, "doctor")]
    place = next(n for n, line in enumerate(lines) if line.startswith("ok       packages "))
    text = [lines[place][26:]]
    text += itertools.takewhile(lambda line: line.startswith(" " * 26), lines[place + 1 :])
    assert len(text) > 1
    assert max(map(len, lines[place : place + len(text)])) <= 80
    assert " ".join(line.strip() for line in text) == whole["packages"]


def test_a_bad_configuration_is_one_of_the_problems(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n "collection": {"intervall_seconds": 5}\n}')
    _, found = checks(tmp_path)
    assert found["configuration"]["level"] == "problem"
    assert "line 2: unknown key 'collection.intervall_seconds'" in found["configuration"]["text"]
    assert "interval_seconds" in found["configuration"]["advice"]
    assert "nvml" in found  # what can be checked is checked


def test_a_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "gpu_metrics.db").write_text("a letter to grandmother")
    _, found = checks(tmp_path)
    assert found["store"]["level"] == "problem"
    assert "is not a gpu_monitor store" in found["store"]["text"]
    assert (tmp_path / "gpu_metrics.db").read_text() == "a letter to grandmother"


def test_the_driver_is_asked_in_a_process_of_its_own(tmp_path: Path, standin: Standin) -> None:
    standin.gpus([H100] * 2)
    _, found = checks(tmp_path, **standin.env())
    assert (found["nvml"]["level"], found["nvml"]["text"]) == ("ok", "2 of 2 GPUs answer")


def test_the_server_is_asked_only_when_told_to(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        configure(tmp_path, server={"url": server.url, "contract_number": "7", "token_file": "token"})
        token = tmp_path / "token"
        token.write_text("open-sesame\n")
        token.chmod(0o600)
        MadeStore(tmp_path / "gpu_metrics.db").close()
        _, found = checks(tmp_path)
        assert server.received(None) == []
        assert "not asked; --network does" in found["server"]["text"]
        assert found["token"]["level"] == "ok"
        _, found = checks(tmp_path, "--network")
        asked = server.received(None)
        assert [(one.method, one.body) for one in asked] == [("OPTIONS", b""), ("POST", b"")]
        assert {one.headers["X-Contract-Number"] for one in asked} == {"7"}
        assert server.held() == {}
        assert found["server"] == {
            "name": "server", "level": "ok", "text": f"{server.url} takes reports, and lets us in", "advice": None,
        }  # fmt: skip
    _, found = checks(tmp_path, "--network")
    assert found["server"]["level"] == "problem"
    assert "no connection to 127.0.0.1" in found["server"]["text"]
    assert "open-sesame" not in json.dumps(found)


@pytest.mark.parametrize(
    ("step", "level", "text", "advice"),
    [
        (Step("status", status=404), "problem", "the server has nothing there (404)", "Correct server.url"),
        (Step("status", status=401), "problem", "does not let us in (401)", "server.token_file"),
        (Step("status", status=503), "warning", "answers 503", "Ask whoever runs it"),
    ],
)
def test_what_a_server_answers_is_judged(
    tmp_path: Path, step: Step, level: str, text: str, advice: str
) -> None:
    with ServerProcess(tmp_path) as server:
        server.behave(options=step)
        configure(tmp_path, server={"url": server.url, "contract_number": "7"})
        MadeStore(tmp_path / "gpu_metrics.db").close()
        _, found = checks(tmp_path, "--network")
    assert (found["server"]["level"], text in found["server"]["text"]) == (level, True)
    assert advice in found["server"]["advice"]


def test_a_server_that_answers_but_refuses_the_token(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.behave(Step("status", status=401))
        configure(tmp_path, server={"url": server.url, "contract_number": "7"})
        MadeStore(tmp_path / "gpu_metrics.db").close()
        code, found = checks(tmp_path, "--network", GPU_MONITOR_TOKEN="of-another-server")
    assert code == 1
    assert found["server"]["level"] == "problem"
    assert "does not let us in (401)" in found["server"]["text"]


def test_an_agent_says_at_its_start_that_its_token_cannot_be_used(tmp_path: Path) -> None:
    configure(
        tmp_path,
        server={"url": "http://127.0.0.1:9/m", "contract_number": "7", "token_file": "token"},
    )
    (tmp_path / "token").write_text("open-sesame\n")
    (tmp_path / "token").chmod(0o644)
    done = ask(tmp_path, "--simulate", "1", "--until", "+0s")
    assert "WARNING" in done.stderr
    assert "token can be read by other users" in done.stderr
    assert f"chmod 600 {tmp_path / 'token'}" in done.stderr
    planned = ask(tmp_path, "--simulate", "1", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "token          WARNING: the token file" in planned.stdout
    assert "chmod 600" in planned.stdout


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    configure(
        tmp_path, server={"url": "https://example.com/m", "contract_number": "7", "token_file": "token"}
    )
    (tmp_path / "token").write_text("open-sesame\n")
    (tmp_path / "token").chmod(0o644)
    _, found = checks(tmp_path)
    assert found["token"]["level"] == "problem"
    assert found["token"]["advice"] == f"Run: chmod 600 {tmp_path / 'token'}"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="gpu_monitor_doctor_"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def prints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def python_for_others() -> tuple[str, dict[str, str]]:
    """A Python of this version that another user may start, and what lets it find this program."""
    found = subprocess.run(
        [sys.executable, "-c", "import gpu_monitor, msgspec; print(gpu_monitor.__path__[0], msgspec.__path__[0])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = {"PYTHONPATH": os.pathsep.join(str(Path(path).parent) for path in found.stdout.split())}
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin") or ""):
        with contextlib.suppress(OSError):
            probe = [python, "-c", "import gpu_monitor, msgspec, psutil"]
            if (
                subprocess.run(probe, user=NOBODY, group=NOBODY, env=paths, cwd="/", check=False).returncode
                == 0
            ):
                return python, paths
    pytest.skip("no Python here that another user may start")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("is_running", [False, True])
def test_another_user_may_ask_and_changes_nothing(shared: Path, is_running: bool) -> None:
    python, paths = python_for_others()
    with contextlib.ExitStack() as stack:
        if is_running:
            configure(shared, collection={"interval_seconds": 3600})
            agent = stack.enter_context(running(shared, "--simulate", "1"))
            until(lambda: ask(shared, "-sc", "").returncode == 0, "a first row")
        else:
            MadeStore(shared / "gpu_metrics.db").minutes(HOUR, 2, {CARD: {"temperature": 1.0}}).close()
        before = prints(shared)
        done = subprocess.run(
            [python, "-m", "gpu_monitor", "doctor", "--json"], cwd=shared, env={**environment(shared), **paths},
            user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert prints(shared) == before
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.stderr == ""
    assert found["integrity"]["level"] == "ok"
    assert {"coverage", "gaps", "deliveries", "disk"} <= set(found)
    if is_running:
        assert found["agent"]["text"] == f"seems to run (pid {agent.pid}); only its own user can be sure"
    else:
        assert found["agent"]["text"] == "none runs on this store; the last one was killed"
