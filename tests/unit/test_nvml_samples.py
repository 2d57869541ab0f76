"""Draining the driver's sample buffers."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from gpu_monitor.sources.gpu.nvml_child.library import DeviceGone
from gpu_monitor.sources.gpu.nvml_child.samples import GPU_UTILIZATION, Buffer, Drain

DOUBLE, UINT, ULONGLONG = 0, 1, 3
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE, LOST = 3, 4, 6, 7, 15
T0 = 1_700_000_000_000_000  # µs


class Driver:
    """nvmlDeviceGetSamples over a list of (stamp, value)."""

    def __init__(self, samples: list[tuple[int, float]], kind: int = UINT) -> None:
        self.samples, self.kind = samples, kind
        self.code = 0
        self.strict = True

    def find(self, name: str) -> Any:
        assert name == "nvmlDeviceGetSamples"
        return self._call

    def _call(self, handle: Any, kind: int, seen: Any, kind_ref: Any, count_ref: Any, array: Any) -> int:
        if self.code:
            return self.code
        room = count_ref._obj.value
        fresh = [sample for sample in self.samples if not self.strict or sample[0] > seen.value]
        if not fresh:
            return NOT_FOUND
        if len(fresh) > room:
            return INSUFFICIENT_SIZE
        kind_ref._obj.value, count_ref._obj.value = self.kind, len(fresh)
        for place, (stamp, value) in enumerate(fresh):
            array[2 * place] = stamp
            target = ctypes.addressof(array) + 16 * place + 8
            if self.kind == DOUBLE:
                ctypes.c_double.from_address(target).value = value
            else:
                # A driver writes four bytes of the union; what is above them is whatever was there.
                ctypes.c_uint64.from_address(target).value = int(value) | (
                    0xDEAD << 32 if self.kind == UINT else 0
                )
        return 0


def drain(driver: Driver, since: int = T0, scale: float = 1.0) -> Drain:
    return Drain(driver, ctypes.c_void_p(1), Buffer(), GPU_UTILIZATION, "gpu_utilization", scale, since)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [UINT, ULONGLONG, DOUBLE])
def test_mean_and_extremes_of_each_type_of_value(kind: int) -> None:
    driver = Driver([(T0 + 1, 10), (T0 + 2, 40), (T0 + 3, 25)], kind)
    assert drain(driver).take() == (25.0, 10.0, 40.0, 3)


def test_scale() -> None:
    assert drain(Driver([(T0 + 1, 250_000)]), scale=0.001).take() == pytest.approx((250.0, 250.0, 250.0, 1))


def test_each_sample_once_also_where_the_driver_repeats_them() -> None:
    driver = Driver([(T0 + 1, 10), (T0 + 2, 20)])
    one = drain(driver)
    assert one.take() == (15.0, 10.0, 20.0, 2)
    assert one.take() is None
    driver.strict = False
    driver.samples.append((T0 + 3, 99))
    assert one.take() == (99.0, 99.0, 99.0, 1)
    assert one.take() is None


def test_samples_in_any_order() -> None:
    driver = Driver([(T0 + 9, 1), (T0 + 3, 5), (T0 + 6, 3)])
    one = drain(driver)
    assert one.take() == (3.0, 1.0, 5.0, 3)
    driver.samples.append((T0 + 8, 100))
    assert one.take() is None, "older than the newest that was seen"


def test_a_driver_that_keeps_order_is_taken_at_its_word_with_the_same_result() -> None:
    driver = Driver([(T0 + number, number) for number in range(1, 31)])
    one = drain(driver)
    assert one.take() == (15.5, 1.0, 30.0, 30)
    driver.samples += [(T0 + 31, 40), (T0 + 32, 60)]
    assert one.take() == (50.0, 40.0, 60.0, 2)
    driver.strict = False
    driver.samples.append((T0 + 33, 7))
    assert one.take() == (7.0, 7.0, 7.0, 1)
    assert one.take() is None


def test_what_was_before_us_is_left_out() -> None:
    driver = Driver([(T0 - 2, 90), (T0 - 1, 80), (T0 + 1, 10)])
    assert drain(driver).take() == (10.0, 10.0, 10.0, 1)


def test_stamps_of_another_clock_count_from_the_second_time_on() -> None:
    driver = Driver([(5_000_000, 90), (6_000_000, 80)])
    one = drain(driver)
    assert one.take() is None
    driver.samples.append((7_000_000, 10))
    assert one.take() == (10.0, 10.0, 10.0, 1)


def test_a_buffer_larger_than_ours() -> None:
    driver = Driver([(T0 + number, number % 100) for number in range(1, 2001)])
    mean, low, high, count = drain(driver).take() or (0, 0, 0, 0)
    assert (low, high, count) == (0, 99, 2000)
    assert mean == pytest.approx(49.5)


@pytest.mark.parametrize(
    ("code", "reason"), [(NOT_SUPPORTED, "unsupported"), (NO_PERMISSION, "denied"), (999, None)]
)
def test_errors(code: int, reason: str | None) -> None:
    driver = Driver([(T0 + 1, 10)])
    driver.code = code
    one = drain(driver)
    assert one.take() is None
    assert one.reason == reason
    driver.code = LOST
    with pytest.raises(DeviceGone):
        one.take()


def test_a_type_that_we_do_not_know() -> None:
    driver = Driver([(T0 + 1, 10)], kind=77)
    assert drain(driver).take() is None
