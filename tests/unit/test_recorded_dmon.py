"""`nvidia-smi dmon`: with date and time, with time of day, with neither; and the captured ones."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.sniff import Format
from tests.recordings import recording

UTC = timezone.utc
MIB = 1 << 20
START = datetime(2021, 1, 2, 19, 12, 31, tzinfo=UTC).timestamp()

DATED = """#Date       Time        gpu   pwr gtemp mtemp    sm   mem   enc   dec  mclk  pclk sbecc   pci rxpci txpci    fb
#YYYYMMDD   HH:MM:SS    Idx     W     C     C     %     %     %     %   MHz   MHz  errs  errs  MB/s  MB/s    MB
 20210102   19:12:31      0    37    19     -    12     3     0     0  4006   582     -     0     5    10   239
 20210102   19:12:31      1    99    50    61   100    40     1     2  9001  1710     -     0   217   677    74
# Date       Time        gpu   pwr gtemp mtemp    sm   mem   enc   dec  mclk  pclk sbecc   pci rxpci txpci    fb
# YYYYMMDD   HH:MM:SS    Idx     W     C     C     %     %     %     %   MHz   MHz  errs  errs  MB/s  MB/s    MB
 20210102   19:12:33      0    39    19     -     0     0     0     0  4006  1582     -     0     0     0   239
"""


def read_text(
    folder: Path, text: str, options: ReadOptions | None = None
) -> tuple[list[RecordedRow], Findings]:
    """All rows of a log with this content."""
    path = folder / "dmon.log"
    path.write_text(text, encoding="utf-8")
    findings = Findings()
    with RecordedLog(path, options or ReadOptions(timezone=UTC)) as log:
        assert log.format is Format.DMON
        return list(log.rows(findings)), findings


def test_dated_rows_with_repeated_headers(tmp_path: Path) -> None:
    rows, findings = read_text(tmp_path, DATED)
    assert [(row.time - START, row.device.index) for row in rows] == [(0, 0), (0, 1), (2, 0)]
    assert dict(rows[1].values) == {
        "power_usage": 99,
        "temperature": 50,
        "memory_temperature": 61,
        "gpu_utilization": 100,
        "memory_utilization": 40,
        "encoder_utilization": 1,
        "decoder_utilization": 2,
        "memory_clock": 9001,
        "graphics_clock": 1710,
        "pcie_rx": 217_000_000,
        "pcie_tx": 677_000_000,
        "memory_used": 74 * MIB,
    }
    assert dict(rows[0].reasons) == {"memory_temperature": "unsupported"}
    assert not findings.skipped


def test_comma_separated_dmon(tmp_path: Path) -> None:
    rows, _ = read_text(
        tmp_path,
        "#Date, Time, gpu, pwr, gtemp\n#YYYYMMDD, HH:MM:SS, Idx, W, C\n20210102, 19:12:31, 0, 37, 19\n",
    )
    assert [(row.time, dict(row.values)) for row in rows] == [(START, {"power_usage": 37, "temperature": 19})]


def test_times_of_day_need_a_day_and_roll_over_midnight(tmp_path: Path) -> None:
    text = (
        "#Time        gpu   pwr\n#HH:MM:SS    Idx     W\n"
        " 23:59:58      0    30\n 23:59:59      0    31\n 00:00:00      0    32\n"
    )
    with pytest.raises(LogUnreadable, match=r"times of day but no date.*\n.*--start"):
        read_text(tmp_path, text)
    begin = datetime(2021, 1, 2, 23, 59, 58, tzinfo=UTC).timestamp()
    rows, _ = read_text(tmp_path, text, ReadOptions(timezone=UTC, start=begin))
    assert [row.time - begin for row in rows] == [0, 1, 2]


def test_without_times_it_counts_from_the_start(tmp_path: Path) -> None:
    text = "# gpu    pwr \n# Idx      W \n    0     69 \n    1     70 \n    0     71 \n    1     72 \n"
    with pytest.raises(LogUnreadable, match="holds no times"):
        read_text(tmp_path, text)
    rows, findings = read_text(tmp_path, text, ReadOptions(start=START, step=5.0))
    assert [(row.time - START, row.device.index, row.values["power_usage"]) for row in rows] == [
        (0, 0, 69),
        (0, 1, 70),
        (5, 0, 71),
        (5, 1, 72),
    ]
    assert any("counted from --start, 5 s" in note for note in findings.notes)


def test_cut_and_foreign_lines_are_counted(tmp_path: Path) -> None:
    rows, findings = read_text(tmp_path, "junk\n" + DATED + "Terminated\n 20210102   19:12:35      0    37")
    assert len(rows) == 3
    assert findings.skipped_rows == 3


def test_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable, match="pmon"):
        read_text(
            tmp_path,
            "# gpu        pid   type     sm    mem    command\n# Idx          #    C/G      %      %    name\n",
        )


CAPTURES = {
    # The first row of the block under load, read with the eye.
    "linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01": (634, 63, 58, 100, 10, 2619, 1980),
}


@pytest.mark.parametrize("capture", ["linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01",
                                     "linux-x86_64__nvidia-l40s__595.80",
                                     "linux-x86_64__nvidia-geforce-rtx-2080-super__595.71.05",
                                     "windows-x86_64__nvidia-geforce-rtx-2080-super__591.86"])  # fmt: skip
def test_captured_blocks(tmp_path: Path, capture: str) -> None:
    lines = recording(f"captures/{capture}.txt").read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("# gpu    pwr")]
    assert len(starts) == 2
    for start in starts:
        block = lines[start : start + 7]
        rows, findings = read_text(tmp_path, "\n".join(block) + "\n", ReadOptions(start=START))
        assert not findings.skipped
        assert len(rows) == 5
        names = block[0].lstrip("# ").split()
        for row, line in zip(rows, block[2:], strict=True):
            words = dict(zip(names, line.split(), strict=True))
            for name, metric in (
                ("pwr", "power_usage"),
                ("gtemp", "temperature"),
                ("mtemp", "memory_temperature"),
                ("sm", "gpu_utilization"),
                ("mem", "memory_utilization"),
                ("mclk", "memory_clock"),
                ("pclk", "graphics_clock"),
            ):
                assert row.values.get(metric) == (None if words[name] == "-" else int(words[name]))
    if capture in CAPTURES:
        first = rows[0].values
        assert (
            first["power_usage"],
            first["temperature"],
            first["memory_temperature"],
            first["gpu_utilization"],
            first["memory_utilization"],
            first["memory_clock"],
            first["graphics_clock"],
        ) in (CAPTURES[capture], (631, 63, 57, 100, 10, 2619, 1980))
