"""The documented flags from outside, on a store that the real program filled from seeded simulated GPUs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.e2e.program import ask, configure, query

DEFAULT = [
    "uid", "pci_bus_id", "name", "temperature", "memory_used", "memory_total", "gpu_utilization",
    "memory_utilization", "power_usage", "fan_speed", "graphics_clock", "memory_clock",
]  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two and a half hours of two simulated GPUs, 2024-03-20 00:00 to 02:30 UTC."""
    folder = tmp_path_factory.mktemp("asking")
    configure(folder)
    done = ask(
        folder, "--simulate", "2:h100", "--speed", "4000",
        "--start", "2024-03-20T00:00:00Z", "--until", "2024-03-20T02:30:00Z",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def collection(folder: Path, *words: str) -> list[dict[str, object]]:
    done = ask(folder, *words)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_nearest_collection_has_the_twelve_in_order(filled: Path) -> None:
    (group,) = collection(filled, "-sc", "2024-03-20T01:15:20+00:00")
    assert group["timestamp"] == "2024-03-20T01:15:00+00:00"
    gpus = group["gpus"]
    assert isinstance(gpus, list)
    assert [list(gpu) for gpu in gpus] == [DEFAULT, DEFAULT]
    assert all(gpu["uid"].startswith("SIM-") for gpu in gpus)


def test_values_are_the_stores(filled: Path) -> None:
    (group,) = collection(filled, "-sc", "2024-03-20T01:15:20Z")
    gpus = group["gpus"]
    assert isinstance(gpus, list)
    raw = query(
        filled / "gpu_metrics.db",
        "SELECT g.uid, r.temperature, r.memory_used, r.power_usage FROM samples_raw r JOIN gpus g ON g.id = r.id & 65535"
        " WHERE r.id >> 20 = 1710897300 ORDER BY r.id",
    )
    for gpu, (uid, temperature, memory, power) in zip(gpus, raw, strict=True):
        assert gpu["uid"] == uid
        assert gpu["temperature"] == pytest.approx(temperature / 10)
        assert gpu["memory_used"] == memory * 1024
        assert gpu["power_usage"] == pytest.approx(power / 100)


def test_csv(filled: Path) -> None:
    done = ask(filled, "-sc", "2024-03-20T01:15:20Z", "-f", "csv")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[0] == ["timestamp", *DEFAULT]
    assert len(rows) == 3
    assert rows[1][rows[0].index("fan_speed")] == ""


def test_a_full_hour_gives_its_aggregates_and_raw_forces_rows(filled: Path) -> None:
    done = ask(filled, "-sc", "2024-03-20T01:00:00Z", "--fields", "uid,samples,coverage,power_usage_max")
    assert "2024-03-20T01:00:00+00:00 to 2024-03-20T02:00:00+00:00 (UTC)" in done.stderr
    (group,) = json.loads(done.stdout)
    assert [gpu["samples"] for gpu in group["gpus"]] == [60, 60]
    assert [gpu["coverage"] for gpu in group["gpus"]] == [1.0, 1.0]
    (raw,) = collection(filled, "-sc", "2024-03-20T01:00:00Z", "--raw", "--fields", "seconds")
    assert raw["gpus"] == [{"seconds": 60.0}, {"seconds": 60.0}]
    (hour,) = collection(filled, "-sc", "2024-03-20T01:20:00Z", "--hourly")
    assert hour["timestamp"] == "2024-03-20T01:00:00+00:00"


def test_ranges(filled: Path) -> None:
    minutes = collection(filled, "-sc", "2024-03-20T01:00Z..2024-03-20T01:10Z")
    assert [group["timestamp"] for group in minutes] == [f"2024-03-20T01:{n:02}:00+00:00" for n in range(10)]
    hours = collection(filled, "-sc", "2024-03-20T00:00Z..2024-03-20T03:00Z", "--hourly")
    assert [group["timestamp"] for group in hours] == [
        "2024-03-20T00:00:00+00:00",
        "2024-03-20T01:00:00+00:00",
    ]


def test_every_printed_time_can_be_pasted_back(filled: Path) -> None:
    for zone in ("UTC", "America/New_York", "Asia/Kolkata"):
        for naive in ((), ("--naive",)):
            (group,) = json.loads(ask(filled, "-sc", "2024-03-20T01:15:20Z", *naive, TZ=zone).stdout)
            (again,) = json.loads(ask(filled, "-sc", str(group["timestamp"]), *naive, TZ=zone).stdout)
            assert again == group


def test_the_last_one_with_its_age(filled: Path) -> None:
    done = ask(filled, "-sc")
    (group,) = json.loads(done.stdout)
    assert group["timestamp"] == "2024-03-20T02:29:00+00:00"
    assert "old" in done.stderr
    assert ask(filled, "-sc", "").stdout == done.stdout


def test_nothing_found(filled: Path, tmp_path: Path) -> None:
    done = ask(filled, "-sc", "2001-01-01T00:30:00Z")
    assert (done.returncode, done.stdout) == (3, "[]\n")
    done = ask(filled, "-sc", "2001-01-01T00:30:00Z", "-f", "csv")
    assert (done.returncode, done.stdout) == (3, "timestamp," + ",".join(DEFAULT) + "\n")
    configure(tmp_path)
    done = ask(tmp_path, "-sc", "-2h")
    assert (done.returncode, done.stdout) == (3, "[]\n")
    assert str(tmp_path / "gpu_metrics.db") in done.stderr
    done = ask(tmp_path, "-ls")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Send Attempts:",
        "Aggregation Time | Attempts | First Attempt | Last Attempt | Last Error | UID | Sent",
    ]


def test_unsent_hours_are_listed_with_attempts_zero(filled: Path) -> None:
    lines = ask(filled, "-ls").stdout.splitlines()
    assert lines[2:] == [
        "2024-03-20T01:00:00+00:00 | 0 | None | None | None | None | 0",
        "2024-03-20T00:00:00+00:00 | 0 | None | None | None | None | 0",
    ]
    detail = ask(filled, "-ss", "2024-03-20T01:59:59Z").stdout.splitlines()
    assert detail == [
        "Send Attempt Details:",
        "Aggregation Time: 2024-03-20T01:00:00+00:00",
        "Attempts: 0",
        "First Attempt: None",
        "Last Attempt: None",
        "Last Error: None",
        "UID: None",
        "Sent: 0",
    ]
    assert ask(filled, "-ss", "2001-01-01").returncode == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-sc", "whenever"), 2, "2h ago"),
        (("-sc", "", "--fields", "temprature"), 2, "temperature"),
        (("-sc", "", "--node", "elsewhere"), 2, "elsewhere"),
        (("-c", "missing.json"), 78, "missing.json"),
        (("--speed", "10"), 2, "--simulate"),
        (("--simulate", "0"), 2, "1 to 1024"),
        (("--simulate", "2:potato"), 2, "h100"),
        (("--nonsense",), 2, "--nonsense"),
        (("--simulate", "1", "--fault", "kind=lost"), 2, "at="),
    ],
)
def test_errors_say_what_and_what_next(filled: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = ask(filled, *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_fields_all_shows_everything_recorded(filled: Path) -> None:
    (group,) = collection(filled, "-sc", "2024-03-20T01:15:20Z", "--fields", "all")
    gpus = group["gpus"]
    assert isinstance(gpus, list)
    gpu = gpus[0]
    assert gpu["source"] == "simulated"
    assert gpu["energy"] > 0
    assert gpu["reasons"]["fan_speed"] == "unsupported"
    assert gpu["power_limit"] == 700


def test_once_and_dry_run_store_nothing(tmp_path: Path) -> None:
    configure(tmp_path)
    once = ask(tmp_path, "--once", "--simulate", "2:l40s")
    assert once.returncode == 0, once.stderr
    assert len(json.loads(once.stdout)[0]["gpus"]) == 2
    plan = ask(tmp_path, "--dry-run", "--simulate", "2:l40s")
    assert plan.returncode == 0, plan.stderr
    for part in ("SIMULATED", "would store in", str(tmp_path / "gpu_metrics.db"), "Nothing was stored"):
        assert part in plan.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json"]


def test_once_of_a_replay_is_its_first_reading_and_says_what_the_log_lacks(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "log.csv").write_text(
        "timestamp, index, temperature.gpu, utilization.gpu [%]\n"
        "2026/05/01 10:00:00.000, 0, 41, 7 %\n2026/05/01 10:01:00.000, 0, 55, 99 %\n"
    )
    done = ask(tmp_path, "--once", "--replay", "log.csv", "--fields", "temperature,energy,reasons")
    ((gpu,),) = [group["gpus"] for group in json.loads(done.stdout)]
    assert (gpu["temperature"], gpu["energy"], gpu["reasons"]["energy"]) == (41, None, "not in the log")
    assert "gpu_utilization" not in gpu["reasons"]


def test_version_and_module(tmp_path: Path) -> None:
    done = ask(tmp_path, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "gpu_monitor")
