# SPDX-License-Identifier: MIT
"""Arrays as pictures: rows of 8-bit pixels out of HW, HWC and CHW arrays of bytes, booleans or fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_monitor.training.arrays import NoNumbers, as_lists, as_numpy, as_tensor, loaded
from gpu_monitor.training.png import size_problem

LAYOUTS = ("HW", "HWC", "CHW")
_CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Picture:
    """Rows of pixels, 8 bits a channel. `is_clipped`: some value lay outside what the array's type may hold."""

    pixels: bytes
    width: int
    height: int
    channels: int
    is_clipped: bool = False


def picture_of(value: object, layout: str | None = None) -> Picture:
    """The picture in an array: HW, HWC or CHW; leading axes of length 1 are left out.

    Whole numbers are 0 to 255, booleans black and white, floats 0 to 1 (NaN is black); what lies outside is
    clipped, and said. Where both could be meant, tensors are CHW and everything else HWC, unless `layout` says.
    Raises NoNumbers for what is no such array, or is absurdly large.
    """
    if layout is not None and layout not in LAYOUTS:
        raise NoNumbers(f"has no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    is_tensor = as_tensor(value) is not None
    array = as_numpy(value)
    if array is not None:
        shape = tuple(int(length) for length in array.shape)
    else:
        shape, flat = as_lists(value)
    while len(shape) > 2 and shape[0] == 1 and len(shape) > (2 if layout == "HW" else 3):
        shape = shape[1:]
    chosen = layout or _layout(shape, is_tensor)
    height, width, channels = _sizes(shape, chosen)
    if array is not None:
        pixels, is_clipped = _from_numpy(array.reshape(shape), chosen)
    else:
        pixels, is_clipped = _from_numbers(flat, is_floating=_is_floating(value, flat))
        if chosen == "CHW":
            pixels = _interleaved(pixels, channels)
    return Picture(pixels, width, height, channels, is_clipped)


def _layout(shape: Sequence[int], is_tensor: bool) -> str:
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3:
        raise NoNumbers(f"has the shape {tuple(shape)}; a picture is HW, HWC or CHW")
    fits = {"CHW": shape[0] in _CHANNELS, "HWC": shape[2] in _CHANNELS}
    for name in ("CHW", "HWC") if is_tensor else ("HWC", "CHW"):
        if fits[name]:
            return name
    raise NoNumbers(f"has the shape {tuple(shape)}: no axis of 1 to 4 channels comes first or last")


def _sizes(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """Height, width and channels; NoNumbers where the shape does not fit, or is refused for its size."""
    if len(shape) != len(layout):
        raise NoNumbers(f"has the shape {tuple(shape)}, which is not {layout}")
    named = dict(zip(layout, shape, strict=True))
    channels = named.get("C", 1)
    if channels not in _CHANNELS:
        raise NoNumbers(f"has {channels} channels; a picture has 1 to 4")
    problem = size_problem(named["W"], named["H"])
    if problem is not None:
        raise NoNumbers(problem)
    return named["H"], named["W"], channels


def _from_numpy(array: Any, layout: str) -> tuple[bytes, bool]:
    numpy: Any = loaded("numpy")
    if layout == "CHW":
        array = array.transpose(1, 2, 0)
    kind, is_clipped = array.dtype.kind, False
    if kind == "b":
        array = array.astype(numpy.uint8) * 255
    elif kind == "f":
        if array.dtype.itemsize < 4:
            array = array.astype(numpy.float32)
        known = numpy.nan_to_num(array, nan=0.0, posinf=2.0, neginf=-1.0)
        clipped = known.clip(0, 1)
        is_clipped = bool((known != clipped).any())
        array = (clipped * 255 + 0.5).astype(numpy.uint8)
    elif array.dtype != numpy.uint8:
        clipped = array.clip(0, 255)
        is_clipped = bool((array != clipped).any())
        array = clipped.astype(numpy.uint8)
    return array.tobytes(), is_clipped


def _is_floating(value: object, flat: Sequence[float]) -> bool:
    tensor = as_tensor(value)
    if tensor is not None:
        return bool(tensor.dtype.is_floating_point)
    return any(isinstance(number, float) for number in flat)


def _from_numbers(flat: Sequence[float], is_floating: bool) -> tuple[bytes, bool]:
    """8-bit values of numbers in a list."""
    if flat and all(isinstance(number, bool) for number in flat):
        return bytes(255 if number else 0 for number in flat), False
    pixels, is_clipped = bytearray(), False
    top = 1 if is_floating else 255
    for number in flat:
        if number != number:
            number = 0
        inside = min(max(number, 0), top)
        is_clipped = is_clipped or inside != number
        pixels.append(math.floor(inside * 255 + 0.5) if is_floating else int(inside))
    return bytes(pixels), is_clipped


def _interleaved(planes: bytes, channels: int) -> bytes:
    """One plane after the other as pixels."""
    size = len(planes) // channels
    pixels = bytearray(len(planes))
    for channel in range(channels):
        pixels[channel::channels] = planes[channel * size : (channel + 1) * size]
    return bytes(pixels)
