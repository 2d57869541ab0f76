"""Segments as the SDK writes them, made by hand: known values, exact bytes; and how they are delivered."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from gpu_monitor.server.store.segment_records import read_records
from gpu_monitor.server.store.segment_write import Author, Upload
from gpu_monitor.wire.training import (
    About,
    Header,
    Points,
    PointSet,
    Series,
    Value,
    Writer,
    encode,
)
from tests.server.rig import Answer, Server

RUN = "20240320T143000Z-5f0c2a9b"
SEGMENT = "seg-a0000000"
STARTED = 1_710_945_000.0  # 2024-03-20T14:30:00Z
BOOT = "b7f1c1d0-0000-4000-8000-000000000001"


def header(experiment: str = RUN, segment: str = SEGMENT, **changed: Any) -> bytes:
    """A header's line; `changed`: fields of `about`, or of its writer."""
    writer: dict[str, Any] = {
        "host": "node-1", "pid": 4711, "user": "ada", "boot_id": BOOT, "start_ticks": 86_400, "ns_pid": 12,
    }  # fmt: skip
    about: dict[str, Any] = {"name": "resnet50", "project": "images", "started": STARTED}
    for name, value in changed.items():
        (writer if name in Writer.__struct_fields__ else about)[name] = value
    return encode(
        Header(1, About(experiment_id=experiment, segment=segment, writer=Writer(**writer), **about))
    )


def names(*metrics: str) -> bytes:
    """Lines that give metrics their numbers, and make one set of them all."""
    lines = [encode(Series(number, name, {})) for number, name in enumerate(metrics)]
    return b"".join([*lines, encode(PointSet(0, list(range(len(metrics)))))])


def points(*rows: tuple[int, Sequence[Value]], start: int = 0) -> bytes:
    """Lines of points of set 0: (step, values), a second apart."""
    return b"".join(
        encode(Points((start + number) * 1000, step, 0, list(values)))
        for number, (step, values) in enumerate(rows)
    )


def upload(
    data: bytes, offset: int = 0, experiment: str = RUN, segment: str = SEGMENT, contract: int | None = 1
) -> Upload:
    """What the writer is handed."""
    author = Author("token test", contract, "local")
    return Upload(author, experiment, segment, offset, data, read_records(data))


def digest(data: bytes) -> dict[str, str]:
    """The header that says what was sent."""
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def put(
    server: Server, token: str, data: bytes, offset: int = 0, experiment: str = RUN, segment: str = SEGMENT
) -> Answer:
    """Deliver a part of a segment."""
    path = f"/api/experiments/{experiment}/segments/{segment}?offset={offset}"
    return server.ask("PUT", path, data, token, digest(data))
