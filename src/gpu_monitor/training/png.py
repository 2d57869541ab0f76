# SPDX-License-Identifier: MIT
"""PNG files out of rows of bytes, with zlib alone (PNG specification, third edition, ISO/IEC 15948)."""

from __future__ import annotations

import struct
import zlib

LONGEST_SIDE = 16_384
"""Pixels. Browsers refuse to draw much longer ones."""
MOST_PIXELS = 1 << 25
"""33.5 million: a picture of 7,680 x 4,320 (8K video) has 33.2 million."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels of 8 bits to the colour type: grey, grey and alpha, RGB, RGBA."""
_LEVEL = 4
"""zlib's; level 6 takes about twice the time for a few per cent."""
_SAMPLE_ROWS = 64
"""So many rows from the middle decide which filter the picture gets."""
_NONE, _SUB, _UP = 0, 1, 2
"""The filters: bytes as they are, less the pixel to the left, less the pixel above."""


def size_problem(width: int, height: int) -> str | None:
    """Why a picture of this size is refused, in words; None where it is taken."""
    if width < 1 or height < 1:
        return f"has no pixels ({width} x {height})"
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        return (
            f"is too large: {width} x {height} pixels; a side has {LONGEST_SIDE} at most,"
            f" the whole {MOST_PIXELS}"
        )
    return None


def encode_png(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """A PNG file of `height` rows of `width` pixels with 1 to 4 channels of 8 bits, without gaps.

    ValueError where the size is absurd or the bytes are not as many as it says.
    """
    problem = size_problem(width, height)
    if problem is not None:
        raise ValueError(f"the picture {problem}")
    if channels not in _COLOUR_TYPES or len(pixels) != width * height * channels:
        raise ValueError(f"{len(pixels)} bytes are not {width} x {height} pixels of {channels} channels")
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    row_bytes = width * channels
    image = zlib.compress(_filtered(pixels, row_bytes, channels), _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", image) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _filtered(pixels: bytes, row_bytes: int, channels: int) -> bytes:
    """The rows, each behind the number of its filter: the one that makes rows of the middle smallest."""
    rows = len(pixels) // row_bytes
    first = max(0, (rows - _SAMPLE_ROWS) // 2)
    sample = pixels[first * row_bytes : (first + _SAMPLE_ROWS) * row_bytes]
    chosen = min(
        (_NONE, _SUB, _UP),
        key=lambda kind: len(zlib.compress(_apply(kind, sample, row_bytes, channels), 1)),
    )
    body, mark = _apply(chosen, pixels, row_bytes, channels), bytes([chosen])
    return b"".join(
        piece for start in range(0, len(body), row_bytes) for piece in (mark, body[start : start + row_bytes])
    )


def _apply(kind: int, pixels: bytes, row_bytes: int, channels: int) -> bytes:
    if kind == _NONE:
        return pixels
    if kind == _UP:
        return _less(pixels, bytes(row_bytes) + pixels[:-row_bytes])
    left = bytearray(bytes(channels) + pixels[:-channels])
    for channel in range(channels):  # the first pixel of a row has none to its left
        left[channel::row_bytes] = bytes(len(pixels) // row_bytes)
    return _less(pixels, bytes(left))


def _less(these: bytes, those: bytes) -> bytes:
    """Byte by byte `these` less `those`, modulo 256, for all at once in whole numbers as long as the picture.

    The top bit of every byte is set in one and cleared in the other, so that no byte borrows from its
    neighbour; what the top bit must be is put in afterwards.
    """
    length = len(these)
    top = int.from_bytes(b"\x80" * length, "little")
    a, b = int.from_bytes(these, "little"), int.from_bytes(those, "little")
    difference = ((a | top) - (b & ~top)) ^ ((a ^ ~b) & top)
    return difference.to_bytes(length, "little")
