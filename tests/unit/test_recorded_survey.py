"""Logs whose header cannot be true, and what a first look says of those that are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions
from gpu_monitor.sources.recorded.survey import Survey


def look(folder: Path, text: str) -> Survey:
    """The survey of a CSV with this content, its times in UTC."""
    path = folder / "log.csv"
    path.write_text(text)
    with RecordedLog(path, ReadOptions()) as log:
        return log.survey()


def rows(cells: str, count: int = 4, seconds: int = 5) -> str:
    """`count` rows with these cells after the time."""
    return "".join(
        f"2026-05-01T10:{n * seconds // 60:02}:{n * seconds % 60:02}Z, {cells}\n" for n in range(count)
    )


@pytest.mark.parametrize(
    ("header", "cells", "words"),
    [
        (
            "timestamp, temperature.gpu, power.draw [W]",
            "11.64 W, 27",
            "'temperature.gpu' is not a temperature in °C",
        ),
        ("timestamp, utilization.gpu [%], temperature.gpu", "20146, 27", "'utilization.gpu [%]'"),
        ("timestamp, index, power.draw [W]", "GPU-x y, 27 W", "the GPU index is no number"),
        ("timestamp, memory.used [MiB], memory.total [MiB]", "81559 MiB, 4 MiB", "above memory total"),
        ("timestamp, pstate, temperature.gpu", "55, 27", "'pstate'"),
        ("timestamp, gpu, index, power.draw", "3, 0, 27", "'gpu' and 'index'"),
        ("power.draw, timestamp, utilization.gpu", "50, 7", "the time is missing"),
        ("index, timestamp, power.draw", "x, 50", "the GPU index is no number"),
    ],
)
def test_columns_that_cannot_be_what_they_are_called(
    tmp_path: Path, header: str, cells: str, words: str
) -> None:
    with pytest.raises(LogUnreadable) as caught:
        look(tmp_path, f"{header}\n{rows(cells)}")
    assert words in str(caught.value)
    assert "--columns" in str(caught.value)
    assert str(tmp_path / "log.csv") in str(caught.value)


def test_memory_total_that_changes_is_another_column(tmp_path: Path) -> None:
    text = "timestamp, memory.total [MiB], power.draw\n" + "".join(
        f"2026-05-01T10:00:{n:02}Z, {20000 + n} MiB, 50\n" for n in range(5)
    )
    with pytest.raises(LogUnreadable, match="memory total changes"):
        look(tmp_path, text)


def test_several_gpus_without_a_name_for_each_are_refused(tmp_path: Path) -> None:
    text = "timestamp, power.draw\n" + "".join(
        f"2026-05-01T10:00:{n * 5:02}.{gpu * 20:03}Z, 50\n" for n in range(6) for gpu in range(4)
    )
    with pytest.raises(LogUnreadable, match="several GPUs seem to write in turns"):
        look(tmp_path, text)


def test_a_log_at_ten_hertz_is_one_gpu(tmp_path: Path) -> None:
    text = "timestamp, power.draw\n" + "".join(f"2026-05-01T10:00:00.{n}00Z, 50\n" for n in range(10))
    assert look(tmp_path, text).step == pytest.approx(0.1)


def test_rows_of_several_hosts_are_refused(tmp_path: Path) -> None:
    text = "timestamp, hostname, index, power.draw\n" + rows("a, 0, 50") + rows("b, 0, 50")
    with pytest.raises(LogUnreadable, match=r"several hosts \(a, b"):
        look(tmp_path, text)


def test_one_odd_cell_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("timestamp, temperature.gpu\n" + rows("27") + "2026-05-01T10:01:00Z, 255\n")
    findings = Findings()
    with RecordedLog(path, ReadOptions()) as log:
        assert log.survey().rows == 5
        last = list(log.rows(findings))[-1]
    assert dict(last.values) == {}
    assert dict(last.reasons) == {"temperature": "invalid"}
    ((note, lines),) = findings.notes.items()
    assert "temperature.gpu" in note
    assert lines.first == [6]


def test_the_step_is_the_median_of_each_gpus_steps(tmp_path: Path) -> None:
    # Steps of GPU 0: 5 5 5 60 (a restart between), of GPU 1: one step of 5.
    text = "timestamp, index, power.draw\n" + "".join(
        f"2026-05-01T10:{second // 60:02}:{second % 60:02}Z, {gpu}, 50\n"
        for second, gpu in ((0, 0), (0, 1), (5, 0), (5, 1), (10, 0), (15, 0), (75, 0))
    )
    found = look(tmp_path, text)
    assert {key: gpu.step for key, gpu in found.gpus.items()} == {"0": 5.0, "1": 5.0}
    assert found.step == 5.0
    assert (found.rows, found.is_whole) == (7, True)


def test_standard_input_is_read_like_a_file() -> None:
    text = "timestamp, power.draw\n" + rows("50")
    with RecordedLog(None, ReadOptions(), io.BytesIO(text.encode())) as log:
        assert log.survey().rows == 4
        assert len(list(log.rows(Findings()))) == 4
        assert log.name == "-"


def test_reasons_and_lines_do_not_grow_without_bound() -> None:
    findings = Findings()
    for n in range(1000):
        findings.skip(f"reason {n}", n)
    assert len(findings.skipped) < 50
    assert findings.skipped_rows == 1000
    lines = findings.skipped["other reasons"]
    assert str(lines).startswith("lines 30, 31, 32, 33, 34 and ")
