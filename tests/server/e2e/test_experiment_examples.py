"""The commands in docs/server.md about experiments, as they stand there, in a real shell against a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gpu_monitor.server.store.engine import open_store
from tests.server.fleet import add_contract, add_node
from tests.server.rig import PATIENCE, serving
from tests.server.runs import Segment, make_runs
from tests.server.segments import put

PAGE = Path(__file__).parents[3] / "docs" / "server.md"


def commands() -> list[str]:
    """The curl commands of the section, each with its continued lines."""
    section = PAGE.read_text(encoding="utf-8").partition("## Experiments: asking\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    now = float(int(time.time()))
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    make_runs(store, now - 86_400, now)
    add_node(store, add_contract(store, "7"), "node-a", 1)
    store.close()
    found = commands()
    assert len(found) >= 17
    with serving(tmp_path) as server:
        token = server.token("--scope", "experiment:write", "--contract", "100")
        said = {}
        for command in found:
            there = command.replace("http://localhost:8000", server.url).replace("GPU-...", "node-a-gpu0")
            there = there.replace("curl ", "curl -sS --fail-with-body ", 1)
            done = subprocess.run(
                ["/bin/sh", "-c", there], env={"TOKEN": token, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), (command, done.stdout)
            said[command] = done.stdout
    by_where = next(text for command, text in said.items() if "val_loss < 0.3 and lr" in command)
    assert [one["id"] for one in json.loads(by_where)["items"]] == ["run-new"]
    table = next(text for command, text in said.items() if "min(loss) <= 0.5" in command)
    assert table.splitlines()[0].endswith(",tags,lr,min(val_loss)")
    assert table.splitlines()[1].endswith(",0.001,0.25")
    by_tag = next(text for command, text in said.items() if "tag=model=resnet" in command)
    assert [one["id"] for one in json.loads(by_tag)["items"]] == ["run-old"]
    second = next(text for command, text in said.items() if command.endswith("experiments/resnet~2"))
    assert json.loads(second)["id"] == "run-old"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_token_of_the_page_changes_what_came_on_loopback(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (wanted,) = re.findall(
        r"^TOKEN=\$\(gpu_monitor token create (.*experiment:write.*)\)$", page, re.MULTILINE
    )
    (change,) = [line for line in commands() if line.startswith("curl -X PATCH") and "resnet~2" in line]
    with serving(tmp_path) as server:
        local = (tmp_path / ".local/state/gpu_monitor/local.token").read_text().split()[-1]
        for run in ("run-1", "run-2"):
            data = Segment(run, "resnet", "vision", time.time() - 60).end(1, "completed").data
            assert put(server, local, data, experiment=run, segment="seg-00000001").status == 200
        token = server.token(*wanted.split())
        there = change.replace("http://localhost:8000", server.url).replace("curl ", "curl -sS ", 1)
        done = subprocess.run(
            ["/bin/sh", "-c", there], env={"TOKEN": token, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
            timeout=PATIENCE, check=True,
        )  # fmt: skip
    changed = json.loads(done.stdout)
    assert (changed["id"], changed["contract_number"], changed["archived"]) == ("run-1", "local", True)
