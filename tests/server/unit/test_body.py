"""Opening a request's body: what is packed oddly is taken or refused after a bounded amount of work."""

from __future__ import annotations

import gzip
import struct

import pytest
import zstandard

from gpu_monitor.server.ingest.body import open_body
from gpu_monitor.server.problems import Problem

EMPTY = gzip.compress(b"", mtime=0)


def test_a_body_of_several_gzip_members_is_read_whole() -> None:
    parts = [b"%d," % number for number in range(64)]
    sent = b"".join(gzip.compress(part) for part in parts)
    assert open_body(sent, "gzip", None).data == b"".join(parts)


@pytest.mark.parametrize("count", [65, 100_000])
def test_empty_gzip_members_without_end_are_refused(count: int) -> None:
    with pytest.raises(Problem) as refused:
        open_body(EMPTY * count, "gzip", None)
    assert refused.value.status == 422
    assert "64 gzip members" in str(refused.value.detail)


def test_empty_zstd_frames_without_end_are_nothing() -> None:
    """The library goes over 200,000 of them in 30 ms."""
    skipped = struct.pack("<II", 0x184D2A50, 0)  # RFC 8878, section 3.1.2
    for frame in (zstandard.ZstdCompressor().compress(b""), skipped):
        assert open_body(frame * ((2 << 20) // len(frame)), "zstd", None).data == b""
