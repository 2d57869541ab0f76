"""The bytes of segments as they came, compressed: a range that is repeated must equal them."""

from __future__ import annotations

import hashlib
import zlib

from sqlalchemy import Connection, insert, select, update

from gpu_monitor.server.store.schema_experiments import segment_chunks
from gpu_monitor.wire.training import RECORD_BYTES

_LEVEL = 1
"""40 MB/s; 6 takes three times as long for a twelfth less."""
_JOINED = 16 << 10
"""A chunk that is shorter takes up what follows: a run that is watched uploads some hundred bytes a second."""


def pack(data: bytes) -> bytes:
    """Bytes as they are stored."""
    return zlib.compress(data, _LEVEL)


def unpack(data: bytes, length: int) -> bytes | None:
    """What was stored; None where it is damaged."""
    try:
        engine = zlib.decompressobj()
        found = engine.decompress(data, length + 1)
    except zlib.error:
        return None
    return found if len(found) == length and engine.eof else None


def add_chunk(connection: Connection, segment: int, start: int, data: bytes, packed: bytes | None) -> None:
    """Keep bytes that begin where those that are held end. `packed`: the same, compressed, where that was done."""
    held = segment_chunks.c
    if start and len(data) < _JOINED:
        asked = select(held.start, held.length, held.digest, held.data).where(
            held.segment == segment, held.start.between(start - _JOINED, start - 1)
        )
        last = connection.execute(asked.order_by(held.start.desc()).limit(1)).first()
        follows = last is not None and last.start + last.length == start
        if last is not None and follows and last.length + len(data) <= _JOINED:
            before = unpack(bytes(last.data), last.length)
            if before is not None and hashlib.sha256(before).digest() == bytes(last.digest):
                whole = before + data
                connection.execute(
                    update(segment_chunks)
                    .where(held.segment == segment, held.start == last.start)
                    .values(length=len(whole), digest=hashlib.sha256(whole).digest(), data=pack(whole))
                )
                return
    connection.execute(
        insert(segment_chunks).values(
            segment=segment, start=start, length=len(data), digest=hashlib.sha256(data).digest(),
            data=pack(data) if packed is None else packed,
        )
    )  # fmt: skip


def equals_held(connection: Connection, segment: int, start: int, data: bytes) -> bool:
    """Whether bytes are those that are held from `start` on. What retention took away since is taken to be equal."""
    held, stop = segment_chunks.c, start + len(data)
    asked = select(held.start, held.length, held.data).where(
        held.segment == segment,
        held.start.between(start - RECORD_BYTES, stop - 1),
        held.start + held.length > start,
    )
    for chunk in connection.execute(asked):
        there = unpack(bytes(chunk.data), chunk.length)
        low, high = max(start, chunk.start), min(stop, chunk.start + chunk.length)
        if there is None or there[low - chunk.start : high - chunk.start] != data[low - start : high - start]:
            return False
    return True
