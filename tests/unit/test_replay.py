"""Recorded rows played back: every expected round is worked out by hand from the rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timezone
from pathlib import Path

import pytest

from gpu_monitor.core.errors import LogUnreadable, SourceUnavailable
from gpu_monitor.core.model import DeviceReading, Round, Span, Spread, Status
from gpu_monitor.sources.gpu.replay import ReplaySource, open_replay
from gpu_monitor.sources.recorded.rows import ReadOptions, RecordedDevice, RecordedRow
from gpu_monitor.sources.recorded.survey import GpuSurvey, Survey
from tests.recordings import recording

START = 5_000_000.0
ZERO, ONE = (
    RecordedDevice(index=0, name="Card"),
    RecordedDevice(uuid="GPU-1", index=1, pci_bus_id="00000000:01:00.0"),
)


def row(time: float, device: RecordedDevice = ZERO, **values: float | int | str) -> RecordedRow:
    return RecordedRow(time, device, values)


def play(rows: list[RecordedRow], step: float = 10.0, loop: bool = False) -> ReplaySource:
    gpus: dict[str, GpuSurvey] = {}
    for r in rows:  # as a survey does: `first` is a GPU's first row in the file
        gpus.setdefault(r.device.key, GpuSurvey(1, r.time, r.time, step))
    return ReplaySource(lambda: rows, Survey(len(rows), True, gpus), START, loop)


def at(source: ReplaySource, offset: float) -> Round:
    return source.read(START + offset, Span.FULL)


def only(found: Round) -> DeviceReading:
    (device,) = found.devices
    return device


def values(found: Round) -> Mapping[str, object]:
    return only(found).values


def test_the_first_row_is_played_at_the_start() -> None:
    source = play([row(100.0, temperature=40), row(110.0, temperature=50)])
    assert at(source, -1) == Round(())
    reading = only(at(source, 0))
    assert (reading.identity.uid, reading.identity.source, reading.identity.name) == (
        "REPLAY-0",
        "replay",
        "Card",
    )
    assert (reading.status, reading.values) == (Status.OK, {"temperature": 40})


def test_a_row_holds_until_the_next_one_and_two_steps_at_most() -> None:
    source = play([row(100.0, temperature=40), row(110.0, temperature=50), row(200.0, temperature=60)])
    assert values(at(source, 9.9)) == {"temperature": 40}
    assert values(at(source, 10)) == {"temperature": 50}
    assert values(at(source, 30)) == {"temperature": 50}
    silent = at(source, 30.1)
    assert (silent.devices, silent.paused) == ((), "nothing recorded")
    assert values(at(source, 100)) == {"temperature": 60}


def test_several_rows_since_the_last_round_are_spread_out() -> None:
    rows = [row(100.0 + n, temperature=t, throttle_reasons=f, performance_state=p, throttle_time=x)
            for n, (t, f, p, x) in enumerate([(40, 1, 8, 0.5), (50, 4, 0, 1.5), (30, 8, 0, 2.5), (60, 0, 2, 4.5)])]  # fmt: skip
    source = play(rows, step=1.0)
    at(source, 0)
    found = values(at(source, 3))
    assert found["temperature"] == Spread((50 + 30 + 60) / 3, 30, 60, 3)
    assert found["throttle_reasons"] == 12
    assert found["performance_state"] == 2
    assert found["throttle_time"] == 4.5


def test_a_value_missing_in_some_rows_is_the_mean_of_the_others() -> None:
    rows = [
        RecordedRow(100.0, ZERO, {"power_usage": 10.0}, {"fan_speed": "unsupported"}),
        RecordedRow(
            101.0, ZERO, {"power_usage": 20.0}, {"fan_speed": "unsupported", "temperature": "invalid"}
        ),
        RecordedRow(102.0, ZERO, {"temperature": 33}, {"power_usage": "invalid", "fan_speed": "unsupported"}),
    ]
    reading = only(at(play(rows, step=1.0), 2))
    assert reading.values == {
        "power_usage": Spread(15.0, 10.0, 20.0, 2),
        "temperature": Spread(33.0, 33, 33, 1),
    }
    told = {name: why for name, why in reading.reasons.items() if why != "not in the log"}
    assert told == {"fan_speed": "unsupported"}


def test_what_the_log_does_not_hold_says_so() -> None:
    rows = [row(100.0, temperature=40, power_usage=9.5, performance_state=8), row(110.0, temperature=41)]
    source = play(rows)
    first = only(at(source, 0)).reasons
    assert {
        first[name] for name in ("energy", "fan_speed", "pcie_rx", "throttle_reasons", "driver_version")
    } == {"not in the log"}
    assert not {"temperature", "power_usage", "performance_state", "uid", "memory_total"} & first.keys()
    assert only(at(source, 10)).reasons["power_usage"] == "not in the log"


def test_rates_become_counters() -> None:
    # 1000 B/s over the 10 s before the row at 110, then a hole of 40 s of which two steps count: 500 * 20.
    rows = [row(100.0, pcie_rx=777.0), row(110.0, pcie_rx=1000.0), row(150.0, pcie_rx=500.0)]
    source = play(rows)
    assert values(at(source, 0)) == {"pcie_rx": 0.0}
    assert values(at(source, 10)) == {"pcie_rx": 10_000.0}
    assert values(at(source, 12)) == {"pcie_rx": 10_000.0}
    assert values(at(source, 50)) == {"pcie_rx": 20_000.0}


def test_rows_that_go_back_in_time_are_passed_over() -> None:
    rows = [row(100.0, temperature=40), row(110.0, temperature=50), row(90.0, temperature=1), row(110.0, temperature=2),
            row(120.0, temperature=60)]  # fmt: skip
    source = play(rows)
    assert values(at(source, 0)) == {"temperature": 40}
    assert values(at(source, 10)) == {"temperature": 50}
    assert values(at(source, 20)) == {"temperature": 60}


def test_gpus_come_and_go_by_their_own_names() -> None:
    rows = [row(100.0, ZERO, temperature=1), row(110.0, ZERO, temperature=2), row(110.01, ONE, temperature=3),
            row(120.0, ONE, temperature=4), row(130.0, ONE, temperature=5), row(140.0, ONE, temperature=6)]  # fmt: skip
    source = play(rows)
    assert [d.identity.uid for d in at(source, 5).devices] == ["REPLAY-0"]
    both = at(source, 15)
    assert [(d.identity.uid, d.identity.pci_bus_id) for d in both.devices] == [
        ("REPLAY-0", None),
        ("GPU-1", "00000000:01:00.0"),
    ]
    assert [d.identity.uid for d in at(source, 40).devices] == ["GPU-1"]


def test_a_lost_gpu_is_lost() -> None:
    rows = [
        row(100.0, temperature=40),
        RecordedRow(110.0, ZERO, {}, {"temperature": "lost"}, status=Status.LOST),
    ]
    source = play(rows)
    at(source, 0)
    reading = only(at(source, 10))
    assert (reading.status, reading.cause, reading.values) == (Status.LOST, "GPU lost", {})
    assert set(reading.reasons.values()) == {"lost"}
    assert {"temperature", "energy", "performance_state"} <= reading.reasons.keys()


def test_after_the_end_the_replay_says_so() -> None:
    source = play([row(100.0, temperature=40), row(110.0, temperature=50)])
    assert values(at(source, 20)) == {"temperature": Spread(45.0, 40, 50, 2)}
    for offset in (20.1, 1e6):
        ended = at(source, offset)
        assert (ended.devices, ended.paused) == ((), "replay ended")


def test_a_loop_begins_again_one_step_after_the_last_row() -> None:
    # Rows at 0 and 10 s; the second lap at 20 and 30 s, the third at 40 and 50 s.
    source = play([row(100.0, temperature=40), row(110.0, temperature=50)], loop=True)
    played = [values(at(source, offset))["temperature"] for offset in (0, 10, 20, 30, 40, 50, 60)]
    assert played == [40, 50, 40, 50, 40, 50, 40]


def test_a_loop_of_one_moment_ends() -> None:
    source = play([row(100.0, temperature=40)], loop=True)
    assert values(at(source, 0)) == {"temperature": 40}
    assert at(source, 100).paused == "replay ended"


def test_an_empty_recording_is_no_source() -> None:
    source = play([])
    with pytest.raises(SourceUnavailable):
        source.probe()
    assert at(source, 100).paused == "replay ended"


def test_a_short_pause_of_the_logger_loses_no_rows() -> None:
    # 4 Hz, a round each 10 s; the logger paused 2 s before the round: more than two steps, far less than a half.
    rows = [row(100.0 + n / 4, temperature=40 + n % 2) for n in range(33)]
    source = play([*rows, row(115.0, temperature=40)], step=0.25)
    at(source, 0)
    assert values(at(source, 10))["temperature"] == Spread(40.5, 40, 41, 32)


def test_a_real_recording(tmp_path: Path) -> None:
    lines = recording("csv/nanogpt_8xgpu_22min_4hz.csv").read_text().splitlines()
    source = open_replay(recording("csv/nanogpt_8xgpu_22min_4hz.csv"), START)
    try:
        source.probe()
        first = at(source, 0)
        # The first eight lines after the header are one round of the eight GPUs.
        written = [line.split(",") for line in lines[1:9]]
        assert [
            (d.values["temperature"], d.values["gpu_utilization"], d.values["power_usage"])
            for d in first.devices
        ] == [(int(cells[2]), int(cells[3]), float(cells[4])) for cells in written]
        assert [d.identity.uid for d in first.devices] == [f"REPLAY-{n}" for n in range(8)]
        minute = at(source, 60)
        # GPU 3's temperatures of the first minute after the first round, straight from the text.
        base = 3 * 3600 + 17 * 60 + 4.49
        expected = []
        for line in lines[9:]:
            stamp, gpu, temperature = line.split(",")[:3]
            clock = stamp[11:23].split(":")
            seconds = int(clock[0]) * 3600 + int(clock[1]) * 60 + float(clock[2]) - base
            if gpu == "3" and 0 < seconds <= 60.0:
                expected.append(int(temperature))
        found = minute.devices[3].values["temperature"]
        assert found == Spread(sum(expected) / len(expected), min(expected), max(expected), len(expected))
        assert at(source, 3600).paused == "replay ended"
    finally:
        source.close()


def test_a_log_without_a_header_is_played_with_its_columns_named() -> None:
    path = recording("csv/plato_1gpu_2h40_5s_noheader.csv")
    names = "timestamp utilization.gpu utilization.memory memory.used memory.free temperature.gpu power.draw"
    source = open_replay(
        path, START, options=ReadOptions(columns=tuple(names.split()), timezone=timezone.utc)
    )
    try:
        # 2026/04/25 16:06:06.780, 0 %, 0 %, 2 MiB, 20146 MiB, 27, 11.64 W
        reading = only(at(source, 0))
        assert reading.values == {
            "gpu_utilization": 0,
            "memory_utilization": 0,
            "memory_used": 2 * 1024 * 1024,
            "memory_free": 20146 * 1024 * 1024,
            "temperature": 27,
            "power_usage": 11.64,
        }
    finally:
        source.close()


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("timestamp, index, temperature.gpu\n")
    with pytest.raises(LogUnreadable):
        open_replay(path, START)
    with pytest.raises(LogUnreadable):
        open_replay(tmp_path / "absent.csv", START)
