"""Cells of logs: every text nvidia-smi writes, and numbers of any shape."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.sources.recorded.cells import UNITS, Cell, Dimension, null_reason, parse_cell

MIB = 1048576


def test_numbers_with_and_without_their_unit() -> None:
    assert parse_cell("11.64 W", "power_usage", Dimension.WATT) == Cell(11.64, None, True)
    assert parse_cell("11.64", "power_usage", Dimension.WATT) == Cell(11.64, None, True)
    assert parse_cell("2 MiB", "memory_used", Dimension.BYTES) == Cell(2097152, None, True)
    assert parse_cell("2", "memory_used", Dimension.BYTES, MIB) == Cell(2097152, None, True)
    assert parse_cell("0 %", "gpu_utilization", Dimension.PERCENT) == Cell(0, None, True)
    assert parse_cell("0 [%]", "gpu_utilization", Dimension.PERCENT).readable is False
    assert parse_cell("-5 C", "temperature", Dimension.CELSIUS) == Cell(-5, None, True)
    assert parse_cell("25000 KB/s", "pcie_tx", Dimension.RATE) == Cell(25_000_000, None, True)
    assert parse_cell("1.41 GHz", "sm_clock", Dimension.MEGAHERTZ).value == pytest.approx(1410)
    assert parse_cell("69850 mW", "power_usage", Dimension.WATT).value == pytest.approx(69.85)


def test_whole_numbers_stay_whole() -> None:
    assert isinstance(parse_cell("59", "temperature", Dimension.CELSIUS).value, int)
    assert isinstance(parse_cell("59.0", "temperature", Dimension.CELSIUS).value, float)
    assert isinstance(parse_cell("1.5 GiB", "memory_used", Dimension.BYTES).value, int)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[N/A]", "unsupported"),
        ("N/A", "unsupported"),
        ("[Not Supported]", "unsupported"),
        ("[Requested functionality has been deprecated]", "unsupported"),
        ("[Insufficient Permissions]", "denied"),
        ("[GPU is lost]", "lost"),
        ("GPU is lost", "lost"),
        ("[GPU requires reset]", "lost"),
        ("[Unknown Error]", "invalid"),
        ("Unknown Error", "invalid"),
        ("ERR!", "invalid"),
        ("", "invalid"),
        ("nan", "invalid"),
        ("[something new]", "invalid"),
    ],
)
def test_texts_that_stand_for_no_value(text: str, reason: str) -> None:
    assert parse_cell(text, "temperature", Dimension.CELSIUS) == Cell(None, reason, True)


@pytest.mark.parametrize(
    ("text", "metric", "dimension"),
    [
        ("101", "gpu_utilization", Dimension.PERCENT),
        ("255", "temperature", Dimension.CELSIUS),
        ("4294967.295 W", "power_usage", Dimension.WATT),
        ("9223372036854775794", "temperature", Dimension.CELSIUS),
        ("11.64 W", "temperature", Dimension.CELSIUS),
        ("2 MiB", "gpu_utilization", Dimension.PERCENT),
        ("P0", "temperature", Dimension.CELSIUS),
        ("-1 %", "gpu_utilization", Dimension.PERCENT),
        ("P16", "performance_state", Dimension.STATE),
        ("0x", "throttle_reasons", Dimension.MASK),
        ("1,5", "power_usage", Dimension.WATT),
        ("٣", "temperature", Dimension.CELSIUS),
    ],
)
def test_impossible_cells_are_null_and_said_to_be_unreadable(
    text: str, metric: str, dimension: Dimension
) -> None:
    assert parse_cell(text, metric, dimension) == Cell(None, "invalid", False)


def test_states_masks_flags_and_switches() -> None:
    assert parse_cell("P8", "performance_state", Dimension.STATE).value == 8
    assert parse_cell("0x0000000000000044", "throttle_reasons", Dimension.MASK).value == 0x44
    assert parse_cell("0010", "throttle_reasons", Dimension.MASK).value == 10
    assert parse_cell("Active", "throttle_reasons", Dimension.FLAG, bit=0x20).value == 0x20
    assert parse_cell("Not Active", "throttle_reasons", Dimension.FLAG, bit=0x20).value == 0
    assert parse_cell("Disabled", "mig_mode", Dimension.SWITCH).value == "off"
    assert parse_cell("None", "recovery_action", Dimension.ACTION).value == "none"
    assert parse_cell("Drain and Reset", "recovery_action", Dimension.ACTION).value == "drain_and_reset"
    assert parse_cell("N/A", "recovery_action", Dimension.ACTION).reason == "unsupported"


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser_or_leaves_the_range(text: str) -> None:
    for metric, dimension in (
        ("power_usage", Dimension.WATT),
        ("memory_used", Dimension.BYTES),
        ("gpu_utilization", Dimension.PERCENT),
        ("performance_state", Dimension.STATE),
        ("throttle_reasons", Dimension.MASK),
        ("throttle_reasons", Dimension.FLAG),
        ("mig_mode", Dimension.SWITCH),
        ("recovery_action", Dimension.ACTION),
    ):
        cell = parse_cell(text.strip(), metric, dimension)
        assert (cell.value is None) == (cell.reason is not None)
        if isinstance(cell.value, (int, float)):
            assert BY_NAME[metric].low <= cell.value <= BY_NAME[metric].high


@given(
    st.floats(min_value=0, max_value=9999, allow_nan=False),
    st.sampled_from(["", " W", "W", " w"]),
)
def test_any_power_survives_being_written_and_read(watts: float, unit: str) -> None:
    read = parse_cell(f"{watts:.6f}{unit}", "power_usage", Dimension.WATT).value
    assert isinstance(read, (int, float))
    assert math.isclose(read, watts, abs_tol=1e-6)


@given(st.integers(min_value=0, max_value=16_000_000))
def test_any_amount_of_memory_is_exact(mebibytes: int) -> None:
    expected = Cell(mebibytes << 20, None, True)
    assert parse_cell(f"{mebibytes} MiB", "memory_used", Dimension.BYTES) == expected
    assert parse_cell(f"{mebibytes}", "memory_used", Dimension.BYTES, MIB) == expected


@given(st.sampled_from(sorted(UNITS, key=str)), st.text(alphabet="xyzqXYZQ", min_size=1, max_size=4))
def test_a_unit_of_nothing_known_is_refused(dimension: Dimension, unit: str) -> None:
    assert not parse_cell(f"5 {unit}", "", dimension).readable


def test_words_that_are_values_are_not_taken_for_nulls() -> None:
    assert null_reason("0") is None
    assert null_reason("Active") is None
    assert null_reason("590.48.01") is None
