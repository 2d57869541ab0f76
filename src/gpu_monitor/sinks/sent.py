# SPDX-License-Identifier: MIT
"""What is remembered beside a segment of what servers hold of it: `seg-*.sent`.

It is a cache. Where it is gone, damaged or of an older form, everything is sent once more, which changes nothing there.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

import msgspec

from gpu_monitor.sinks.blobs import open_plain, read_at

OWED = 50_000
"""Places of records whose files are still owed; of a segment that owes more, nothing is remembered."""
_SENT_BYTES = 1 << 20
_CHUNK = 1 << 20


class Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one server holds of a segment: its first `offset` bytes, whose CRC-32 is `crc32`.

    `owed`: where the records among them begin whose files the server did not take, or that could not be sent;
    `is_end_told`: it was told that the writer vanished.
    """

    offset: int
    crc32: int
    owed: tuple[int, ...] = ()
    is_end_told: bool = False


_read = msgspec.json.Decoder(dict[str, Sent | int]).decode


def sent_path(path: Path) -> Path:
    """Where it is remembered what servers hold of a segment."""
    return path.with_suffix(".sent")


def read_sent(path: Path) -> dict[str, Sent]:
    """By server, what it held of a segment when that was written; empty where nothing usable is.

    Earlier versions wrote an offset alone. It says nothing of files, nor of bytes that changed since, so it is left out.
    """
    try:
        descriptor = open_plain(sent_path(path))
    except OSError:
        return {}
    try:
        found = _read(os.read(descriptor, _SENT_BYTES))
        return {url: one for url, one in found.items() if isinstance(one, Sent) and one.offset >= 0}
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}
    finally:
        os.close(descriptor)


def write_sent(path: Path, held: dict[str, Sent]) -> bool:
    """Remember it; whether that worked."""
    new = path.with_suffix(f".sent.{os.getpid()}")
    with contextlib.suppress(OSError):
        new.write_bytes(msgspec.json.encode(held) + b"\n")
        new.replace(sent_path(path))
        return True
    return False


def crc32_of(path: Path, size: int) -> int | None:
    """The CRC-32 of the first `size` bytes of a plain file; None where it has fewer, or cannot be read."""
    crc = start = 0
    try:
        descriptor = open_plain(path)
    except OSError:
        return None
    try:
        while start < size:
            data = read_at(descriptor, min(_CHUNK, size - start), start)
            if not data:
                return None
            crc, start = zlib.crc32(data, crc), start + len(data)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return crc
