# SPDX-License-Identifier: MIT
"""The binary columns of series over one stretch of a log, with a pyramid of extremes above each."""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpu_monitor.training.scan import Axis, Column

FIRST, WIDER = 16, 4
"""Points under an entry of the lowest level of a pyramid, and entries under one of the next."""
_NARROW = 1 << 32
NAN = float("nan")


class DamagedIndex(Exception):
    """An index does not hold what it says: it is made again."""


class AxisPiece(msgspec.Struct, array_like=True):
    """Where an axis lies in an index. `stride` None: the steps are written out; else they begin at `step` and grow by
    it. `at_wide`: whether times take 8 bytes, and not 4 above `at`. `check`: the CRC-32 of all of it; `level_checks`:
    of each level alone, the lowest first."""

    offset: int
    length: int
    check: int
    count: int
    step: int
    stride: int | None
    at: int
    at_wide: bool
    level_checks: list[int]


class Piece(msgspec.Struct, array_like=True):
    """Where the values of a series lie in an index, and the number of its axis in the same table. Checks as above."""

    offset: int
    length: int
    check: int
    count: int
    axis: int
    level_checks: list[int]


class Level(msgspec.Struct):
    """One entry for each `width` of `count` points, in order: the last point, and the least and greatest finite value.

    The last entry may have fewer points. NaN: no finite value. Where `width` is 1, the extremes are the values as they
    are.
    """

    width: int
    count: int
    steps: Sequence[int]
    ats: Sequence[int]
    base: int
    values: Sequence[float]
    least: Sequence[float]
    most: Sequence[float]


def pack_axis(axis: Axis, offset: int) -> tuple[AxisPiece, bytes]:
    """An axis for the place `offset` in an index, and its bytes: steps, times, and both at each level's ends."""
    count = len(axis.steps)
    stride = _stride(axis.steps)
    low, high = min(axis.ats) + axis.base, max(axis.ats) + axis.base
    is_wide = high - low >= _NARROW
    parts: list[array[Any]] = [] if stride is not None else [array("q", axis.steps)]
    away = axis.base if is_wide else axis.base - low
    times = axis.ats if away == 0 else [at + away for at in axis.ats]
    parts.append(array("q" if is_wide else _FOUR, times))
    levels = []
    for width in _widths(count):
        ends = _ends(count, width)
        steps = array("q", [axis.steps[end] for end in ends])
        levels.append(_bytes(steps) + _bytes(array("q", [axis.ats[end] + axis.base for end in ends])))
    data = b"".join([*map(_bytes, parts), *levels])
    first, at = axis.steps[0], 0 if is_wide else low
    checks = [zlib.crc32(level) for level in levels]
    return AxisPiece(offset, len(data), zlib.crc32(data), count, first, stride, at, is_wide, checks), data


def pack_values(values: Sequence[float], offset: int, axis: int) -> tuple[Piece, bytes]:
    """Values for the place `offset` in an index, and their bytes: all, then last, least and greatest at each level."""
    count = len(values)
    points = values if isinstance(values, array) else array("d", values)
    levels = []
    least: Sequence[float] = points
    most: Sequence[float] = points
    group = FIRST
    for width in _widths(count):
        if group == FIRST:
            least, most = _extremes_of(points, FIRST)
        else:
            least = _extremes_of(least, WIDER)[0]
            most = _extremes_of(most, WIDER)[1]
        group = WIDER
        last = array("d", [values[end] for end in _ends(count, width)])
        levels.append(b"".join(map(_bytes, (last, array("d", least), array("d", most)))))
    data = b"".join([_bytes(points), *levels])
    checks = [zlib.crc32(level) for level in levels]
    return Piece(offset, len(data), zlib.crc32(data), count, axis, checks), data


def unpack_axis(piece: AxisPiece, data: bytes) -> Axis:
    """The axis of a piece. DamagedIndex where the bytes are not those that were packed."""
    _check(piece, data)
    steps: Sequence[int]
    if piece.stride is None:
        steps, place = _take("q", data, 0, piece.count)
    else:
        steps, place = _range(piece.step, piece.stride, piece.count), 0
    ats, _ = _take("q" if piece.at_wide else _FOUR, data, place, piece.count)
    return Axis(steps, ats, piece.at)


def unpack_values(piece: Piece, data: bytes) -> array[float]:
    """The values of a piece. DamagedIndex as above."""
    _check(piece, data)
    return _take("d", data, 0, piece.count)[0]


def level_of(axis: AxisPiece, piece: Piece, read: Callable[[int, int], bytes], height: int) -> Level | None:
    """Level `height` (0 the lowest) of a series; None where it has none so high. `read(offset, length)`.

    DamagedIndex where the bytes are not those that were packed.
    """
    count = piece.count
    widths = _widths(count)
    if height >= len(widths):
        return None
    sizes = [len(_ends(count, width)) for width in widths]
    before, size, width = sum(sizes[:height]), sizes[height], widths[height]
    base = count * ((0 if axis.stride is not None else 8) + (8 if axis.at_wide else 4))
    places = read(axis.offset + base + before * 16, size * 16)
    figures = read(piece.offset + count * 8 + before * 24, size * 24)
    if zlib.crc32(places) != axis.level_checks[height] or zlib.crc32(figures) != piece.level_checks[height]:
        raise DamagedIndex("a level is damaged")
    steps, ats = _taken("qq", places, size)
    values, least, most = _taken("ddd", figures, size)
    return Level(width, count, steps, ats, 0, values, least, most)


def level_above(column: Column, width: int) -> Level:
    """Entries of `width` points of a column."""
    axis, values, count = column.axis, column.values, len(column.values)
    if width == 1:
        return Level(1, count, axis.steps, axis.ats, axis.base, values, values, values)
    ends = _ends(count, width)
    least, most = _extremes_of(values, width)
    steps, ats = [axis.steps[end] for end in ends], [axis.ats[end] for end in ends]
    return Level(width, count, steps, ats, axis.base, [values[end] for end in ends], least, most)


def extremes(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest finite value; NaN twice where there is none."""
    total = sum(values)
    if total - total != 0:
        values = [value for value in values if value - value == 0]
        if not values:
            return NAN, NAN
    return min(values), max(values)


def least_of(values: Sequence[float]) -> float:
    """The least finite value; NaN where there is none."""
    total = sum(values)
    return min(values) if total - total == 0 else extremes(values)[0]


def most_of(values: Sequence[float]) -> float:
    """The greatest finite value; NaN where there is none."""
    total = sum(values)
    return max(values) if total - total == 0 else extremes(values)[1]


def _extremes_of(values: Sequence[float], width: int) -> tuple[list[float], list[float]]:
    """The extremes of each bucket of `width` values."""
    pairs = [extremes(values[start : start + width]) for start in range(0, len(values), width)]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _widths(count: int) -> list[int]:
    """How many points lie under an entry of each level: up to the one that has a single entry."""
    widths: list[int] = []
    width = FIRST
    while count > width:
        widths.append(width)
        width *= WIDER
    return widths


def _ends(count: int, width: int) -> Sequence[int]:
    """The places of the last points of buckets."""
    return [*range(width - 1, count - 1, width), count - 1]


def _check(piece: AxisPiece | Piece, data: bytes) -> None:
    if len(data) != piece.length or zlib.crc32(data) != piece.check:
        raise DamagedIndex("a piece is damaged")


def _taken(codes: str, data: bytes, size: int) -> list[array[Any]]:
    columns: list[array[Any]] = []
    place = 0
    for code in codes:
        column, place = _take(code, data, place, size)
        columns.append(column)
    return columns


def _stride(steps: Sequence[int]) -> int | None:
    """How steps grow where they grow evenly; None where they do not."""
    if len(steps) == 1:
        return 0
    stride = steps[1] - steps[0]
    even = _range(steps[0], stride, len(steps))
    return stride if list(even) == list(steps) else None


def _range(start: int, stride: int, count: int) -> Sequence[int]:
    return range(start, start + stride * count, stride) if stride else [start] * count


_FOUR = "I" if array("I").itemsize == 4 else "L"


def _bytes(part: array[Any]) -> bytes:
    """Little-endian bytes of a column."""
    if sys.byteorder == "big":
        part = array(part.typecode, part)
        part.byteswap()
    return part.tobytes()


def _take(code: str, data: bytes, place: int, count: int) -> tuple[array[Any], int]:
    column = array(code)
    end = place + column.itemsize * count
    column.frombytes(data[place:end])
    if sys.byteorder == "big":
        column.byteswap()
    if len(column) != count:
        raise DamagedIndex("a piece is cut off")
    return column, end
