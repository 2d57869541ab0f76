"""`gpu_monitor report` as people run it, on stores made by hand."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from gpu_monitor.core.model import GpuProcess
from tests.e2e.program import ask, configure
from tests.e2e.terminal import on_terminal
from tests.made_stores import CARD, GIB, HOUR, OTHER, PRETENDED, MadeStore
from tests.recordings import recording

BUSY = {"gpu_utilization": 80.0, "memory_used": 10.0 * GIB, "power_usage": 300.0, "energy": 18000.0}
HELD = {"gpu_utilization": 2.0, "memory_used": 1.0 * GIB, "power_usage": 72.0}
SPAN = ("--since", "2024-03-20T14:00:00+00:00", "--until", "2024-03-20T16:00:00+00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An hour of two cards, the first busy and counted, the second held and without a counter."""
    made = MadeStore(tmp_path / "gpu_metrics.db")
    long_name = "a-person-with-a-rather-long-name@department.example.org"
    made.minutes(HOUR, 60, {CARD: BUSY, OTHER: HELD}, {CARD.uid: (GpuProcess(1, user=long_name),)})
    made.roll_up(HOUR + 3600).close()
    return tmp_path


def test_a_table_that_fits_a_terminal(folder: Path) -> None:
    done = ask(folder, "report", *SPAN, "--price", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Usage by GPU, 2024-03-20T14:00:00+00:00 to 2024-03-20T16:00:00+00:00"
    assert lines[1].split() == ["GPU", "GPU-h", "cover", "util", "idle", "h", "held", "h", "kWh", "EUR"]
    # 60 * 18 kJ = 0.3 kWh at 0.5; 72 W over an hour = 0.072 kWh, 0.036
    assert lines[2].split()[3:] == ["1.00", "50.0%", "80.0%", "0.00", "0.00", "0.30", "0.15"]
    assert lines[3].split()[3:] == ["1.00", "50.0%", "2.0%", "1.00", "1.00", "~0.07", "0.04"]
    assert lines[4].split() == ["total", "2.00", "50.0%", "41.0%", "1.00", "1.00", "~0.37", "0.19"]
    assert lines[5] == "~ estimated from power where no counter was read: 0.07 kWh"
    # Whoever reads it from a pipe may look the uid up: it is whole, whatever the width.
    assert lines[2].split()[:3] == ["0", "Card", CARD.uid]
    assert lines[3].split()[:3] == ["1", "Card", OTHER.uid]
    for by in ("node", "user", "day"):
        text = ask(folder, "report", *SPAN, "--price", "99999", "--by", by).stdout
        assert max(len(line) for line in text.splitlines()) <= 80, by


def test_a_new_installation_is_told_since_when_there_is_data(folder: Path) -> None:
    done = ask(
        folder, "report", "--since", "2024-03-14T00:00:00+00:00", "--until", "2024-03-20T16:00:00+00:00"
    )
    assert done.stderr == (
        "there is data from 2024-03-20T14:00:00+00:00 on: coverage is of the whole span; since then:"
        " --since 2024-03-20T14:00:00+00:00\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize(("columns", "shown"), [(80, "0 Card  GPU-"), (120, f"0 Card  {CARD.uid}")])
def test_a_table_as_wide_as_the_terminal(folder: Path, columns: int, shown: str) -> None:
    lines = on_terminal(folder, columns, "report", *SPAN, "--price", "0.5")
    assert max(len(line) for line in lines) <= columns
    assert (lines[2].startswith(shown), CARD.uid in lines[2]) == (True, columns == 120)
    assert lines[2].split()[-7:] == ["1.00", "50.0%", "80.0%", "0.00", "0.00", "0.30", "0.15"]


def test_imported_nodes_are_named_when_none_was_asked_for(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "gpu_metrics.db")) as connection, connection:
        connection.executemany("INSERT INTO nodes VALUES (?, ?, 'import', NULL)", [(2, "lab"), (3, "desk")])
    done = ask(folder, "report", *SPAN, "-f", "json")
    assert done.stderr == "imported nodes are not in it: desk, lab (--node NAME, or --by node for all)\n"
    assert ask(folder, "report", *SPAN, "--by", "node").stderr == ""
    done = ask(folder, "report", *SPAN, "--node", "lab")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.endswith("; the store has no data of this node\n")


def test_json_and_csv_hold_the_same(folder: Path) -> None:
    found = json.loads(ask(folder, "report", *SPAN, "-f", "json").stdout)
    assert (found["since"], found["until"]) == (SPAN[1], SPAN[3])
    assert (found["by"], found["price_per_kwh"], found["currency"]) == ("gpu", None, None)
    rows = list(csv.DictReader(io.StringIO(ask(folder, "report", *SPAN, "-f", "csv").stdout)))
    assert [row["uid"] for row in rows] == [CARD.uid, OTHER.uid]
    for line, row in zip(found["lines"], rows, strict=True):
        assert {name: row[name] for name in line} == {
            name: "" if value is None else str(value) for name, value in line.items()
        }
    second = found["lines"][1]
    assert (second["energy_kwh"], second["energy_estimated_kwh"], second["money"]) == (None, 0.072, None)
    assert (second["gpu_hours"], second["coverage"], second["held_idle_hours"]) == (1.0, 0.5, 1.0)
    assert found["totals"][0]["energy_estimated_kwh"] == 0.072


def test_days_are_utc_and_say_so(folder: Path) -> None:
    """Also for who lives elsewhere: 14:00 UTC is the next morning on Kiritimati."""
    asked = ("report", *SPAN, "--by", "day")
    heading, columns, day = ask(folder, *asked, TZ="Pacific/Kiritimati").stdout.splitlines()[:3]
    assert heading.startswith("Usage by day (UTC), 2024-03-20T14:00:00+00:00 to ")
    assert (columns.split()[:2], day.split()[0]) == (["day", "(UTC)"], "2024-03-20")
    found = json.loads(ask(folder, *asked, "-f", "json", TZ="Pacific/Kiritimati").stdout)
    assert (found["timezone"], [line["day"] for line in found["lines"]]) == ("UTC", ["2024-03-20"])


def test_the_price_of_the_configuration(folder: Path) -> None:
    configure(folder, report={"price_per_kwh": 2, "currency": "CHF"})
    found = json.loads(ask(folder, "report", *SPAN, "-f", "json").stdout)
    assert (found["lines"][0]["money"], found["currency"]) == (0.6, "CHF")
    assert (
        json.loads(ask(folder, "report", *SPAN, "-f", "json", "--price", "0").stdout)["lines"][0]["money"]
        == 0
    )
    assert "CHF" in ask(folder, "report", *SPAN).stdout


def test_nothing_in_the_span(folder: Path) -> None:
    span = ("--since", "2024-01-01", "--until", "2024-01-02")
    done = ask(folder, "report", *span, "-f", "json")
    assert (done.returncode, json.loads(done.stdout)["lines"]) == (3, [])
    assert done.stderr.startswith("nothing was recorded from 2024-01-01T")
    # Sixty minutes from 14:00 on.
    there = "the store has data from 2024-03-20T14:00:00+00:00 to 2024-03-20T15:00:00+00:00\n"
    assert done.stderr.endswith(f"; {there}")
    header = ask(folder, "report", *span, "-f", "csv").stdout
    assert header.startswith("since,until,uid,index,name,source,origin,gpu_hours,coverage,")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--price", "-1"), 2, "--price -1 is no price"),
        (("--since", "2024-03-20", "--until", "2024-03-19"), 2, "holds no past time"),
        (("--since", "soon"), 2, "cannot read the time 'soon'"),
        (("--node", "elsewhere"), 2, "knows no node 'elsewhere'"),
        (("--by", "week"), 2, "invalid choice: 'week'"),
    ],
)
def test_what_cannot_be_asked(folder: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = ask(folder, "report", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_without_a_store(tmp_path: Path) -> None:
    done = ask(tmp_path, "report")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no store at" in done.stderr
    assert "Start the agent once" in done.stderr


def test_simulated_gpus_say_so(tmp_path: Path) -> None:
    MadeStore(tmp_path / "gpu_metrics.db").minutes(HOUR, 60, {PRETENDED: BUSY}).close()
    text = ask(tmp_path, "report", *SPAN).stdout
    assert text.splitlines()[1] == "SIMULATED GPUs: no real hardware did any of this."
    found = json.loads(ask(tmp_path, "report", *SPAN, "-f", "json").stdout)
    assert [line["origin"] for line in (*found["lines"], *found["totals"])] == ["simulated", "simulated"]


def test_a_recorded_day_of_eight_gpus(tmp_path: Path) -> None:
    """The figures of a real log, worked out here from its lines alone: one reading a minute, 1,440 of each GPU."""
    log = recording("derived/nvsmi_8gpu_24h_from_gentd26.csv")
    readings: dict[str, list[tuple[float, float]]] = {}
    with log.open(newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            pair = (float(row["utilization.gpu [%]"].split()[0]), float(row["memory.used [MiB]"].split()[0]))
            readings.setdefault(row["uuid"], []).append(pair)
    assert ask(tmp_path, "import", str(log), "--node", "day", "--timezone", "UTC").returncode == 0
    span = ("--since", "2026-09-14T08:00:00+00:00", "--until", "2026-09-15T08:00:00+00:00")
    for by_rows in (False, True):
        # By user the rows are taken one by one; the sums must be those of the aggregates.
        words = ("--by", "user") if by_rows else ()
        found = json.loads(ask(tmp_path, "report", "--node", "day", *span, *words, "-f", "json").stdout)
        minutes = [pair for pairs in readings.values() for pair in pairs[:1440]]
        total = found["totals"][0]
        assert (total["gpu_hours"], total["coverage"]) == (pytest.approx(192, abs=0.01), 1.0)
        assert total["gpu_utilization"] == pytest.approx(
            sum(used for used, _ in minutes) / len(minutes), abs=0.1
        )
        # A reading that came a few milliseconds late may move its minute: some ten of 11,520 do.
        idle = sum(used < 5 for used, _ in minutes) / 60
        held = sum(used < 5 and memory >= 256 for used, memory in minutes) / 60
        assert total["idle_hours"] == pytest.approx(idle, abs=0.25)
        assert total["held_idle_hours"] == pytest.approx(held, abs=0.25)
        assert (total["energy_kwh"], total["energy_estimated_kwh"], total["money"]) == (None, None, None)
