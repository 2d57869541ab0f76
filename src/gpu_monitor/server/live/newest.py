"""The newest change there is: told by the writer of this process, and on PostgreSQL by the others', too."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Newest:
    """The number of the newest change known here. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Callable[[int], None]] = []
        self.seq = 0

    def listen(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with every newer number, in whatever thread brought it; it must be quick."""
        self._listeners.append(listener)

    def tell(self, seq: int) -> None:
        """Say that there is a change of this number; an older one than is known says nothing."""
        with self._lock:
            if seq <= self.seq:
                return
            self.seq = seq
        for listener in self._listeners:
            listener(seq)
