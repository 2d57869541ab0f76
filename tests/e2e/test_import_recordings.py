"""The recorded day and the recorded training: imported, aggregated, printed; the hours worked out here.

The expected values come straight from the files, by the definition in `docs/import.md` and by no code
of the program: a reading stands until the next of its GPU, where that comes within two median steps,
else for one step; an hour's mean weighs what stood in it.
"""

from __future__ import annotations

import csv
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from gpu_monitor.storage.database import Writer
from tests.e2e.program import ask, configure, query
from tests.recordings import recording

UTC = timezone.utc
DAY = "derived/nvsmi_8gpu_24h_from_gentd26.csv"
TRAINING = "csv/nanogpt_8xgpu_22min_4hz.csv"
MIB = 1 << 20

Readings = dict[str, list[tuple[float, dict[str, float]]]]
"""GPU to its readings (epoch, values by metric), in order."""


def day_readings() -> Readings:
    """The derived day, in UTC."""
    found: Readings = defaultdict(list)
    for text in recording(DAY).read_text().splitlines()[1:]:
        stamp, _, uuid, utilization, used = text.split(", ")
        time = datetime.strptime(stamp + " +0000", "%Y/%m/%d %H:%M:%S.%f %z").timestamp()
        values = {
            "gpu_utilization": float(utilization.removesuffix(" %")),
            "memory_used": float(used.removesuffix(" MiB")) * MIB,
        }
        found[uuid].append((time, values))
    return found


def training_readings() -> Readings:
    """The nanoGPT run."""
    found: Readings = defaultdict(list)
    with recording(TRAINING).open(newline="") as file:
        for cells in csv.DictReader(file, skipinitialspace=True):
            time = datetime.strptime(cells["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
            values = {
                "temperature": float(cells["temperature_C"]),
                "gpu_utilization": float(cells["utilization_gpu_percent"]),
                "power_usage": float(cells["power_W"]),
            }
            found[f"IMPORT-box-{cells['gpu_index']}"].append((time, values))
    return found


class Hour:
    """What stood in one hour of one GPU."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.idle = 0.0
        self.minutes: set[int] = set()
        self.sums: dict[str, float] = defaultdict(float)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.reached_in: dict[str, float] = {}

    def mean(self, metric: str) -> float:
        """Mean by time."""
        return self.sums[metric] / self.seconds


def hours_of(readings: list[tuple[float, dict[str, float]]]) -> dict[int, Hour]:
    """The hours (epoch of their start) that the readings of one GPU stand in."""
    times = [time for time, _ in readings]
    steps = [after - before for before, after in itertools.pairwise(times)]
    step = median(steps)
    found: dict[int, Hour] = defaultdict(Hour)
    for (time, values), apart in zip(readings, [*steps, 0.0], strict=True):
        end = time + (apart if 0 < apart <= 2 * step else step)
        for metric, value in values.items():
            found[int(time) // 3600 * 3600].values[metric].append(value)
        begin = time
        while begin < end:
            start = int(begin // 3600) * 3600
            until = min(end, start + 3600.0)
            hour = found[start]
            hour.seconds += until - begin
            hour.idle += (until - begin) * (values["gpu_utilization"] < 5)
            hour.minutes.update(range(int(begin // 60), int((until - 1e-9) // 60) + 1))
            for metric, value in values.items():
                hour.sums[metric] += value * (until - begin)
                if start > time:
                    hour.reached_in[metric] = value
            begin = until
    return found


def printed(folder: Path, node: str, first: int, last: int) -> dict[tuple[int, str], dict[str, Any]]:
    """What the program prints for the hours of a node, by epoch and uid."""
    span = "..".join(datetime.fromtimestamp(moment, UTC).isoformat() for moment in (first, last))
    done = ask(
        folder,
        "-c",
        str(folder / "config.json"),
        "-sc",
        span,
        "--hourly",
        "--node",
        node,
        "--fields",
        "all",
        TZ="UTC",
    )
    assert done.returncode == 0, done.stderr
    return {
        (int(datetime.fromisoformat(group["timestamp"]).timestamp()), gpu["uid"]): gpu
        for group in json.loads(done.stdout)
        for gpu in group["gpus"]
    }


def check_hours(
    shown: dict[tuple[int, str], dict[str, Any]], readings: Readings, resolution: dict[str, float]
) -> None:
    """Every hour printed is the one worked out, and none is missing.

    `resolution` is what is lost by keeping minutes as scaled integers and their seconds in tenths.
    """
    expected = {
        (start, uid): hour for uid, of_gpu in readings.items() for start, hour in hours_of(of_gpu).items()
    }
    kept = {key: hour for key, hour in expected.items() if hour.seconds >= 3 or any(hour.values.values())}
    assert shown.keys() == kept.keys()
    for key, hour in kept.items():
        gpu = shown[key]
        assert gpu["source"] == "import"
        assert gpu["expected_samples"] == 60
        # A minute that a reading reaches into by less than three seconds is no sample of its own.
        assert 0 <= len(hour.minutes) - gpu["samples"] <= 1
        assert gpu["seconds"] == pytest.approx(hour.seconds, abs=0.05 * 60 + 3)
        assert gpu["coverage"] == pytest.approx(min(1.0, gpu["seconds"] / 3600), abs=1e-4)
        for metric, unit in resolution.items():
            assert gpu[metric] == pytest.approx(hour.mean(metric), abs=unit)
            inside = hour.values[metric]
            reached = [hour.reached_in[metric]] if metric in hour.reached_in else []
            assert min([*inside, *reached]) <= gpu[f"{metric}_min"] <= min(inside or reached)
            assert max(inside or reached) <= gpu[f"{metric}_max"] <= max([*inside, *reached])


def overall(readings: Iterable[tuple[float, dict[str, float]]], metric: str) -> float:
    """Plain mean of a metric over readings."""
    values = [found[metric] for _, found in readings]
    return sum(values) / len(values)


def test_the_recorded_day(tmp_path: Path) -> None:
    readings = day_readings()
    done = ask(
        tmp_path, "import", "-c", str(configure(tmp_path)), str(recording(DAY)), "--node", "serving", TZ="UTC"
    )
    assert done.returncode == 0, done.stderr
    assert "11,528 rows of 8 GPUs" in done.stdout
    assert "left out" not in done.stdout
    first = int(datetime(2026, 9, 14, 8, tzinfo=UTC).timestamp())
    shown = printed(tmp_path, "serving", first, first + 25 * 3600)
    check_hours(shown, readings, {"gpu_utilization": 0.1, "memory_used": 65536.0})
    assert len(shown) == 25 * 8
    for uid, of_gpu in readings.items():
        for hour in range(24):
            # The log writes once a minute, so the plain mean of an hour's readings is nearly the same.
            start = first + hour * 3600
            inside = [one for one in of_gpu if start <= one[0] < start + 3600]
            plain = overall(inside, "gpu_utilization")
            assert shown[start, uid]["gpu_utilization"] == pytest.approx(plain, abs=0.7)
            assert shown[start, uid]["samples"] == 60
            assert shown[start, uid]["coverage"] == 1.0
            assert shown[start, uid]["energy"] is None


def test_the_recorded_training(tmp_path: Path) -> None:
    readings = training_readings()
    done = ask(tmp_path, "import", "-c", str(configure(tmp_path)), str(recording(TRAINING)), "--node", "box")
    assert done.returncode == 0, done.stderr
    assert "36,112 rows of 8 GPUs" in done.stdout
    first = int(datetime(2025, 9, 24, 3, tzinfo=UTC).timestamp())
    shown = printed(tmp_path, "box", first, first + 3600)
    check_hours(shown, readings, {"gpu_utilization": 0.1, "temperature": 0.1, "power_usage": 0.02})
    assert len(shown) == 8
    for uid, of_gpu in readings.items():
        gpu = shown[first, uid]
        # 22 min 27.6 s of the hour, from 03:17:04.490 to 03:39:32.123, in 23 minutes.
        assert gpu["samples"] == 23
        assert gpu["seconds"] == pytest.approx(1347.6, abs=10)
        values = [found["power_usage"] for _, found in of_gpu]
        assert gpu["power_usage_min"] == min(values)
        assert gpu["power_usage_max"] == max(values)
        assert gpu["power_usage"] == pytest.approx(overall(of_gpu, "power_usage"), rel=0.02)


def test_minutes_of_the_training_by_hand(tmp_path: Path) -> None:
    """One minute of one GPU, summed here second by second from the file."""
    readings = training_readings()["IMPORT-box-3"]
    ask(tmp_path, "import", "-c", str(configure(tmp_path)), str(recording(TRAINING)), "--node", "box")
    start = int(datetime(2025, 9, 24, 3, 19, tzinfo=UTC).timestamp())
    following = {time: after for (time, _), (after, _) in itertools.pairwise(readings)}
    weights = [
        (min(following[time], start + 60) - max(time, start), found["power_usage"])
        for time, found in readings
        if time in following and following[time] > start and time < start + 60
    ]
    assert all(following[time] - time < 0.6 for time, _ in readings if start <= time < start + 60)
    mean = sum(weight * power for weight, power in weights) / sum(weight for weight, _ in weights)
    inside = [found["power_usage"] for time, found in readings if start <= time < start + 60]
    ((seconds, stored, low, high),) = query(
        tmp_path / "gpu_metrics.db",
        "SELECT seconds, power_usage, power_usage_min, power_usage_max FROM samples WHERE start = ? AND uid = ?",
        (start, "IMPORT-box-3"),
    )
    assert seconds == 60.0
    assert stored == pytest.approx(mean, abs=0.005)
    assert (low, high) == (min(inside), max(inside))


def test_beside_a_writer_that_goes_on(tmp_path: Path) -> None:
    """Another connection writes all the while, as an agent does: both get everything in."""
    config = configure(tmp_path)
    (tmp_path / "alone").mkdir()
    alone = configure(tmp_path / "alone")
    assert ask(tmp_path / "alone", "import", "-c", str(alone), str(recording(DAY)), TZ="UTC").returncode == 0
    writer = Writer(tmp_path / "gpu_metrics.db")
    done = threading.Event()
    written: list[int] = []

    def write_on() -> None:
        while not done.is_set() or not written:
            with writer.transaction() as connection:
                number = len(written)
                connection.execute(
                    "INSERT INTO losses (time, what, cause, rows) VALUES (?, 'x', 'x', 1)", (number,)
                )
            written.append(number)

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        taken = ask(tmp_path, "import", "-c", str(config), str(recording(DAY)), TZ="UTC")
    finally:
        done.set()
        thread.join()
        writer.close()
    assert taken.returncode == 0, taken.stderr
    assert query(tmp_path / "gpu_metrics.db", "SELECT count(*) FROM losses") == [(len(written),)]
    columns = "start, uid, seconds, gpu_utilization, memory_used"
    both = [
        query(folder / "gpu_metrics.db", f"SELECT {columns} FROM samples ORDER BY start, uid")
        for folder in (tmp_path, tmp_path / "alone")
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    "name",
    ["csv/virtualclient_8xH100.csv", "csv/virtualclient_T4_NA.csv", "derived/truncated_midline.csv",
     "xml/telegraf_a100-sxm4-v12.xml", "xml/telegraf_tesla-t4.xml", "xml/pai_gtx1070_384.xml",
     "xml/k8stestinfra_qx-h100.xml", "xml/k8stestinfra_mock_qx-gb200-lost.xml", "xml/telegraf_gtx-1070-ti.xml"],
)  # fmt: skip
def test_every_other_recording_imports(tmp_path: Path, name: str) -> None:
    done = ask(tmp_path, "import", "-c", str(configure(tmp_path)), str(recording(name)), "--json", TZ="UTC")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    assert file["error"] is None
    assert file["stored"] >= 1
    stored = query(tmp_path / "gpu_metrics.db", "SELECT count(*), count(DISTINCT uid) FROM samples")
    assert stored[0][0] == file["stored"]
    assert stored[0][1] <= len(file["gpus"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("csv/gpuglasses_3xh100_header_shift.csv", "'gpu' and 'index' name different GPUs"),
        ("csv/plato_1gpu_2h40_5s_noheader.csv", "has no header; its first row is"),
        ("table/aucurriculum_a40_134min.log", "the table nvidia-smi prints for people"),
        ("dcgm/dgx_h100_fleet_a.csv", "none of its columns is a metric"),
        ("dcgm/dcgm_exporter_readme.prom", "Prometheus text"),
        ("train/superbench_monitor_8gpu.jsonl", "is JSON"),
        ("train/guild_events.out.tfevents", "is no text"),
        ("apple/codecarbon_powermetrics.txt", "no header that is known"),
        ("amd/telegraf_mi100_rocm602.json", "is JSON"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    path = recording(name)
    done = ask(tmp_path, "import", "-c", str(configure(tmp_path)), str(path), TZ="UTC")
    assert done.returncode == 1
    assert words in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert query(tmp_path / "gpu_metrics.db", "SELECT count(*) FROM nodes") == [(0,)]
