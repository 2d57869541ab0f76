"""Text lines of a log file of any size and encoding, numbered from 1, in constant memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 1 << 18
_LONGEST = 1 << 20
"""Characters of a line that are kept; a longer one is no log line and is skipped by every reader."""

Line = tuple[int, str, bool]
"""Number (from 1), text without its line ending, whether the ending was there."""


def encoding_of(head: bytes) -> str:
    """The encoding that `head` begins with: by its mark, or UTF-16 by its zero bytes, else UTF-8."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = head[:2048]
    odd, even = sample[1::2].count(0), sample[0::2].count(0)
    # ASCII in UTF-16 has a zero in every other byte; a third of them is far beyond chance.
    if odd > len(sample) // 6 and even == 0:
        return "utf-16-le"
    if even > len(sample) // 6 and odd == 0:
        return "utf-16-be"
    return "utf-8-sig"


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """Every line of `stream`. Bytes that are no text become U+FFFD; memory does not grow with the file."""
    chunk = stream.read(_CHUNK)
    decoder = codecs.getincrementaldecoder(encoding_of(chunk))(errors="replace")
    number, rest = 0, ""
    while chunk:
        lines = (rest + decoder.decode(chunk)).split("\n")
        rest = lines.pop()[:_LONGEST]
        for text in lines:
            number += 1
            yield number, text[:-1] if text.endswith("\r") else text, True
        chunk = stream.read(_CHUNK)
    rest += decoder.decode(b"", True)
    if rest:
        yield number + 1, rest, False
