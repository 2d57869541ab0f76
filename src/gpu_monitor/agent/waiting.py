"""What waits in memory while the store cannot be written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from gpu_monitor.agent.collect import Absence, Collection
from gpu_monitor.agent.store import Store
from gpu_monitor.core.model import Event

_NOTES = 1000
"""Events and gaps that are kept without rows, each: with the longest queue about a megabyte in all."""
CAUSE = "store not writable"


class Queue:
    """Collections that could not be stored yet, oldest first, at most `limit` of them.

    What does not fit goes from the oldest end: its events and gaps are kept, its rows are counted, and
    the time they stood for is put on record as a gap as soon as the store can be written again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Collection] = deque()
        self._events: deque[Event] = deque()
        self._absences: deque[Absence] = deque()
        self._lost: list[Absence] = []
        self._lost_rows = 0
        self._lost_notes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, collection: Collection) -> list[Collection]:
        """Add one; returns what had to go."""
        self._waiting.append(collection)
        dropped = []
        while len(self._waiting) > self._limit:
            oldest = self._waiting.popleft()
            self.note(oldest.events, oldest.absences)
            # The first reading of an interval waits beside the whole of it, which is all that counts.
            if not self._waiting or not _is_same_part(oldest, self._waiting[0]):
                self._lose(oldest)
                dropped.append(oldest)
        return dropped

    def note(self, events: Iterable[Event], absences: Iterable[Absence]) -> None:
        """Add events and gaps that have no rows."""
        self._events.extend(events)
        self._absences.extend(absences)
        for notes in (self._events, self._absences):
            while len(notes) > _NOTES:
                notes.popleft()
                self._lost_notes += 1

    def _lose(self, collection: Collection) -> None:
        start = float(collection.start) if collection.began is None else collection.began
        end = max(start, collection.until)
        self._lost_rows += len(collection.gpus)
        before = self._lost[-1] if self._lost else None
        if before is not None and before.end == start:
            self._lost[-1] = replace(before, end=end)
        elif end > start:
            self._lost.append(Absence(start, end, CAUSE, None, "the queue in memory was full"))

    def newest_end(self) -> float | None:
        """The end of the newest interval that waits, if it is complete; else its start. None: nothing waits."""
        if not self._waiting:
            return None
        newest = self._waiting[-1]
        end = newest.start + newest.interval
        return float(end if newest.until >= end else newest.start)

    def oldest_start(self) -> float | None:
        """From when on the oldest interval that waits has data. None: nothing waits."""
        if not self._waiting:
            return None
        oldest = self._waiting[0]
        return float(oldest.start) if oldest.began is None else oldest.began

    def drain(self, store: Store, now: float) -> int:
        """Store what waits, oldest first, then what was lost; StorageError leaves the rest waiting.

        Returns how many rows were lost.
        """
        while self._waiting:
            store.write(self._waiting[0])
            self._waiting.popleft()
        lost = self._lost_rows
        if self._events or self._absences or self._lost or lost:
            losses = [("samples", CAUSE, lost), ("notes", CAUSE, self._lost_notes)]
            absences = [*self._absences, *self._lost]
            store.record(self._events, absences, [loss for loss in losses if loss[2]], now)
            self._events.clear()
            self._absences.clear()
            self._lost.clear()
            self._lost_rows = self._lost_notes = 0
        return lost


def _is_same_part(one: Collection, other: Collection) -> bool:
    return (one.start, one.began) == (other.start, other.began)
