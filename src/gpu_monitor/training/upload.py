# SPDX-License-Identifier: MIT
"""One experiment on its way to a server: this process's segment, its forked children's, what earlier ones left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Told
from gpu_monitor.sinks.segments import SegmentSender, read_header, segment_files
from gpu_monitor.training.backlog import Backlog
from gpu_monitor.training.leftovers import is_being_written, is_owed
from gpu_monitor.training.recorder import Recorder

LOOK_SECONDS = 2.0
"""Between two looks for segments of forked children, and of processes that are gone."""


class Upload:
    """One experiment that this process writes: its own segment, those of its forked children, and its backlog.

    The backlog is what other processes left of it that are gone, such as the one that was killed before this one went
    on. `at`: milliseconds since the segment's start. `tell`: says something once, by key. `share`: this process's
    number and how many there are; each takes what was left by the ranks that have its number modulo that. `recorder`:
    whose segment it is; it puts the file in order where another program deleted it or cut it short, and may go on in
    another one then.
    """

    def __init__(
        self,
        server: ExperimentServer,
        path: Path,
        at: Callable[[], int],
        tell: Callable[[str, str], None],
        share: tuple[int, int] = (0, 1),
        recorder: Recorder | None = None,
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
        self._recorder = recorder
        self._server = server
        self.senders = {path.stem: self._sender(path)}
        self.backlog = Backlog(server)
        self.heard = 0.0
        self.saved = 0.0
        self.may_tell_alive = True
        self._has_asked_again = False
        self._share = share
        self._strangers: set[str] = set()
        self._looked = float("-inf")

    @property
    def own(self) -> SegmentSender:
        """The segment of this process."""
        return self.senders[self.path.stem]

    def look_around(self, now: float, is_leaving: bool) -> None:
        """Take up segments whose writers were forked from one of ours, or are gone, now and then.

        Whoever lives uploads its own: it holds the lock of its segment. `is_leaving`: this is the last chance.
        """
        self._follow()
        if is_leaving and not self._has_asked_again:
            # There may be room by now for files that the server did not take.
            self._has_asked_again = True
            self.blobs.try_again()
            for sender in self.senders.values():
                sender.try_files_again()
        if not is_leaving and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        number, count = self._share
        for path in segment_files(self.path.parent):
            if path.stem in self.senders or path.stem in self._strangers or path.stem in self.backlog:
                continue
            header = read_header(path)
            if header is None:
                continue  # not written yet
            if header.about.parent in self.senders:
                self.senders[path.stem] = self._sender(path)
            elif (header.about.writer.rank or 0) % count != number:
                self._strangers.add(path.stem)
            elif is_being_written(path):
                continue
            elif is_owed(path, self._server.base):
                self.backlog.add(path)
            else:
                self._strangers.add(path.stem)

    def _sender(self, path: Path) -> SegmentSender:
        mend = None if self._recorder is None else self._recorder.settle
        return SegmentSender(self._server, self.blobs, path, mend=mend)

    def _follow(self) -> None:
        """Go on with the segment that the recorder writes now: another program may have cut the one before."""
        if self._recorder is None or self._recorder.writer.path == self.path:
            return
        path = self._recorder.writer.path
        self.senders[path.stem] = self._sender(path)
        self.path = path

    def save(self, now: float) -> None:
        """Remember on disk what the server holds."""
        self.saved = now
        for sender in self.senders.values():
            sender.save()
        self.backlog.save()

    def moved(self) -> int:
        """How far it is, in bytes, files included; a step adds what it brought."""
        own = sum(sender.held for sender in self.senders.values()) + self.blobs.sent_bytes
        return own + self.backlog.moved

    def left(self) -> int:
        """Bytes of whole records of its segments that the server is not known to hold."""
        return sum(sender.left() for sender in list(self.senders.values())) + self.backlog.left()

    def missing(self) -> list[str]:
        """Why files were not uploaded, one each."""
        known = {**self.blobs.problems, **self.backlog.blobs.problems}
        owed = set().union(*(sender.owed_files for sender in list(self.senders.values())))
        return [*known.values(), *("it was not sent yet" for one in owed if one not in known)]

    @property
    def is_deleted_there(self) -> bool:
        """Whether the server says that the experiment was deleted there."""
        return any(sender.is_deleted_there for sender in list(self.senders.values()))

    @property
    def is_refused(self) -> bool:
        """Whether something of its segments cannot go as it is."""
        return any(one.problem for one in [*self.senders.values(), *self.backlog.failed])

    def why(self) -> Iterator[str]:
        """What stands in the way of the rest."""
        senders = [*self.senders.values(), *self.backlog.failed]
        yield from (sender.problem for sender in senders if sender.problem is not None)
        if self.last is not None and self.last.text:
            yield self.last.text
