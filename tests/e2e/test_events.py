"""`gpu_monitor events` as people run it: on stores made by hand, and on what a simulated agent with faults recorded."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Absence
from gpu_monitor.core.model import Event
from gpu_monitor.core.xid import xid_event
from tests.e2e.program import ask, query
from tests.e2e.terminal import on_terminal
from tests.made_stores import CARD, HOUR, OTHER, MadeStore

BUSY = {"gpu_utilization": 80.0}
SPAN = ("--since", "2024-03-20T14:00:00+00:00", "--until", "2024-03-20T16:00:00+00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An hour of two cards: the second falls off the bus twice, the first is throttled."""
    made = MadeStore(tmp_path / "gpu_metrics.db").minutes(HOUR, 60, {CARD: BUSY, OTHER: BUSY})
    made.record(
        Absence(HOUR - 60.0, HOUR + 120.0, "agent killed", None),
        Event(HOUR + 120.0, "agent_started", "agent 1 started", "info", None, {"pid": 7}),
        Absence(HOUR + 600.0, HOUR + 1200.0, "GPU lost", OTHER.uid),
        xid_event(HOUR + 605.0, 79, uid=OTHER.uid),
        xid_event(HOUR + 2000.0, 79, uid=OTHER.uid),
        Event(HOUR + 900.0, "throttle_started", "throttled: power cap", "warning", CARD.uid),
        Event(HOUR + 950.0, "throttle_ended", "throttling ended", "info", CARD.uid),
    )
    made.close()
    return tmp_path


def test_a_table_that_fits_a_terminal(folder: Path) -> None:
    done = ask(folder, "events", *SPAN)
    # 14:00 to 14:02 of the node and 14:10 to 14:20 of the GPU: 720 s; what lies before the span is not counted.
    assert done.stderr == "2 gaps (12 min without data), 2 Xids, 1 throttling, 1 agent started\n"
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["time", "(UTC)", "severity", "GPU", "what"]
    assert max(len(line) for line in lines) <= 80
    begun = [line for line in lines[1:] if not line.startswith(" ")]
    assert [line.split()[:2] for line in begun] == [
        ["2024-03-20T13:59:00Z", "warning"],
        ["2024-03-20T14:02:00Z", "info"],
        ["2024-03-20T14:10:00Z", "error"],
        ["2024-03-20T14:10:05Z", "critical"],
        ["2024-03-20T14:15:00Z", "warning"],
        ["2024-03-20T14:15:50Z", "info"],
        ["2024-03-20T14:33:20Z", "critical"],
    ]
    where = lines[0].index("GPU")
    assert [line[where:].split("  ")[0] for line in begun] == [
        "node", "node", "1 Card", "1 Card", "0 Card", "0 Card", "1 Card",
    ]  # fmt: skip
    said = " ".join(line[lines[0].index("what") :].strip() for line in lines[1:])
    assert "no data for 10 min, until 2024-03-20T14:20:00Z: GPU lost" in said
    # The advice of an Xid stands once, however often it comes.
    assert said.count("reboot or power-cycle") == 1
    assert said.endswith("(advice above)")


def test_one_gpu_its_gaps_and_those_of_the_node(folder: Path) -> None:
    for name in ("1", "GPU-bbbb", "bbbb", "0000:02:00.0"):
        done = ask(folder, "events", *SPAN, "--gpu", name, "-f", "json")
        events = json.loads(done.stdout)["events"]
        assert [(one["kind"], one["uid"]) for one in events] == [
            ("gap", None), ("gap", OTHER.uid), ("xid", OTHER.uid), ("xid", OTHER.uid),
        ], name  # fmt: skip


def test_json_and_csv_hold_the_same(folder: Path) -> None:
    found = json.loads(ask(folder, "events", *SPAN, "-f", "json").stdout)
    assert (found["since"], found["until"], found["node"]) == (SPAN[1], SPAN[3], "here")
    rows = list(csv.DictReader(io.StringIO(ask(folder, "events", *SPAN, "-f", "csv").stdout)))
    for event, row in zip(found["events"], rows, strict=True):
        texts = {
            name: json.dumps(value) if isinstance(value, dict) else "" if value is None else str(value)
            for name, value in event.items()
        }
        assert row == texts
    _, started, gap, xid = found["events"][:4]
    assert (gap["time"], gap["end"]) == ("2024-03-20T14:10:00+00:00", "2024-03-20T14:20:00+00:00")
    assert (gap["kind"], gap["seconds"], gap["cause"], gap["uid"]) == ("gap", 600.0, "GPU lost", OTHER.uid)
    assert (xid["index"], xid["name"], xid["pci_bus_id"]) == (1, "Card", "00000000:02:00.0")
    assert (xid["detail"]["xid"], xid["detail"]["advice"]) == (79, xid["advice"])
    assert xid["advice"].startswith("Take the node out of service")
    assert (started["detail"], started["uid"], started["index"]) == ({"pid": 7}, None, None)


def test_kind_and_severity(folder: Path) -> None:
    def kinds(*words: str) -> list[str]:
        return [
            one["kind"]
            for one in json.loads(ask(folder, "events", *SPAN, *words, "-f", "json").stdout)["events"]
        ]

    assert kinds("--kind", "xid") == ["xid", "xid"]
    assert kinds("--severity", "error") == ["gap", "xid", "xid"]
    assert kinds("--severity", "warning", "--gpu", "0") == ["gap", "throttle_started"]


def test_nothing_says_what_there_is(folder: Path) -> None:
    done = ask(folder, "events")
    assert (done.returncode, done.stdout) == (3, "")
    silent, nothing = done.stderr.splitlines()
    assert silent.startswith("nothing was recorded since 2024-03-20T15:00:00+00:00")
    assert nothing.startswith("no event and no gap from ")
    there = "the store has data from 2024-03-20T14:00:00+00:00 to 2024-03-20T15:00:00+00:00"
    assert nothing.endswith(there)
    done = ask(folder, "events", *SPAN, "--kind", "xids", "-f", "json")
    assert (done.returncode, json.loads(done.stdout)["events"]) == (3, [])
    assert "(there are: agent_started, gap, throttle_ended, throttle_started, xid)" in done.stderr
    done = ask(folder, "events", *SPAN, "--kind", "xids", "-f", "csv")
    assert done.stdout.startswith("time,end,seconds,kind,severity,node,uid,index,")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--gpu", "7"), 2, "the store knows no GPU '7'"),
        (("--gpu", "GPU-"), 2, "begins 2 uids"),
        (("--since", "2024-03-20", "--until", "2024-03-19"), 2, "--since lies behind --until"),
        (("--severity", "bad"), 2, "invalid choice: 'bad'"),
        (("--node", "elsewhere"), 2, "knows no node 'elsewhere'"),
    ],
)
def test_what_cannot_be_asked(folder: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = ask(folder, "events", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_without_a_store(tmp_path: Path) -> None:
    done = ask(tmp_path, "events")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no store at" in done.stderr


def test_words_from_outside_cannot_command_the_terminal(folder: Path) -> None:
    made = MadeStore(folder / "evil.db")
    made.record(Event(HOUR + 1.0, "nvml_crashed", "it said \x1b[2J\nand more", "error"))
    made.close()
    (folder / "config.json").write_text('{"database": {"file": "evil.db"}}')
    text = ask(folder, "events", *SPAN).stdout
    assert "\x1b" not in text
    assert "it said" in text
    assert len(text.splitlines()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_wide_terminal_is_used(folder: Path) -> None:
    lines = on_terminal(folder, 400, "events", *SPAN)
    assert len(lines) == 8
    assert any(len(line) > 80 for line in lines)
    narrow = on_terminal(folder, 70, "events", *SPAN)
    assert max(len(line) for line in narrow) <= 70


def test_what_was_wrong_with_gpu_1(tmp_path: Path) -> None:
    faults = ("gpu=1 at=+20m for=10m kind=lost", "gpu=0 at=+40m for=600m kind=hung")
    words = [word for fault in faults for word in ("--fault", fault)]
    started = ("--simulate", "2:h100", "--speed", "2000", "--start", "-3h", "--until", "+1h")
    assert ask(tmp_path, *started, *words).returncode == 0
    done = ask(tmp_path, "events", "--gpu", "1", "-f", "json")
    assert done.returncode == 0
    events = json.loads(done.stdout)["events"]
    assert {"gap", "xid"} <= {one["kind"] for one in events}
    (gap,) = [one for one in events if one["kind"] == "gap"]
    ((uid,),) = query(tmp_path / "gpu_metrics.db", 'SELECT uid FROM gpus WHERE "index" = 1')
    assert (gap["uid"], gap["index"], gap["cause"], gap["source"]) == (uid, 1, "GPU lost", "simulated")
    # The gap reaches from the last reading before those ten minutes to the first after them.
    assert gap["seconds"] >= 600
    assert [one["detail"]["xid"] for one in events if one["kind"] == "xid"] == [79]
    table = ask(tmp_path, "events").stdout
    assert table.splitlines()[0].startswith("SIMULATED GPUs:")
    said = " ".join(table.split())
    assert "still: hung in a simulated call" in said
    assert max(len(line) for line in table.splitlines()) <= 80
