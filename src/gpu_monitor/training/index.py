# SPDX-License-Identifier: MIT
"""`seg-….idx`: what readers found out about a segment, kept beside its log. A cache: it may be deleted at any time.

The file grows only: blocks of columns, each followed, at the end of the file, by a directory of all that count; then
one of two slots at its begin is set to the newest directory. Whoever reads takes the newer slot whose check is right,
so a writer that dies half way leaves the one before. One process at a time writes (flock); a file that is out of
place, or mostly dead weight, is replaced whole by a rename. Everything has a check of its own, which is held against
the bytes whenever they are read: the slots, the directory, each table, each piece, and each level of a piece.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from pathlib import Path

import msgspec

from gpu_monitor.training.bytes_at import read_at, write_at
from gpu_monitor.training.pieces import (
    AxisPiece,
    DamagedIndex,
    Piece,
    pack_axis,
    pack_values,
    unpack_axis,
    unpack_values,
)
from gpu_monitor.training.place import INDEX
from gpu_monitor.training.scan import Axis, Batch, Column, Summary

if sys.platform != "win32":
    import fcntl

_MAGIC = b"GMIX\x02\x00\x00\x00"
"""With the version of the format: an index of another one is none, and is made again."""
_SLOT = struct.Struct("<8sQQQII")
_SLOT_BYTES = 64
_SEAL_BYTES = 64
"""Bytes of the log before the place that an index covers: that they are the same shows that the log is."""
_MERGE = 4
"""So many blocks of one size become one of the next."""
_SMALLEST = 1 << 16
_DEAD_BYTES = 4 << 20
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Block(msgspec.Struct, array_like=True):
    """A stretch of the log. `offset`, `length`: of its table in the index; `size`: bytes of all that belongs to it."""

    start: int
    end: int
    offset: int
    length: int
    check: int
    size: int


class Table(msgspec.Struct, array_like=True):
    """The axes of a block, its pieces by series, and the places of other records by kind."""

    axes: list[AxisPiece]
    pieces: dict[int, Piece]
    places: dict[str, list[tuple[int, int]]]


class Directory(msgspec.Struct):
    """What an index knows. `covered`: bytes of the log; `seal`: the last of them."""

    covered: int
    seal: bytes
    summary: Summary
    blocks: list[Block]


_encode = msgspec.msgpack.Encoder().encode
_read_directory: msgspec.msgpack.Decoder[Directory] = msgspec.msgpack.Decoder(Directory)
_read_table: msgspec.msgpack.Decoder[Table] = msgspec.msgpack.Decoder(Table)


class Index:
    """The index of one log, as it was when it was opened."""

    def __init__(self, file: int, directory: Directory, generation: int) -> None:
        self._file = file
        self.directory = directory
        self.generation = generation
        self._tables: dict[int, Table] = {}

    def close(self) -> None:
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the index."""
        return read_at(self._file, length, offset)

    def table(self, block: Block) -> Table:
        """The table of a block. DamagedIndex where it is not there."""
        found = self._tables.get(block.offset)
        if found is None:
            data = self.read(block.offset, block.length)
            if zlib.crc32(data) != block.check or len(data) != block.length:
                raise DamagedIndex("a table is damaged")
            found = self._tables[block.offset] = _read_table.decode(data)
        return found

    def column(self, block: Block, piece: Piece) -> Column:
        """The points of a piece."""
        return Column(self._axis(self.table(block).axes[piece.axis]), self._values(piece))

    def batch(self, block: Block) -> Batch:
        """All that a block holds."""
        table = self.table(block)
        axes = [self._axis(axis) for axis in table.axes]
        columns = {
            series: Column(axes[piece.axis], self._values(piece)) for series, piece in table.pieces.items()
        }
        return Batch(block.start, block.end, columns, table.places)

    def _axis(self, piece: AxisPiece) -> Axis:
        return unpack_axis(piece, self.read(piece.offset, piece.length))

    def _values(self, piece: Piece) -> array[float]:
        return unpack_values(piece, self.read(piece.offset, piece.length))


def index_path(log: Path) -> Path:
    """Where the index of a log lies."""
    return log.with_suffix(INDEX)


def open_index(log: Path, log_file: int, log_size: int) -> Index | None:
    """The index of a log; None where there is none, or it is damaged, or of another log."""
    try:
        file = os.open(index_path(log), _READ)
    except OSError:
        return None
    try:
        generation, directory = _newest(file)
        seal = directory.seal
        if (
            directory.covered > log_size
            or read_at(log_file, len(seal), directory.covered - len(seal)) != seal
        ):
            raise DamagedIndex("it is of another log")
    except (DamagedIndex, OSError, msgspec.MsgspecError):
        os.close(file)
        return None
    return Index(file, directory, generation)


def _newest(file: int) -> tuple[int, Directory]:
    slots = read_at(file, 2 * _SLOT_BYTES, 0)
    found = [slot for place in (0, 1) if (slot := _slot(slots[place * _SLOT_BYTES :])) is not None]
    if not found:
        raise DamagedIndex("it has no slot")
    generation, offset, length, check = max(found)
    data = read_at(file, length, offset)
    if zlib.crc32(data) != check:
        raise DamagedIndex("its directory is damaged")
    return generation, _read_directory.decode(data)


def _slot(data: bytes) -> tuple[int, int, int, int] | None:
    if len(data) < _SLOT.size:
        return None
    magic, generation, offset, length, check, own = _SLOT.unpack_from(data)
    if magic != _MAGIC or own != zlib.crc32(data[: _SLOT.size - 4]):
        return None
    return generation, offset, length, check


def _pack_slot(generation: int, offset: int, length: int, check: int) -> bytes:
    body = _SLOT.pack(_MAGIC, generation, offset, length, check, 0)[:-4]
    return (body + struct.pack("<I", zlib.crc32(body))).ljust(_SLOT_BYTES, b"\0")


def extend(log: Path, old: Index | None, batch: Batch, summary: Summary, seal: bytes) -> bool:
    """Write `batch`, which follows what `old` covers, into the index; whether that was done.

    Nothing is written where this user may not, another process is at it, or went on meanwhile.
    """
    try:
        if old is None:
            return _replace(log, None, [batch], summary, seal)
        file = os.open(index_path(log), _WRITE)
    except OSError:
        return False
    try:
        if not _lock(file) or os.fstat(file).st_ino != os.fstat(old._file).st_ino:
            return False
        if _newest(file)[0] != old.generation:
            return False
        end = os.fstat(file).st_size
        if end > 2 * sum(block.size for block in old.directory.blocks) + _DEAD_BYTES:
            return _replace(
                log, old, [*[old.batch(block) for block in old.directory.blocks], batch], summary, seal
            )
        kept, joined = _merged(old, batch)
        data, block = _pack_block(joined, end)
        _put(file, old.generation + 1, end, data, Directory(batch.end, seal, summary, [*kept, block]))
    except (OSError, DamagedIndex, msgspec.MsgspecError):
        return False
    finally:
        os.close(file)
    return True


def _merged(old: Index, batch: Batch) -> tuple[list[Block], Batch]:
    """The blocks that stay, and the batch joined with those before it that make a bigger block together."""
    kept, parts = list(old.directory.blocks), [batch]
    level = _level(batch.start, batch.end)
    while len(kept) >= _MERGE - 1 and all(
        _level(one.start, one.end) <= level for one in kept[-(_MERGE - 1) :]
    ):
        parts = [*[old.batch(block) for block in kept[-(_MERGE - 1) :]], *parts]
        del kept[-(_MERGE - 1) :]
        level = _level(parts[0].start, batch.end)
    return kept, parts[0] if len(parts) == 1 else join(parts)


def _level(start: int, end: int) -> int:
    """How big a block is, as a power of four."""
    return ((end - start) // _SMALLEST).bit_length() // 2


def join(parts: list[Batch]) -> Batch:
    """Batches that follow each other as one; columns that shared an axis share the joined one."""
    columns: dict[int, list[Column]] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for part in parts:
        for series, column in part.columns.items():
            columns.setdefault(series, []).append(column)
        for kind, found in part.places.items():
            places.setdefault(kind, []).extend(found)
    axes: dict[tuple[int, ...], Axis] = {}
    joined = {series: join_columns(found, axes) for series, found in columns.items()}
    return Batch(parts[0].start, parts[-1].end, joined, places)


def join_columns(parts: list[Column], axes: dict[tuple[int, ...], Axis] | None = None) -> Column:
    """Columns that follow each other as one. `axes`: those that were joined before, by the ids of their parts."""
    if len(parts) == 1:
        return parts[0]
    key = tuple(id(part.axis) for part in parts)
    axis = axes.get(key) if axes is not None else None
    if axis is None:
        steps, ats = array("q"), array("q")
        for part in parts:
            steps.extend(part.axis.steps)
            base = part.axis.base
            ats.extend(part.axis.ats if base == 0 else [at + base for at in part.axis.ats])
        axis = Axis(steps, ats)
        if axes is not None:
            axes[key] = axis
    values = array("d")
    for part in parts:
        values.extend(part.values)
    return Column(axis, values)


def _pack_block(batch: Batch, offset: int) -> tuple[bytes, Block]:
    parts: list[bytes] = []
    axes: list[AxisPiece] = []
    numbers: dict[int, int] = {}
    pieces: dict[int, Piece] = {}
    place = offset
    for series, column in batch.columns.items():
        number = numbers.get(id(column.axis))
        if number is None:
            number = numbers[id(column.axis)] = len(axes)
            axis, data = pack_axis(column.axis, place)
            axes.append(axis)
            parts.append(data)
            place += len(data)
        pieces[series], data = pack_values(column.values, place, number)
        parts.append(data)
        place += len(data)
    table = _encode(Table(axes, pieces, batch.places))
    size = place + len(table) - offset
    block = Block(batch.start, batch.end, place, len(table), zlib.crc32(table), size)
    return b"".join([*parts, table]), block


def _put(file: int, generation: int, end: int, data: bytes, directory: Directory) -> None:
    said = _encode(directory)
    _write(file, data + said, end)
    _write(
        file,
        _pack_slot(generation, end + len(data), len(said), zlib.crc32(said)),
        generation % 2 * _SLOT_BYTES,
    )


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = write_at(file, view, offset)
        view, offset = view[count:], offset + count


def _replace(log: Path, old: Index | None, batches: list[Batch], summary: Summary, seal: bytes) -> bool:
    """Write a new index beside the old one and put it into its place."""
    draft = index_path(log).with_suffix(f"{INDEX}.new")
    file = os.open(draft, _WRITE | os.O_CREAT, 0o644)
    try:
        if not _lock(file):
            return False
        os.ftruncate(file, 0)
        batch = join(batches)
        data, block = _pack_block(batch, 2 * _SLOT_BYTES)
        generation = 1 if old is None else old.generation + 1
        _put(file, generation, 2 * _SLOT_BYTES, data, Directory(batch.end, seal, summary, [block]))
        draft.replace(index_path(log))
    finally:
        os.close(file)
    return True


def seal_of(log_file: int, covered: int) -> bytes:
    """The bytes of a log by which an index that covers so much of it knows it again."""
    start = max(0, covered - _SEAL_BYTES)
    return read_at(log_file, covered - start, start)


def _lock(file: int) -> bool:
    """Whether this process is the one that writes."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
