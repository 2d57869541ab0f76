# SPDX-License-Identifier: MIT
"""Protocol buffer messages as their fields: number, and a whole number or bytes. No message is known here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gpu_monitor.core.errors import GpuMonitorError

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class BadMessage(GpuMonitorError):
    """Bytes that are no message."""


@dataclass(frozen=True)
class Field:
    """One field of a message. `value`: a whole number (a varint, as it is written), or the bytes of anything else."""

    number: int
    value: int | bytes

    @property
    def content(self) -> bytes:
        """What a field of bytes, text or another message holds."""
        if isinstance(self.value, int):
            raise BadMessage(f"field {self.number} is a number, where bytes belong")
        return self.value

    @property
    def text(self) -> str:
        """What a field of text holds."""
        return self.content.decode("utf-8", "replace")

    @property
    def whole(self) -> int:
        """A signed whole number of 64 bits."""
        if not isinstance(self.value, int):
            raise BadMessage(f"field {self.number} is bytes, where a number belongs")
        return self.value - (1 << 64) if self.value >> 63 else self.value

    def number_as(self, form: str) -> float:
        """A number of fixed size: `<d` or `<f`."""
        return float(struct.unpack(form, self._sized(struct.calcsize(form)))[0])

    def numbers_as(self, form: str) -> list[float]:
        """Repeated numbers of fixed size: packed, or one."""
        size = struct.calcsize(form)
        if len(self.content) % size:
            raise BadMessage(f"field {self.number} holds {len(self.content)} bytes, not numbers of {size}")
        return [float(value) for (value,) in struct.iter_unpack(form, self.content)]

    def _sized(self, size: int) -> bytes:
        if len(self.content) != size:
            raise BadMessage(f"field {self.number} holds {len(self.content)} bytes, not {size}")
        return self.content


def read_fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, as they come; BadMessage at the first that is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield Field(number, value)
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED_64, _FIXED_32):
            size = 8 if kind == _FIXED_64 else 4
        else:
            raise BadMessage(f"field {number} has the wire type {kind}")
        if at + size > len(message):
            raise BadMessage(f"field {number} is longer than its message")
        yield Field(number, message[at : at + size])
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    found = 0
    for place in range(_LONGEST_VARINT):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        found |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return found & 0xFFFFFFFFFFFFFFFF, at
    raise BadMessage("a number does not end")
