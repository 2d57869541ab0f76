# SPDX-License-Identifier: MIT
"""Arrays as they come: NumPy's, tensors, buffers, nested lists; no library is imported that is not there already."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_DEEPEST = 8
"""Levels of nested lists that are looked into."""
_BUFFER_NUMBERS = "?bBhHiIlLqQfdnN"
"""The formats of buffers (module struct) that are numbers."""


class NoNumbers(Exception):
    """A value is no array of numbers; the text says why, in words that go on after the name of it."""


def loaded(module: str) -> Any | None:
    """A module that the caller's program has imported; None where it has not."""
    return sys.modules.get(module)


def as_tensor(value: object) -> Any | None:
    """`value` where it is a PyTorch tensor, without its graph; None for anything else."""
    torch = loaded("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is None or not issubclass(type(value), tensor):
        return None
    given: Any = value
    detached = given.detach()
    if detached.layout is not torch.strided:  # type: ignore[union-attr]  # there is a tensor, so there is torch
        detached = detached.to_dense()
    return detached.dequantize() if detached.is_quantized else detached


def as_numpy(value: object) -> Any | None:
    """`value` as a NumPy array of real numbers, without a copy where it can be; None where NumPy is not in use.

    Also None for what is no array (lists, numbers). Floats that NumPy has no type for (bfloat16, 8 bits) come as
    float32. Raises NoNumbers for texts, objects and complex numbers.
    """
    numpy = loaded("numpy")
    if numpy is None or not hasattr(numpy, "ndarray"):
        return None
    tensor = as_tensor(value)
    if tensor is not None:
        array = _tensor_numpy(tensor)
    elif isinstance(value, numpy.ndarray):
        array = value
    elif hasattr(value, "__array__") or hasattr(value, "__cuda_array_interface__"):
        fetch = getattr(value, "get", None) if hasattr(value, "__cuda_array_interface__") else None
        array = fetch() if callable(fetch) else numpy.asarray(value)
    else:
        return None
    return None if array is None else _real(numpy, array)


def _tensor_numpy(tensor: Any) -> Any | None:
    """A tensor as a NumPy array; None where this PyTorch was built for another NumPy."""
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except RuntimeError:
        return None


def _real(numpy: Any, array: Any) -> Any:
    kind = array.dtype.kind
    if kind in "biuf":
        return array
    if kind == "c":
        raise NoNumbers("holds complex numbers; log their size or their parts")
    try:
        return array.astype(numpy.float32 if kind == "V" else numpy.float64)
    except (TypeError, ValueError):
        raise NoNumbers(f"holds no numbers ({array.dtype})") from None


def as_lists(value: object) -> tuple[tuple[int, ...], list[float]]:
    """Shape and numbers, row by row, of what is no NumPy array: a tensor, a buffer, nested lists, an iterable.

    Raises NoNumbers where it is none of these, or its rows have different lengths.
    """
    tensor = as_tensor(value)
    if tensor is not None:
        if tensor.dtype.is_complex:
            raise NoNumbers("holds complex numbers; log their size or their parts")
        return tuple(tensor.shape), tensor.reshape(-1).tolist()
    if isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "__array_interface__"):
        return _from_buffer(value)
    if isinstance(value, (int, float)):
        return (), [value]
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise NoNumbers(f"is a {type(value).__name__}, no array of numbers")
    if not isinstance(value, Sequence):
        try:
            return _from_buffer(value)
        except NoNumbers:
            value = list(value)
    flat: list[float] = []
    return _unfold(value, flat, _DEEPEST), flat


def _from_buffer(value: object) -> tuple[tuple[int, ...], list[float]]:
    try:
        view = memoryview(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise NoNumbers(f"is a {type(value).__name__}, no array of numbers") from None
    if view.format.lstrip("@=<") not in tuple(_BUFFER_NUMBERS) or view.shape is None:
        raise NoNumbers(f"holds no numbers (format {view.format!r})")
    return view.shape, list(memoryview(view.tobytes()).cast(view.format.lstrip("@=<")))  # type: ignore[call-overload]


def _unfold(value: Sequence[Any], flat: list[float], levels: int) -> tuple[int, ...]:
    """Append the numbers of nested sequences to `flat`; their shape."""
    if not levels:
        raise NoNumbers(f"is nested more than {_DEEPEST} levels deep")
    shapes: set[tuple[int, ...]] = set()
    for item in value:
        if isinstance(item, (int, float)):
            flat.append(item)
            shapes.add(())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            shapes.add(_unfold(item, flat, levels - 1))
        else:
            flat.append(_number(item))
            shapes.add(())
    if len(shapes) > 1:
        raise NoNumbers("has rows of different lengths")
    return (len(value), *(shapes.pop() if shapes else ()))


def _number(item: object) -> float:
    """A scalar of another library (0-d arrays and tensors) as a number."""
    try:
        return float(item)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, RuntimeError):  # the last is what tensors of several numbers say
        raise NoNumbers(f"holds a {type(item).__name__}, which is no number") from None


def in_pieces(array: Any, size: int) -> Iterator[Any]:
    """A NumPy array or tensor, flat, in pieces of at most `size` numbers: views where they can be."""
    flat = array.reshape(-1)
    for start in range(0, flat.shape[0], size):
        yield flat[start : start + size]
