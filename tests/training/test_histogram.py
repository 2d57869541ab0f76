"""Histograms: bins with counts, what is in no bin apart; lists, NumPy and tensors agree."""

from __future__ import annotations

import array
import math
import random

import pytest

from gpu_monitor.training.arrays import NoNumbers
from gpu_monitor.training.histogram import MOST_BINS, Histogram, histogram_of


def test_counts_by_hand() -> None:
    found = histogram_of([0, 1, 1, 2, 3, 4], bins=4)
    assert (found.low, found.high, found.counts) == (0.0, 4.0, [1, 2, 1, 2])  # 4 itself is in the last bin
    assert (found.count, found.minimum, found.maximum, found.mean) == (6, 0.0, 4.0, 11 / 6)
    # The squares about 11/6: 121/36, 25/36 twice, 1/36, 49/36, 169/36; a sixth of their sum is 65/36.
    assert found.deviation == pytest.approx(math.sqrt(65 / 36))


def test_what_is_not_finite_is_counted_apart() -> None:
    found = histogram_of([1.0, math.nan, math.inf, 2.0, -math.inf, math.nan], bins=2)
    assert (found.counts, found.count) == ([1, 1], 6)
    assert (found.nan, found.infinity, found.minus_infinity) == (2, 1, 1)
    assert (found.minimum, found.maximum, found.mean) == (1.0, 2.0, 1.5)
    assert found.data() == {
        "low": 1.0, "high": 2.0, "counts": [1, 1], "count": 6, "nan": 2, "infinity": 1, "minus_infinity": 1,
        "min": 1.0, "max": 2.0, "mean": 1.5, "deviation": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_finite(values: list[float]) -> None:
    found = histogram_of(values, bins=3)
    assert (found.low, found.high, found.counts, found.count) == (0.0, 1.0, [0, 0, 0], len(values))
    assert (found.minimum, found.maximum, found.mean, found.deviation) == (None, None, None, None)


def test_all_the_same_has_a_width() -> None:
    found = histogram_of([7.0] * 5, bins=4)
    assert (found.low, found.high, found.counts) == (6.5, 7.5, [0, 0, 5, 0])
    huge = histogram_of([1e300] * 5, bins=4)
    assert sum(huge.counts) == 5
    assert huge.low < 1e300 < huge.high


@pytest.mark.parametrize(
    "values",
    [
        [-1.7e308, 0.0, 1.7e308],
        [5e-324, 0.0],
        [1.0, 1.0 + 2**-52],
        [10**400, -(10**400), 3],
        [2**70, 2**70 + 1],
        [0.1] * 10 + [0.3],
    ],
)
def test_every_finite_value_is_in_a_bin(values: list[float]) -> None:
    for bins in (1, 2, 64, MOST_BINS):
        found = histogram_of(values, bins)
        assert sum(found.counts) == found.count - found.infinity - found.minus_infinity
        assert math.isfinite(found.low)
        assert math.isfinite(found.high)
        assert found.low < found.high


def test_shapes_do_not_matter() -> None:
    flat = histogram_of([1, 2, 3, 4], 2)
    assert histogram_of([[1, 2], [3, 4]], 2) == flat
    assert histogram_of((value for value in (1, 2, 3, 4)), 2) == flat
    assert histogram_of(array.array("d", [1, 2, 3, 4]), 2) == flat
    assert histogram_of({1, 2, 3, 4}, 2) == flat
    assert histogram_of(3.0, 1).counts == [1]


@pytest.mark.parametrize("bins", [0, -1, MOST_BINS + 1])
def test_numbers_of_bins_that_make_no_sense(bins: int) -> None:
    with pytest.raises(ValueError, match="bins"):
        histogram_of([1.0], bins)


@pytest.mark.parametrize("value", ["text", None, ["a"], [1, [2, 3]], [1j], object()])
def test_what_holds_no_numbers(value: object) -> None:
    with pytest.raises(NoNumbers):
        histogram_of(value)


def same(one: Histogram, other: Histogram) -> None:
    assert one.counts == other.counts
    for name in ("low", "high", "count", "nan", "infinity", "minus_infinity", "minimum", "maximum"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("mean", "deviation"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def some(count: int) -> list[float]:
    draw = random.Random(11)
    values = [draw.gauss(0, 1) for _ in range(count)]
    return [*values, math.nan, math.inf, -math.inf, math.nan]


def test_numpy_and_lists_agree() -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: histograms of arrays are not tested")
    values = some(5_000)
    same(histogram_of(numpy.array(values), 50), histogram_of(values, 50))
    single = numpy.array(values, numpy.float32)
    same(histogram_of(single.reshape(4, -1), 50), histogram_of(single.tolist(), 50))
    same(histogram_of(numpy.arange(-5, 6)), histogram_of(range(-5, 6)))
    same(histogram_of(numpy.array([True, False, True])), histogram_of([1, 0, 1]))
    assert histogram_of(numpy.float32(2.5), 1).counts == [1]
    theirs, edges = numpy.histogram(numpy.array(values[:-4]), 50)
    ours = histogram_of(values[:-4], 50)
    assert (ours.counts, ours.low, ours.high) == (theirs.tolist(), edges[0], edges[-1])


def test_large_arrays_go_in_pieces() -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: histograms of arrays are not tested")
    draw = numpy.random.default_rng(3)
    values = draw.normal(1000, 1, 2_500_000).astype(numpy.float32)
    found = histogram_of(values)
    wide = values.astype(numpy.float64)
    assert sum(found.counts) == found.count == values.size
    assert found.mean == pytest.approx(float(wide.mean()), rel=1e-12)
    assert found.deviation == pytest.approx(float(wide.std()), rel=1e-9)


def test_tensors_agree() -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: histograms of tensors are not tested"
    )
    values = some(5_000)
    tensor = torch.tensor(values, dtype=torch.float64)
    same(histogram_of(tensor, 50), histogram_of(values, 50))
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool):
        part = torch.tensor([0.0, 1.0, 1.5, -3.0]).to(kind).requires_grad_(kind.is_floating_point)
        same(histogram_of(part, 8), histogram_of(part.detach().tolist(), 8))
    same(
        histogram_of(tensor.reshape(4, -1)[:, ::2], 9),
        histogram_of(tensor.reshape(4, -1)[:, ::2].tolist(), 9),
    )
    with pytest.raises(NoNumbers, match="complex"):
        histogram_of(torch.zeros(2, dtype=torch.complex64))
