"""`gpu_monitor import`: what it says, what it exits with, what it leaves in the store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.agent.retain import Limits, Retention
from gpu_monitor.storage.database import Writer
from tests.e2e.program import PROGRAM, ask, configure, environment, query
from tests.recordings import recording, zone_named

UTC = timezone.utc
BEGIN = datetime(2026, 5, 1, 10, 0, tzinfo=UTC)
HEADER = "timestamp, index, utilization.gpu [%], power.draw [W]\n"


def line(second: float, gpu: int, utilization: int, power: float) -> str:
    """A row `second` seconds after BEGIN."""
    moment = BEGIN + timedelta(seconds=second)
    return (
        f"{moment:%Y/%m/%d %H:%M:%S}.{moment.microsecond // 1000:03}, {gpu}, {utilization} %, {power:.2f} W\n"
    )


def log(rows: range, gpus: int = 2) -> str:
    """A row per GPU for each second in `rows`; values differ from row to row."""
    return "".join(line(n, gpu, n * 7 % 101, 50 + n % 300 + gpu) for n in rows for gpu in range(gpus))


def take(folder: Path, *words: str, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    """Run the import in `folder` with its configuration, on a machine in `zone`."""
    return ask(folder, "import", "-c", str(configure(folder)), *words, TZ=zone)


def everything(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the store."""
    store = folder / "gpu_metrics.db"
    names = [
        row[0]
        for row in query(
            store, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        )
    ]
    return {name: sorted(query(store, f"SELECT * FROM {name}"), key=repr) for name in names}


def samples(folder: Path) -> list[tuple[Any, ...]]:
    """Every sample with what it says, whatever its numbers in the store are."""
    return query(
        folder / "gpu_metrics.db",
        "SELECT n.name, s.uid, s.start, s.seconds, gpu_utilization, gpu_utilization_min, gpu_utilization_max,"
        " power_usage, power_usage_min, power_usage_max, memory_used, temperature FROM samples s"
        " JOIN nodes n ON n.id = s.node ORDER BY 1, 2, 3",
    )


def aggregates(folder: Path) -> list[tuple[Any, ...]]:
    """Every aggregate with what it says."""
    return query(
        folder / "gpu_metrics.db",
        "SELECT n.name, g.uid, a.period, samples, expected_samples, coverage, seconds, gpu_utilization, power_usage"
        " FROM aggregates a JOIN gpus g ON g.id = a.gpu JOIN nodes n ON n.id = g.node ORDER BY 1, 2, 3",
    )


def test_what_it_says_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "box 7.csv").write_text(
        HEADER + log(range(0, 90, 5)) + "Terminated\n" + line(90, 0, 50, 100) + "2026/05/01 10:0"
    )
    done = take(tmp_path, "box 7.csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "box 7.csv (nvidia-smi CSV): 37 rows of 2 GPUs",
        "2026-05-01T10:00:00+00:00 to 2026-05-01T10:01:30+00:00 (90 s, every 5 s)",
        "node box-7: 4 intervals of 60 s stored",
        "left out: not a row: 'Terminated' (line 38)",
        "left out: cut short: 1 of 4 cells at the end of the file (line 40)",
        "aggregated 1 hour of box-7",
    ):
        assert words in done.stdout
    store = tmp_path / "gpu_metrics.db"
    assert query(store, "SELECT id, name, kind FROM nodes") == [(2, "box-7", "import")]
    assert query(store, 'SELECT uid, source, "index" FROM gpus ORDER BY id') == [
        ("IMPORT-box-7-0", "import", 0),
        ("IMPORT-box-7-1", "import", 1),
    ]
    assert query(store, "SELECT file, rows, step FROM imports") == [("box 7.csv", 4, 60.0)]
    # What it said to type shows the hour.
    shown = next(words for words in done.stdout.splitlines() if words.strip().startswith("see: gpu_monitor "))
    words = shown.split("gpu_monitor ", 1)[1].split()
    answer = ask(tmp_path, "-c", str(tmp_path / "config.json"), *words, TZ="UTC")
    assert answer.returncode == 0, answer.stderr
    (hour,) = json.loads(answer.stdout)
    assert hour["timestamp"] == "2026-05-01T10:00:00+00:00"
    assert [gpu["uid"] for gpu in hour["gpus"]] == ["IMPORT-box-7-0", "IMPORT-box-7-1"]


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 4000, 7)))
    assert take(tmp_path, "a.csv").returncode == 0
    before = everything(tmp_path)
    done = take(tmp_path, "a.csv", "--json")
    assert done.returncode == 0
    assert everything(tmp_path) == before
    (file,) = json.loads(done.stdout)["files"]
    assert (file["stored"], file["completed"]) == (0, 0)
    assert file["present"] == len(before["samples_raw"])


def test_a_log_that_grew_gives_what_one_import_of_it_gives(tmp_path: Path) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    for folder in (grown, whole):
        folder.mkdir()
    text = HEADER + log(range(0, 4000, 7))
    lines = text.splitlines(keepends=True)
    for end in (200, 201, 500, len(lines)):
        (grown / "a.csv").write_text("".join(lines[:end]))
        assert take(grown, "a.csv").returncode == 0
    (whole / "a.csv").write_text(text)
    assert take(whole, "a.csv").returncode == 0
    assert samples(grown) == samples(whole)
    assert aggregates(grown) == aggregates(whole)


def test_parts_of_a_rotated_log_join_without_a_seam(tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for folder in (parts, whole):
        folder.mkdir()
    lines = log(range(0, 4000, 7)).splitlines(keepends=True)
    (whole / "box.csv").write_text(HEADER + "".join(lines))
    (parts / "box.csv").write_text(HEADER + "".join(lines[333:]))
    (parts / "box.csv.1").write_text(HEADER + "".join(lines[:333]))
    # The newer part is named first: they are read in order of their time.
    assert take(parts, "box.csv", "box.csv.1", "--node", "box").returncode == 0
    assert take(whole, "box.csv").returncode == 0
    assert samples(parts) == samples(whole)


def test_each_file_says_what_came_of_its_own_rows(tmp_path: Path) -> None:
    """Minutes of two GPUs: five are of a, five of b and one they share with c, which has no whole one."""
    for name, rows in (("a", range(0, 300, 5)), ("b", range(300, 620, 5)), ("c", range(620, 650, 5))):
        (tmp_path / f"{name}.csv").write_text(HEADER + log(rows))

    def figures(*words: str) -> list[tuple[int, int, int]]:
        done = take(tmp_path, "c.csv", "a.csv", "b.csv", "--node", "n", "--json", *words)
        told = {one["file"][0]: one for one in json.loads(done.stdout)["files"]}
        return [tuple(told[name][word] for word in ("stored", "completed", "present")) for name in "abc"]

    assert figures("--dry-run") == [(10, 0, 0), (12, 0, 0), (0, 2, 0)]
    assert figures() == [(10, 0, 0), (12, 0, 0), (0, 2, 0)]
    assert figures() == [(0, 0, 10), (0, 0, 12), (0, 0, 2)]
    assert query(tmp_path / "gpu_metrics.db", "SELECT file, rows FROM imports ORDER BY file") == [
        ("a.csv", 10),
        ("b.csv", 12),
    ]


def test_a_file_per_gpu_counts_its_own_intervals(tmp_path: Path) -> None:
    for gpu in range(3):
        rows = "".join(line(n, gpu, 50, 100) for n in range(0, 60 * (gpu + 1), 5))
        (tmp_path / f"gpu{gpu}.csv").write_text(HEADER + rows)
    done = take(tmp_path, "gpu0.csv", "gpu1.csv", "gpu2.csv", "--node", "n", "--json")
    assert [one["stored"] for one in json.loads(done.stdout)["files"]] == [1, 2, 3]


def test_of_overlapping_files_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 600, 5)))
    (tmp_path / "b.csv").write_text(HEADER + log(range(0, 1200, 5)).replace(" W\n", "1 W\n"))
    assert take(tmp_path, "a.csv", "--node", "box").returncode == 0
    before = samples(tmp_path)
    done = take(tmp_path, "b.csv", "--node", "box", "--json")
    (file,) = json.loads(done.stdout)["files"]
    assert (file["present"], file["stored"], file["completed"]) == (20, 20, 0)
    assert samples(tmp_path)[:10] == before[:10]
    assert len(samples(tmp_path)) == 40


def test_an_older_part_behind_a_newer_one_is_taken_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(3600, 4200, 5)) + HEADER + log(range(0, 600, 5)))
    done = take(tmp_path, "a.csv", "--json")
    (file,) = json.loads(done.stdout)["files"]
    assert file["stored"] == 40
    assert not file["skipped"]


def test_coarse_logs_count_their_own_readings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 7200, 300), gpus=1))
    assert take(tmp_path, "a.csv").returncode == 0
    rows = query(
        tmp_path / "gpu_metrics.db", "SELECT samples, expected_samples, coverage, seconds FROM aggregates"
    )
    assert rows == [(12, 12, 1.0, 3600.0), (12, 12, 1.0, 3600.0)]


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(HEADER + log(range(0, 60, 5)))
    (tmp_path / "bare.csv").write_text(log(range(0, 60, 5)))
    (tmp_path / "none.csv").write_text(HEADER)
    mixed = take(tmp_path, "bare.csv", "good.csv", "absent.csv")
    assert mixed.returncode == 1
    assert "good.csv (nvidia-smi CSV): 24 rows" in mixed.stdout
    assert "bare.csv has no header; its first row is" in mixed.stderr
    assert "2026/05/01 10:00:00.000, 0, 0 %, 50.00 W" in mixed.stderr
    assert "--columns" in mixed.stderr
    assert "cannot read absent.csv: No such file" in mixed.stderr
    assert "Traceback" not in mixed.stderr
    assert take(tmp_path, "none.csv").returncode == 3
    assert (
        take(tmp_path, "bare.csv", "--columns", "timestamp,index,utilization.gpu,power.draw").returncode == 0
    )
    for words in (
        ("good.csv", "--timezone", "Atlantis/Center"),
        ("good.csv", "--start", "whenever"),
        ("good.csv", "--step", "0"),
        ("-",),
        (),
        ("good.csv", "--node", "local"),
    ):
        wrong = take(tmp_path, *words)
        assert wrong.returncode == 2, words
        assert "Traceback" not in wrong.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "good.csv").write_text(HEADER + log(range(0, 60, 5)))
    assert take(tmp_path, "good.csv", "other/good.csv").returncode == 2
    missing = ask(tmp_path, "import", "-c", "nowhere.json", "good.csv")
    assert missing.returncode == 78


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 600, 5)))
    done = take(tmp_path, "a.csv", "--dry-run")
    assert done.returncode == 0
    assert "20 intervals of 60 s would be stored" in done.stdout
    assert "nothing was written" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "config.json"]


def test_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "import", "-c", str(configure(tmp_path)), "-", "--node", "box"],
        input=(HEADER + log(range(0, 60, 5))).encode("utf-16"), cwd=tmp_path, env=environment(tmp_path, TZ="UTC"),
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {row[0] for row in samples(tmp_path)} == {"box"}


def test_times_without_offset_are_local_or_of_the_zone_given(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 60, 5), gpus=1))
    expected = BEGIN.replace(tzinfo=zone_named("America/St_Johns")).timestamp()
    for node, zone, words in (
        ("local", "America/St_Johns", ()),
        ("given", "UTC", ("--timezone", "America/St_Johns")),
        ("offset", "UTC", ("--timezone", "-02:30")),
    ):
        assert take(tmp_path, "a.csv", "--node", f"{node}-zone", *words, zone=zone).returncode == 0
    assert {row[2] for row in samples(tmp_path)} == {expected}


def test_dmon_and_xml_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "d.log").write_text(
        "# gpu    pwr \n# Idx      W \n    0     69 \n    0     71 \n    0     70 \n"
    )
    done = take(tmp_path, "d.log", "--start", "2026-05-01T10:00:00Z", "--step", "10s")
    assert done.returncode == 0, done.stderr
    assert "no times in the log: counted from --start, 10 s between readings" in done.stdout
    assert [(row[2], row[3], row[7]) for row in samples(tmp_path)] == [(BEGIN.timestamp(), 30.0, 70.0)]
    done = take(tmp_path, str(recording("xml/pai_gtx1070_384.xml")), "--json")
    (file,) = json.loads(done.stdout)["files"]
    assert file["gpus"] == [
        "GPU-28daffaf-8abe-aaf8-c298-4bd13aecb5e6",
        "GPU-e511a7b2-f9d5-ba47-9b98-853732ca6c1b",
    ]


def test_a_lost_gpu_is_a_gap_with_its_cause(tmp_path: Path) -> None:
    path = recording("derived/error_cells.csv")
    for _ in range(2):
        assert take(tmp_path, str(path)).returncode == 0
    store = tmp_path / "gpu_metrics.db"
    # First and first good row after the ten that ask for a reset (lines 22 and 32 of the file).
    first = datetime(2026, 4, 25, 17, 6, 20, 115000, tzinfo=UTC).timestamp()
    back = datetime(2026, 4, 25, 17, 7, 10, 517000, tzinfo=UTC).timestamp()
    assert query(store, 'SELECT uid, start, "end", cause FROM gaps') == [
        ("IMPORT-error_cells-0", pytest.approx(first), pytest.approx(back), "lost")
    ]
    covered = dict(query(store, "SELECT start, seconds FROM samples"))
    minute = datetime(2026, 4, 25, 17, 6, tzinfo=UTC).timestamp()
    assert covered[minute] == pytest.approx(20.1)  # until 17:06:20.115
    assert covered[minute + 60] == pytest.approx(49.5)  # from 17:07:10.517


def test_what_the_log_does_not_hold_is_null_with_that_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 60, 5), gpus=1).replace("0 %", "[N/A]"))
    assert take(tmp_path, "a.csv").returncode == 0
    store = tmp_path / "gpu_metrics.db"
    assert query(store, "SELECT temperature, energy, fan_speed FROM samples") == [(None, None, None)]
    assert query(store, "SELECT DISTINCT reason FROM reasons WHERE metric IN ('temperature', 'energy')") == [
        ("not in the log",)
    ]
    hour = query(store, "SELECT energy, energy_seconds, temperature FROM aggregates")
    assert hour == [(None, None, None)]


def test_old_history_is_kept_by_the_age_of_its_import(tmp_path: Path) -> None:
    """A log of 2019, imported now: rows for 30 days, hours for a year, and no hour is thinned by what is gone."""
    (tmp_path / "a.csv").write_text((HEADER + log(range(0, 7200, 5))).replace("2026/05/01", "2019/05/01"))
    assert take(tmp_path, "a.csv").returncode == 0
    store = tmp_path / "gpu_metrics.db"
    rows, hours, now = (
        len(samples(tmp_path)),
        aggregates(tmp_path),
        query(store, "SELECT time FROM imports")[0][0],
    )

    def prune(days: float) -> None:
        writer = Writer(store)
        try:
            Retention(writer, Limits(30, 365, None, False)).run(now + days * 86400)
        finally:
            writer.close()

    prune(29)
    assert (len(samples(tmp_path)), aggregates(tmp_path)) == (rows, hours)
    prune(31)
    assert (samples(tmp_path), aggregates(tmp_path)) == ([], hours)
    # Half of the log again: its hours were aggregated from more than that, and stay.
    (tmp_path / "a.csv").write_text((HEADER + log(range(0, 1800, 5))).replace("2026/05/01", "2019/05/01"))
    done = take(tmp_path, "a.csv", "--json")
    (file,) = json.loads(done.stdout)["files"]
    assert (file["pruned"], file["stored"]) == (60, 0)
    assert (samples(tmp_path), aggregates(tmp_path)) == ([], hours)
    prune(366)
    assert aggregates(tmp_path) == []


def test_a_killed_import_is_completed_by_the_next(tmp_path: Path) -> None:
    """SIGKILL once rows are there; the second import leaves what an undisturbed one leaves."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    text = HEADER + log(range(0, 80_000, 20), gpus=4)
    for folder in (killed, whole):
        folder.mkdir()
        (folder / "a.csv").write_text(text)
    assert take(whole, "a.csv").returncode == 0
    store = killed / "gpu_metrics.db"
    process = subprocess.Popen(
        [*PROGRAM, "import", "-c", str(configure(killed)), "a.csv"], cwd=killed, env=environment(killed, TZ="UTC"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while process.poll() is None and not _has_rows(store):
            try:
                process.wait(timeout=0.005)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    partial = len(samples(killed))
    assert partial > 0
    done = take(killed, "a.csv", "--json")
    assert done.returncode == 0
    (file,) = json.loads(done.stdout)["files"]
    assert file["present"] == partial
    assert samples(killed) == samples(whole)
    assert aggregates(killed) == aggregates(whole)


def _has_rows(store: Path) -> bool:
    try:
        return bool(query(store, "SELECT count(*) FROM samples_raw")[0][0])
    except sqlite3.OperationalError:
        return False


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are a Unix thing")
def test_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    import pty  # only where it exists

    (tmp_path / "a.csv").write_text(HEADER + log(range(0, 60, 5)))
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "gpu_monitor", "import", "-c", str(configure(tmp_path)), "a.csv"], cwd=tmp_path,
        env=environment(tmp_path, TZ="UTC"), stdout=subprocess.PIPE, stderr=follower, timeout=60, check=False,
    )  # fmt: skip
    os.close(follower)
    drawn = os.read(leader, 100_000).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "[########################] 100%" in drawn
    assert b"#" not in done.stdout
