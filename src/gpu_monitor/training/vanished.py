# SPDX-License-Identifier: MIT
"""A segment whose writer vanished without a last word, told from its log and from this machine's processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.sinks.blobs import open_plain, read_at
from gpu_monitor.sinks.experiments import ExperimentServer, Told
from gpu_monitor.sinks.segments import read_header
from gpu_monitor.training.alive import is_gone
from gpu_monitor.training.identity import find_process, host_name
from gpu_monitor.wire.training import RECORD_BYTES, AnyRecord, BadRecord, Status, Writer, decode

_STATUS = b'\n["z",'
_CHUNK = 256 << 10
_TAIL = 4096
"""Bytes in which the last record stands as a rule."""


@dataclass(frozen=True)
class Vanished:
    """A writer that is gone and did not say how it ended. `time`: of its last record, UTC epoch seconds."""

    experiment_id: str
    segment: str
    writer: Writer
    time: float

    def tell(self, server: ExperimentServer, by: str) -> Told:
        """Tell a server of it: one request, idempotent there. `by`: who says so."""
        writer = self.writer
        named = {"ns_pid": writer.ns_pid} if writer.ns_pid is not None else {"pid": writer.pid}
        body: dict[str, Any] = {
            "segment": self.segment, "boot_id": writer.boot_id, "start_ticks": writer.start_ticks, **named,
            "time": round(self.time, 3), "by": by,
        }  # fmt: skip
        return server.tell_ended(self.experiment_id, body)


def find_vanished(log: Path) -> Vanished | None:
    """Whose segment it is, if its writer is gone for sure and left no status; None where that is not so, or not known.

    The proof is that of the list on this machine (`alive`). A writer of another boot must have been on a host of our
    name besides: of other machines nothing is known here. A forked child never says how it ended, and is left out.
    """
    header = read_header(log)
    if header is None or header.about.parent is not None:
        return None
    writer = header.about.writer
    # First whether it is gone: whoever is gone writes no status after we have looked for one.
    if not is_gone(log, writer):
        return None
    if writer.boot_id != find_process().boot_id and writer.host != host_name():
        return None
    try:
        descriptor = open_plain(log)
    except OSError:
        return None
    try:
        status = _last_status(descriptor)
        at = _last_at(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if status is not None and status.status != "running":
        return None
    return Vanished(log.parent.name, log.stem, writer, header.about.started + at / 1000)


def _last_status(descriptor: int) -> Status | None:
    """The last word on the status, searched from the end."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - _CHUNK)
        # A little of what was searched before comes with it: the mark may lie across the border.
        data = read_at(descriptor, end - begin + len(_STATUS) - 1, begin)
        place = data.rfind(_STATUS)
        while place >= 0:
            found = _record_at(descriptor, begin + place + 1)
            if isinstance(found, Status):
                return found
            place = data.rfind(_STATUS, 0, place)
        end = begin
    return None


def _record_at(descriptor: int, offset: int) -> AnyRecord | None:
    """The record whose line begins there; None where it is torn or damaged."""
    line, newline, _ = read_at(descriptor, RECORD_BYTES, offset).partition(b"\n")
    return _decoded(line + newline)


def _last_at(descriptor: int) -> int:
    """When the last record was made that says so, ms after the segment's start; 0 where none does."""
    size = os.fstat(descriptor).st_size
    for length in (_TAIL, 2 * RECORD_BYTES):
        begin = max(0, size - length)
        lines = read_at(descriptor, size - begin, begin).split(b"\n")
        # The last one is empty or torn, the first one may have begun before.
        for line in reversed(lines[0 if begin == 0 else 1 : -1]):
            at = getattr(_decoded(line + b"\n"), "at", None)
            if isinstance(at, int):
                return at
    return 0


def _decoded(line: bytes) -> AnyRecord | None:
    try:
        return decode(line)
    except BadRecord:
        return None
