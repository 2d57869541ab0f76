"""`gpu_monitor export`: the same rows as `-sc` prints, as a stream or as a file that appears whole."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Collection, GpuRow
from gpu_monitor.core.model import GpuProcess, Identity
from tests.e2e.program import PROGRAM, ask, environment
from tests.made_stores import CARD, GIB, HOUR, OTHER, MadeStore

ODD = Identity("=cmd|' /C calc'!A0,\"x\"", "nvml", "Käre\nCard", None, None, 2)
RANGE = "2024-03-20T14:00:00+00:00..2024-03-20T17:00:00+00:00"


def odd_store(path: Path) -> Path:
    """Cards that come and go, values of every kind, a clock put back, states and reasons that change."""
    made = MadeStore(path)
    for minute in range(70):
        values: dict[str, float] = {
            "temperature": -4.5 + minute / 7, "temperature_min": -40.0, "temperature_max": 30.0 + minute,
            "memory_used": (minute + 1) * 1234567, "gpu_utilization": minute * 1.43, "power_usage": 61.005 + minute,
            "energy": 1234.5 * minute, "pcie_rx": 12345678.0, "throttle_reasons": minute % 3 * 0x204,
            "throttle_time": 0.125 * minute, "memory_free": 3 * GIB, "fan_speed": 30.6,
        }  # fmt: skip
        states = {
            "driver_version": f"-55{minute // 30}",
            "power_limit": 300.5 + minute // 20,
            "ecc_corrected": 0,
        }
        reasons = {"fan_speed": "unsupported"} if minute % 40 < 20 else {}
        process = (GpuProcess(9, user="ada", command='-x "y"', memory=1 << 20),) if 10 < minute < 30 else ()
        rows = [GpuRow(CARD, 60.0, values, states, reasons, process)]
        if minute % 5:
            rows.append(GpuRow(ODD, 59.9, {"temperature": 20.0}, {}, {}, None))
        if minute > 65:
            rows.append(GpuRow(OTHER, 0.0, {}, {}, {}, None))
        start = HOUR + minute * 60
        made.write(Collection(start, 60, start + 60.0, tuple(rows)))
    return made.minutes(HOUR + 3000, 3, {CARD: {"temperature": 50.0}}).roll_up(HOUR + 7200).close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    odd_store(made / "gpu_metrics.db")
    return made


@pytest.mark.parametrize(
    "fields", [(), ("--fields", "all"), ("--fields", "uid,throttle_reasons,power_limit")]
)
@pytest.mark.parametrize("kind", ["--raw", "--hourly"])
@pytest.mark.parametrize("zone", [(), ("--naive",)])
def test_csv_and_json_are_what_show_collection_prints(
    folder: Path, kind: str, fields: tuple[str, ...], zone: tuple[str, ...]
) -> None:
    for form in ("csv", "json"):
        shown = ask(folder, "-sc", RANGE, kind, *fields, *zone, "-f", form, TZ="America/New_York")
        done = ask(folder, "export", kind, *fields, *zone, "-f", form, TZ="America/New_York")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\n") > 2
        assert done.stdout == shown.stdout


def test_a_line_of_json_is_a_row(folder: Path) -> None:
    done = ask(folder, "export", "-f", "jsonl", "--fields", "uid,temperature,throttle_reasons")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    groups = json.loads(
        ask(folder, "export", "-f", "json", "--fields", "uid,temperature,throttle_reasons").stdout
    )
    assert rows == [{"timestamp": group["timestamp"], **gpu} for group in groups for gpu in group["gpus"]]
    # Minute 2: -4.5 + 2/7 = -4.214 -> -4.2; mask 0x408: hw_slowdown and a bit that has no name.
    assert rows[4]["uid"] == CARD.uid or rows[3]["uid"] == CARD.uid
    second = next(
        row for row in rows if row["timestamp"] == "2024-03-20T14:02:00+00:00" and row["uid"] == CARD.uid
    )
    assert (second["temperature"], second["throttle_reasons"]) == (-4.2, ["hw_slowdown", "bit_10"])


def test_a_spreadsheet_runs_nothing(folder: Path) -> None:
    rows = list(csv.reader(io.StringIO(ask(folder, "export", "--fields", "uid,name,driver_version").stdout)))
    assert {row[1] for row in rows[1:]} == {CARD.uid, OTHER.uid, "'" + ODD.uid}
    assert {row[2] for row in rows[1:]} == {"Card", "Käre Card"}
    assert {row[3] for row in rows[1:] if row[1] == CARD.uid} == {"'-550", "'-551", "'-552"}


def test_a_span(folder: Path) -> None:
    span = ("--since", "2024-03-20T14:09:30+00:00", "--until", "2024-03-20T14:12:00+00:00")
    lines = ask(folder, "export", *span, "--fields", "temperature_max").stdout.splitlines()
    # Intervals that start in it: 14:10 (only the first card, its minute divides by five) and 14:11 (both).
    assert lines == [
        "timestamp,temperature_max",
        "2024-03-20T14:10:00+00:00,40",
        "2024-03-20T14:11:00+00:00,41",
        "2024-03-20T14:11:00+00:00,20",
    ]


def test_nothing_in_the_span(folder: Path) -> None:
    for form, text in (("csv", "timestamp,uid\n"), ("json", "[]\n"), ("jsonl", "")):
        done = ask(folder, "export", "--until", "2024-01-01", "--fields", "uid", "-f", form)
        assert (done.returncode, done.stdout, done.stderr) == (3, text, "nothing is stored in that span\n")
    done = ask(folder, "export", "--until", "2024-01-01", "-o", "none.csv")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no file was written" in done.stderr
    assert not list(folder.glob("*none.csv*"))


def test_a_file_appears_whole_and_is_not_replaced_unasked(folder: Path) -> None:
    expected = ask(folder, "export").stdout
    done = ask(folder, "export", "-o", "all.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "all.csv").read_bytes().decode() == expected
    again = ask(folder, "export", "--hourly", "-o", "all.csv")
    assert (again.returncode, "exists already" in again.stderr, "--force" in again.stderr) == (2, True, True)
    assert (folder / "all.csv").read_bytes().decode() == expected
    assert ask(folder, "export", "--hourly", "-o", "all.csv", "--force").returncode == 0
    assert (folder / "all.csv").read_text() == ask(folder, "export", "--hourly").stdout
    mask = os.umask(0o022)
    os.umask(mask)
    assert (folder / "all.csv").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in folder.iterdir() if "all.csv" in path.name] == ["all.csv"]


def test_where_no_file_can_be(folder: Path) -> None:
    for name, says in ((".", "is a folder"), ("absent/x.csv", "cannot write into absent: No such file")):
        done = ask(folder, "export", "-o", name)
        assert done.returncode != 0
        assert says in done.stderr
    done = ask(folder, "export", "-o", "/dev/stdout")
    assert done.stdout == ask(folder, "export").stdout


def test_a_bar_on_a_terminal_only(folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*PROGRAM, "export", "-o", "bar.csv"], cwd=folder, env=environment(folder), stderr=theirs, timeout=60,
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 10000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "export [##############################] 100%" in shown
    assert shown.endswith("\r")


def test_more_rows_than_a_batch_stay_one_series(tmp_path: Path) -> None:
    cards = {Identity(f"GPU-{n}", "nvml", "C", None, None, n): {"temperature": float(n)} for n in range(40)}
    MadeStore(tmp_path / "gpu_metrics.db").minutes(
        HOUR, 410, cards
    ).close()  # 16,400 rows, two batches of 8,192
    rows = [
        line.split(",")
        for line in ask(tmp_path, "export", "--fields", "uid,temperature").stdout.splitlines()[1:]
    ]
    assert len(rows) == 16400
    assert all(row[1:] == [f"GPU-{n % 40}", str(n % 40)] for n, row in enumerate(rows))
    groups = json.loads(ask(tmp_path, "export", "-f", "json", "--fields", "uid").stdout)
    assert len(groups) == 410
    assert {len(group["gpus"]) for group in groups} == {40}


def test_an_imported_node(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "gpu_metrics.db").minutes(HOUR, 2, {CARD: {"temperature": 1.0}})
    with made.writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (2, 'lab', 'import', NULL)")
        connection.execute("UPDATE gpus SET node = 2")
    made.close()
    assert ask(tmp_path, "export").returncode == 3
    done = ask(tmp_path, "export", "--node", "lab", "--fields", "uid")
    assert done.stdout.splitlines()[1] == f"2024-03-20T14:00:00+00:00,{CARD.uid}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--fields", "temprature"), "unknown field 'temprature'"),
        (("--raw", "--hourly"), "not allowed with argument"),
        (("--since", "2024-03-21", "--until", "2024-03-20"), "--since lies behind --until"),
        (("--node", "nowhere"), "knows no node 'nowhere'"),
    ],
)
def test_what_cannot_be_asked(folder: Path, words: tuple[str, ...], says: str) -> None:
    done = ask(folder, "export", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
