"""The thread that takes out what is over: deleted experiments, points past their age, files that nobody names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.experiments.blobs import BlobStore
from gpu_monitor.server.store.blob_rows import take_unnamed
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.experiment_removal import finish_removals, thin_finished

_LOG = logging.getLogger("retention")
_ROUND_SECONDS = 300.0
_NIGHT_SECONDS = 86400.0
_UNNAMED = 500
"""Files in one transaction."""


class Upkeep:
    """One of the server's parts. `kick` has it look for deleted experiments now; any thread.

    `days`: points of experiments that ended so long ago go; None keeps them.
    """

    def __init__(self, store: Store, clock: Clock, blobs: BlobStore, days: int | None) -> None:
        self._store, self._clock, self._blobs, self._days = store, clock, blobs, days
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._next_night = float("-inf")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch under way."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5.0)

    def kick(self) -> None:
        """Look for deleted experiments at once."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._clock.wait(self._wake, self._clock.monotonic() + _ROUND_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            self._guarded(self.take_out)
            if self._clock.monotonic() >= self._next_night:
                self._next_night = self._clock.monotonic() + _NIGHT_SECONDS
                self._guarded(self.thin)

    def take_out(self) -> None:
        """Finish what was deleted."""
        for digest in finish_removals(self._store, self._clock.now(), self._stop):
            self._blobs.remove(digest)

    def thin(self) -> None:
        """What is done once a day."""
        now = self._clock.now()
        if self._days is not None:
            count = thin_finished(self._store, now, self._days, self._stop)
            if count:
                _LOG.info("points past METRICS_RETENTION_DAYS were taken out of %d experiments", count)
        while not self._stop.is_set():
            with self._store.write() as connection:
                gone = take_unnamed(connection, now, limit=_UNNAMED)
            for digest in gone:
                self._blobs.remove(digest)
            if len(gone) < _UNNAMED:
                break
        self._blobs.give_up_old()

    def _guarded(self, work: Callable[[], None]) -> None:
        """What could not be done now is due again in the next round."""
        try:
            work()
        except (StorageError, OSError) as error:
            _LOG.warning("nothing of experiments is taken out now: %s", error)
