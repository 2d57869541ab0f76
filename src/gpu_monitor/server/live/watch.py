"""Which nodes somebody looks at now, so that their agents send at a faster pace for as long as that lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

WATCH_SECONDS = 2
"""The pace of a watched node."""
WATCHED_NODES = 64
"""At most so many at once in one process: at 2 s they send 32 requests a second."""


class WatchList:
    """The watched nodes, by their id. `seconds` is for any thread and costs one look-up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: frozenset[str] = frozenset()
        self._elsewhere: frozenset[str] = frozenset()
        self._all: frozenset[str] = frozenset()
        self._told: list[Callable[[], None]] = []

    def seconds(self, node_uuid: str) -> int | None:
        """The pace that the node's agent is asked for; None where nobody looks."""
        return WATCH_SECONDS if node_uuid in self._all else None

    @property
    def here(self) -> frozenset[str]:
        """Those that are looked at through this process."""
        return self._here

    def look(self, node_uuids: Iterable[str]) -> None:
        """Say which nodes are looked at through this process now; of too many, those that were first stay."""
        wanted = frozenset(node_uuids)
        if wanted == self._here:
            return
        if len(wanted) > WATCHED_NODES:
            kept = sorted(wanted & self._here)
            wanted = frozenset([*kept, *sorted(wanted - self._here)][:WATCHED_NODES])
        with self._lock:
            if wanted == self._here:
                return
            self._here = wanted
            self._all = wanted | self._elsewhere
        for told in self._told:
            told()

    def hear(self, node_uuids: Iterable[str]) -> None:
        """Say which nodes are looked at through other processes."""
        with self._lock:
            self._elsewhere = frozenset(node_uuids)
            self._all = self._here | self._elsewhere

    def on_change(self, told: Callable[[], None]) -> None:
        """Call `told` whenever `here` changes, in the thread that changed it; it must be quick."""
        self._told.append(told)
