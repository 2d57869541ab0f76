# SPDX-License-Identifier: MIT
"""Length-prefixed frames over a pipe between the agent and a child of its own.

`marshal` encodes: both ends are the same interpreter, it is built in, and it keeps every other
codec out of the child's memory. It is never used on bytes that come from anywhere else.
"""

from __future__ import annotations

import marshal
import struct

_HEAD = struct.Struct("=I")
LARGEST = 16 * 1024 * 1024
"""A frame beyond this is garbage: a round of 16 GPUs with 1,000 processes each stays under 1 MB."""


class BrokenFrame(Exception):
    """The bytes are not frames of ours."""


def pack(message: object) -> bytes:
    """`message` (numbers, text, tuples, dicts) as one frame."""
    body = marshal.dumps(message)  # type: ignore[arg-type]
    return _HEAD.pack(len(body)) + body


class Inbox:
    """Puts messages together again from the pieces a pipe gives."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, piece: bytes) -> None:
        """Take the next bytes of the pipe."""
        self._bytes = self._bytes + piece if self._bytes else piece

    def take(self) -> tuple[object] | None:
        """The next whole message in a tuple of one, or None until more bytes come. Raises BrokenFrame."""
        if len(self._bytes) < _HEAD.size:
            return None
        (size,) = _HEAD.unpack_from(self._bytes)
        if size > LARGEST:
            raise BrokenFrame(f"a frame of {size} bytes")
        end = _HEAD.size + size
        if len(self._bytes) < end:
            return None
        body, self._bytes = self._bytes[_HEAD.size : end], self._bytes[end:]
        try:
            return (marshal.loads(body),)
        except (ValueError, EOFError, TypeError) as error:
            raise BrokenFrame(str(error)) from None
