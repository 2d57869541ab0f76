# SPDX-License-Identifier: MIT
"""One experiment on its way to a server: this process's segment, those of its forked children, and how it stands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Told
from gpu_monitor.sinks.segments import SegmentSender, read_header, segment_files

FAMILY_SECONDS = 2.0
"""Between two looks for segments of forked children."""


class Upload:
    """One experiment that this process writes: its own segment and those of its forked children.

    `at`: milliseconds since the segment's start. `tell`: says something once, by key.
    """

    def __init__(
        self, server: ExperimentServer, path: Path, at: Callable[[], int], tell: Callable[[str, str], None]
    ) -> None:
        self.path = path
        self.at = at
        self.tell = tell
        self.done = threading.Event()
        """The server holds everything, or the rest is left for later."""
        self.is_leaving = False
        self.failures = 0
        """In a row, since it is leaving."""
        self.last: Told | None = None
        """The last answer that was no success."""
        self.blobs = BlobSender(server)
        self.senders = {path.stem: SegmentSender(server, self.blobs, path)}
        self.heard = 0.0
        self.saved = 0.0
        self.may_tell_alive = True
        self._server = server
        self._strangers: set[str] = set()
        self._looked = float("-inf")

    @property
    def own(self) -> SegmentSender:
        """The segment of this process."""
        return self.senders[self.path.stem]

    def look_for_children(self, now: float) -> None:
        """Take up segments whose writers were forked from one of ours, now and then."""
        if not self.is_leaving and now - self._looked < FAMILY_SECONDS:
            return
        self._looked = now
        for path in segment_files(self.path.parent):
            if path.stem in self.senders or path.stem in self._strangers:
                continue
            header = read_header(path)
            if header is None:
                continue  # not written yet
            if header.about.parent in self.senders:
                self.senders[path.stem] = SegmentSender(self._server, self.blobs, path)
            elif header.about.parent is None:
                self._strangers.add(path.stem)

    def save(self, now: float) -> None:
        """Remember on disk what the server holds."""
        self.saved = now
        for sender in self.senders.values():
            sender.save()

    def left(self) -> int:
        """Bytes of its segments that the server is not known to hold."""
        return sum(max(0, sender.size() - sender.held) for sender in self.senders.values())

    def why(self) -> Iterator[str]:
        """What stands in the way of the rest."""
        yield from (sender.problem for sender in self.senders.values() if sender.problem is not None)
        if self.last is not None and self.last.text:
            yield self.last.text
