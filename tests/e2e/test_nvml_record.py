"""The recorder for real cards, tried on the stand-in: what it writes, and what it leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.standin.control import Proc, Standin
from tests.standin.profiles import H100, H100_MIG

pytest_plugins = ("tests.standin.fixtures",)


def test_it_writes_answers_and_no_identity(standin: Standin, tmp_path: Path) -> None:
    standin.gpus([H100, H100_MIG])
    standin.processes(0, [Proc(4194242)])
    standin.hold(0, "temperature", 44)
    file = tmp_path / "card.json"
    command = [sys.executable, "-m", "tests.hardware.record", str(file), "--seconds", "0.3"]
    done = subprocess.run(
        command, env={**os.environ, **standin.env()}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    secrets = [
        standin.uuid(0)[4:],
        standin.uuid(1)[4:],
        standin.mig_uuid(1, 0)[4:],
        "9900010000000",
        "4194242",
    ]
    assert [secret for secret in secrets if secret in text] == []
    found = json.loads(text)
    first, second, *instances = found["rounds"]["full"]["devices"]
    assert first["identity"]["uid"] == "GPU-0"
    assert first["values"]["temperature"] == 44
    assert [instance["identity"]["parent_uid"] for instance in instances] == [second["identity"]["uid"]] * 2
    assert found["rounds"]["wide"]["devices"][0]["processes"] == [{"memory": 512 * 1024 * 1024}]
    raw = found["raw"][0]
    assert raw["fields"]["82/0"]["code"] == 0
    assert raw["fields"]["29/0"]["code"] == 3
    assert (raw["samples"][1]["count"], raw["samples"][1]["is_ordered"]) == (120, True)


def test_without_a_card_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hardware.record", str(tmp_path / "card.json")]
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert "recorded" in done.stdout
    else:
        assert "nvidia" in done.stderr.lower() and "Traceback" not in done.stderr
