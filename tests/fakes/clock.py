"""A clock that moves only when a test says so."""

from __future__ import annotations

import threading


class FakeClock:
    """Implements `core.clock.Clock`: `advance` lets time pass, `step` moves the wall clock alone.

    The monotonic clock begins below zero, as that of a sped-up agent does: its origin is arbitrary.
    `wait` does not block: it moves the clock to its deadline, unless the event is set already.
    """

    def __init__(self, now: float = 1_700_000_000.0, monotonic: float = -5000.0) -> None:
        self._now, self._monotonic, self._suspended = now, monotonic, 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """UTC epoch seconds."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        with self._lock:
            return self._monotonic

    def suspended(self) -> float:
        """Seconds slept so far."""
        with self._lock:
            return self._suspended

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """True if `event` is set; else the clock moves to `deadline`."""
        if event.is_set():
            return True
        self.advance(max(0.0, deadline - self.monotonic()))
        return False

    def advance(self, seconds: float) -> None:
        """`seconds` pass."""
        with self._lock:
            self._now += seconds
            self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock by `seconds`; no time passes."""
        with self._lock:
            self._now += seconds

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: the wall clock goes on, the monotonic one stands still."""
        with self._lock:
            self._now += seconds
            self._suspended += seconds
