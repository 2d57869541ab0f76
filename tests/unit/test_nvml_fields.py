"""Field values: what is asked for, and what the eight bytes of an answer mean."""

from __future__ import annotations

import ctypes
import struct

import pytest

from gpu_monitor.sources.gpu.nvml_child.fields import Fields
from gpu_monitor.sources.gpu.nvml_child.library import DeviceGone, DriverGone

ENTRY = "=IIqqIIQ"  # field, scope, stamp, latency, type, code, value
SIZE = struct.calcsize(ENTRY)
ALL_LINKS = 2**32 - 1
UINT, ULONGLONG, DOUBLE, SIGNED = 1, 3, 0, 5
NOT_SUPPORTED, NO_PERMISSION, LOST, UNINITIALIZED, UNKNOWN = 3, 4, 15, 1, 999

Answer = tuple[int, int, int]
"""Type, code, bits."""


class Driver:
    """nvmlDeviceGetFieldValues with answers by field and scope; everything else is not supported."""

    def __init__(self, answers: dict[tuple[int, int], Answer]) -> None:
        self.answers = answers
        self.asked: list[list[tuple[int, int]]] = []
        self.code = 0

    def call(self, name: str, handle: object, count: int, array: ctypes.Array[ctypes.c_char]) -> int:
        assert name == "nvmlDeviceGetFieldValues"
        data = memoryview(array).cast("B")
        asked = []
        for place in range(count):
            field, scope = struct.unpack_from("=II", data, place * SIZE)
            asked.append((field, scope))
            kind, code, bits = self.answers.get((field, scope), (0, NOT_SUPPORTED, 0))
            struct.pack_into(ENTRY, data, place * SIZE, field, scope, 0, 0, kind, code, bits)
        self.asked.append(asked)
        return self.code


def fields(driver: Driver) -> Fields:
    return Fields(driver, ctypes.c_void_p(1))  # type: ignore[arg-type]


def read(driver: Driver) -> tuple[dict[str, object], dict[str, str]]:
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    fields(driver).read(values, reasons)
    return values, reasons


def test_units_and_sums() -> None:
    values, reasons = read(
        Driver(
            {
                (82, 0): (UINT, 0, 61),
                (186, 0): (UINT, 0, 123_456),
                (197, 0): (ULONGLONG, 0, 5_000_000_000),
                (138, ALL_LINKS): (ULONGLONG, 0, 3),
                (142, 0): (UINT, 0, 4),
                (143, 0): (UINT, 0, 5),
                (74, 0): (ULONGLONG, 0, 2_500_000_000),
                (269, 0): (ULONGLONG, 0, 0),
                (270, 0): (ULONGLONG, 0, 1_000_000_000),
                (271, 0): (ULONGLONG, 0, 0),
                (230, 0): (UINT, 0, 4),
            }
        )
    )
    assert values == {
        "memory_temperature": 61,
        "power_instant": pytest.approx(123.456),
        "pcie_tx": 5_000_000_000,
        "nvlink_tx": 3072,
        "remapped_rows": 9,
        "throttle_time": (2.5, 0.0, 1.0, 0.0),
        "recovery_action": "drain_and_reset",
    }
    assert reasons["pcie_rx"] == "unsupported"


def test_only_what_was_answered_is_asked_again_in_one_call() -> None:
    driver = Driver({(82, 0): (UINT, 0, 61), (29, 0): (ULONGLONG, 0, 1), (30, 0): (ULONGLONG, 0, 2)})
    asked = fields(driver)
    driver.asked.clear()
    values: dict[str, object] = {}
    asked.read(values, {})
    assert driver.asked == [[(82, 0), (29, 0), (30, 0)]]
    assert values == {"memory_temperature": 61, "retired_pages": 3}


def test_later_rounds_take_what_changed() -> None:
    """The second reading on is decoded by what was learnt in the first: types, masks and blanks still count."""
    driver = Driver(
        {
            (82, 0): (UINT, 0, 61), (197, 0): (ULONGLONG, 0, 7),
            (142, 0): (UINT, 0, 1), (143, 0): (UINT, 0, 2), (74, 0): (ULONGLONG, 0, 0), (75, 0): (ULONGLONG, 0, 0),
        }
    )  # fmt: skip
    asked = fields(driver)
    for _ in range(2):
        asked.read({}, {})
    driver.answers |= {
        (82, 0): (UINT, 0, 0xABCD_0000_0000_0040), (197, 0): (ULONGLONG, 0, 0xFFFF_FFFF),
        (143, 0): (UINT, 0, 9), (75, 0): (ULONGLONG, 0, 3_000_000_000),
    }  # fmt: skip
    values: dict[str, object] = {}
    asked.read(values, {})
    assert values == {
        "memory_temperature": 64, "pcie_tx": 0xFFFF_FFFF, "remapped_rows": 10, "throttle_time": (0.0, 3.0)
    }  # fmt: skip
    driver.answers |= {
        (82, 0): (UINT, 0, 0xFFFF_FFFF),
        (142, 0): (UINT, 0, 0xFFFF_FFFF),
        (75, 0): (ULONGLONG, 999, 5),
    }
    values, reasons = {}, {}
    asked.read(values, reasons)
    assert values == {"pcie_tx": 0xFFFF_FFFF}
    assert {name: reasons[name] for name in ("memory_temperature", "remapped_rows", "throttle_time")} == {
        "memory_temperature": "invalid", "remapped_rows": "invalid", "throttle_time": "failed"
    }  # fmt: skip
    driver.answers |= {(82, 0): (ULONGLONG, 0, 62), (142, 0): (ULONGLONG, 0, 1), (75, 0): (ULONGLONG, 0, 0)}
    for _ in range(2):
        values = {}
        asked.read(values, {})
        assert (values["memory_temperature"], values["remapped_rows"]) == (62, 10)


def test_half_of_a_sum_is_no_sum() -> None:
    values, reasons = read(Driver({(142, 0): (UINT, 0, 4)}))
    assert "remapped_rows" not in values
    assert reasons["remapped_rows"] == "unsupported"


def test_an_older_driver_tells_throttling_by_two_counters() -> None:
    values, _ = read(Driver({(74, 0): (ULONGLONG, 0, 1_000_000_000), (75, 0): (ULONGLONG, 0, 2_000_000_000)}))
    assert values == {"throttle_time": (1.0, 2.0)}


def test_a_byte_counter_of_32_bits_is_none() -> None:
    """At 64 GB/s it would wrap 15 times a second."""
    values, reasons = read(Driver({(197, 0): (UINT, 0, 12345), (198, 0): (ULONGLONG, 0, 12345)}))
    assert values == {"pcie_rx": 12345}
    assert reasons["pcie_tx"] == "unsupported"


def test_nvlink_bytes_by_link_where_there_is_no_total() -> None:
    answers: dict[tuple[int, int], Answer] = {(91, 0): (UINT, 0, 3)}
    answers |= {(202, link): (ULONGLONG, 0, 10**12 + link) for link in range(3)}
    answers |= {(204, link): (ULONGLONG, 0, 5) for link in range(3)}
    values, reasons = read(Driver(answers))
    assert values == {"nvlink_tx": 3 * 10**12 + 3, "nvlink_rx": 15}
    assert "nvlink_tx" not in reasons


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (UINT, 2**32 - 1),
        (ULONGLONG, 2**64 - 1),
        (ULONGLONG, 0x7FFFFFFFFFFFFFF0),  # DCGM's blank
        (ULONGLONG, 0x7FFFFFFFFFFFFFF2),  # DCGM's "not found"
        (99, 5),
    ],
)
def test_blanks_are_invalid(kind: int, bits: int) -> None:
    driver = Driver({(82, 0): (UINT, 0, 50)})
    asked = fields(driver)
    driver.answers[82, 0] = (kind, 0, bits)
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    asked.read(values, reasons)
    assert (values, reasons["memory_temperature"]) == ({}, "invalid")


@pytest.mark.parametrize(
    ("kind", "bits", "value"),
    [
        (UINT, 0xABCD_0000_0000 | 42, 42),  # the rest of the union may hold anything
        (DOUBLE, struct.unpack("=Q", struct.pack("=d", 42.5))[0], 42.5),
        (SIGNED, struct.unpack("=Q", struct.pack("=iI", -5, 7))[0], -5),
        (4, struct.unpack("=Q", struct.pack("=q", -(2**40)))[0], -(2**40)),
        (6, 0xFFFF_FFFF_0000 | 1000, 1000),
    ],
)
def test_every_type_of_value(kind: int, bits: int, value: float) -> None:
    values, _ = read(Driver({(82, 0): (kind, 0, bits)}))
    assert values["memory_temperature"] == value


@pytest.mark.parametrize(
    ("code", "reason"), [(NOT_SUPPORTED, "unsupported"), (NO_PERMISSION, "denied"), (UNKNOWN, "failed")]
)
def test_an_error_at_the_first_question_and_later(code: int, reason: str) -> None:
    _, reasons = read(Driver({(82, 0): (UINT, code, 0)}))
    assert reasons["memory_temperature"] == reason
    driver = Driver({(82, 0): (UINT, 0, 40)})
    asked = fields(driver)
    driver.answers[82, 0] = (UINT, code, 0)
    later: dict[str, str] = {}
    asked.read({}, later)
    assert later["memory_temperature"] == reason


def test_the_whole_call_fails() -> None:
    driver = Driver({(82, 0): (UINT, 0, 40)})
    asked = fields(driver)
    driver.code = UNKNOWN
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    asked.read(values, reasons)
    assert (values, reasons["memory_temperature"]) == ({}, "failed")
    for code, error in ((LOST, DeviceGone), (UNINITIALIZED, DriverGone)):
        driver.code = code
        with pytest.raises(error):
            asked.read({}, {})


def test_a_field_that_says_the_gpu_is_lost_speaks_for_the_gpu() -> None:
    with pytest.raises(DeviceGone):
        read(Driver({(82, 0): (UINT, LOST, 0)}))
