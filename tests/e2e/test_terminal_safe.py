"""No command prints a control character that came from outside, and its JSON still reads back as what was stored."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gpu_monitor.core.model import Event, GpuProcess
from gpu_monitor.core.terminal_text import CONTROLS
from tests.e2e.program import ask, query
from tests.made_stores import CARD, HOUR, MadeStore

EVIL = "\x1b]0;pwned\x07a\u202eb\u2066 \x9b31m"
SHOWN = "]0;pwned a b"
SPAN = ("--since", "2024-03-20T14:00:00+00:00", "--until", "2024-03-20T15:00:00+00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An hour with a user, an event and a node whose names are evil."""
    made = MadeStore(tmp_path / "gpu_metrics.db")
    made.minutes(HOUR, 60, {CARD: {"gpu_utilization": 80.0}}, {CARD.uid: (GpuProcess(1, user=EVIL),)})
    made.record(Event(HOUR + 1.0, "nvml_crashed", f"it said {EVIL}", "error", None, {"said": EVIL}))
    made.roll_up(HOUR + 3600)
    with made.writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (2, ?, 'import', NULL)", (f"box{EVIL}",))
    made.close()
    return tmp_path


def run(folder: Path, *words: str) -> str:
    """What the command prints on stdout; no line of it or of stderr moves the cursor."""
    done = ask(folder, *words)
    for line in (done.stdout + done.stderr).split("\n"):
        assert not CONTROLS.search(line), repr(line)
    return done.stdout


def test_events(folder: Path) -> None:
    (event,) = json.loads(run(folder, "events", *SPAN, "-f", "json"))["events"]
    assert (event["message"], event["detail"]) == (f"it said {EVIL}", {"said": EVIL})
    assert f"it said  {SHOWN}" in run(folder, "events", *SPAN, "-f", "csv")
    assert SHOWN in run(folder, "events", *SPAN)


def test_report(folder: Path) -> None:
    (line,) = json.loads(run(folder, "report", *SPAN, "--by", "user", "-f", "json"))["lines"]
    assert line["user"] == EVIL
    assert SHOWN in run(folder, "report", *SPAN, "--by", "user")


def test_collections(folder: Path) -> None:
    text = run(folder, "-sc", "2024-03-20T14:10:00+00:00", "--raw", "--fields", "uid,processes")
    ((gpu,),) = [group["gpus"] for group in json.loads(text)]
    assert gpu["processes"][0]["user"] == EVIL
    run(folder, "-sc", "2024-03-20T14:10:00+00:00", "--raw", "--fields", "uid,processes", "-f", "csv")


def test_messages(folder: Path) -> None:
    done = ask(folder, "events", "--node", "other")
    assert done.returncode == 2
    assert "box" in done.stderr  # the nodes there are, by name
    assert not CONTROLS.search(done.stderr.replace("\n", ""))


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")
def test_a_file_whose_name_is_no_text_is_imported(tmp_path: Path) -> None:
    name = os.fsdecode(b"log\x1b\xff.csv")
    rows = "timestamp, index, temperature.gpu\n" + "".join(
        f"2026/05/01 10:00:{second:02}.000, 0, 41\n" for second in range(0, 60, 5)
    )
    (tmp_path / name).write_text(rows)
    text = run(tmp_path, "import", name, "--node", "n", "--json")
    (file,) = json.loads(text)["files"]
    assert (os.fsencode(file["file"]), file["stored"]) == (b"log\x1b\xff.csv", 1)
    assert query(tmp_path / "gpu_metrics.db", "SELECT file FROM imports") == [("log  .csv",)]
    assert run(tmp_path, "import", name, "--node", "n").startswith("log  .csv (nvidia-smi CSV): 12 rows")


def test_the_doctor(tmp_path: Path) -> None:
    evil = tmp_path / f"x{EVIL}"
    evil.mkdir()
    (evil / "config.json").write_text("{}")
    found = json.loads(run(evil, "doctor", "--json"))
    (said,) = [one["text"] for one in found["checks"] if one["name"] == "configuration"]
    assert str(evil) in said
    assert SHOWN in run(evil, "doctor")
