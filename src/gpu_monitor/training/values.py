# SPDX-License-Identifier: MIT
"""Numbers and plain data out of what training code holds: tensors, arrays, scalars of libraries nobody imports here."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.wire.training import written

_WHOLE = 1 << 63
"""Beyond this size whole numbers become floats: JSON readers take no longer ones."""
_DEEPEST = 16
"""Levels of nested data that are kept; what lies deeper becomes text."""
_LONGEST_TEXT = 65_536
"""Characters of one text within parameters."""
Number = float | int
_NO_NUMBERS = (str, bytes, bytearray, complex, dict, list, tuple, set)


def number_in(value: object) -> Number | None:
    """The number that `value` is: a float or int, or None where it is none.

    Booleans are 0 and 1. Tensors and arrays count where they hold one element, of any type that becomes a float
    (float16, bfloat16, decimals, fractions). Texts never do. Foreign code is asked for it, so anything may go
    wrong there: that is None, too.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return _whole(value)
    if value is None or isinstance(value, _NO_NUMBERS):
        return None
    try:
        found: Number | None = call_foreign(_asked, value)
    except ForeignError:  # a tensor without data, more than one element, a library's own errors
        return None
    return found


def _asked(value: Any) -> Number | None:
    """The number that an object of a library says it is; raises whatever the library does."""
    item = getattr(value, "item", None)
    if callable(item):
        value = item()
        if isinstance(value, int):
            return _whole(value)
        if isinstance(value, (str, bytes, complex)):
            return None
    return float(value)


def _whole(value: int) -> Number | None:
    if -_WHOLE <= value < _WHOLE:
        return int(value)
    try:
        return float(value)
    except OverflowError:
        return None


def whole_in(value: object) -> int | None:
    """The whole number that `value` is (a step): 3, 3.0, an array of one; None where it is none of 64 bits."""
    found = number_in(value)
    if isinstance(found, float):
        if not found.is_integer():
            return None
        found = int(found)
    return found if found is not None and -_WHOLE <= found < _WHOLE else None


def plain(value: object, depth: int = 0) -> Any:
    """`value` as JSON can say it: texts, numbers, lists, objects; what is none of these by its text.

    NaN and the infinities become their names. What refuses to be a text is named by its type.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else _text(value)
    if isinstance(value, enum.Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, float):
        return written(float(value))
    if isinstance(value, int):
        number = _whole(value)
        return _text(hex(value)) if number is None else number
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {_said(key): plain(item, depth + 1) for key, item in _items(value)}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain(item, depth + 1) for item in value]
    found = None if isinstance(value, Iterable) and _size(value) != 1 else number_in(value)
    if found is not None:
        return written(found)
    return _said(value)


def _items(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(value.items())


def _size(value: object) -> int | None:
    """The number of elements of an array; None for what does not say."""
    size = getattr(value, "size", None)
    return size if isinstance(size, int) else None


def text_in(value: object) -> str:
    """The text of anything, whole; its type where it has none to say."""
    try:
        return str(call_foreign(str, value)).encode("utf-8", "replace").decode("utf-8")
    except ForeignError:
        return f"<{type(value).__name__}>"


def _said(value: object) -> str:
    """The text of anything, as long as parameters hold it; its type where it has none to say."""
    try:
        return _text(str(call_foreign(str, value)))
    except ForeignError:
        return f"<{type(value).__name__}>"


def _text(text: str) -> str:
    """A text that is UTF-8 and not too long."""
    kept = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
    return kept.encode("utf-8", "replace").decode("utf-8")
