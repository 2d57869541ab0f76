"""The bytes of a request: arrived within a budget, as its digest says, decompressed within limits."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from gpu_monitor.server.problems import Problem
from gpu_monitor.wire.intake import sha256

ENCODED_BYTES = 2 << 20
DECODED_BYTES = 8 << 20
RATIO = 250
"""Decoded to encoded bytes, once that is over a MiB: 64 nearly equal reports come to 60 with zstd."""
_RATIO_FROM = 1 << 20
_SMALL = 256 << 10
"""A body up to here is taken however much has arrived of others: a report of 90 GPUs."""
_ARRIVING = 64 << 20
"""Bytes of larger bodies that are on their way at once: 32 of the largest."""
_MEMBERS = 64
"""Of one gzip body: a batch's reports, each packed for itself. An empty one has 20 bytes, and copies what follows."""
_DIGEST = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([^:,]*):\s*(?:,|$)")
ENCODINGS = ("gzip", "zstd")


@dataclass(frozen=True)
class Body:
    """A request's decoded bytes; `digest` is their SHA-256 where it is known already."""

    data: bytes
    digest: bytes | None


class Arrivals:
    """How much of unfinished bodies is held, so that slow senders cannot fill the memory. For the event loop only."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, receive: Receive) -> bytes:
        """The whole body as it was sent; Problem 413 or 503 where there is too much of it or of others."""
        message = await receive()
        if not message.get("more_body", False) and message["type"] == "http.request":
            whole: bytes = message.get("body", b"")
            return whole
        pieces: list[bytes] = []
        size = 0
        with self._counted() as count:
            while True:
                if message["type"] != "http.request":
                    raise Problem(400, "Incomplete", "The connection ended before the body did.")
                piece = message.get("body", b"")
                size += len(piece)
                if size > ENCODED_BYTES:
                    raise too_large(f"more than {ENCODED_BYTES} bytes")
                count(size)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
                message = await receive()

    @contextmanager
    def _counted(self) -> Iterator[Any]:
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            if size > _SMALL and self._held + size - mine > _ARRIVING:
                raise Problem(
                    503, "Busy", "Too many large bodies arrive at once.", headers={"Retry-After": "5"}
                )
            self._held += size - mine
            mine = size

        try:
            yield count
        finally:
            self._held -= mine


def open_body(sent: bytes, encoding: str | None, content_digest: str | None) -> Body:
    """Check the digest over the bytes that were sent and undo the encoding; Problem 413, 415 or 422."""
    digest = _check_digest(sent, content_digest)
    if not encoding or encoding == "identity":
        return Body(sent, digest)
    if encoding not in ENCODINGS:
        raise Problem(
            415,
            "Unsupported encoding",
            f"Content-Encoding {encoding[:40]!r}: taken are {', '.join(ENCODINGS)}.",
        )
    data = _gunzip(sent) if encoding == "gzip" else _unzstd(sent)
    return Body(data, None)


def too_large(what: str) -> Problem:
    """The refusal of a body, saying what is too much."""
    return Problem(
        413, "Too large", f"The body has {what}; taken are {ENCODED_BYTES} encoded, {DECODED_BYTES} decoded."
    )


def _check_digest(sent: bytes, header: str | None) -> bytes | None:
    if header is None:
        return None
    match = _DIGEST.search(header)
    if match is None:
        return None  # other algorithms are not ours to check
    digest = sha256(sent)
    try:
        told = base64.b64decode(match[1], validate=True)
    except binascii.Error:
        told = b""
    if told != digest:
        raise invalid("Content-Digest", "not the SHA-256 of the body that arrived")
    return digest


def invalid(field: str, reason: str, **extra: Any) -> Problem:
    """The refusal of what is wrong with a report."""
    detail = f"{field}: {reason}" if field else reason
    return Problem(422, "The report is not valid", detail, field=field, reason=reason, **extra)


def _gunzip(sent: bytes) -> bytes:
    out, left = bytearray(), sent
    try:
        for _ in range(_MEMBERS):
            if not left:
                break
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            out += member.decompress(left, DECODED_BYTES + 1 - len(out))
            _check_size(len(out), len(sent))
            if not member.eof:
                raise invalid("", "the gzip stream is not whole")
            left = member.unused_data
        if left:
            raise invalid("", f"more than {_MEMBERS} gzip members one after another")
    except zlib.error as error:
        out.clear()
        raise invalid("", f"not gzip: {error}") from None
    except Problem:
        out.clear()  # the refusal's traceback holds this frame for as long as nobody looks for cycles
        raise
    return bytes(out)


def _unzstd(sent: bytes) -> bytes:
    import zstandard  # a quarter of a MiB that only compressed bodies need

    # Its window is taken from memory before a byte is out: 8 MiB is the largest that RFC 9659 allows on the web.
    engine = zstandard.ZstdDecompressor(max_window_size=DECODED_BYTES)
    out = bytearray()
    try:
        with engine.stream_reader(sent, read_across_frames=True) as reader:
            while piece := reader.read(_RATIO_FROM):
                out += piece
                _check_size(len(out), len(sent))
    except zstandard.ZstdError as error:
        out.clear()
        raise invalid("", f"not zstd: {str(error)[:100]}") from None
    except Problem:
        out.clear()
        raise
    return bytes(out)


def _check_size(size: int, encoded: int) -> None:
    if size > DECODED_BYTES:
        raise too_large(f"more than {DECODED_BYTES} bytes once decoded")
    if size > _RATIO_FROM and size > RATIO * encoded:
        raise too_large(f"more than {RATIO} times its encoded length once decoded")
