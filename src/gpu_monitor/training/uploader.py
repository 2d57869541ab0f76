# SPDX-License-Identifier: MIT
"""The thread that brings experiments to a server while they are written: one for a process and server.

It reads the segments from disk, holds no lock of whoever writes them, and sleeps most of the time. Whatever the
server does, the training never waits for it; only `leave` does, for as long as its caller allows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_monitor.config.training import TrainingSettings
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.sinks.patience import Patience
from gpu_monitor.sinks.segments import SegmentSender, segment_files
from gpu_monitor.training.backlog import Backlog
from gpu_monitor.training.identity import find_rank, find_world_size
from gpu_monitor.training.leftovers import find_leftovers, is_being_written
from gpu_monitor.training.notice import tell
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.upload import Upload

ROUND_SECONDS = 0.5
"""Between two looks at the segments: a point is at the server within a second, and a run asks twice a second at most."""
WORTH_BYTES = 128 << 10
"""A round that moved more goes on at once: there is more to come."""
LEASE_SECONDS = 20.0
"""The server takes a run that says nothing for 60 s for one it does not hear from."""
SAVE_SECONDS = 5.0
DEAD_TRIES, LAST_TRIES = 3, 5
"""Failures in a row after which a run that ends is left to `gpu_monitor sync`: some 2 s where nobody listens, some
10 s where the server answers that it cannot."""
LEFT_EXPERIMENTS, LEFT_BYTES = 200, 256 << 20
"""Of earlier runs: how many are looked at, and how much goes, a piece a round, while the own have nothing to send."""
_LONG_SECONDS = 3600.0
"""After a mistake of ours: the thread must not fill a log."""


class Uploader:
    """Uploads to one server in a daemon thread that lives while there is something to do. Methods: any thread."""

    def __init__(
        self,
        server: ExperimentServer,
        directory: Path | None = None,
        clock: Clock | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`directory`: where earlier runs may have left something; None: they are not looked for."""
        self.server = server
        self._clock = clock or SystemClock()
        self._patience = patience or Patience()
        self._directory = directory
        self._lock = threading.Lock()
        self._uploads: list[Upload] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._retry_at = float("-inf")
        self._leftovers: Iterator[list[Path]] | None = None
        self._leftover: Backlog | None = None
        self._goes_on = False
        """Whether a living process writes the experiment of the leftover: it has not ended, whoever vanished before."""
        self._left_bytes = 0
        self.mistakes = 0
        """Errors of this program itself that ended a round."""

    def add(self, upload: Upload) -> None:
        """Bring a run to the server from now on."""
        upload.heard = self._clock.monotonic()
        with self._lock:
            self._uploads.append(upload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gpu_monitor-upload", daemon=True)
                self._thread.start()
        self._wake.set()

    def leave(self, upload: Upload, timeout: float) -> str | None:
        """Send what is left of a run that has ended, for `timeout` seconds; what is still only here, in words.

        It comes back earlier where nothing can be done now. The thread goes on with it after that if it still may.
        """
        with self._lock:
            upload.is_leaving = True
            self._patience.succeeded()
            self._retry_at = float("-inf")
        self._wake.set()
        self._clock.wait(upload.done, self._clock.monotonic() + timeout)
        return self._words(upload, timeout)

    def _words(self, upload: Upload, timeout: float) -> str | None:
        left = upload.left()
        reasons = list(dict.fromkeys(upload.why()))
        missing = upload.missing()
        if not left and not missing and (upload.is_deleted_there or not upload.is_refused):
            return None
        folder, command = upload.path.parent, f"`gpu_monitor sync {upload.path.parent.parent}`"
        if not left and not missing:
            return (
                f"what {folder} holds cannot be uploaded: {reasons[0].rstrip('.')}; {command} tries it again"
            )
        if not left:
            why = missing[0].rstrip(".")
            return f"{len(missing)} of its files were not uploaded ({why}); {command} tries them again"
        late = f"{timeout:g} s were not enough" if not upload.done.is_set() else "it was not sent"
        reason = "; ".join(one.rstrip(".") for one in reasons[:2]) or late
        text = f"{left:,} bytes are only in {folder}, not on {self.server.name}: {reason}. "
        if upload.is_deleted_there:
            return f"{text}They stay here; that server takes nothing more of this experiment"
        if upload.is_refused:
            return f"{text}They stay here, and go nowhere until that is mended; {command} tries it again"
        return f"{text}Nothing is lost; {command} uploads them, and so does the next start"

    def _work(self) -> None:
        while True:
            try:
                pause = self._round()
            except Exception as error:  # noqa: BLE001 (told and counted; the training goes on)
                # A mistake of ours must not end with a traceback in somebody's training, nor go unseen.
                self.mistakes += 1
                if self.mistakes == 1:
                    tell(f"the uploader failed ({type(error).__name__}: {error}); everything stays on disk")
                pause = _LONG_SECONDS
                self._give_up_leaving()
            if pause is None:
                return
            self._clock.wait(self._wake, self._clock.monotonic() + pause)
            self._wake.clear()

    def _round(self) -> float | None:
        """Send what there is; seconds until the next look, None where the thread is over."""
        now = self._clock.monotonic()
        with self._lock:
            uploads = list(self._uploads)
            if not uploads:
                self._thread = None
                self.server.close()
                return None
        if now < self._retry_at:
            return self._retry_at - now
        is_busy = False
        for upload in uploads:
            told, moved = self._drive(upload)
            if told is not None and told.is_for_all:
                return self._failed(uploads, told)
            is_busy = is_busy or moved >= WORTH_BYTES or (upload.is_leaving and not upload.done.is_set())
        if is_busy:
            return 0.0
        told = self._sweep()
        if told is not None and told.is_for_all:
            return self._failed(uploads, told)
        return ROUND_SECONDS

    def _drive(self, upload: Upload) -> tuple[Told | None, int]:
        """One request for each segment of a run that has something to send, and one for what earlier processes left of
        it: the answer that stops all, and bytes."""
        is_leaving = upload.is_leaving  # asked before the look: what was logged until then is found by it
        upload.look_around(self._clock.monotonic(), is_leaving)
        before = upload.moved()
        is_idle = True
        for sender in list(upload.senders.values()):
            told = sender.step()
            if told is None:
                self._tell_problem(upload, sender)
                continue
            is_idle = False
            if told.meaning is Meaning.ABSENT:
                sender.problem = told.text
            if told.is_for_all:
                upload.last = told
                return told, 0
            self._patience.succeeded()
            if sender is upload.own and told.meaning is Meaning.HELD:
                upload.heard = self._clock.monotonic()
        # The own ones go first, and one request more goes with them: so neither waits for the other.
        told = upload.backlog.step(may_tell=upload.own.held > 0)
        if told is not None and not told.is_for_all:
            self._patience.succeeded()
        is_idle = is_idle and told is None
        for sender in upload.backlog.failed:
            self._tell_problem(upload, sender)
        if told is None or not told.is_for_all:
            told = self._keep_lease(upload) if not is_leaving else None
        if told is not None and told.is_for_all:
            upload.last = told
            return told, 0
        moved = upload.moved() - before
        upload.last, upload.failures = None, 0
        now = self._clock.monotonic()
        if is_idle and is_leaving:
            self._finish(upload, now)
        elif now - upload.saved >= SAVE_SECONDS:
            upload.save(now)
        has_more = any(sender.has_files_to_send for sender in upload.senders.values())
        return None, moved if moved and not has_more else 0 if is_idle else max(moved, WORTH_BYTES)

    def _keep_lease(self, upload: Upload) -> Told | None:
        """Say that the run lives where its records have not said so for a while."""
        now = self._clock.monotonic()
        is_known = upload.own.held > 0 and upload.own.problem is None
        if now - upload.heard < LEASE_SECONDS or not is_known or not upload.may_tell_alive:
            return None
        told = self.server.tell_alive(upload.path.parent.name, upload.path.stem, upload.at())
        upload.heard = now
        upload.may_tell_alive = told.meaning not in (Meaning.ABSENT, Meaning.REFUSED)
        return told

    def _sweep(self) -> Told | None:
        """One request for what earlier runs left, while there is nothing else to do."""
        if self._directory is None or self._left_bytes > LEFT_BYTES:
            return None
        if self._leftovers is None:
            own = {upload.path.parent.name for upload in self._uploads}
            self._leftovers = find_leftovers(self._directory, self.server.base, LEFT_EXPERIMENTS, own)
        if self._leftover is None:
            paths = next(self._leftovers, None)
            if paths is None:
                self._directory = None
                return None
            self._leftover = Backlog(self.server)
            for path in paths:
                self._leftover.add(path)
            self._goes_on = any(is_being_written(path) for path in segment_files(paths[0].parent))
        before = self._leftover.moved
        told = self._leftover.step(may_tell=not self._goes_on)
        self._left_bytes += self._leftover.moved - before
        if told is None:
            self._leftover = None
        return told

    def _failed(self, uploads: list[Upload], told: Told) -> float:
        """Nothing can be sent now: seconds until it is tried again."""
        self._say(uploads[0], told)
        with self._lock:
            pause = self._patience.failed(told)
            self._retry_at = self._clock.monotonic() + pause
        for upload in uploads:
            if upload.is_leaving:
                upload.last = told
                upload.failures += 1
                most = DEAD_TRIES if told.meaning is Meaning.UNREACHABLE else LAST_TRIES
                if upload.failures >= most or told.meaning is Meaning.UNAUTHORISED:
                    self._finish(upload, self._clock.monotonic())
        return pause

    def _say(self, upload: Upload, told: Told) -> None:
        if told.meaning is Meaning.UNAUTHORISED:
            text = f"{told.text}. Nothing is uploaded until the token is right (GPU_MONITOR_TOKEN); "
        elif self._patience.failures + 1 < DEAD_TRIES:
            return  # a restart of the server, or a lost packet, is no news
        else:
            text = f"nothing can be uploaded now: {told.text}; it is tried again and again; "
        upload.tell(
            f"upload:{told.meaning.value}", f"{text}everything is kept in {upload.path.parent.parent}"
        )

    def _tell_problem(self, upload: Upload, sender: SegmentSender) -> None:
        if sender.problem is not None:
            upload.tell(f"upload:{sender.segment}", f"{sender.segment} cannot be uploaded: {sender.problem}")

    def _finish(self, upload: Upload, now: float) -> None:
        """The run is done here."""
        upload.save(now)
        with self._lock:
            if upload in self._uploads:
                self._uploads.remove(upload)
        upload.done.set()
        self._wake.set()

    def _give_up_leaving(self) -> None:
        with self._lock:
            leaving = [upload for upload in self._uploads if upload.is_leaving]
            self._uploads = [upload for upload in self._uploads if not upload.is_leaving]
        for upload in leaving:
            upload.done.set()


class Uploaders:
    """The uploaders of this process, by server. A forked child begins with none: its parent's threads are not in it."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], Uploader] = {}

    def find(self, base: str, make: Callable[[], Uploader]) -> Uploader:
        """The uploader for the server at `base`, made at its first use."""
        key = (os.getpid(), base)
        found = self._held.get(key)
        if found is None:
            found = self._held[key] = make()
        return found


UPLOADERS = Uploaders()
"""Those of this process: one thread for each server, however many runs it records."""


class Delivery:
    """The part of an open experiment that has it uploaded (`training.parts`)."""

    def __init__(self, uploader: Uploader, upload: Upload, recorder: Recorder) -> None:
        self._uploader = uploader
        self._upload = upload
        self._recorder = recorder

    def close(self, timeout: float) -> str | None:
        """Send what is left; what is only here after that, in words."""
        self._recorder.settle()  # what was deleted just now is not there to be sent
        return self._uploader.leave(self._upload, timeout)


def begin(recorder: Recorder, settings: TrainingSettings) -> Delivery:
    """Have the experiment of a recorder uploaded from now on. Nothing is sent in the caller's thread."""
    base = settings.server or ""

    def make() -> Uploader:
        server = ExperimentServer(base, settings.read_token, settings.ca_file)
        wrong = server.prepare()
        if wrong is not None:
            recorder.warn_once("upload:prepare", f"{wrong.text}; everything is kept in {settings.directory}")
        # Of the ranks of one start, one is enough to look after earlier runs.
        return Uploader(server, settings.directory if rank == 0 else None)

    rank = find_rank() or 0
    uploader = UPLOADERS.find(base, make)
    share = rank, find_world_size() or 1
    upload = Upload(uploader.server, recorder.writer.path, recorder.at, recorder.warn_once, share, recorder)
    uploader.add(upload)
    return Delivery(uploader, upload, recorder)
