"""Finds rows of a table on the pages themselves, where the way to them is broken."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_monitor.storage.rescue import Stretch

Row = tuple[Any, ...]

_PAGE = 4096
_LEAF = 0x0D
_SIZES = (0, 1, 2, 3, 4, 6, 8, 0, 0, 0)
"""Bytes of a value by its serial type: null, integers, (7: a float), 0 and 1 (sqlite.org/fileformat.html, 2.1)."""
_WHOLE = frozenset((0, 1, 2, 3, 4, 5, 6, 8, 9))


def stray_rows(path: Path, columns: int, stretches: Sequence[Stretch]) -> Iterator[Row]:
    """Rows of `columns` whole numbers or nulls, the first being the row key, whose key lies in one of `stretches`.

    Reads every leaf page of the file, whichever table it belongs to: only for a table that no other
    resembles. A row may come in an older version, too, from a page that is in use no more.
    """
    with path.open("rb") as file:
        if path.stat().st_size < _PAGE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for offset in range(_PAGE, len(content) - _PAGE + 1, _PAGE):
                if content[offset] == _LEAF:
                    yield from _rows_of(content[offset : offset + _PAGE], columns, stretches)


def _rows_of(page: bytes, columns: int, stretches: Sequence[Stretch]) -> Iterator[Row]:
    count = int.from_bytes(page[3:5], "big")
    if 8 + 2 * count > _PAGE:
        return
    for place in range(8, 8 + 2 * count, 2):
        try:
            row = _row_at(page, int.from_bytes(page[place : place + 2], "big"), columns, stretches)
        except IndexError:
            continue
        if row is not None:
            yield row


def _row_at(page: bytes, offset: int, columns: int, stretches: Sequence[Stretch]) -> Row | None:
    """The row in the cell at `offset`, None where it is none of those looked for."""
    size, offset = _varint(page, offset)
    key, offset = _varint(page, offset)
    if offset + size > _PAGE or not any(bottom < key < top for bottom, top in stretches):
        return None
    head, place = _varint(page, offset)
    body = offset + head
    types = []
    while place < body:
        kind, place = _varint(page, place)
        types.append(kind)
    if len(types) != columns or types[0] != 0 or not _WHOLE.issuperset(types):
        return None
    row: list[int | None] = [key]
    for kind in types[1:]:
        width = _SIZES[kind]
        if width:
            row.append(int.from_bytes(page[body : body + width], "big", signed=True))
            body += width
        else:
            row.append(None if kind == 0 else kind - 8)
    return tuple(row) if body == offset + size else None


def _varint(page: bytes, offset: int) -> tuple[int, int]:
    """A number of variable length, and the offset after it."""
    value = 0
    for place in range(offset, offset + 8):
        byte = page[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | page[offset + 8], offset + 9
