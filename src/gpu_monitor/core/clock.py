# SPDX-License-Identifier: MIT
"""Time as an argument: the only module that calls `time`."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

_ARRIVAL_SECONDS = 0.5
"""Real seconds in which a fast clock's lag falls to 1/e near the present; being busy for some ten of them is safe."""
_ARRIVED = 0.001
"""Seconds of lag that nobody can tell from none."""


class Clock(Protocol):
    """Wall time, monotonic time and interruptible waiting."""

    def now(self) -> float:
        """UTC epoch seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; the origin is arbitrary."""
        ...

    def suspended(self) -> float:
        """Seconds this machine has slept since boot, as far as the system tells; only differences count."""
        ...

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """Wait until `event` is set (True) or monotonic `deadline` has come (False)."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """UTC epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of the monotonic clock, which stands still while the machine sleeps (Linux)."""
        return time.monotonic()

    def suspended(self) -> float:
        """Difference of CLOCK_BOOTTIME and CLOCK_MONOTONIC; 0.0 where the system has no such clock."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        if boottime is None:
            return 0.0
        return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """Wait for `event` or the deadline."""
        return event.wait(max(0.0, deadline - time.monotonic()))


class FastClock:
    """A clock that starts at `start` and runs `speed` times as fast, but never past the real time.

    It stands still until it is first waited on, so that building the agent takes none of its time. It
    serves simulation and replay: where the agent cannot keep up, the clock waits for it instead
    of making it miss intervals, so a sped-up day holds every minute. Once it has caught up with the
    present it goes on at the pace of the real clock. It slows down before that: at full speed an agent
    that is busy for half a second would be thrown over the last hour, and would have a gap there.
    """

    def __init__(self, start: float, speed: float, real: Clock | None = None) -> None:
        self.speed = speed
        self._real = real or SystemClock()
        self._start = start
        self._is_going = False
        self._lag = 0.0
        self._at = 0.0
        self._lock = threading.Lock()

    def _settle(self) -> float:
        """Seconds behind the real clock now."""
        with self._lock:
            moment = self._real.monotonic()
            if not self._is_going:
                self._at, self._lag = moment, max(0.0, self._real.now() - self._start)
                return self._lag
            self._lag = self._left(moment - self._at)
            self._at = moment
            return self._lag

    def _left(self, passed: float) -> float:
        """How far it is behind after `passed` more real seconds: at full speed first, then ever more gently."""
        lag, near = self._lag, (self.speed - 1.0) * _ARRIVAL_SECONDS
        if near <= 0:
            return lag
        if lag > near:
            far = (lag - near) / (self.speed - 1.0)
            if passed <= far:
                return lag - passed * (self.speed - 1.0)
            lag, passed = near, passed - far
        lag *= math.exp(-passed / _ARRIVAL_SECONDS)
        return lag if lag > _ARRIVED else 0.0

    def now(self) -> float:
        """UTC epoch seconds of the simulated time."""
        lag = self._settle()
        return self._real.now() - lag

    def monotonic(self) -> float:
        """Seconds that pass `speed` times as fast as real ones until the present is reached."""
        lag = self._settle()
        return self._at - lag

    def suspended(self) -> float:
        """Always 0.0: simulated machines do not sleep."""
        return 0.0

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """Wait for `event` or the deadline of the simulated monotonic clock."""
        self._settle()
        self._is_going = True
        while not event.is_set():
            left = deadline - self.monotonic()
            if left <= 0:
                self._hold(-left)
                return False
            caught_up = self._lag <= 0
            if event.wait(left if caught_up else min(left / self.speed, 0.5)):
                return True
        return True

    def _hold(self, late: float) -> None:
        """Take back what ran past a deadline while the agent was busy (only behind the present)."""
        with self._lock:
            if self._lag > 0:
                self._lag += late


def real_seconds(clock: Clock, seconds: float) -> float:
    """How many real seconds `seconds` of `clock` last at its present speed."""
    return seconds / clock.speed if isinstance(clock, FastClock) else seconds


def process_seconds() -> float:
    """Monotonic seconds for timing our own work."""
    return time.monotonic()


def elapsed_seconds() -> float:
    """Seconds of a clock that nobody sets and that goes on while the machine sleeps; the origin is arbitrary."""
    which = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC", None)
    return time.monotonic() if which is None else time.clock_gettime(which)


def local_offset_name() -> str:
    """The name of the local time zone, for messages."""
    return time.strftime("%Z")
