# SPDX-License-Identifier: MIT
"""TFRecord files: records in frames of length, its check, content, its check."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpu_monitor.training.tensorboard.crc32c import masked

_HEAD = struct.Struct("<QI")
_FOOT = struct.Struct("<I")
LONGEST = 256 << 20
"""Bytes of one record; TensorFlow's own messages are limited to 2 GB, and nothing that we take comes near this."""


@dataclass(frozen=True)
class Frame:
    """One record. `content` None: its check is wrong, or it is too long. `end`: where the next one begins, in bytes."""

    content: bytes | None
    end: int


@dataclass(frozen=True)
class Stop:
    """Why reading ended before the file did. `is_torn`: the rest of a record is not there (yet); else it is damaged.

    A record that says that it is longer than any is, and than the file, is damaged, whatever its check says.
    """

    offset: int
    is_torn: bool


def read_frames(path: Path, offset: int = 0) -> Iterator[Frame | Stop]:
    """The records from byte `offset` on; a Stop comes last, and only where the file does not end with a record.

    A record whose content is damaged is passed over; one whose length is damaged cannot be, for then nobody knows where
    the next one begins.
    """
    with path.open("rb") as file:
        file.seek(offset)
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                yield Stop(offset, True)
                return
            length, check = _HEAD.unpack(head)
            if masked(head[:8]) != check:
                yield Stop(offset, False)
                return
            end = offset + _HEAD.size + length + _FOOT.size
            if length > LONGEST:
                if not _reaches(file, end):
                    yield Stop(offset, False)
                    return
                content = None
            else:
                body = file.read(length + _FOOT.size)
                if len(body) < length + _FOOT.size:
                    yield Stop(offset, True)
                    return
                whole = body[:length]
                content = whole if masked(whole) == _FOOT.unpack(body[length:])[0] else None
            offset = end
            file.seek(offset)
            yield Frame(content, offset)


def _reaches(file: BinaryIO, end: int) -> bool:
    return file.seek(0, 2) >= end
