# SPDX-License-Identifier: MIT
"""Bytes at a place of an open file, on systems with and without a call for it."""

from __future__ import annotations

import os
import sys


def read_at(file: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes at `offset`; fewer only where the file ends."""
    if sys.platform == "win32":
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)
    return os.pread(file, length, offset)


def write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """Write at `offset`; how many bytes."""
    if sys.platform == "win32":
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)
    return os.pwrite(file, data, offset)
