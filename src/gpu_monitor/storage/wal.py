"""Looks whether a write-ahead log that a killed writer left is whole (format: sqlite.org/fileformat.html, section 4)."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER, _FRAME_HEADER = 32, 24
_MAGIC = 0x377F0682  # the last bit says in which byte order the sums are made
_MASK = 0xFFFFFFFF


def damage_of(log: Path) -> str | None:
    """What is wrong with the log, so that transactions that were committed are lost; None where nothing is.

    SQLite uses a log up to its first bad frame and says nothing. What a killed writer had not committed
    yet, and frames left from before the log began anew, are no damage.
    """
    try:
        content = log.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) <= _HEADER:
        return None
    header = struct.unpack(">8I", content[:_HEADER])
    order = "<" if header[0] == _MAGIC else ">"
    if (header[0] & ~1) != _MAGIC or _sums(content[:24], order, 0, 0) != header[6:8]:
        return "the header of the write-ahead log is damaged"
    return _damaged_frame(content, header[2], header[4:6], order, header[6:8])


def _damaged_frame(
    content: bytes, page_size: int, salts: tuple[int, ...], order: str, sums: tuple[int, ...]
) -> str | None:
    """Walk the frames of this log's own run (its salts); more than one commit after a bad frame is a loss."""
    size, offset, bad, commits = _FRAME_HEADER + page_size, _HEADER, None, 0
    while offset + size <= len(content):
        head = struct.unpack(">6I", content[offset : offset + _FRAME_HEADER])
        if bad is None:
            first, second = _sums(content[offset : offset + 8], order, *sums)
            page = content[offset + _FRAME_HEADER : offset + size]
            sums = _sums(page, order, first, second)
            if head[2:4] != salts or sums != head[4:6]:
                bad = (offset - _HEADER) // size + 1
        if bad is not None and head[2:4] == salts and head[1]:
            commits += 1
        offset += size
    # The last transaction may have been cut short by the kill itself; one before it was synced to the disk.
    return f"frame {bad} of the write-ahead log is damaged" if commits > 1 else None


def _sums(data: bytes, order: str, first: int, second: int) -> tuple[int, int]:
    """SQLite's running pair of sums over 8 bytes at a time."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
