"""Whose turn it is on a connection that several threads share."""

from __future__ import annotations

import threading
from types import TracebackType


class Turn:
    """A lock that its owner may enter again and that is handed on fairly.

    A thread that lets go and asks again at once comes after one that was waiting already, so a loop of
    short transactions holds up another thread for one of them at most. A signal handler that enters it
    while its thread has it, or waits for it, gets it like any other.
    """

    def __init__(self) -> None:
        self._next = threading.RLock()  # whoever waits for the turn holds this, so nobody overtakes it
        self._turn = threading.RLock()

    def __enter__(self) -> None:
        # The method that threading.Condition asks, too: an owner noted by us would lag behind the lock itself.
        if self._turn._is_owned():  # type: ignore[attr-defined]
            self._turn.acquire()
            return
        with self._next:
            self._turn.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn.release()
