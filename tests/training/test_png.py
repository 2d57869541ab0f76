"""PNG files, read back by a decoder written from the specification, and by Pillow where it is installed."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest

from gpu_monitor.training.png import LONGEST_SIDE, encode_png, size_problem

CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}


def decode(content: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, channels and pixels of an 8-bit PNG (filters 0 to 2 of the specification, section 9.2)."""
    assert content[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    at, chunks = 8, []
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", content[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = CHANNELS[colour]
    rows, stride = zlib.decompress(chunks[1][1]), width * channels
    assert len(rows) == height * (stride + 1)
    above, pixels = bytes(stride), bytearray()
    for start in range(0, len(rows), stride + 1):
        kind, row = rows[start], bytearray(rows[start + 1 : start + 1 + stride])
        for place in range(stride):
            left = row[place - channels] if place >= channels else 0
            row[place] = (row[place] + {0: 0, 1: left, 2: above[place]}[kind]) % 256
        pixels += row
        above = bytes(row)
    return width, height, channels, bytes(pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "across", "down", "flat"])
def test_pixels_come_back(channels: int, kind: str) -> None:
    width, height = 37, 90
    draw = random.Random(f"{channels} {kind}")
    values = {
        "noise": lambda x, y, c: draw.randrange(256),
        "across": lambda x, y, c: (7 * x + c) % 256,  # best as the difference to the left
        "down": lambda x, y, c: (x * x + 3 * y + c) % 256,  # best as the difference to the row above
        "flat": lambda x, y, c: 200,
    }[kind]
    pixels = bytes(values(x, y, c) for y in range(height) for x in range(width) for c in range(channels))
    assert decode(encode_png(pixels, width, height, channels)) == (width, height, channels, pixels)


def test_the_smallest_picture_and_a_row_and_a_column() -> None:
    assert decode(encode_png(b"\x07", 1, 1, 1)) == (1, 1, 1, b"\x07")
    row = bytes(range(200))
    assert decode(encode_png(row, 200, 1, 1)) == (200, 1, 1, row)
    assert decode(encode_png(row, 1, 200, 1)) == (1, 200, 1, row)


def test_a_smooth_picture_takes_far_less_than_its_bytes() -> None:
    pixels = bytes((x + y) // 4 % 256 for y in range(300) for x in range(300))
    assert len(encode_png(pixels, 300, 300, 1)) < len(pixels) / 20


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (LONGEST_SIDE + 1, 1), (8192, 8192)])
def test_absurd_sizes_are_refused_before_anything_is_done(size: tuple[int, int]) -> None:
    assert size_problem(*size) is not None
    with pytest.raises(ValueError, match="pixels"):
        encode_png(b"", *size, 1)


def test_a_picture_of_8k_video_is_taken() -> None:
    assert size_problem(7680, 4320) is None


@pytest.mark.parametrize(("count", "channels"), [(11, 1), (13, 1), (12, 5), (12, 0)])
def test_bytes_that_do_not_fit_are_refused(count: int, channels: int) -> None:
    with pytest.raises(ValueError, match="are not 4 x 3 pixels"):
        encode_png(bytes(count), 4, 3, channels)


def test_pillow_sees_the_same() -> None:
    image = pytest.importorskip(
        "PIL.Image", reason="Pillow is not installed: it does not check our PNG files"
    )
    draw = random.Random(4)
    pixels = bytes(draw.randrange(256) for _ in range(61 * 43 * 3))
    read = image.open(io.BytesIO(encode_png(pixels, 61, 43, 3)))
    assert (read.size, read.mode, read.tobytes()) == ((61, 43), "RGB", pixels)
