"""Looks whether a write-ahead log that a killed writer left is whole (format: sqlite.org/fileformat.html, section 4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER, _FRAME_HEADER = 32, 24
_MAGIC = 0x377F0682  # the last bit says in which byte order the sums are made
_MASK = 0xFFFFFFFF


def damage_of(log: Path) -> str | None:
    """What is wrong with the log, so that transactions that were committed are lost; None where nothing is.

    SQLite uses a log up to its first bad frame and says nothing. What a killed writer had not committed
    yet, and frames left from before the log began anew, are no damage.
    """
    content = _content(log)
    if len(content) <= _HEADER:
        return None
    if _header(content) is None:
        return "the header of the write-ahead log is damaged"
    bad, lost = 0, 0
    for number, is_sound, is_own, is_commit in _frames(content):
        bad = bad or (0 if is_sound else number)
        lost += bool(bad) and is_own and is_commit
    # The last transaction may have been cut short by the kill itself; one before it was synced to the disk.
    return f"frame {bad} of the write-ahead log is damaged" if lost > 1 else None


def holds_a_commit(log: Path) -> bool:
    """Whether the log holds anything that counts: a whole transaction."""
    for _, is_sound, _, is_commit in _frames(_content(log)):
        if not is_sound or is_commit:
            return is_sound
    return False


def _content(log: Path) -> bytes:
    try:
        return log.read_bytes()
    except FileNotFoundError:
        return b""


def _header(content: bytes) -> tuple[int, ...] | None:
    """The eight numbers of the header, None where it is damaged."""
    if len(content) < _HEADER:
        return None
    header = struct.unpack(">8I", content[:_HEADER])
    sound = (header[0] & ~1) == _MAGIC and _sums(content[:24], _order(header), 0, 0) == header[6:8]
    return header if sound else None


def _order(header: tuple[int, ...]) -> str:
    return "<" if header[0] == _MAGIC else ">"


def _frames(content: bytes) -> Iterator[tuple[int, bool, bool, bool]]:
    """Number of each frame, whether it and all before it are sound, is of this log's own run, and ends a transaction."""
    header = _header(content)
    if header is None:
        return
    size, salts, sums, is_sound = _FRAME_HEADER + header[2], header[4:6], header[6:8], True
    for number, offset in enumerate(range(_HEADER, len(content) - size + 1, size), 1):
        head = struct.unpack(">6I", content[offset : offset + _FRAME_HEADER])
        if is_sound:
            sums = _sums(content[offset : offset + 8], _order(header), *sums)
            sums = _sums(content[offset + _FRAME_HEADER : offset + size], _order(header), *sums)
            is_sound = head[2:4] == salts and sums == head[4:6]
        yield number, is_sound, head[2:4] == salts, bool(head[1])


def _sums(data: bytes, order: str, first: int, second: int) -> tuple[int, int]:
    """SQLite's running pair of sums over 8 bytes at a time."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
