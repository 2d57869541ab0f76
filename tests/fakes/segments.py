"""Segments as the SDK leaves them on disk, made from the contract alone."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any


def line(*items: Any) -> bytes:
    """One record's line, as docs/segments.md says."""
    body = json.dumps(items, separators=(",", ":")).encode()[:-1]
    return b'%b,"%08x"]\n' % (body, zlib.crc32(body))


def header(experiment: str, segment: str, **more: Any) -> bytes:
    """A header's line."""
    about = {
        "experiment_id": experiment, "segment": segment, "name": "resnet", "project": "images",
        "started": 1_700_000_000.0, "writer": {"host": "elsewhere", "pid": 7}, **more,
    }  # fmt: skip
    return line("h", 1, about)


def points(count: int, start: int = 0) -> bytes:
    """Records of one value each, with the series in front where they begin at 0."""
    head = line("s", 0, "loss", {}) + line("g", 0, [0]) if start == 0 else b""
    return head + b"".join(
        line("p", number, number, 0, [number / 7]) for number in range(start, start + count)
    )


def make(
    directory: Path, experiment: str = "e1", segment: str = "seg-a0000000", count: int = 10, **more: Any
) -> Path:
    """A segment with some points; its path."""
    folder = directory / experiment
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{segment}.log"
    path.write_bytes(header(experiment, segment, **more) + points(count))
    return path


def add_blob(
    path: Path, content: bytes, name: str = "picture", file: str | None = None, kind: str = "image"
) -> str:
    """A file beside a segment and the record that names it; its digest."""
    sha256 = hashlib.sha256(content).hexdigest()
    place = path.parent / (file or f"media/{sha256[:16]}.bin")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    more = {
        "sha256": sha256,
        "size": len(content),
        "type": "image/png",
        "file": str(place.relative_to(path.parent)),
    }
    with path.open("ab") as out:
        out.write(line("m", 5, 1, kind, name, more))
    return sha256
