"""The lock by which an agent is the only one on its store, kept even where somebody removes its file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageBusy, StorageFull
from gpu_monitor.storage.locks import FileLock, agent_path, holder

_LOG = logging.getLogger("storage")
_PATIENCE_SECONDS = 0.3
"""A reader that looks whether the lock is held has it for some microseconds; another agent has it for good."""


class Tenure:
    """Held from `take` to `close` by the one agent of `store`. One thread."""

    def __init__(self, store: Path, clock: Clock | None = None) -> None:
        self._store = store
        self._path = agent_path(store)
        self._lock = FileLock(self._path, clock)
        self._rival: str | None = None

    def take(self) -> None:
        """Be the one agent; StorageBusy naming the other's pid where there is one already."""
        try:
            self._lock.acquire(_PATIENCE_SECONDS)
        except StorageBusy:
            self.close()
            pid = self._holder()
            raise StorageBusy(
                f"an agent (pid {pid}) already runs on {self._store}",
                f"Stop it (kill {pid}), or set another database.file.",
            ) from None
        self._lock.write_text(f"{os.getpid()}\n")

    def rival(self) -> str | None:
        """The pid of an agent that took the store over, None while it is ours; the first one found is the last.

        A lock file that was removed or replaced is locked anew, so that no second agent starts; where one
        was quicker it is the rival. StorageError where the file cannot be made again.
        """
        if self._rival is None and not self._lock.is_current():
            try:
                self._lock.acquire(_PATIENCE_SECONDS)
            except StorageBusy:
                self._rival = self._holder()
                return self._rival
            _LOG.warning("the lock file %s was removed: it is there again", self._path)
            try:
                self._lock.write_text(f"{os.getpid()}\n")
            except StorageFull as error:  # held all the same; the pid is for people
                _LOG.warning("%s", error)
        return self._rival

    def _holder(self) -> str:
        return holder(self._path) or "unknown"

    def close(self) -> None:
        """Leave the store to others."""
        self._lock.close()
