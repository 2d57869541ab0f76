# SPDX-License-Identifier: MIT
"""Segments of one experiment that nobody writes any more, on their way to a server: a request a step."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.sinks.segments import SegmentSender
from gpu_monitor.training.vanished import find_vanished

TRIES = 8
"""Answers in a row that the server cannot take it now, after which a segment is left to `gpu_monitor sync`: where only
this one meets them, it must not hold up the others for ever. Some two minutes where they all do."""
BY = "sdk"
"""Who says that a writer is gone."""


class Backlog:
    """What is left to send of an experiment, the segment that began first at first; then the ends of its writers.

    A writer that vanished without a last word is told of once all segments are there: until then a later one may say
    that the run went on, or how it ended. One thread; `left` from any.
    """

    def __init__(self, server: ExperimentServer) -> None:
        self.blobs = BlobSender(server)
        self.failed: list[SegmentSender] = []
        """Those of which something stays here; their `problem` says why."""
        self.moved = 0
        """Bytes that went, files included."""
        self._server = server
        self._queue: deque[SegmentSender] = deque()
        self._held: deque[SegmentSender] = deque()
        self._names: set[str] = set()
        self._tries = 0

    def __contains__(self, segment: str) -> bool:
        return segment in self._names

    def add(self, path: Path) -> None:
        """Send this segment, too."""
        self._names.add(path.stem)
        self._queue.append(SegmentSender(self._server, self.blobs, path))

    def step(self, *, may_tell: bool = True) -> Told | None:
        """One request; None where there is nothing to send. `may_tell`: also of writers that vanished."""
        told = self._send()
        if told is None and not self._queue and may_tell:
            told = self._tell()
        if told is not None:
            self._tries = self._tries + 1 if told.meaning is Meaning.LATER else 0
        return told

    def left(self) -> int:
        """Bytes that the server is not known to hold; the end of a record that was never written whole is none."""
        owed = [*list(self._queue), *(one for one in list(self.failed) if not one.is_deleted_there)]
        return sum(one.left() for one in owed)

    def save(self) -> None:
        """Remember on disk what the server holds of the segment that is under way."""
        if self._queue:
            self._queue[0].save()

    def _send(self) -> Told | None:
        while self._queue:
            sender = self._queue[0]
            before = sender.held + self.blobs.sent_bytes
            told = sender.step()
            self.moved += max(0, sender.held + self.blobs.sent_bytes - before)
            if told is not None and (told.meaning is Meaning.ABSENT or self._is_too_often(told)):
                sender.problem = told.text
            elif told is not None:
                return told
            self._settle(sender)
            if told is not None and told.meaning is Meaning.ABSENT:
                return told
        return None

    def _is_too_often(self, told: Told) -> bool:
        return told.meaning is Meaning.LATER and self._tries + 1 >= TRIES

    def _settle(self, sender: SegmentSender) -> None:
        """Nothing more goes of a segment."""
        self._tries = 0
        sender.save()
        (self._held if sender.problem is None else self.failed).append(sender)
        self._queue.popleft()

    def _tell(self) -> Told | None:
        while self._held:
            sender = self._held[0]
            gone = None if sender.is_end_told else find_vanished(sender.path)
            told = None if gone is None else gone.tell(self._server, BY)
            if told is not None and told.is_for_all and told.status != 409 and not self._is_too_often(told):
                return told
            if told is not None and told.meaning is Meaning.HELD:
                sender.note_end_told()
            self._held.popleft()
            if told is not None:
                return told if not told.is_for_all else Told(Meaning.REFUSED, text=told.text)
        return None
