"""Every field of `--query-gpu`, cut out of whole-tool captures; the H100 against another exporter."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from tests.recordings import recording

UTC = timezone.utc
H100 = "linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01"
CAPTURES = (
    H100,
    "linux-x86_64__nvidia-l40s__595.80",
    "linux-x86_64__nvidia-geforce-rtx-2080-super__595.71.05",
    "windows-x86_64__nvidia-geforce-rtx-2080-super__591.86",
)


def query_blocks(capture: str) -> list[list[str]]:
    """Header and row of the two --query-gpu blocks of a capture: idle, and under load."""
    lines = recording(f"captures/{capture}.txt").read_text().splitlines()
    return [lines[n : n + 2] for n, line in enumerate(lines) if line.startswith("timestamp, driver_version,")]


def read_block(folder: Path, block: list[str]) -> tuple[RecordedRow, Findings]:
    """The one row of a block."""
    path = folder / "query.csv"
    path.write_text("\n".join(block) + "\n")
    findings = Findings()
    with RecordedLog(path, ReadOptions(timezone=UTC)) as log:
        assert log.survey().rows == 1
        (row,) = log.rows(findings)
    return row, findings


@pytest.mark.parametrize("capture", CAPTURES)
def test_every_field_that_is_kept(tmp_path: Path, capture: str) -> None:
    blocks = query_blocks(capture)
    assert len(blocks) == 2
    for block in blocks:
        row, findings = read_block(tmp_path, block)
        assert not findings.skipped
        assert all(note.startswith("columns left out") for note in findings.notes)
        cells = dict(zip(block[0].split(", "), block[1].split(", "), strict=True))
        assert (
            row.time
            == datetime.strptime(cells["timestamp"], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp()
        )
        assert row.device.uuid is None  # masked with zeros in the capture
        assert (row.device.index, row.device.name) == (0, cells["name"])
        for heading, metric, scale in (
            ("memory.used [MiB]", "memory_used", 1 << 20),
            ("memory.free [MiB]", "memory_free", 1 << 20),
            ("memory.reserved [MiB]", "memory_reserved", 1 << 20),
            ("utilization.gpu [%]", "gpu_utilization", 1),
            ("utilization.memory [%]", "memory_utilization", 1),
            ("utilization.encoder [%]", "encoder_utilization", 1),
            ("utilization.decoder [%]", "decoder_utilization", 1),
            ("temperature.gpu", "temperature", 1),
            ("temperature.memory", "memory_temperature", 1),
            ("power.draw [W]", "power_usage", 1),
            ("power.draw.instant [W]", "power_instant", 1),
            ("enforced.power.limit [W]", "power_limit", 1),
            ("fan.speed [%]", "fan_speed", 1),
            ("clocks.current.graphics [MHz]", "graphics_clock", 1),
            ("clocks.current.sm [MHz]", "sm_clock", 1),
            ("clocks.current.memory [MHz]", "memory_clock", 1),
            ("clocks.current.video [MHz]", "video_clock", 1),
            ("ecc.errors.corrected.aggregate.total", "ecc_corrected", 1),
            ("ecc.errors.uncorrected.aggregate.total", "ecc_uncorrected", 1),
        ):
            written = re.match(r"\d+(\.\d+)?", cells[heading])
            if written:
                assert row.values[metric] == float(written[0]) * scale, heading
            else:
                assert row.reasons[metric] == "unsupported", heading
        counters = ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
        throttled = sum(
            int(cells[f"clocks_event_reasons_counters.{name} [us]"].split()[0]) for name in counters
        )
        assert row.values["throttle_time"] == pytest.approx(throttled / 1e6)
        assert row.values["throttle_reasons"] == int(cells["clocks_event_reasons.active"], 16)
        assert row.values["performance_state"] == int(cells["pstate"][1:])
        assert row.values["driver_version"] == cells["driver_version"]


def test_h100_under_load_against_the_exporter(tmp_path: Path) -> None:
    row, _ = read_block(tmp_path, query_blocks(H100)[1])
    text = recording(f"prom/{H100}__load.metrics").read_text()
    exported = {
        match[1]: float(match[2])
        for match in re.finditer(r"^nvidia_smi_(\w+)(?:\{[^}]*\})? (\S+)$", text, re.M)
    }
    for metric, name, scale in (
        ("temperature", "temperature_gpu", 1),
        ("memory_temperature", "temperature_memory", 1),
        ("memory_used", "memory_used_bytes", 1),
        ("memory_free", "memory_free_bytes", 1),
        ("memory_reserved", "memory_reserved_bytes", 1),
        ("gpu_utilization", "utilization_gpu_ratio", 100),
        ("memory_utilization", "utilization_memory_ratio", 100),
        ("encoder_utilization", "utilization_encoder_ratio", 100),
        ("decoder_utilization", "utilization_decoder_ratio", 100),
        ("power_usage", "power_draw_average_watts", 1),
        ("power_instant", "power_draw_instant_watts", 1),
        ("power_limit", "enforced_power_limit_watts", 1),
        ("graphics_clock", "clocks_current_graphics_clock_hz", 1e-6),
        ("sm_clock", "clocks_current_sm_clock_hz", 1e-6),
        ("memory_clock", "clocks_current_memory_clock_hz", 1e-6),
        ("video_clock", "clocks_current_video_clock_hz", 1e-6),
        ("performance_state", "pstate", 1),
        ("throttle_reasons", "clocks_event_reasons_active", 1),
        ("ecc_corrected", "ecc_errors_corrected_aggregate_total", 1),
        ("ecc_uncorrected", "ecc_errors_uncorrected_aggregate_total", 1),
    ):
        assert row.values[metric] == pytest.approx(exported[name] * scale), metric
    assert row.device.memory_total == exported["memory_total_bytes"]
    assert row.values["remapped_rows"] == (
        exported["remapped_rows_correctable"] + exported["remapped_rows_uncorrectable"]
    )
    assert row.values["mig_mode"] == "off"
    assert exported["mig_mode_current"] == 0
    assert row.values["recovery_action"] == "none"
    assert exported["gpu_recovery_action"] == 0
    # What the exporter could not read, it does not export, and we say why.
    assert "fan_speed_ratio" not in exported
    assert row.reasons["fan_speed"] == "unsupported"
    assert row.reasons["retired_pages"] == "unsupported"
