"""CSV logs: made by hand for each quirk, and the real recordings read independently beside."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.core.model import Status
from gpu_monitor.sources.recorded.csv import split_cells
from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from tests.recordings import recording, zone_named

UTC = timezone.utc
MIB = 1 << 20
PLATO = "timestamp,utilization.gpu,utilization.memory,memory.used,memory.free,temperature.gpu,power.draw"
HEADER = "timestamp, index, utilization.gpu [%], memory.used [MiB], power.draw [W]\n"


def read(path: Path, options: ReadOptions | None = None) -> tuple[list[RecordedRow], Findings]:
    """All rows of a log, read as UTC unless `options` say otherwise."""
    findings = Findings()
    with RecordedLog(path, options or ReadOptions(timezone=UTC)) as log:
        return list(log.rows(findings)), findings


def read_text(folder: Path, text: str | bytes, options: ReadOptions | None = None):  # type: ignore[no-untyped-def]
    """All rows of a log with this content."""
    path = folder / "log.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path, options)


def at(hour: int, minute: int = 0, second: float = 0.0) -> float:
    """Epoch of a moment of 2026-05-01 UTC."""
    return datetime(2026, 5, 1, hour, minute, tzinfo=UTC).timestamp() + second


def test_header_units_and_several_gpus(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path,
        HEADER
        + "2026/05/01 10:00:00.000, 0, 7 %, 100 MiB, 50.25 W\n"
        + "2026/05/01 10:00:00.010, 1, 93 %, 200 MiB, 300.00 W\n",
    )
    assert [row.time for row in rows] == [at(10), at(10) + 0.01]
    assert [row.device.index for row in rows] == [0, 1]
    assert dict(rows[0].values) == {"gpu_utilization": 7, "memory_used": 100 * MIB, "power_usage": 50.25}
    assert rows[1].values["memory_used"] == 200 * MIB
    assert [row.line for row in rows] == [2, 3]
    assert findings.skipped_rows == 0


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_and_line_endings(tmp_path: Path, encoding: str, ending: str) -> None:
    text = (HEADER + "2026/05/01 10:00:00.000, 3, 7 %, 100 MiB, 50.25 W\n").replace("\n", ending)
    rows, findings = read_text(tmp_path, text.encode(encoding))
    assert [(row.device.index, row.values["power_usage"]) for row in rows] == [(3, 50.25)]
    assert not findings.skipped


def test_nounits_any_order_and_padding(tmp_path: Path) -> None:
    rows, _ = read_text(
        tmp_path,
        "power.draw, memory.total,index,   timestamp ,memory.used\n"
        " 50.25 ,  81559 ,  2,2026/05/01 10:00:00.000,     100\n",
    )
    assert rows[0].device.memory_total == 81559 * MIB
    assert rows[0].device.index == 2
    assert dict(rows[0].values) == {"power_usage": 50.25, "memory_used": 100 * MIB}


def test_repeated_headers_and_new_columns_in_the_middle(tmp_path: Path) -> None:
    first = HEADER + "2026/05/01 10:00:00, 0, 7 %, 100 MiB, 50.25 W\n"
    rows, findings = read_text(
        tmp_path,
        first
        + first.replace("10:00", "10:05")
        + "timestamp, temperature.gpu, index\n2026/05/01 10:10:00, 44, 0\n",
    )
    assert [row.line for row in rows] == [2, 4, 6]
    assert dict(rows[2].values) == {"temperature": 44}
    assert not findings.skipped
    assert "the columns change here" in findings.notes


def test_messages_blank_lines_and_zero_bytes_between_rows(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path,
        "\n" + HEADER + "2026/05/01 10:00:00, 0, 7 %, 100 MiB, 50 W\n\n"
        "Unable to determine the device handle for GPU 0000:3E:00.0: Unknown Error\n"
        + "\0" * 600
        + "\n2026/05/01 10:00:05, 0, 8 %, 100 MiB, 51 W\n",
    )
    assert [row.values["gpu_utilization"] for row in rows] == [7, 8]
    assert findings.skipped_rows == 1
    assert next(iter(findings.skipped)).startswith("not a row: 'Unable to determine")
    assert next(iter(findings.skipped.values())).first == [5]


def test_preamble_before_the_header(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path,
        "WARNING: infoROM is corrupted at gpu 0000:00:09.0\n"
        + HEADER
        + "2026/05/01 10:00:00, 0, 7 %, 1 MiB, 50 W\n",
    )
    assert len(rows) == 1
    assert findings.skipped_rows == 1


@pytest.mark.parametrize(
    ("last", "power", "skipped"),
    [
        ("2026/05/01 10:00:05, 0, 8 %, 100 MiB, 51.25 W", 51.25, 0),
        ("2026/05/01 10:00:05, 0, 8 %, 100 MiB, 51.25 ", None, 0),
        ("2026/05/01 10:00:05, 0, 8 %, 100 MiB, 51", None, 0),
        ("2026/05/01 10:00:05, 0, 8 %, 100 Mi", None, 1),
        ("2026/05/01 10:0", None, 1),
    ],
)
def test_a_cut_last_row_gives_no_number_that_may_have_lost_digits(
    tmp_path: Path, last: str, power: float | None, skipped: int
) -> None:
    rows, findings = read_text(tmp_path, HEADER + "2026/05/01 10:00:00, 0, 7 %, 100 MiB, 50 W\n" + last)
    assert findings.skipped_rows == skipped
    assert len(rows) == 2 - skipped
    if not skipped:
        assert rows[1].values.get("power_usage") == power
        assert rows[1].values["gpu_utilization"] == 8
        assert (rows[1].reasons.get("power_usage") == "invalid") == (power is None)


def test_a_cut_row_glued_to_the_next_is_left_out(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path,
        HEADER + "2026/05/01 10:00:00, 0, 7 %, 1002026/05/01 10:00:05, 0, 8 %, 100 MiB, 51 W\n"
        "2026/05/01 10:00:10, 0, 9 %, 100 MiB, 52 W\n",
    )
    assert [row.values["gpu_utilization"] for row in rows] == [9]
    assert findings.skipped == {
        "8 cells where the header has 5": findings.skipped["8 cells where the header has 5"]
    }


def test_no_header_shows_the_first_row_and_the_flag(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable) as caught:
        read_text(tmp_path, "2026/05/01 10:00:00, 0 %, 2 MiB\n")
    assert "2026/05/01 10:00:00, 0 %, 2 MiB" in str(caught.value)
    assert "--columns" in str(caught.value)


def test_columns_name_a_file_without_header_and_override_a_wrong_one(tmp_path: Path) -> None:
    columns = ("timestamp", "-", "utilization.gpu", "memory.used", "power.draw")
    options = ReadOptions(timezone=UTC, columns=columns)
    row = "2026/05/01 10:00:00, 9, 7 %, 100 MiB, 50 W\n"
    for text in (row, HEADER + row):
        rows, _ = read_text(tmp_path, text, options)
        assert [(r.device.index, r.values["gpu_utilization"]) for r in rows] == [(None, 7)]


def test_headings_of_other_tools(tmp_path: Path) -> None:
    rows, findings = read_text(
        tmp_path,
        "timestamp,gpu_index,temperature_C,utilization_gpu_percent,power_W,memory_used_GB,clock_sm_MHz,whatever\n"
        "2026-05-01T10:00:00Z,1, 48, 100, 397.30,1.5,1410,5\n",
    )
    assert rows[0].device.index == 1
    assert dict(rows[0].values) == {
        "temperature": 48,
        "gpu_utilization": 100,
        "power_usage": 397.3,
        "memory_used": 1536 * MIB,
        "sm_clock": 1410,
    }
    assert list(findings.notes) == ["columns left out: whatever"]


def test_our_own_export_counts_memory_in_bytes(tmp_path: Path) -> None:
    rows, _ = read_text(
        tmp_path,
        "timestamp,uid,pci_bus_id,name,temperature,memory_used,memory_total,gpu_utilization\n"
        "2026-05-01T10:00:00+00:00,GPU-513536b6-7d19-9063-b049-1e69664bb298,00000000:01:00.0,A,40,1048576,2097152,5\n"
        "2026-05-01T10:00:00+00:00,SIM-1,00000000:01:00.0,A,40,1048576,2097152,5\n",
    )
    assert [(row.device.uuid, row.values["memory_used"], row.device.memory_total) for row in rows] == [
        ("GPU-513536b6-7d19-9063-b049-1e69664bb298", 1048576, 2097152)
    ]


def test_quoted_semicolons_and_tabs(tmp_path: Path) -> None:
    for text in (
        '"timestamp","name","utilization.gpu [%]"\n"2026/05/01 10:00:00","A, B","7 %"\n',
        "timestamp;name;utilization.gpu [%]\n2026/05/01 10:00:00;A, B;7 %\n",
        "timestamp\tname\tutilization.gpu [%]\n2026/05/01 10:00:00\tA, B\t7 %\n",
    ):
        rows, _ = read_text(tmp_path, text)
        assert [(row.device.name, row.values["gpu_utilization"]) for row in rows] == [("A, B", 7)]


def test_date_and_time_in_two_columns_and_utc_by_name(tmp_path: Path) -> None:
    berlin = ReadOptions(timezone=zone_named("Europe/Berlin"))
    rows, _ = read_text(tmp_path, "date,time,gpu_util\n2026-05-01,12:00:00,7\n", berlin)
    assert rows[0].time == at(10)
    rows, _ = read_text(tmp_path, "timestamp_utc,gpu_util\n2026-05-01 10:00:00,7\n", berlin)
    assert rows[0].time == at(10)


def test_power_columns(tmp_path: Path) -> None:
    rows, _ = read_text(
        tmp_path,
        "timestamp, power.draw [W], power.draw.average [W], power.draw.instant [W], power.limit [W],"
        " enforced.power.limit [W]\n"
        "2026/05/01 10:00:00, 38.92 W, [N/A], 39.10 W, 250.00 W, 240.00 W\n",
    )
    assert dict(rows[0].values) == {"power_usage": 38.92, "power_instant": 39.1, "power_limit": 240.0}


def test_flags_mask_and_sums(tmp_path: Path) -> None:
    rows, _ = read_text(
        tmp_path,
        "timestamp, clocks_throttle_reasons.hw_thermal_slowdown, clocks_event_reasons.sw_power_cap,"
        " remapped_rows.correctable, remapped_rows.uncorrectable, retired_pages.sbe\n"
        "2026/05/01 10:00:00, Active, Active, 2, 3, 7\n"
        "2026/05/01 10:00:05, [N/A], Not Active, 2, [N/A], 7\n",
    )
    # 0x40 and 0x04 in NVML's table of clock event reasons; half of the retired pages is not their sum.
    assert dict(rows[0].values) == {"throttle_reasons": 0x44, "remapped_rows": 5}
    assert dict(rows[1].values) == {"throttle_reasons": 0}
    assert dict(rows[1].reasons) == {"remapped_rows": "unsupported"}


def test_what_is_not_a_log_of_gpus_is_refused(tmp_path: Path) -> None:
    for text, words in (
        ("timestamp, gpu_uuid, pid, process_name, used_gpu_memory [MiB]\n", "lists processes"),
        ("index, utilization.gpu [%]\n0, 5 %\n", "none of its columns is a time"),
        ("timestamp, index, name\n2026/05/01 10:00:00, 0, A\n", "none of its columns is a metric"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("hello\n", "no log that is known"),
        ('{"a": 1}\n', "is JSON"),
    ):
        with pytest.raises(LogUnreadable, match=words):
            read_text(tmp_path, text)
    with pytest.raises(LogUnreadable, match="gzip"):
        read_text(tmp_path, b"\x1f\x8b\x08\x00abc")
    with pytest.raises(LogUnreadable, match="No such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(LogUnreadable, match="is a folder"):
        read(tmp_path)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters='",\n\r', exclude_categories=["Cs"]))))
def test_cells_without_quotes_are_split_at_every_comma(cells: list[str]) -> None:
    assert split_cells(",".join(cells), ",") == (cells or [""])


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])), min_size=1
    )
)
def test_quoted_cells_survive(cells: list[str]) -> None:
    quoted = ", ".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    assert split_cells(quoted, ",") == cells


# Real recordings.


def test_nanogpt_every_row_as_an_independent_reader_sees_it() -> None:
    path = recording("csv/nanogpt_8xgpu_22min_4hz.csv")
    rows, findings = read(path)
    with path.open(newline="") as file:
        expected = list(csv.DictReader(file, skipinitialspace=True))
    assert not findings.skipped
    assert len(rows) == len(expected) == 36112
    for row, other in zip(rows, expected, strict=True):
        moment = datetime.strptime(other["timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert row.time == pytest.approx(moment.timestamp(), abs=1e-5)
        assert row.device.index == int(other["gpu_index"])
        assert dict(row.values) == {
            "temperature": int(other["temperature_C"]),
            "gpu_utilization": int(other["utilization_gpu_percent"]),
            "power_usage": float(other["power_W"]),
        }


def test_plato_without_header_every_row() -> None:
    path = recording("csv/plato_1gpu_2h40_5s_noheader.csv")
    with pytest.raises(LogUnreadable, match="--columns"):
        read(path)
    rows, findings = read(path, ReadOptions(timezone=UTC, columns=tuple(PLATO.split(","))))
    lines = [line.split(", ") for line in path.read_text().splitlines()]
    assert not findings.skipped
    assert len(rows) == len(lines) == 1923
    for row, (stamp, gpu, memory, used, free, temperature, power) in zip(rows, lines, strict=True):
        moment = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
        assert row.time == pytest.approx(moment.timestamp(), abs=1e-5)
        assert dict(row.values) == {
            "gpu_utilization": int(gpu.removesuffix(" %")),
            "memory_utilization": int(memory.removesuffix(" %")),
            "memory_used": int(used.removesuffix(" MiB")) * MIB,
            "memory_free": int(free.removesuffix(" MiB")) * MIB,
            "temperature": int(temperature),
            "power_usage": float(power.removesuffix(" W")),
        }


def test_derived_day_every_row() -> None:
    path = recording("derived/nvsmi_8gpu_24h_from_gentd26.csv")
    rows, findings = read(path)
    lines = [line.split(", ") for line in path.read_text().splitlines()[1:]]
    assert not findings.skipped
    assert len(rows) == len(lines) == 8 * 1441
    for row, (_, index, uuid, gpu, used) in zip(rows, lines, strict=True):
        assert (row.device.index, row.device.uuid) == (int(index), uuid)
        assert dict(row.values) == {
            "gpu_utilization": int(gpu.removesuffix(" %")),
            "memory_used": int(used.removesuffix(" MiB")) * MIB,
        }


def test_h100_sample_by_hand() -> None:
    rows, findings = read(recording("csv/virtualclient_8xH100.csv"))
    assert [row.device.index for row in rows] == list(range(8))
    third = rows[2]
    # Line 4 of the file, read with the eye: 2024/03/15 13:57:59.838, 2, NVIDIA H100 80GB HBM3, …:18:00.0,
    # 535.161.07, P0, 5, 5, 0, 0, 25, 33, 70.78, 345, 345, 765, 2619, 81559, 81007, 0, 70.97, 5, 16, 0 …
    assert third.time == datetime(2024, 3, 15, 13, 57, 59, 838000, tzinfo=UTC).timestamp()
    assert (third.device.name, third.device.pci_bus_id) == ("NVIDIA H100 80GB HBM3", "00000000:18:00.0")
    assert third.device.memory_total == 81559 * MIB
    assert dict(third.values) == {
        "driver_version": "535.161.07",
        "performance_state": 0,
        "gpu_utilization": 0,
        "memory_utilization": 0,
        "temperature": 25,
        "memory_temperature": 33,
        "power_usage": 70.78,
        "power_instant": 70.97,
        "graphics_clock": 345,
        "sm_clock": 345,
        "video_clock": 765,
        "memory_clock": 2619,
        "memory_free": 81007 * MIB,
        "memory_used": 0,
        "ecc_corrected": 0,
        "ecc_uncorrected": 0,
    }
    assert findings.skipped_rows == 0


def test_t4_with_nulls_in_both_spellings() -> None:
    rows, _ = read(recording("csv/virtualclient_T4_NA.csv"))
    assert len(rows) == 1
    assert dict(rows[0].reasons) == {
        "memory_temperature": "unsupported",  # N/A
        "power_usage": "unsupported",  # [N/A]
        "ecc_uncorrected": "invalid",  # the file ends in its cell: 9, or the 9 of 95
    }
    assert rows[0].values["power_instant"] == 9.31
    assert rows[0].values["memory_used"] == 100 * MIB
    assert rows[0].device.memory_total == 15360 * MIB


def test_truncated_log_loses_only_its_cut_row() -> None:
    path = recording("derived/truncated_midline.csv")
    rows, findings = read(path)
    assert len(rows) == len(path.read_text().splitlines()) - 2  # without the header and the cut row
    assert rows[-1].values["power_usage"] == 11.80
    (reason,) = findings.skipped
    assert reason == "cut short: 5 of 7 cells at the end of the file"
    assert findings.skipped[reason].first == [121]


def test_error_cells_are_nulls_with_reasons_and_a_lost_gpu_is_lost() -> None:
    path = recording("derived/error_cells.csv")
    rows, findings = read(path)
    text = path.read_text().splitlines()
    assert len(rows) == len(text) - 1 == 60
    assert not findings.skipped
    assert Counter(row.status for row in rows) == {Status.OK: 50, Status.LOST: 10}
    for row in rows:
        line = text[row.line - 1]
        if "[GPU requires reset]" in line:
            assert row.status is Status.LOST
            assert not row.values
            assert set(row.reasons.values()) == {"lost"}
        elif "[Unknown Error]" in line:
            assert dict(row.reasons) == {"temperature": "invalid", "power_usage": "unsupported"}
            assert row.values["memory_used"] == 265 * MIB
        else:
            assert not row.reasons


def test_shifted_header_is_refused_and_can_be_overridden() -> None:
    path = recording("csv/gpuglasses_3xh100_header_shift.csv")
    with RecordedLog(path, ReadOptions()) as log, pytest.raises(LogUnreadable) as caught:
        log.survey()
    message = str(caught.value)
    assert str(path) in message
    assert "'gpu' and 'index'" in message
    assert "--columns" in message
    columns = "timestamp,index,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu"
    options = ReadOptions(columns=tuple(columns.split(",")))
    with RecordedLog(path, options) as log:
        assert len(log.survey().gpus) == 8
    rows, findings = read(path, options)
    assert len(rows) == 43
    # 2025-09-08T17:26:50+08:00 is 09:26:50 UTC; second data row: GPU 1, 0 %, 4 MiB of 81559, 73.23 W, 34 °C.
    assert rows[1].time == datetime(2025, 9, 8, 9, 26, 50, tzinfo=UTC).timestamp()
    assert rows[1].device.index == 1
    assert dict(rows[1].values) == {
        "gpu_utilization": 0,
        "memory_used": 4 * MIB,
        "power_usage": 73.23,
        "temperature": 34,
    }
    assert list(findings.notes) == ["header replaced by --columns"]
