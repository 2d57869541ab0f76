# SPDX-License-Identifier: MIT
"""How values are spread: bins of equal width with counts, from anything that holds numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gpu_monitor.training.arrays import as_lists, as_numpy, as_tensor, in_pieces, loaded

MOST_BINS = 1024
_PIECE = 1 << 20
"""Numbers at a time: 8 MB of 64-bit floats beside the tensor, on the device that it is on."""


@dataclass
class Histogram:
    """`counts` of values in bins of equal width from `low` to `high`; the last one holds `high` as well.

    `count`: of all values; `nan`, `infinity` and `minus_infinity` of these are in no bin. `minimum`, `maximum`,
    `mean` and `deviation` (of the population) are those of the finite values, None where there is none.
    """

    low: float
    high: float
    counts: list[int]
    count: int = 0
    nan: int = 0
    infinity: int = 0
    minus_infinity: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    deviation: float | None = None

    def data(self) -> dict[str, Any]:
        """What a record holds; what is 0 or unknown is left out of the counts of values that are in no bin."""
        said: dict[str, Any] = {
            "low": self.low,
            "high": self.high,
            "counts": self.counts,
            "count": self.count,
        }
        for name in ("nan", "infinity", "minus_infinity"):
            if number := getattr(self, name):
                said[name] = number
        said |= {"min": self.minimum, "max": self.maximum, "mean": self.mean, "deviation": self.deviation}
        return said


@dataclass
class _Seen:
    """What a first pass over the values finds. Sums are of values scaled by a quarter where they are huge."""

    count: int = 0
    nan: int = 0
    infinity: int = 0
    minus_infinity: int = 0
    low: float = math.inf
    high: float = -math.inf
    means: list[tuple[int, float, float]] = field(default_factory=list)
    """Of each piece: how many finite values, their mean, and the sum of squares about it."""

    def mean_and_deviation(self) -> tuple[float | None, float | None]:
        """Of all pieces together (Chan, Golub and LeVeque's pairwise update)."""
        total, mean, squares = 0, 0.0, 0.0
        for count, piece_mean, piece_squares in self.means:
            both = total + count
            apart = piece_mean - mean
            squares += piece_squares + apart * apart * total * count / both
            mean += apart * count / both
            total = both
        if not total:
            return None, None
        return _finite(mean), _finite(math.sqrt(squares / total))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def histogram_of(values: object, bins: int = 64) -> Histogram:
    """The histogram of all values of an array, tensor, list or iterable of numbers, whatever its shape.

    A tensor is counted on its own device, in pieces; NumPy is used where the program has it, and not needed.
    Raises arrays.NoNumbers for what holds none; ValueError for a number of bins that makes no sense.
    """
    if not 1 <= bins <= MOST_BINS:
        raise ValueError(f"{bins} bins; there must be 1 to {MOST_BINS}")
    counting = _counting(values)
    seen = _Seen()
    for piece in counting.pieces():
        counting.look(piece, seen)
    low, high, scale = _range(seen.low, seen.high, bins)
    counts = [0] * bins
    if seen.low <= seen.high:
        for piece in counting.pieces():
            placed = counting.place(piece, low * scale, _factor(low, high, scale, bins), scale, bins)
            counts = [before + more for before, more in zip(counts, placed, strict=True)]
    known = seen.low <= seen.high
    mean, deviation = seen.mean_and_deviation()
    return Histogram(
        low, high, counts, seen.count, seen.nan, seen.infinity, seen.minus_infinity,
        seen.low if known else None, seen.high if known else None, mean, deviation,
    )  # fmt: skip


def _range(low: float, high: float, bins: int) -> tuple[float, float, float]:
    """Where the bins begin and end, and what values are multiplied by so that no difference overflows."""
    if low > high:
        return 0.0, 1.0, 1.0
    scale = 1.0 if math.isfinite(high - low) else 0.25
    if not math.isfinite(_factor(low, high, scale, bins)):  # all the same, or nearly
        half = max(0.5, math.ulp(low) * bins)
        return low - half, low + half, 1.0
    return low, high, scale


def _factor(low: float, high: float, scale: float, bins: int) -> float:
    width = high * scale - low * scale
    return bins / width if width > 0 and bins / width < math.inf else math.inf


def _as_float(value: float) -> float:
    """A number as a float; a whole one that no float can hold is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class _Plain:
    """Counts in lists of numbers."""

    def __init__(self, values: object) -> None:
        self._flat = [_as_float(value) for value in as_lists(values)[1]]

    def pieces(self) -> Iterator[list[float]]:
        """All of it at once: the numbers are in memory already."""
        if self._flat:
            yield self._flat

    def look(self, piece: list[float], seen: _Seen) -> None:
        """Take the piece into `seen`."""
        finite = [value for value in piece if math.isfinite(value)]
        seen.count += len(piece)
        seen.nan += sum(1 for value in piece if value != value)
        seen.infinity += sum(1 for value in piece if value == math.inf)
        seen.minus_infinity += sum(1 for value in piece if value == -math.inf)
        if finite:
            seen.low, seen.high = min(seen.low, min(finite)), max(seen.high, max(finite))
            mean = math.fsum(value / len(finite) for value in finite)
            squares = sum((value - mean) * (value - mean) for value in finite)
            seen.means.append((len(finite), mean, squares))

    def place(self, piece: list[float], low: float, factor: float, scale: float, bins: int) -> list[int]:
        """How many values of the piece are in each bin."""
        counts = [0] * bins
        for value in piece:
            if math.isfinite(value):
                counts[min(bins - 1, max(0, int((value * scale - low) * factor)))] += 1
        return counts


class _Numpy:
    """Counts in NumPy arrays."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._numpy: Any = loaded("numpy")

    def pieces(self) -> Iterator[Any]:
        """Pieces of 64-bit floats."""
        for piece in in_pieces(self._array, _PIECE):
            yield piece.astype(self._numpy.float64, copy=False)

    def look(self, piece: Any, seen: _Seen) -> None:
        """Take the piece into `seen`."""
        numpy = self._numpy
        finite = piece[numpy.isfinite(piece)]
        seen.count += int(piece.size)
        seen.nan += int(numpy.count_nonzero(numpy.isnan(piece)))
        seen.infinity += int(numpy.count_nonzero(piece == math.inf))
        seen.minus_infinity += int(numpy.count_nonzero(piece == -math.inf))
        if finite.size:
            seen.low, seen.high = min(seen.low, float(finite.min())), max(seen.high, float(finite.max()))
            with numpy.errstate(all="ignore"):
                mean = float(finite.mean())
                squares = float(numpy.square(finite - mean).sum())
            seen.means.append((int(finite.size), mean, squares))

    def place(self, piece: Any, low: float, factor: float, scale: float, bins: int) -> list[int]:
        """How many values of the piece are in each bin."""
        numpy = self._numpy
        finite = piece[numpy.isfinite(piece)]
        numbers = ((finite * scale - low) * factor).astype(numpy.int64).clip(0, bins - 1)
        counts: list[int] = numpy.bincount(numbers, minlength=bins).tolist()
        return counts


class _Torch:
    """Counts in PyTorch tensors, where they are. `bincount` without weights is deterministic everywhere."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        torch: Any = loaded("torch")
        self._torch = torch
        # Apple's GPUs have no 64-bit floats.
        self._type = torch.float32 if tensor.device.type == "mps" else torch.float64

    def pieces(self) -> Iterator[Any]:
        """Pieces of floats, on the tensor's device."""
        for piece in in_pieces(self._tensor, _PIECE):
            yield piece.to(self._type)

    def look(self, piece: Any, seen: _Seen) -> None:
        """Take the piece into `seen`."""
        torch = self._torch
        finite = piece[torch.isfinite(piece)]
        seen.count += piece.numel()
        if finite.numel() < piece.numel():
            seen.nan += int(torch.isnan(piece).sum())
            seen.infinity += int((piece == math.inf).sum())
            seen.minus_infinity += int((piece == -math.inf).sum())
        if finite.numel():
            seen.low, seen.high = min(seen.low, float(finite.min())), max(seen.high, float(finite.max()))
            mean = finite.mean()
            squares = (finite - mean).square().sum()
            seen.means.append((finite.numel(), float(mean), float(squares)))

    def place(self, piece: Any, low: float, factor: float, scale: float, bins: int) -> list[int]:
        """How many values of the piece are in each bin."""
        torch = self._torch
        finite = piece[torch.isfinite(piece)]
        numbers = ((finite * scale - low) * factor).to(torch.int64).clamp(0, bins - 1)
        counts: list[int] = torch.bincount(numbers, minlength=bins).tolist()
        return counts


def _counting(values: object) -> _Plain | _Numpy | _Torch:
    tensor = as_tensor(values)
    if tensor is not None and not tensor.dtype.is_complex:
        return _Torch(tensor)
    array = as_numpy(values)
    return _Plain(values) if array is None else _Numpy(array)
