"""Collections that wait in memory while the store cannot be written."""

from __future__ import annotations

from collections import deque

from gpu_monitor.agent.collect import Collection
from gpu_monitor.agent.store import Store


class Queue:
    """Collections that could not be stored yet, oldest first, at most `limit` of them.

    What does not fit is dropped from the oldest end and handed back, so that it can be put on record.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Collection] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, collection: Collection) -> list[Collection]:
        """Add one; returns what had to go."""
        self._waiting.append(collection)
        dropped = []
        while len(self._waiting) > self._limit:
            dropped.append(self._waiting.popleft())
        return dropped

    def newest_end(self) -> float | None:
        """The end of the newest interval that waits, if it is complete; else its start. None: nothing waits."""
        if not self._waiting:
            return None
        newest = self._waiting[-1]
        end = newest.start + newest.interval
        return float(end if newest.until >= end else newest.start)

    def drain(self, store: Store) -> None:
        """Store what waits, oldest first; StorageFull or another storage error leaves the rest waiting."""
        while self._waiting:
            store.write(self._waiting[0])
            self._waiting.popleft()
