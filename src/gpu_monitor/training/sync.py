# SPDX-License-Identifier: MIT
"""Uploads what experiments on disk still owe a server: of runs that were killed, were offline, or had no server at all.

It may be interrupted and repeated at will: what the server said it holds is held, and nothing here is changed but
the memory of that (`seg-*.sent`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import NothingFound
from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.sinks.patience import Patience
from gpu_monitor.sinks.segments import SegmentSender, read_header, segment_files, size_of
from gpu_monitor.sinks.sent import read_sent
from gpu_monitor.training.leftovers import experiment_folders, is_being_written
from gpu_monitor.training.vanished import find_vanished

TRIES = 4
"""Failures in a row after which the server counts as gone; 3 to 7 s where it is dead."""
BY = "sync"
"""Who says that a writer is gone."""
LONGEST_WAIT = 60.0
"""Seconds: a server that asks for more is come back to another time."""


@dataclass(frozen=True)
class Synced:
    """What became of one experiment. `name` None: no header can be read.

    `local_bytes`: whole records that the server does not hold; `torn_bytes`: the end of a record that was never
    written whole, which stays; `reasons`: why something is still only here; `is_written`: a living process goes on
    writing it; `is_crashed`: the server was told that its writer is gone, and calls it crashed; `is_refused`: what is
    still here cannot go as it is, or its files cannot; `more_bytes`: the server holds so many more, of segments that
    were cut short here.
    """

    experiment_id: str
    name: str | None
    folder: Path
    uploaded_bytes: int = 0
    uploaded_files: int = 0
    local_bytes: int = 0
    local_files: int = 0
    torn_bytes: int = 0
    reasons: tuple[str, ...] = ()
    is_written: bool = False
    is_crashed: bool = False
    is_refused: bool = False
    more_bytes: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the server holds all there is to hold."""
        return not self.local_bytes and not self.local_files and not self.is_refused


def find_experiments(directories: Sequence[Path]) -> list[Path]:
    """The folders of experiments in directories, or that are named themselves; the oldest ids first.

    NothingFound where a directory is none, or there is no experiment in any.
    """
    found: dict[Path, None] = {}
    for directory in directories:
        if segment_files(directory.absolute()):
            found[directory.absolute()] = None
            continue
        try:
            inside = experiment_folders(directory.absolute())
        except OSError as error:
            raise NothingFound(
                f"cannot read {directory}: {error.strerror}", "Name the directory that experiments lie in."
            ) from None
        found.update(dict.fromkeys(folder for folder in reversed(inside) if segment_files(folder)))
    if not found:
        raise NothingFound(
            f"there is no experiment in {', '.join(map(str, directories))}",
            "Name the directory that experiments lie in; the SDK's is ./experiments or GPU_MONITOR_DIR.",
        )
    return list(found)


class Sync:
    """Brings experiments to one server, one after the other, in the caller's thread.

    `moved` is told of bytes as they go, and of the experiment. `again`: everything is sent again, whatever is
    remembered here; else the server is asked for each segment whether it still holds what it held.
    """

    def __init__(
        self,
        server: ExperimentServer,
        *,
        again: bool = False,
        moved: Callable[[int, str], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._server = server
        self._again = again
        self._moved = moved or _ignore
        self._clock = clock or SystemClock()
        self._patience = Patience()
        self._never = threading.Event()
        self.stopped: Told | None = None
        """Why nothing more is sent to this server; None while it takes things."""

    def owed(self, folders: Sequence[Path]) -> int:
        """Bytes of segments to go, as far as is known here; files come on top."""
        paths = (path for folder in folders for path in segment_files(folder))
        return sum(max(0, size_of(path) - self._known(path)) for path in paths)

    def run(self, folders: Sequence[Path]) -> Iterator[Synced]:
        """Send what each experiment owes; what became of it."""
        for folder in folders:
            yield self._bring(folder)

    def _known(self, path: Path) -> int:
        sent = None if self._again else read_sent(path).get(self._server.base)
        return 0 if sent is None else sent.offset

    def _bring(self, folder: Path) -> Synced:
        blobs = BlobSender(self._server)
        senders = [
            SegmentSender(self._server, blobs, path, trusts_cache=not self._again)
            for path in segment_files(folder)
        ]
        uploaded = 0
        for sender in senders:
            before = self._known(sender.path)
            if before:
                sender.look_again()
            try:
                self._send(sender, blobs)
            finally:
                sender.save()
            uploaded += max(0, sender.held - min(before, sender.least))
        # Once all are there: a later segment may say that the run went on, or how it ended.
        standings = [self._tell_end(sender) for sender in senders]
        standing = next((one for one in reversed(standings) if one is not None), None)
        return self._sum_up(folder, senders, blobs, uploaded, is_crashed=standing == "crashed")

    def _send(self, sender: SegmentSender, blobs: BlobSender) -> None:
        """One segment, as far as it goes."""
        while self.stopped is None:
            before = sender.held + blobs.sent_bytes
            told = sender.step()
            if told is None:
                return
            self._moved(max(0, sender.held + blobs.sent_bytes - before), sender.experiment_id)
            if told.meaning is Meaning.ABSENT:
                sender.problem = told.text
            elif told.is_for_all:
                self._wait(told)
            else:
                self._patience.succeeded()

    def _tell_end(self, sender: SegmentSender) -> str | None:
        """Tell the server of a writer that vanished, where it is not known to know; the experiment's status there then.

        A server that does not take it is no reason to fail: it holds everything.
        """
        if self.stopped is not None or sender.problem is not None or sender.is_end_told:
            return None
        gone = find_vanished(sender.path)
        while gone is not None and self.stopped is None:
            told = gone.tell(self._server, BY)
            if told.meaning is Meaning.HELD:
                self._patience.succeeded()
                sender.note_end_told()
                return told.standing
            if not told.is_for_all or told.status == 409:
                return None
            self._wait(told)
        return None

    def _wait(self, told: Told) -> None:
        """Before the next try; or see that there is none."""
        pause = self._patience.failed(told)
        is_over = told.meaning in (Meaning.UNAUTHORISED, Meaning.STOPPED)
        if is_over or self._patience.failures >= TRIES or pause > LONGEST_WAIT:
            self.stopped = told
            return
        self._clock.wait(self._never, self._clock.monotonic() + pause)

    def _left(self, sender: SegmentSender) -> int:
        """Bytes that should have gone and did not; what a living process has written since is none of them."""
        if sender.problem is not None:
            return max(0, sender.size() - sender.held)
        return 0 if self.stopped is None else sender.left()

    def _sum_up(
        self,
        folder: Path,
        senders: Sequence[SegmentSender],
        blobs: BlobSender,
        uploaded: int,
        *,
        is_crashed: bool,
    ) -> Synced:
        header = next(filter(None, (read_header(sender.path) for sender in senders)), None)
        owing = [sender for sender in senders if not sender.is_deleted_there]
        behind = sum(max(0, sender.size() - sender.held) for sender in owing)
        local = sum(self._left(sender) for sender in owing)
        # A file that a record of this experiment names may be owed by several of its segments.
        files = set(blobs.problems).union(*(sender.owed_files for sender in owing))
        reasons = [sender.problem for sender in senders if sender.problem is not None]
        if self.stopped is not None and (local or files):
            reasons.append(self.stopped.text)
        return Synced(
            folder.name,
            header.about.name if header is not None else None,
            folder,
            uploaded_bytes=uploaded + blobs.sent_bytes,
            uploaded_files=blobs.sent_files,
            local_bytes=local,
            local_files=len(files),
            torn_bytes=max(0, behind - local),
            reasons=tuple(dict.fromkeys([*reasons, *blobs.problems.values()])),
            is_written=any(is_being_written(sender.path) for sender in senders),
            is_crashed=is_crashed,
            is_refused=bool(blobs.problems) or any(sender.problem is not None for sender in owing),
            more_bytes=sum(max(0, one.there - one.size()) for one in owing if one.problem is None),
        )


def _ignore(size: int, experiment_id: str) -> None:
    """Nobody wants to know how far it is."""
